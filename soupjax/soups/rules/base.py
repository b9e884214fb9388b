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

# Functions that return a Rule, by the name that a config gives them.
RULES = Registry("rule")


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
      need no new compilation. Raises if it cannot merge so many.
    leaf_values: `leaf_values(specs, count, every)` returns more numbers for
      each of the leaves that are merged, from names and shapes alone; `every`
      has the specs of all leaves, also of those that are kept or left out.
    measure: `measure(reader)` returns more numbers for each of the leaves, from
      a first pass over the weights by a
      `soupjax.soups.engine.first_pass.LeafReader`. They come to `combine` in
      the same dict.
    extra: trees that are read along with the ingredients, block by block, such
      as Fisher information; Ingredients, trees in memory, or paths. They come
      to `combine` as `values["extra"]`, like `stack`, in float32.
    extra_shape: `extra_shape(leaf, spec)` returns the shape that `extra` must
      have for a leaf, None where it plays no part.
    extra_optional: whether `extra` may lack a leaf, in all of it.
    extra_least: what no number in `extra` may be below.
    indexed: whether `combine` wants `values["index"]`, (2, n) uint32: low and
      high word of the place of every element in its leaf, row-major.
    seed: of random rules; `values["keys"]`, (K, 2) uint32, are then random
      keys made from it, from the name of the leaf and from those of the
      ingredients.
    whole: whether `combine` must see whole leaves, in their own shape.
    weights: of a weighted mean, one an ingredient; those of weight 0 are not
      read.
    settings: JSON that says what was done, for the record.
    needs_base: whether there is no rule without a base model.
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

  @property
  def by_leaf(self) -> bool:
    """Whether leaves differ in their numbers, and cannot share a block."""
    by_numbers = self.leaf_values or self.measure
    drawn = self.indexed or self.seed is not None
    return bool(by_numbers or self.extra or drawn or self.whole)


# Of a finite float, or a ValueError that names it.
check_number = arguments.real


def check_share(name: str, value: Any, *, zero: bool = False) -> float:
  """Returns a float in (0, 1], or [0, 1] if `zero`; else raises."""
  number = arguments.real(name, value)
  if not (0 <= number <= 1) or (number == 0 and not zero):
    raise ValueError(
      f"{name} is the share of elements, in {'[' if zero else '('}0, 1], got "
      f"{value!r}."
    )
  return number


def check_count(rule: str, count: int, least: int) -> None:
  """Raises if there are fewer ingredients than a rule needs."""
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
