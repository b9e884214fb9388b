# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Packs pieces of leaves into blocks that one compiled function takes."""

from collections.abc import Callable, Iterator
import dataclasses
from typing import Any

import jax
import numpy as np

from soupjax.soups import boxes, groups

Piece = tuple[str, boxes.Box]


@dataclasses.dataclass(frozen=True)
class Block:
  """Pieces that go through one call of the compiled function."""

  group: groups.Group
  pieces: tuple[Piece, ...]
  capacity: int


def pack(plan, pieces) -> Iterator[Block]:
  """Packs pieces of one group into blocks of one capacity."""
  capacities: dict[int, int] = {}
  totals: dict[int, int] = {}
  widths: dict[int, Callable[[int], int]] = {}
  for leaf, box in pieces:
    group, n = plan.groups[leaf], boxes.size(box)
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
    group, n = plan.groups[leaf], boxes.size(box)
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
