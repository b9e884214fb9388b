# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Per-leaf inputs of merge rules: values from metadata and extra arrays."""

import numpy as np

from soupjax.soups.core import slices, tree
from soupjax.soups.rules import random_masks


def _by_rule(ingredients, actions):
  """The leaves that the rule itself merges, wholly or in part."""
  specs = ingredients[0].specs
  return {
    leaf: specs[leaf]
    for leaf, action in actions.items()
    if (action is None or isinstance(action, float))
    and leaf in specs
    and tree.is_float(specs[leaf])
  }


def all_specs(models):
  """Specs of all leaves of some models, in the order of their names."""
  found = {}
  for one in models:
    found = {**one.specs, **found}
  return dict(sorted(found.items()))


def per_leaf_values(rule, ingredients, base, actions):
  """The numbers of a rule that go by leaf, from metadata alone."""
  leaves = _by_rule(ingredients, actions)
  found = {leaf: {} for leaf in leaves}
  if rule.leaf_values is not None and leaves:
    models = [*ingredients, *([] if base is None else [base])]
    found |= rule.leaf_values(leaves, len(ingredients), all_specs(models))
  if rule.seed is not None:
    names = [one.name for one in ingredients]
    for leaf in leaves:
      drawn = {"keys": random_masks.keys(rule.seed, leaf, names)}
      found[leaf] = {**found.get(leaf, {}), **drawn}
  return found


def check_extra(rule, ingredients, actions):
  """The leaves that `Rule.extra` goes with; all of it must fit them."""
  if not rule.extra:
    return set()
  if len(rule.extra) != len(ingredients):
    raise ValueError(
      f"The rule {rule.name!r} has {len(rule.extra)} trees of statistics for "
      f"{len(ingredients)} ingredients: give one for each."
    )
  wanted, problems = {}, []
  for leaf, spec in _by_rule(ingredients, actions).items():
    shape = rule.extra_shape(leaf, spec)
    anywhere = any(leaf in one.specs for one in rule.extra)
    if shape is not None and (anywhere or not rule.extra_optional):
      wanted[leaf] = shape
  for one in rule.extra:
    for leaf, shape in wanted.items():
      have = one.specs[leaf].shape if leaf in one.specs else "nothing"
      if have != shape:
        problems.append(f"{one.name!r} has {have} for {leaf!r}, not {shape}")
    problems += [
      f"{one.name!r} has {leaf!r}, which is no leaf of the models"
      for leaf in one.specs
      if leaf not in actions
    ]
  if not wanted:
    problems.append("there are none for any of the leaves that are merged")
  if problems:
    raise ValueError(
      f"The statistics for the rule {rule.name!r} do not fit:\n  "
      + tree.listed(problems)
    )
  return set(wanted)


def check_numbers(rule, statistics, leaf, row):
  """Raises if statistics of a leaf are not finite, or smaller than they may be.

  Args:
    rule: that wants them.
    statistics: the Ingredient they were read from.
    leaf: its name.
    row: the numbers, or some of them.
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
  """Shapes numbers that go by layer, so that they multiply these layers.

  Args:
    values: for `combine`; see `coefficients.by_layer`.
    box: the part of the leaf that these are.
    ndim: axes that `combine` will see, the first of them that of the layers.

  Returns:
    The values, without "by_layer".
  """
  values = dict(values)
  for name, found in values.pop("by_layer", {}).items():
    part = found[..., box[0]]
    values[name] = part.reshape(part.shape + (1,) * (ndim - 1))
  return values


def places(specs, pieces, out: np.ndarray) -> None:
  """Says where in its leaf every element is, counted row-major.

  Args:
    specs: leaf -> shape and dtype.
    pieces: (leaf, box), one after the other.
    out: (2, n) uint32, gets the low and high words.
  """
  at = 0
  for leaf, box in pieces:
    for first, n in slices.contiguous_runs(specs[leaf].shape, box):
      place = np.arange(first, first + n, dtype=np.uint64)
      out[0, at : at + n] = place & np.uint64(0xFFFFFFFF)
      out[1, at : at + n] = place >> np.uint64(32)
      at += n
