# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Weighted means of the ingredients, and of a base with them."""

from collections.abc import Sequence
import functools

import numpy as np

from soupjax.soups import exact
from soupjax.soups.average import check_weights
from soupjax.soups.rules.base import Rule, Values


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
