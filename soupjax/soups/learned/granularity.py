# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Coefficients of learned soups per model, layer or leaf."""

from collections.abc import Sequence
import dataclasses
import re

import jax
import jax.numpy as jnp

from soupjax.soups.core import tree
from soupjax.soups.learned.options import Granularity


@dataclasses.dataclass(frozen=True)
class CoefficientLayout:
  """Positions of each leaf's coefficients in one flat vector of slots.

  Attributes:
    groups: names of the sets of leaves (or layers) that share coefficients.
    slot_groups: position of the group of every slot.
    leaves: for every leaf, its first slot and its number of layers, which is
      None unless it is a stack of layers; None for integers, without slots.
    ndims: number of axes of every leaf.
    chunks: positions of the floating leaves of every layer.
  """

  groups: tuple[str, ...]
  slot_groups: tuple[int, ...]
  leaves: tuple[tuple[int, int | None] | None, ...]
  ndims: tuple[int, ...]
  chunks: tuple[tuple[int, ...], ...] = ()

  @property
  def floats(self) -> tuple[int, ...]:
    """Positions of the leaves that have coefficients."""
    return tuple(k for k, slots in enumerate(self.leaves) if slots is not None)

  def spread(self, slots: jax.Array, k: int) -> jax.Array:
    """Returns the k-th floating leaf's coefficients, shaped to multiply it.

    Args:
      slots: (n, slots) coefficients.
      k: position among the floating leaves.

    Returns:
      (n,) coefficients, or (n, layers, 1, ...) for a stack of layers.
    """
    leaf = self.floats[k]
    start, count = self.leaves[leaf]
    if count is None:
      return slots[:, start]
    shape = (len(slots), count) + (1,) * (self.ndims[leaf] - 1)
    return slots[:, start : start + count].reshape(shape)

  def slots(self, leaf: int) -> range:
    """Returns the slots of a floating leaf."""
    start, count = self.leaves[leaf]
    return range(start, start + (count or 1))

  @property
  def is_separable(self) -> bool:
    """Whether every group has all of its leaves in one chunk."""
    groups = [
      {self.slot_groups[slot] for leaf in chunk for slot in self.slots(leaf)}
      for chunk in self.chunks
    ]
    return sum(map(len, groups)) == len(self.groups)

  def part(self, leaves: Sequence[int]) -> "CoefficientLayout":
    """Returns the layout of some floating leaves; the same for equal layers.

    It has no names of groups, so that all layers share compiled functions.
    """
    start, starts = 0, []
    for leaf in leaves:
      starts.append((start, self.leaves[leaf][1]))
      start += len(self.slots(leaf))
    ndims = tuple(self.ndims[leaf] for leaf in leaves)
    return CoefficientLayout((), (), tuple(starts), ndims)

  def sums(self, leaf: int, products: Sequence[jax.Array]) -> jax.Array:
    """Sums products of a leaf, one per model, into (models, slots)."""
    # One loop over the products of all models, which reads their common terms
    # only once. Summing rows first is also more accurate.
    kept = min(1 if self.leaves[leaf][1] is None else 2, self.ndims[leaf])
    axes = tuple(range(kept, self.ndims[leaf]))
    if axes:
      zeros = (jnp.zeros((), products[0].dtype),) * len(products)
      products = jax.lax.reduce(tuple(products), zeros, _add, axes)
    sums = jnp.stack(products)
    if self.leaves[leaf][1] is None:
      return sums.reshape(len(sums), -1).sum(1, keepdims=True)
    return sums.reshape(*sums.shape[:2], -1).sum(2)


def _add(sums, terms):
  return tuple(a + b for a, b in zip(sums, terms))


def make_layout(specs, granularity: Granularity) -> CoefficientLayout:
  """Assigns coefficients to all floating leaves; see `learned_soup`."""
  kind, stacked = granularity.name, granularity.stacked
  floats = [leaf for leaf, spec in specs.items() if tree.is_float(spec)]
  patterns = [] if stacked is None else [stacked]
  stacks = {
    leaf
    for _, leaves in tree.matches("stacked", patterns, floats)
    for leaf in leaves
  }
  groups: dict[str, int] = {}
  chunks: dict[str, list[int]] = {}
  slot_groups, leaves = [], []
  for leaf, spec in specs.items():
    if not tree.is_float(spec):
      leaves.append(None)
      continue
    is_stack = leaf in stacks and kind != "model" and spec.shape
    if kind != "layer":
      name = {"model": "model", "tensor": leaf}[kind]
    elif is_stack:
      # All modules of a block share its layer.
      name = leaf[: re.search(stacked, leaf).end()].rstrip("/.")
    else:
      name = granularity.layer_of(leaf)
    layer = name if kind == "layer" else granularity.layer_of(leaf)
    chunks.setdefault(layer, []).append(len(leaves))
    count = spec.shape[0] if is_stack else None
    names = [f"{name}[{i}]" for i in range(count)] if is_stack else [name]
    leaves.append((len(slot_groups), count))
    slot_groups += [groups.setdefault(n, len(groups)) for n in names]
  ndims = tuple(len(spec.shape) for spec in specs.values())
  return CoefficientLayout(
    tuple(groups),
    tuple(slot_groups),
    tuple(leaves),
    ndims,
    tuple(map(tuple, chunks.values())),
  )
