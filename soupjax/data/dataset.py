# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Labelled images in memory, and the order in which training sees them.

The order is that of Grain's `shuffle`. Grain computes each index separately,
which takes a few microseconds, or 0.2 ms in sets of 100 images; here a whole
epoch is shuffled at once.
"""

import dataclasses
import functools
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """Labelled images.

  Attributes:
    name: name shown in reports, such as "digits/test".
    images: (n, height, width, channels) float32 in [-1, 1].
    labels: (n,) int32 class indices.
  """

  name: str
  images: np.ndarray
  labels: np.ndarray

  def __post_init__(self):
    if len(self.images) != len(self.labels):
      raise ValueError(
        f"{self.name} has {len(self.images)} images and {len(self.labels)} "
        "labels."
      )
    if not len(self.images):
      raise ValueError(f"{self.name} is empty.")

  def __len__(self) -> int:
    return len(self.images)


class Stream:
  """The order of a training stream, and the index of its next batch."""

  def __init__(self, source, *, batch_size: int, seed: int, preprocess: str):
    """Starts at batch 0.

    Args:
      source: any object with a `name` and a length.
      batch_size: number of images in a batch over all processes.
      seed: seed of the order.
      preprocess: text of the operations; only recorded in the state.

    Raises:
      ValueError: if batch_size or seed is out of range.
    """
    if not 0 <= seed < 2**32:
      raise ValueError(f"A seed is in [0, 2**32), not {seed}.")
    if batch_size < 1:
      raise ValueError(f"batch_size must be positive, not {batch_size}.")
    self.next_batch = 0
    self._identity = {
      "source": source.name,
      "size": len(source),
      "preprocess": preprocess,
      "seed": seed,
      "batch_size": batch_size,
    }
    self._size = len(source)
    self._seed = seed

  def example_at(self, position: int) -> int:
    """Returns the index of the example at a position in the stream."""
    epoch, index = divmod(position, self._size)
    return shuffled_index(index, self._size, self._seed, epoch)

  def get_state(self) -> dict[str, Any]:
    """Returns the state as plain JSON; it is the same on all processes."""
    return {"next_batch": self.next_batch, **self._identity}

  def set_state(self, state: dict[str, Any]) -> None:
    """Continues from a state; raises ValueError if the streams differ."""
    for name, value in self._identity.items():
      if state.get(name) != value:
        raise ValueError(
          f"The state is of a stream with {name} {state.get(name)!r}, not "
          f"{value!r}: this stream cannot continue from it."
        )
    self.next_batch = int(state["next_batch"])


# Epochs of larger sets are not cached; they would take 4 bytes per example.
_LARGEST_EPOCH = 2**22


def shuffled_index(index: int, size: int, seed: int, epoch: int) -> int:
  """Returns the index of the example at a position in an epoch.

  Args:
    index: position in the epoch, in [0, size).
    size: number of examples in the dataset.
    seed: seed of the stream.
    epoch: number of the epoch, from 0.

  Returns:
    The element of `grain.MapDataset.range(size).seed(seed).shuffle().repeat()`
    at index + epoch * size.
  """
  epoch_seed = (_stream_seed(seed) + epoch) % 2**32
  if size <= _LARGEST_EPOCH:
    return int(_permutation(size, epoch_seed)[index])
  import grain

  return grain.experimental.index_shuffle(index, size - 1, epoch_seed, 4)


@functools.lru_cache(maxsize=8)
def _stream_seed(seed: int) -> int:
  """Derives the seed that Grain uses in `.seed(seed).shuffle()`."""
  return int(np.random.SeedSequence([seed, 1]).generate_state(1, np.uint32)[0])


@functools.lru_cache(maxsize=4)
def _permutation(size: int, seed: int) -> np.ndarray:
  """Returns Grain's `index_shuffle` of 0 to size - 1, with 4 rounds, int32.

  A block cipher permutes [0, 2**bits); indices that leave [0, size) are
  encrypted again until they return (cycle walking; Black and Rogaway, 2002).
  """
  if size == 1:
    return np.zeros(1, np.int32)
  bits = max((size - 2).bit_length(), 16)
  bits += bits % 2
  keys = _round_keys(seed)
  if bits > 16:
    result = _encrypt(np.arange(size, dtype=np.uint32), bits, keys)
    outside = np.flatnonzero(result >= size)
    while outside.size:
      result[outside] = _encrypt(result[outside], bits, keys)
      outside = outside[result[outside] >= size]
    return result.astype(np.int32)
  # In small sets, walks take hundreds of steps: jump 32 steps at a time.
  block = np.arange(2**bits, dtype=np.uint16)
  encrypted = _encrypt(block, bits, keys).astype(np.intp)
  jump = np.where(block < size, block, encrypted)
  for _ in range(5):
    jump = jump[jump]
  result = encrypted[np.arange(size) % 2**bits]
  while (result >= size).any():
    result = jump[result]
  return result.astype(np.int32)


def _encrypt(values: np.ndarray, bits: int, keys: list[int]) -> np.ndarray:
  """Encrypts with the Simon cipher (https://eprint.iacr.org/2013/404)."""
  half = bits // 2
  mask = 2**half - 1

  def rotated(x, by):
    return ((x << by) | (x >> (half - by))) & mask

  def scrambled(x):
    return (rotated(x, 1) & rotated(x, 8)) ^ rotated(x, 2)

  left, right = (values >> half) & mask, values & mask
  for key in keys:
    left, right = right, left ^ scrambled(right) ^ (key & mask)
  return (left << half) | right


def _round_keys(seed: int) -> list[int]:
  """Returns the four keys of C++'s `std::seed_seq{seed}` (ISO 14882)."""
  count = 4
  keys = [0x8B8B8B8B] * count
  for k in range(2 * count):
    near, far = (k + 1) % count, (k + 2) % count
    here, before = k % count, (k - 1) % count
    if k < count:
      x = keys[here] ^ keys[near] ^ keys[before]
      first = 1664525 * (x ^ (x >> 27)) % 2**32
      second = (first + (1 if k == 0 else k + seed * (k == 1))) % 2**32
      keys[near] = (keys[near] + first) % 2**32
      keys[far] = (keys[far] + second) % 2**32
    else:
      x = (keys[here] + keys[near] + keys[before]) % 2**32
      first = 1566083941 * (x ^ (x >> 27)) % 2**32
      second = (first - here) % 2**32
      keys[near] ^= first
      keys[far] ^= second
    keys[here] = second
  return keys
