# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Packs pieces of leaves into blocks, the inputs of compiled functions."""

import collections
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import math
from typing import Any

import jax
import numpy as np

from soupjax.soups.core import slices
from soupjax.soups.core.ingredient import storage_of
from soupjax.soups.engine import groups


@dataclasses.dataclass(frozen=True)
class Block:
  """Parts of leaves that go through one call of the compiled function.

  Attributes:
    group: of all its leaves.
    spans: the parts, one after the other in a row of memory.
    capacity: elements in the row.
  """

  group: groups.Group
  spans: Sequence[slices.Span]
  capacity: int

  @property
  def filled(self) -> int:
    """The number of elements that are in use."""
    return self.spans[-1].stop

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the inputs: a row, layers, or that of a whole leaf."""
    shape = slices.shape_of(self.spans[0].box)
    if self.group.whole:
      return shape
    if self.group.layered:
      return (shape[0], self.capacity // shape[0])
    return (self.capacity,)


def whole_leaf(group: groups.Group, leaf: str, shape: tuple[int, ...]) -> Block:
  """Returns the block of a whole leaf."""
  n = math.prod(shape)
  span = slices.Span(leaf, slices.whole(shape), 0, n, 0)
  return Block(group, [span], n)


def _capacities(plan, pieces) -> dict[groups.Group, int]:
  """Returns the number of elements in each group's blocks."""
  largest: dict[groups.Group, int] = {}
  total: dict[groups.Group, int] = collections.Counter()
  for leaf, box in pieces:
    group, n = plan.groups[leaf], slices.size(box)
    largest[group] = max(n, largest.get(group, group.limit))
    total[group] += n
  capacities = {}
  for group, n in largest.items():
    # Blocks need not be larger than the model.
    n = min(n, total[group])
    capacities[group] = _width(n) if _of_one_leaf(plan, group) else _sixteens(n)
  return capacities


def host_bytes(plan, pieces) -> int:
  """Returns the bytes of the largest block."""
  sizes = [
    capacity * group.bytes_an_element
    for group, capacity in _capacities(plan, pieces).items()
  ]
  return max(sizes, default=0)


def pack(plan, pieces) -> Iterator[Block]:
  """Packs the pieces of each group into blocks of the same capacity."""
  capacities = _capacities(plan, pieces)
  waiting: dict[groups.Group, list[slices.Span]] = {}
  last = None
  for leaf, box in pieces:
    group, n = plan.groups[leaf], slices.size(box)
    first = slices.first_of(plan.specs[leaf].shape, box)
    if group.layered:
      # Gets a block of exactly its size, which can be reshaped to layers.
      yield Block(group, [slices.Span(leaf, box, 0, n, first)], n)
      continue
    if last is not group and last in waiting and _of_one_leaf(plan, last):
      # The group of a single leaf is complete: writers can finish the leaf.
      yield Block(last, waiting.pop(last), capacities[last])
    last = group
    spans = waiting.setdefault(group, [])
    start = spans[-1].stop if spans else 0
    if start + n > capacities[group]:
      yield Block(group, spans, capacities[group])
      waiting[group], start = [], 0
    waiting[group].append(slices.Span(leaf, box, start, start + n, first))
  for group, spans in waiting.items():
    yield Block(group, spans, capacities[group])


def _of_one_leaf(plan, group) -> bool:
  return group.by_rule and plan.rule.by_leaf


# Copies of a chunk in memory during decoding. Measured: 2 to 4, with the most
# for compressed Orbax checkpoints.
_DECODING = 4


def decoding_bytes(plan, pieces) -> int:
  """Returns the bytes for one read of a source, besides its row of a block.

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
  """Rounds up the width of single-leaf blocks, as each width is compiled."""
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
