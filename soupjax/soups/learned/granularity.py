# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The coefficients of a learned soup: per model, layer or leaf."""

import dataclasses
import re

import jax

from soupjax.soups.core import tree
from soupjax.soups.learned.options import Granularity


@dataclasses.dataclass(frozen=True)
class CoefficientLayout:
  """Where each leaf's coefficients are in one flat vector of slots."""

  groups: tuple[str, ...]
  slot_groups: tuple[int, ...]
  leaves: tuple[tuple[int, int] | None, ...]  # (first slot, count); None: int

  # Number of axes of each leaf.
  ndims: tuple[int, ...]

  @property
  def floats(self) -> tuple[int, ...]:
    """Positions of the leaves that have coefficients."""
    return tuple(k for k, slots in enumerate(self.leaves) if slots is not None)

  def spread(self, slots: jax.Array, k: int) -> jax.Array:
    """Coefficients of the k-th floating leaf, shaped to multiply it.

    Args:
      slots: (n, slots) coefficients of n kinds.
      k: position among the floating leaves.

    Returns:
      (n,), or (n, layers, 1, ...) for a stack of layers.
    """
    leaf = self.floats[k]
    start, count = self.leaves[leaf]
    if count is None:
      return slots[:, start]
    shape = (len(slots), count) + (1,) * (self.ndims[leaf] - 1)
    return slots[:, start : start + count].reshape(shape)

  def sums(self, leaf: int, products: jax.Array) -> jax.Array:
    """Sums a leaf's products into its slots."""
    if self.leaves[leaf][1] is None:
      return products.sum()[None]
    return products.reshape(products.shape[0], -1).sum(1)


def make_layout(specs, granularity: Granularity) -> CoefficientLayout:
  """Gives every float leaf its coefficients; see `learned_soup`."""
  kind, stacked = granularity.name, granularity.stacked
  floats = [leaf for leaf, spec in specs.items() if tree.is_float(spec)]
  patterns = [] if stacked is None else [stacked]
  stacks = {
    x for _, new in tree.matches("stacked", patterns, floats) for x in new
  }
  groups: dict[str, int] = {}
  slot_groups, leaves = [], []
  for leaf, spec in specs.items():
    if not tree.is_float(spec):
      leaves.append(None)
      continue
    found = leaf in stacks and re.search(stacked, leaf)
    is_stack = found and kind != "model" and spec.shape
    if kind != "layer":
      name = {"model": "model", "tensor": leaf}[kind]
    elif is_stack:
      # The layers of a loop over blocks: one for all modules of a block.
      name = leaf[: found.end()].rstrip("/.")
    else:
      name = granularity.layer_of(leaf)
    names = (
      [f"{name}[{i}]" for i in range(spec.shape[0])] if is_stack else [name]
    )
    leaves.append((len(slot_groups), len(names) if is_stack else None))
    slot_groups += [groups.setdefault(n, len(groups)) for n in names]
  ndims = tuple(len(spec.shape) for spec in specs.values())
  return CoefficientLayout(
    tuple(groups), tuple(slot_groups), tuple(leaves), ndims
  )
