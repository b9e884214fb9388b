# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Packs pieces of leaves into blocks that one compiled function takes."""

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
    """What the function sees: a row, layers, or a leaf as it is."""
    shape = slices.shape_of(self.pieces[0][1])
    if self.group.whole:
      return shape
    if self.group.layered:
      return (shape[0], self.capacity // shape[0])
    return (self.capacity,)


def pack(plan, pieces) -> Iterator[Block]:
  """Packs pieces of one group into blocks of one capacity."""
  capacities: dict[int, int] = {}
  totals: dict[int, int] = {}
  widths: dict[int, Callable[[int], int]] = {}
  for leaf, box in pieces:
    group, n = plan.groups[leaf], slices.size(box)
    if group.layered:
      continue
    key = id(group)
    capacities[key] = max(capacities.get(key, group.limit), n)
    totals[key] = totals.get(key, 0) + n
    widths[key] = _width if group.by_rule and plan.rule.by_leaf else _sixteens
  # A model smaller than a block needs none of that size.
  capacities = {
    key: widths[key](min(n, totals[key])) for key, n in capacities.items()
  }
  waiting: dict[int, tuple[groups.Group, list[Piece], int]] = {}
  last = None
  for leaf, box in pieces:
    group, n = plan.groups[leaf], slices.size(box)
    if group.layered:
      # By itself and as large as it is: it can be shaped as layers.
      yield Block(group, ((leaf, box),), n)
      continue
    key = id(group)
    if last not in (None, key) and widths[last] is _width and last in waiting:
      # No other leaf will come to it: done, so that writers can let it go.
      done, held, _ = waiting.pop(last)
      yield Block(done, tuple(held), capacities[last])
    last = key
    _, held, filled = waiting.get(key, (group, [], 0))
    if filled + n > capacities[key]:
      yield Block(group, tuple(held), capacities[key])
      held, filled = [], 0
    held.append((leaf, box))
    waiting[key] = (group, held, filled + n)
  for key, (group, held, _) in waiting.items():
    yield Block(group, tuple(held), capacities[key])


# Copies of what is decoded, while it is: 2 to 4 were measured, the most for
# compressed Orbax checkpoints.
_DECODING = 4


def decoding_bytes(plan, pieces) -> int:
  """Host memory for one read of a source, besides its row of a block.

  What comes in chunks is decoded beside its place, and another dtype than that
  of the row is cast from a buffer.
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
      held = count if spec.dtype != dtype else 0
      if chunk is not None:
        held += _DECODING * max(count, math.prod(chunk))
      most = max(most, held * spec.dtype.itemsize)
  return most


def stored_chunks(plan) -> list[dict[str, tuple[int, ...]]]:
  """Leaf -> chunks, for every source; of the leaves that are read."""
  stored = [storage_of(source).chunks for source in plan.sources]
  return [
    {leaf: one[leaf] for leaf in plan.groups if leaf in one} for one in stored
  ]


def _sixteens(n):
  return -(-n // 16) * 16


def _width(n):
  """Of blocks of single leaves: few widths, as each is compiled anew."""
  if n >= 1 << 16:
    return -(-n // (1 << 16)) << 16
  return max(1 << 10, 1 << (n - 1).bit_length())


class Buffer:
  """Memory of one thread, used for one block after another."""

  def __init__(self, allocate: Callable[..., np.ndarray] = np.empty):
    self._allocate = allocate
    self._bytes: dict[str, np.ndarray] = {}
    self.results: dict[tuple[Any, ...], jax.Array] = {}

  def array(self, use: str, shape: tuple[int, ...], dtype) -> np.ndarray:
    """Returns an array that starts on a 64-byte boundary; its content is old.

    JAX takes such memory as it is, where it would copy any other. So a buffer
    is filled again only after the function that reads it has returned.
    """
    needed = int(np.prod(shape)) * dtype.itemsize
    held = self._bytes.get(use)
    if held is None or held.nbytes < needed:
      raw = self._allocate(needed + 64, np.uint8)
      first = -raw.ctypes.data % 64
      held = self._bytes[use] = raw[first : first + needed]
    return held[:needed].view(dtype).reshape(shape)
