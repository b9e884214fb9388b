# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Plans a mix before a byte of weights is read."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any
import warnings

import jax
import numpy as np

from soupjax.soups import rules
from soupjax.soups.core import same_init, slices
from soupjax.soups.core import select as selection
from soupjax.soups.core.ingredient import Ingredient, storage_of
from soupjax.soups.engine import groups as group_lib
from soupjax.soups.rules import rule_inputs

# What one thread holds of all ingredients together, see `make`.
BLOCK_BYTES = 8 << 20


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
  """A mix that has been checked.

  Attributes:
    rule: the merge rule.
    sources: the ingredients, then the base if there is one, then what else the
      rule reads.
    count: the number of ingredients.
    base: position of the base in `sources`, None if there is none.
    specs: leaf -> shape and dtype of the output, in the order of `treedef`.
    treedef: of the output.
    order: leaves of the output, in the order in which they are streamed.
    groups: leaf -> how it is made.
    chunks: leaf -> shape that pieces are aligned with, where sources need it.
    select: the selection, as given.
    notes: what a user should know, one sentence each.
    threads: how many read and average.
  """

  rule: rules.Rule
  sources: tuple[Ingredient, ...]
  count: int
  base: int | None
  specs: Mapping[str, jax.ShapeDtypeStruct]
  treedef: Any
  order: tuple[str, ...]
  groups: Mapping[str, group_lib.Group]
  chunks: Mapping[str, tuple[int, ...]]
  select: Mapping[str, Any]
  notes: tuple[str, ...]
  threads: int

  @property
  def read_bytes(self) -> int:
    """Bytes of weights to be read, over all processes."""
    total = 0
    for leaf, group in self.groups.items():
      used = [*group.sources, *([] if group.base is None else [group.base])]
      total += sum(_num_bytes(self.sources[k].specs[leaf]) for k in used)
    return total

  @property
  def write_bytes(self) -> int:
    """Bytes of weights to be written, over all processes."""
    return sum(_num_bytes(spec) for spec in self.specs.values())


def _num_bytes(spec) -> int:
  return math.prod(spec.shape) * spec.dtype.itemsize


def make(
  rule: rules.Rule,
  ingredients: Sequence[Ingredient],
  *,
  base: Ingredient | None = None,
  dtype: Any = None,
  select: Mapping[str, Any] | None = None,
  block_bytes: int = BLOCK_BYTES,
  threads: int = 4,
) -> Plan:
  """Checks everything that metadata can tell, and plans a mix.

  Args:
    rule: from `soupjax.soups.rules`.
    ingredients: at least one.
    base: the model that the rule, or `select`, refers to.
    dtype: of the floating leaves of the output. None keeps that of the
      ingredients; where they differ, the one that holds both.
    select: regular expression -> what to do with the leaves in whose name it
      is found; the first that is found counts. "keep" takes them from the base,
      "skip" leaves them out, K numbers average them with these weights, and one
      number goes that share of the way from the base to what the rule gives.
    block_bytes: how much of all ingredients together a thread holds.
    threads: how many read and average.

  Returns:
    The plan.

  Raises:
    ValueError: listing what is wrong, by ingredient and leaf.
  """
  ingredients = list(ingredients)
  _check_names(ingredients, base)
  same_init.warn_of_other_inits(ingredients)
  if rule.needs_base and base is None:
    raise ValueError(f"The rule {rule.name!r} needs a base model: pass base=.")
  if block_bytes < 1 or threads < 1:
    raise ValueError(
      f"block_bytes and threads must be positive, got {block_bytes} and "
      f"{threads}."
    )
  select = dict(select or {})
  rule_values = rule.values(len(ingredients))
  actions = selection.actions(ingredients, base, select)
  if rule.weights is not None:
    actions = {k: rule.weights if a is None else a for k, a in actions.items()}
  selection.check(ingredients, base, rule.needs_base, actions)
  leaf_values = rule_inputs.per_leaf_values(rule, ingredients, base, actions)
  extra = rule_inputs.check_extra(rule, ingredients, actions)
  dtype = None if dtype is None else selection.float_dtype(dtype)
  maker = group_lib.GroupMaker(
    rule,
    rule_values,
    leaf_values,
    extra,
    ingredients,
    base,
    dtype,
    block_bytes,
    {},
    set(),
  )
  groups = {
    leaf: maker.group(leaf, action)
    for leaf, action in actions.items()
    if action != "skip"
  }
  if not groups:
    raise ValueError(f"select={select} skips every leaf: nothing is left.")
  sources = (*ingredients, *([] if base is None else [base]))
  specs, treedef = _output(sources, groups)
  return Plan(
    rule=rule,
    sources=(*sources, *rule.extra),
    count=len(ingredients),
    base=None if base is None else len(ingredients),
    specs=specs,
    treedef=treedef,
    order=_order(sources, groups),
    groups=groups,
    chunks=_chunks(sources, groups),
    select=select,
    notes=tuple(sorted(maker.notes)) + _twins(sources),
    threads=threads,
  )


