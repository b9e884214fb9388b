# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Merge rules: pure functions of the same block of every ingredient.

A rule sees a stack of K blocks, one an ingredient, and perhaps the block of a
base model. It knows neither where they come from nor which leaf they belong to,
so that one rule serves files, meshes and blocks of any size.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from soupjax.soups import exact
from soupjax.soups.average import check_weights

Values = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rule:
  """One way to merge.

  Attributes:
    name: what reports call it.
    combine: `combine(stack, base, values)` returns the merged block in float32.
      Pure, jittable and elementwise. `stack` is (K, n), or a sequence of K
      arrays of one shape; `base` is one such array, or None; dtypes are those
      of the files, so cast first. Compiled once for each function object:
      define it at module level.
    values: `values(count)` returns the numbers that go with `count`
      ingredients: a dict of arrays. They are traced, so that other numbers
      need no new compilation.
    settings: JSON that says what was done, for the record.
    needs_base: whether there is no rule without a base model.
  """

  name: str
  combine: Callable[[Any, jax.Array | None, Values], jax.Array]
  values: Callable[[int], Values]
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  needs_base: bool = False


def _linear(stack, base, values):
  del base
  return exact.linear(stack, values["weights"], values["scale"])


def _uniform(stack, base, values):
  del base
  return exact.linear(stack, None, values["scale"], weighted=False)


def _lerp(stack, base, values):
  stack = [base, *(stack[k] for k in range(len(stack)))]
  return exact.linear(stack, values["weights"], values["scale"])


def _values(weights: np.ndarray) -> Values:
  return {
    "weights": weights,
    "scale": exact.reciprocal(weights.sum(dtype=np.float64)),
  }


def linear(weights: Sequence[float] | None = None) -> Rule:
  """The weighted mean, `sum_k w_k t_k / sum_k w_k`.

  Args:
    weights: one number an ingredient; None weighs all alike (the uniform soup
      of arXiv 2203.05482).

  Returns:
    The rule. It warns about negative weights when it meets the ingredients.
  """
  if weights is None:
    return Rule(
      name="uniform",
      combine=_uniform,
      values=lambda count: {"scale": exact.reciprocal(count)},
    )
  weights = [float(w) for w in np.asarray(weights).reshape(-1)]
  return Rule(
    name="weighted",
    combine=_linear,
    values=lambda count: _values(check_weights(weights, count)),
    settings={"weights": weights},
  )


def lerp(alpha: float) -> Rule:
  """From the base towards the mean of the ingredients (arXiv 2109.01903).

  Args:
    alpha: share of the ingredients; 0 gives the base and 1 their mean, bit for
      bit. Values outside [0, 1] extrapolate.

  Returns:
    The rule `(1 - alpha) * base + alpha * mean_k t_k`; it needs a base.

  Raises:
    ValueError: if alpha is not finite.
  """
  alpha = float(alpha)
  if not np.isfinite(alpha):
    raise ValueError(f"alpha must be a finite number, got {alpha}.")

  def values(count):
    weights = np.full(count + 1, alpha / count)
    weights[0] = 1 - alpha
    return _values(weights.astype(np.float32))

  make = functools.partial(
    Rule, name="interpolate", settings={"alpha": alpha}, needs_base=True
  )
  if alpha == 1:
    uniform = linear()
    return make(combine=uniform.combine, values=uniform.values)
  return make(combine=_lerp, values=values)
