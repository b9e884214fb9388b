# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Per-leaf inputs of merge rules: values from metadata and extra arrays."""

import numpy as np

from soupjax.soups.core import slices, tree
from soupjax.soups.rules import random_masks


def _merged_specs(ingredients, actions):
  """Returns the specs of leaves that the rule merges, wholly or in part."""
  specs = ingredients[0].specs
  return {
    leaf: specs[leaf]
    for leaf, action in actions.items()
    if (action is None or isinstance(action, float))
    and leaf in specs
    and tree.is_float(specs[leaf])
  }


def all_specs(models):
  """Returns the specs of all leaves of models, in the order of their names."""
  specs = {}
  for model in models:
    specs = {**model.specs, **specs}
  return dict(sorted(specs.items()))


def per_leaf_values(rule, ingredients, base, actions):
  """Returns the values of a rule by leaf, from metadata alone."""
  specs = _merged_specs(ingredients, actions)
  values = {}
  if rule.leaf_values is not None and specs:
    models = [*ingredients, *([] if base is None else [base])]
    values |= rule.leaf_values(specs, len(ingredients), all_specs(models))
  if rule.seed is not None:
    names = [ingredient.name for ingredient in ingredients]
    for leaf in specs:
      keys = random_masks.keys(rule.seed, leaf, names)
      values[leaf] = {**values.get(leaf, {}), "keys": keys}
  return values


def check_extra(rule, ingredients, actions):
  """Checks `Rule.extra` against the ingredients.

  Returns:
    The leaves that need it.

  Raises:
    ValueError: listing all that does not fit.
  """
  if not rule.extra:
    return set()
  if len(rule.extra) != len(ingredients):
    raise ValueError(
      f"The rule {rule.name!r} has {len(rule.extra)} trees of statistics for "
      f"{len(ingredients)} ingredients: give one for each."
    )
  shapes, problems = {}, []
  for leaf, spec in _merged_specs(ingredients, actions).items():
    shape = rule.extra_shape(leaf, spec)
    exists = any(leaf in statistics.specs for statistics in rule.extra)
    if shape is not None and (exists or not rule.extra_optional):
      shapes[leaf] = shape
  for statistics in rule.extra:
    specs, name = statistics.specs, statistics.name
    for leaf, shape in shapes.items():
      actual = specs[leaf].shape if leaf in specs else "nothing"
      if actual != shape:
        problems.append(f"{name!r} has {actual} for {leaf!r}, not {shape}")
    problems += [
      f"{name!r} has {leaf!r}, which the models do not have"
      for leaf in specs
      if leaf not in actions
    ]
  if not shapes:
    problems.append("they have none of the leaves that are merged")
  if problems:
    raise ValueError(
      f"The statistics for the rule {rule.name!r} do not fit:\n  "
      + tree.listed(problems)
    )
  return set(shapes)


def check_numbers(rule, statistics, leaf, row):
  """Checks statistics of a leaf.

  Args:
    rule: the rule that uses them.
    statistics: their Ingredient.
    leaf: name of the leaf.
    row: the numbers, or some of them.

  Raises:
    ValueError: if a number is not finite or below `Rule.extra_least`.
  """
  if not row.size:
    return
  low, high, least = row.min(), row.max(), rule.extra_least
  finite = np.isfinite(low) and np.isfinite(high)
  if finite and (least is None or low >= least):
    return
  bad = low if finite else row[~np.isfinite(row)][0]
  must = "be finite" + ("" if least is None else f" and at least {least:g}")
  raise ValueError(
    f"The statistics {statistics.name!r} for the rule {rule.name!r} have {bad} "
    f"in leaf {leaf!r}; they must {must}. Estimate them again."
  )


def spread(values, box, ndim):
  """Reshapes values by layer so that they broadcast against the leaf.

  Args:
    values: for `combine`; see `coefficients.by_layer`.
    box: slices of the part of the leaf.
    ndim: number of axes of the leaf in `combine`; the first is its layers.

  Returns:
    The values, without "by_layer".
  """
  values = dict(values)
  for name, array in values.pop("by_layer", {}).items():
    part = array[..., box[0]]
    values[name] = part.reshape(part.shape + (1,) * (ndim - 1))
  return values


def write_indices(specs, pieces, out: np.ndarray) -> None:
  """Writes the row-major index of every element in its leaf.

  Args:
    specs: leaf -> shape and dtype.
    pieces: (leaf, slices) in their order.
    out: (2, n) uint32, receives the low and high words.
  """
  start = 0
  for leaf, box in pieces:
    for first, n in slices.contiguous_runs(specs[leaf].shape, box):
      index = np.arange(first, first + n, dtype=np.uint64)
      out[0, start : start + n] = index & np.uint64(0xFFFFFFFF)
      out[1, start : start + n] = index >> np.uint64(32)
      start += n
