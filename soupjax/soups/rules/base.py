# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The type of a merge rule."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from soupjax.registry import Registry
from soupjax.soups.core import arguments
from soupjax.soups.rules import coefficients

Values = Mapping[str, Any]
Specs = Mapping[str, jax.ShapeDtypeStruct]

# Functions that return a Rule, by the name that a config uses.
RULES = Registry("rule")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rule:
  """A way to merge models.

  Attributes:
    name: name in reports.
    combine: `combine(stack, base, values)` returns the merged block in float32.
      Pure, jittable and elementwise. `stack` is (K, n), or a sequence of K
      arrays of one shape; `base` is one such array, or None; dtypes are those
      of the files, so cast first. Compiled once for each function object:
      define it at module level.
    values: `values(count)` returns the values for `count` ingredients: a dict
      of arrays. They are traced, so that new numbers need no compilation.
      Raises a ValueError if the rule cannot merge that many.
    leaf_values: `leaf_values(specs, count, all_specs)` returns more values for
      each of the leaves that are merged, from names and shapes alone;
      `all_specs` has all leaves, including those that `select` keeps or skips.
    measure: `measure(reader)` returns more values for each of the leaves, from
      a first pass over the weights by a
      `soupjax.soups.engine.first_pass.LeafReader`. `combine` gets them in the
      same dict.
    extra: trees that are read along with the ingredients, block by block, such
      as Fisher information; Ingredients, trees in memory, or paths. `combine`
      gets them as `values["extra"]`, like `stack`, in float32.
    extra_shape: `extra_shape(leaf, spec)` returns the shape that `extra` must
      have for a leaf, None if the leaf does not need it.
    extra_optional: whether all of `extra` may lack a leaf.
    extra_least: smallest valid number in `extra`.
    indexed: whether `combine` needs `values["index"]`, (2, n) uint32: low and
      high words of the row-major index of every element in its leaf.
    seed: of random rules; `values["keys"]`, (K, 2) uint32, are then random
      keys made from the seed and the names of the leaf and the ingredients.
    whole: whether `combine` must see whole leaves, in their own shape.
    weights: of a weighted mean, one per ingredient; ingredients of weight 0 are
      not read.
    settings: the options as JSON values, for the provenance.
    needs_base: whether the rule requires a base model.
    affine: whether `combine` is an affine combination by `core.compensated`,
      `sum_k c_k t_k` with coefficients that do not depend on the weights. It
      then keeps all bits of float64 leaves, and may merge values near the
      limits of a dtype's range. Other rules compute in float32.
  """

  name: str
  combine: Callable[[Any, jax.Array | None, Values], jax.Array]
  values: Callable[[int], Values]
  leaf_values: Callable[[Specs, int, Specs], Mapping[str, Values]] | None = None
  measure: Callable[[Any], Mapping[str, Values]] | None = None
  extra: Sequence[Any] = ()
  extra_shape: Callable[[str, Any], tuple[int, ...] | None] | None = None
  extra_optional: bool = False
  extra_least: float | None = None
  indexed: bool = False
  seed: int | None = None
  whole: bool = False
  weights: tuple[float, ...] | None = None
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  needs_base: bool = False
  affine: bool = False

  @property
  def by_leaf(self) -> bool:
    """Whether leaves need separate values and cannot share a block."""
    random = self.indexed or self.seed is not None
    own_values = self.leaf_values or self.measure or self.extra
    return bool(own_values or random or self.whole)


check_number = arguments.real


def check_share(name: str, value: Any, *, zero: bool = False) -> float:
  """Returns a float in (0, 1], or [0, 1] if `zero`.

  Raises:
    ValueError: if the value is something else.
  """
  number = arguments.real(name, value)
  if not (0 <= number <= 1) or (number == 0 and not zero):
    raise ValueError(
      f"{name} must be in {'[' if zero else '('}0, 1], got {value!r}."
    )
  return number


def check_choice(name: str, value: Any, *choices: Any) -> Any:
  """Returns an option.

  Raises:
    ValueError: if it is not one of the choices.
  """
  if value not in choices:
    raise ValueError(
      f"{name}={value!r} must be one of {', '.join(map(repr, choices))}."
    )
  return value


def check_count(rule: str, count: int, least: int) -> None:
  """Raises a ValueError if a rule gets too few ingredients."""
  if count < least:
    raise ValueError(
      f"The rule {rule!r} needs at least {least} ingredients, got {count}."
    )


check_weights = coefficients.check_weights


def per_model(weights: Sequence[float] | None, count: int) -> np.ndarray:
  """Returns one float64 weight for each ingredient, ones if None.

  Raises:
    ValueError: if their number is wrong or one is not finite.
  """
  if weights is None:
    return np.ones(count)
  array = np.asarray(weights, np.float64)
  if array.shape != (count,) or not np.isfinite(array).all():
    raise ValueError(
      f"Expected one finite weight for each of {count} ingredients, got "
      f"{weights!r}."
    )
  return array


def scaled_rule(
  name: str,
  combine: Callable[[Any, jax.Array | None, Values], jax.Array],
  numbers: Callable[[float, Any, int], Values],
  scale: coefficients.Coefficient = 1.0,
  *,
  coefficient: str = "scale",
  weights: coefficients.Weights = None,
  more_values: Callable[[Specs], Mapping[str, Values]] | None = None,
  settings: Mapping[str, Any] | None = None,
  **fields: Any,
) -> Rule:
  """Makes a rule with a coefficient, and perhaps weights, that vary by leaf.

  Args:
    name: of the rule.
    combine: as in `Rule`.
    numbers: `numbers(scale, weights, count)` returns the values for `combine`.
    scale: the coefficient.
    coefficient: its name, for errors and settings; "" if there is none.
    weights: of the ingredients.
    more_values: `more_values(specs)` returns further values by leaf.
    settings: those besides the coefficient and weights.
    **fields: further attributes of `Rule`.
  """
  scale = coefficients.check(coefficient, scale)
  weights = coefficients.check_weights(weights)
  values, leaf_values = coefficients.split(coefficient, scale, weights, numbers)

  def all_leaf_values(specs, count, all_specs):
    by_leaf = leaf_values(specs, count, all_specs) if leaf_values else {}
    return {
      leaf: {**by_leaf.get(leaf, {}), **more}
      for leaf, more in more_values(specs).items()
    }

  return Rule(
    name=name,
    combine=combine,
    values=values,
    leaf_values=leaf_values if more_values is None else all_leaf_values,
    settings={
      **(settings or {}),
      **({coefficient: scale} if coefficient else {}),
      **({} if weights is None else {"weights": weights}),
    },
    **fields,
  )