def _check_names(ingredients, base):
  if not ingredients:
    raise ValueError("A soup needs at least one ingredient, got none.")
  seen = set()
  for one in [*ingredients, *([] if base is None else [base])]:
    if one.name in seen and one is not base:
      raise ValueError(
        f"Two ingredients are called {one.name!r}. Names must differ, so that "
        "reports can say which one they mean."
      )
    seen.add(one.name)
    if not one.specs:
      raise ValueError(f"{one.name!r} has no leaves: nothing to average.")


def _output(sources, groups):
  """Specs and treedef of the output, in the containers of a source."""
  shapes = {}
  for leaf, group in groups.items():
    shape = sources[group.sources[0]].specs[leaf].shape
    shapes[leaf] = jax.ShapeDtypeStruct(shape, group.out_dtype)
  return selection.output(sources, shapes)


def _order(sources, groups) -> tuple[str, ...]:
  order = dict.fromkeys(storage_of(sources[0]).order)
  order |= dict.fromkeys(groups)
  # Integers first: if they differ, that shows before the long work begins.
  return tuple(
    sorted(
      (leaf for leaf in order if leaf in groups),
      key=lambda leaf: groups[leaf].combine is not None,
    )
  )


def _chunks(sources, groups) -> dict[str, tuple[int, ...]]:
  """The coarsest chunks of the sources; whole leaves if they do not nest."""
  stored = [storage_of(one).chunks for one in sources]
  chunks = {}
  for leaf, group in groups.items():
    used = [*group.sources, *([] if group.base is None else [group.base])]
    found = [stored[k][leaf] for k in used if leaf in stored[k]]
    if found:
      chunks[leaf] = align(found)
  return chunks


def align(found: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
  """A chunk shape whose edges are edges of all the given ones."""
  return tuple(math.lcm(*(max(1, n) for n in axis)) for axis in zip(*found))


def _twins(sources) -> tuple[str, ...]:
  """Notes on ingredients that are one and the same, as far as files tell."""
  seen, notes = {}, []
  for one in sources:
    sums = storage_of(one).checksums
    keys = [("path", one.path)] if one.path else []
    if sums and set(sums) == set(one.specs):
      keys.append(("content", tuple(sorted(sums.items()))))
    for key in keys:
      if key in seen and seen[key] != one.name:
        notes.append(f"{one.name!r} and {seen[key]!r} have the same {key[0]}.")
        break
      seen[key] = one.name
  for note in notes:
    warnings.warn(note, stacklevel=4)
  return tuple(notes)


def pieces(
  plan: Plan,
  parts: Mapping[str, Sequence[slices.Slices]],
  chunks: Mapping[str, tuple[int, ...]],
) -> list[tuple[str, slices.Slices]]:
  """Cuts the parts of all leaves to pieces of bounded size.

  Args:
    plan: of the mix.
    parts: leaf -> what of it is wanted here.
    chunks: leaf -> shape that pieces are aligned with.

  Returns:
    (leaf, box), in the order of the plan.
  """
  return [
    (leaf, piece)
    for leaf in plan.order
    for box in parts.get(leaf, ())
    if slices.size(box)
    for piece in slices.split(box, plan.groups[leaf].limit, chunks.get(leaf))
  ]


def share(
  found: Sequence[Any], sizes: Sequence[int], index: int, count: int
) -> list[Any]:
  """What one of `count` processes does: a stretch of about equal size."""
  ends = np.cumsum(sizes)
  total = int(ends[-1]) if len(ends) else 0
  middle = ends - np.asarray(sizes) / 2
  low, high = total * index / count, total * (index + 1) / count
  return [one for one, at in zip(found, middle) if low <= at < high]
