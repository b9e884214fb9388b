# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The plan of a mix, made before any weights are read."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any
import warnings

import jax
import numpy as np

from soupjax.soups import rules
from soupjax.soups.core import configs, records, slices, tree
from soupjax.soups.core import select as selection
from soupjax.soups.core.ingredient import Ingredient, check_names, storage_of
from soupjax.soups.engine import groups as group_lib
from soupjax.soups.rules import rule_inputs

# Bytes per thread over all ingredients; see `make`.
BLOCK_BYTES = 8 << 20


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
  """A mix that has passed all metadata checks.

  Attributes:
    rule: the merge rule.
    sources: the ingredients, then the base if there is one, then the extra
      sources of the rule.
    count: the number of ingredients.
    base: position of the base in `sources`; None without a base.
    specs: leaf -> shape and dtype of the output, in the order of `treedef`.
    treedef: tree structure of the output.
    order: leaves of the output, in the order in which they are streamed.
    groups: leaf -> its group.
    chunks: leaf -> chunk shape to align pieces with, for chunked sources.
    select: the selection, as given.
    notes: notes for the user, one sentence each.
    threads: number of threads that read and merge.
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
    return tree.num_bytes(
      self.sources[k].specs[leaf]
      for leaf, group in self.groups.items()
      for k in group.models
    )

  @property
  def write_bytes(self) -> int:
    """Bytes of weights to be written, over all processes."""
    return tree.num_bytes(self.specs.values())


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
  """Runs all checks that need only metadata, and plans a mix.

  Args:
    rule: from `soupjax.soups.rules`.
    ingredients: at least one.
    base: the model that the rule or `select` refers to.
    dtype: dtype of the floating-point leaves of the output. None keeps that of
      the ingredients; if they differ, the smallest that can hold all of them.
    select: regular expression -> action for the leaves whose names match it;
      the first match wins. "keep" takes them from the base, "skip" leaves them
      out, K numbers average them with these weights, and a single number
      interpolates by that fraction from the base to the result of the rule.
    block_bytes: bytes per thread for the blocks of all ingredients together.
    threads: number of threads that read and merge.

  Returns:
    The plan. Warns if ingredients have different recorded initial weights,
    equal contents, or configs that differ in a way that may not matter.

  Raises:
    ValueError: listing the problems by ingredient and leaf.
  """
  ingredients = list(ingredients)
  check_names(ingredients)
  sources = (*ingredients, *([] if base is None else [base]))
  for source in sources:
    if not source.specs:
      raise ValueError(f"{source.name!r} has no leaves: nothing to average.")
  records.warn_of_other_inits(ingredients)
  if rule.needs_base and base is None:
    raise ValueError(f"The rule {rule.name!r} needs a base model: pass base=.")
  if block_bytes < 1 or threads < 1:
    raise ValueError(
      f"block_bytes and threads must be positive, got {block_bytes} and "
      f"{threads}."
    )
  select = selection.as_dict(select)
  rule_values = rule.values(len(ingredients))
  actions = selection.actions(ingredients, base, select)
  if rule.weights is not None:
    actions = {k: rule.weights if a is None else a for k, a in actions.items()}
  selection.check(ingredients, base, rule.needs_base, actions)
  leaf_values = rule_inputs.per_leaf_values(rule, ingredients, base, actions)
  configs.check_configs(ingredients, _averaged(actions), base)
  extra = rule_inputs.check_extra(rule, ingredients, actions)
  dtype = None if dtype is None else selection.float_dtype(dtype)
  maker = group_lib.GroupMaker(
    rule, rule_values, leaf_values, extra, ingredients, base, dtype, block_bytes
  )
  groups = {
    leaf: maker.group(leaf, action)
    for leaf, action in actions.items()
    if action != "skip"
  }
  if not groups:
    raise ValueError(f"select={select} skips every leaf: leave at least one.")
  specs = {
    leaf: tree.shared_spec(
      sources[group.sources[0]].specs[leaf].shape, group.out_dtype
    )
    for leaf, group in groups.items()
  }
  specs, treedef = selection.output(sources, specs)
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
    notes=(
      *sorted(maker.notes),
      *_twins(sources),
      *records.notes(ingredients),
    ),
    threads=threads,
  )


def _averaged(actions) -> set[str]:
  """Returns the leaves that are neither left out nor copied from one model."""

  def is_copy(action):
    return action in ("keep", "skip") or (
      isinstance(action, tuple) and np.count_nonzero(action) == 1
    )

  copies = {action for action in set(actions.values()) if is_copy(action)}
  return {leaf for leaf, action in actions.items() if action not in copies}


def _order(sources, groups) -> tuple[str, ...]:
  order = dict.fromkeys(storage_of(sources[0]).order)
  order |= dict.fromkeys(groups)
  # Integers come first, so that differences between them fail early.
  return tuple(
    sorted(
      (leaf for leaf in order if leaf in groups),
      key=lambda leaf: groups[leaf].combine is not None,
    )
  )


def _chunks(sources, groups) -> dict[str, tuple[int, ...]]:
  """Returns leaf -> chunk shape that is aligned with those of all sources."""
  stored = [storage_of(source).chunks for source in sources]
  chunks = {}
  for leaf, group in groups.items() if any(stored) else ():
    shapes = [stored[k][leaf] for k in group.models if leaf in stored[k]]
    if shapes:
      chunks[leaf] = align(shapes)
  return chunks


def align(chunks: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
  """Returns the smallest chunk shape that is a multiple of all given ones."""
  return tuple(math.lcm(*(max(1, n) for n in axis)) for axis in zip(*chunks))


def _twins(sources) -> tuple[str, ...]:
  """Warns about sources with the same path or the same recorded checksums."""
  names, notes = {}, []
  for source in sources:
    checksums = storage_of(source).checksums
    keys = [("path", source.path)] if source.path else []
    if checksums and checksums.keys() == source.specs.keys():
      keys.append(("content", frozenset(checksums.items())))
    for key in keys:
      if names.setdefault(key, source.name) != source.name:
        notes.append(
          f"{source.name!r} and {names[key]!r} have the same {key[0]}."
        )
        break
  for note in notes:
    warnings.warn(note, stacklevel=4)
  return tuple(notes)


def pieces(
  plan: Plan,
  parts: Mapping[str, Sequence[slices.Slices]],
  chunks: Mapping[str, tuple[int, ...]],
) -> list[tuple[str, slices.Slices]]:
  """Cuts the parts of all leaves into pieces of bounded size.

  Args:
    plan: of the mix.
    parts: leaf -> boxes that this process needs.
    chunks: leaf -> chunk shape to align pieces with.

  Returns:
    (leaf, box), in the order of the plan.
  """
  pieces = []
  room: dict[group_lib.Group, int] = {}
  for leaf in plan.order:
    group, chunk = plan.groups[leaf], chunks.get(leaf)
    # Layered blocks compile once per size, so their sizes should be similar.
    fills = chunk is None and not group.layered
    for box in parts.get(leaf, ()):
      size, left = slices.size(box), room.get(group, group.limit)
      if not size:
        continue
      if size <= left:  # The result of `split` and `room_after`, but faster.
        cut, room[group] = [box], left - size
      else:
        cut = slices.split(box, group.limit, chunk, left if fills else None)
        room[group] = slices.room_after(cut, group.limit, left)
      pieces += [(leaf, piece) for piece in cut]
  return pieces


def share(
  items: Sequence[Any], sizes: Sequence[int], index: int, count: int
) -> list[Any]:
  """Returns the consecutive items of process `index`, balanced by size."""
  ends = np.cumsum(sizes)
  total = int(ends[-1]) if len(ends) else 0
  middle = ends - np.asarray(sizes) / 2
  low, high = total * index / count, total * (index + 1) / count
  return [item for item, at in zip(items, middle) if low <= at < high]
