# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Packs pieces of leaves into blocks, the inputs of compiled functions."""

from collections.abc import Callable, Iterator
import dataclasses
import math
from typing import Any

import jax
import numpy as np

from soupjax.soups.core import slices
from soupjax.soups.core.ingredient import storage_of
from soupjax.soups.engine import groups

Piece = tuple[str, slices.Slices]


@dataclasses.dataclass(frozen=True)
class Block:
  """Pieces that go through one call of the compiled function."""

  group: groups.Group
  pieces: tuple[Piece, ...]
  capacity: int

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the inputs: a row, layers, or that of a whole leaf."""
    shape = slices.shape_of(self.pieces[0][1])
    if self.group.whole:
      return shape
    if self.group.layered:
      return (shape[0], self.capacity // shape[0])
    return (self.capacity,)

  def spans(self) -> Iterator[tuple[str, slices.Slices, slice]]:
    """Yields leaf and box of each piece, and its part of a row."""
    start = 0
    for leaf, box in self.pieces:
      stop = start + slices.size(box)
      yield leaf, box, slice(start, stop)
      start = stop


def whole_leaf(group: groups.Group, leaf: str, shape: tuple[int, ...]) -> Block:
  """Returns the block of a whole leaf."""
  box = slices.whole(shape)
  return Block(group, ((leaf, box),), slices.size(box))


def pack(plan, pieces) -> Iterator[Block]:
  """Packs the pieces of each group into blocks of the same capacity."""
  sizes: dict[groups.Group, list[int]] = {}
  for leaf, box in pieces:
    sizes.setdefault(plan.groups[leaf], []).append(slices.size(box))
  capacities = {}
  for group, counts in sizes.items():
    # Blocks need not be larger than the model.
    n = min(max(group.limit, *counts), sum(counts))
    capacities[group] = _width(n) if _of_one_leaf(plan, group) else _sixteens(n)
  waiting: dict[groups.Group, tuple[list[Piece], int]] = {}
  last = None
  for leaf, box in pieces:
    group, n = plan.groups[leaf], slices.size(box)
    if group.layered:
      # In a block of its own size, so that it can be shaped as layers.
      yield Block(group, ((leaf, box),), n)
      continue
    if last is not group and last in waiting and _of_one_leaf(plan, last):
      # The group of a single leaf is complete: writers can finish the leaf.
      yield Block(last, tuple(waiting.pop(last)[0]), capacities[last])
    last = group
    packed, filled = waiting.get(group, ([], 0))
    if filled + n > capacities[group]:
      yield Block(group, tuple(packed), capacities[group])
      packed, filled = [], 0
    packed.append((leaf, box))
    waiting[group] = packed, filled + n
  for group, (packed, _) in waiting.items():
    yield Block(group, tuple(packed), capacities[group])


def _of_one_leaf(plan, group) -> bool:
  return group.by_rule and plan.rule.by_leaf


# Copies of a chunk during decoding: 2 to 4 were measured, the most for
# compressed Orbax checkpoints.
_DECODING = 4


def decoding_bytes(plan, pieces) -> int:
  """Host memory for one read of a source, in addition to its row of a block.

  Chunks are decoded outside the row, and dtypes other than that of the row are
  cast from a buffer.
  """
  chunks = stored_chunks(plan)
  largest: dict[str, int] = {}
  for leaf, box in pieces:
    largest[leaf] = max(largest.get(leaf, 0), slices.size(box))
  most = 0
  for leaf, n in largest.items():
    group = plan.groups[leaf]
    rows = [(k, group.stack_dtype) for k in group.sources]
    rows += [] if group.base is None else [(group.base, group.base_dtype)]
    rows += [(k, np.dtype(np.float32)) for k in group.extra]
    for k, dtype in rows:
      spec, chunk = plan.sources[k].specs[leaf], chunks[k].get(leaf)
      count = spec.size if group.whole else n
      size = count if spec.dtype != dtype else 0
      if chunk is not None:
        size += _DECODING * max(count, math.prod(chunk))
      most = max(most, size * spec.dtype.itemsize)
  return most


def stored_chunks(plan) -> list[dict[str, tuple[int, ...]]]:
  """Returns leaf -> chunk for every source, for the leaves of the plan."""
  stored = [storage_of(source).chunks for source in plan.sources]
  return [
    {leaf: chunks[leaf] for leaf in plan.groups if leaf in chunks}
    for chunks in stored
  ]


def _sixteens(n):
  return -(-n // 16) * 16


def _width(n):
  """Rounds up the width of blocks of single leaves: each width is compiled."""
  if n >= 1 << 16:
    return -(-n // (1 << 16)) << 16
  return max(1 << 10, 1 << (n - 1).bit_length())


class Buffer:
  """Memory of one thread, reused for every block."""

  def __init__(self, allocate: Callable[..., np.ndarray] = np.empty):
    self._allocate = allocate
    self._bytes: dict[str, np.ndarray] = {}
    self.results: dict[tuple[Any, ...], jax.Array] = {}

  def array(self, use: str, shape: tuple[int, ...], dtype) -> np.ndarray:
    """Returns an uninitialised array that starts on a 64-byte boundary.

    JAX uses aligned memory without a copy, so a buffer must not be filled again
    before the function that reads it has returned.
    """
    needed = math.prod(shape) * dtype.itemsize
    memory = self._bytes.get(use)
    if memory is None or memory.nbytes < needed:
      raw = self._allocate(needed + 64, np.uint8)
      first = -raw.ctypes.data % 64
      memory = self._bytes[use] = raw[first : first + needed]
    return memory[:needed].view(dtype).reshape(shape)
