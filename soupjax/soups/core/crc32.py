# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""CRC-32 (that of zip files) of data that arrives in pieces; CRC-32C."""

from collections.abc import Iterable, Mapping, Sequence
import functools
import math
import threading
from typing import NamedTuple

import google_crc32c
import numpy as np

from soupjax.soups.core import slices

try:
  # The same function, ten times as fast.
  from isal.isal_zlib import crc32 as _crc32
except ImportError:  # There are no wheels for this platform.
  from zlib import crc32 as _crc32

# With more boxes than this, overlaps cannot be ruled out.
_MOST_BOXES = 5_000
_POLYNOMIAL = 0xEDB88320  # Bit-reversed: bit 31 is the constant term.


def crc32(array: np.ndarray) -> int:
  """Returns the CRC-32 of the bytes of a contiguous array."""
  return extend(0, array)


def extend(value: int, array: np.ndarray) -> int:
  """Extends a CRC-32 by the bytes of a contiguous array."""
  return _crc32(array.reshape(-1).view(np.uint8), value)


def crc32c(array: np.ndarray) -> int:
  """Returns the CRC-32C (that of zarr) of the bytes of a contiguous array."""
  return google_crc32c.value(array.reshape(-1).view(np.uint8))


def check(source: str, leaf: str, checksum: int, expected: int) -> None:
  """Compares the checksum of a leaf with the recorded one.

  Raises:
    ValueError: naming source and leaf, if they differ.
  """
  if checksum != expected:
    raise ValueError(
      f"Leaf {leaf!r} of {source} is damaged: its checksum is {checksum:08x}, "
      f"but {expected:08x} was recorded when it was written. Copy it again "
      "from its source."
    )


def _times(a: int, b: int) -> int:
  """Multiplies two polynomials over GF(2), modulo that of CRC-32."""
  product = 0
  while a:
    if a & 0x80000000:
      product ^= b
    a = (a << 1) & 0xFFFFFFFF
    b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
  return product


@functools.lru_cache(maxsize=4096)
def _zeros(num_bytes: int) -> int:
  """Returns x ** (8 * num_bytes): appending zero bytes multiplies by it."""
  power, square, n = 0x80000000, 0x00800000, num_bytes  # x**0 and x**8.
  while n:
    if n & 1:
      power = _times(power, square)
    square = _times(square, square)
    n >>= 1
  return power


def combine(pieces: Iterable[tuple[int, int]]) -> int:
  """Combines the CRC-32s of consecutive pieces into that of all data.

  Args:
    pieces: CRC-32 and number of bytes of each, in order.
  """
  total = 0
  for value, num_bytes in pieces:
    total = _moved(total, num_bytes) ^ value
  return total


def whole(pieces: Iterable[tuple[int, int, int]], num_bytes: int) -> int | None:
  """Combines pieces in any order; a piece may be given twice.

  Args:
    pieces: first byte, number of bytes and CRC-32 of each.
    num_bytes: of all data.

  Returns:
    The CRC-32 of the data, or None if the pieces overlap or leave a gap.
  """
  ordered, end = sorted(set(map(tuple, pieces))), 0
  for start, size, _ in ordered:
    if start != end:
      return None
    end += size
  if end != num_bytes:
    return None
  return combine((value, size) for _, size, value in ordered)


def of_runs(array: np.ndarray, runs: Iterable[tuple[int, int]]) -> int:
  """Returns the contribution of some runs of the data to its CRC-32.

  Args:
    array: contiguous; holds the runs one after the other.
    runs: first element and number of elements of each run, ascending.

  Returns:
    The contribution, up to the end of the last run. Contributions up to the
    same end are combined by exclusive or; see `joined`.
  """
  data = memoryview(array.reshape(-1).view(np.uint8))
  item = array.dtype.itemsize
  total = at = before = 0
  for first, n in runs:
    end, stop = (first + n) * item, at + n * item
    if total:
      a, b, c, d = _tables(end - before)
      total = (
        a[total & 255]
        ^ b[total >> 8 & 255]
        ^ c[total >> 16 & 255]
        ^ d[total >> 24]
      )
    total ^= _crc32(data[at:stop])
    at, before = stop, end
  return total


@functools.lru_cache(maxsize=64)
def _tables(num_bytes: int) -> tuple[list[int], ...]:
  """Returns a table of `_moved` for each of four bytes; ten times as fast."""
  power, tables = _zeros(num_bytes), []
  for byte in range(4):
    table = [0]
    for bit in range(8 * byte, 8 * byte + 8):
      moved = _times(power, 1 << bit)
      table += [value ^ moved for value in table]
    tables.append(table)
  return tuple(tables)


def _moved(value: int, num_bytes: int) -> int:
  return _times(_zeros(num_bytes), value) if value else 0


# Bounds on every axis, first byte, end, number of bytes, and `of_runs`.
Part = tuple[Sequence[Sequence[int]], int, int, int, int]


def joined(parts: Iterable[Part], num_bytes: int) -> int | None:
  """Combines boxes of an array; a box may be given twice.

  Args:
    parts: for each box, start and stop on every axis, its first byte, the byte
      after its last, its number of bytes, and `of_runs`.
    num_bytes: of the array.

  Returns:
    The CRC-32 of the array, or None if the boxes overlap, leave a gap, or are
    too many to compare.
  """
  distinct = {str(part[0]): part for part in parts}.values()
  distinct = sorted(distinct, key=lambda part: part[2])
  if sum(part[3] for part in distinct) != num_bytes:
    return None
  # Contiguous stretches that follow one another, such as rows, are disjoint.
  ends = [0, *(part[2] for part in distinct)]
  if any(
    part[1] != end or part[2] - part[1] != part[3]
    for end, part in zip(ends, distinct)
  ) and not _disjoint([part[0] for part in distinct]):
    return None
  total = before = 0
  for _, _, end, _, value in distinct:
    total, before = _moved(total, end - before) ^ value, end
  return _moved(total, num_bytes - before)


def _disjoint(bounds: Sequence[Sequence[Sequence[int]]]) -> bool:
  """Whether no two boxes share an element."""
  if len(bounds) > _MOST_BOXES:
    return False
  starts, stops = np.moveaxis(np.array(bounds, np.int64), -1, 0)
  for k in range(len(bounds) - 1):
    above = np.maximum(starts[k], starts[k + 1 :])
    below = np.minimum(stops[k], stops[k + 1 :])
    if (above < below).all(axis=1).any():
      return False
  return True


def part_of(
  shape: tuple[int, ...], box: slices.Slices, array: np.ndarray
) -> Part:
  """Returns the input of `joined` for a box of a non-empty array.

  Args:
    shape: of the whole array.
    box: slices of it.
    array: contiguous; holds the elements of the box.
  """
  runs = list(slices.contiguous_runs(shape, box))
  bounds = [(axis.start, axis.stop) for axis in box]
  start, end = (n * array.dtype.itemsize for n in (runs[0][0], sum(runs[-1])))
  return bounds, start, end, array.nbytes, of_runs(array, runs)


class Shared(NamedTuple):
  """A checksum over several leaves that follow one another in a file.

  Attributes:
    checksum: CRC-32 of all their bytes.
    sizes: leaf -> number of bytes, in the order of the file.
  """

  checksum: int
  sizes: Mapping[str, int]

  def check(self, source: str, values: Mapping[str, int]) -> bool:
    """Compares the checksum if the checksums of all its leaves are known.

    Args:
      source: name in the error.
      values: leaf -> CRC-32.

    Returns:
      Whether it was compared.

    Raises:
      ValueError: naming source and leaves, if it differs.
    """
    if not self.sizes.keys() <= values.keys():
      return False
    value = combine((values[leaf], n) for leaf, n in self.sizes.items())
    leaves = list(self.sizes)
    names = " or ".join([*leaves[:5], *(["another"] if leaves[5:] else [])])
    check(source, names, value, self.checksum)
    return True


class Ledger:
  """Compares the checksums of leaves, once all of their parts are read."""

  def __init__(
    self,
    source: str,
    shapes: Mapping[str, tuple[int, ...]],
    checksums: Mapping[str, int],
    shared: Sequence[Shared] = (),
  ):
    """Starts without parts.

    Args:
      source: its name in errors.
      shapes: leaf -> shape.
      checksums: leaf -> CRC-32, where known.
      shared: checksums over several leaves.
    """
    self._source, self._shapes = source, shapes
    self._checksums = checksums
    self._shared = {leaf: item for item in shared for leaf in item.sizes}
    self._lock = threading.Lock()
    self._parts: dict[str, dict[str, Part]] = {}
    self._values: dict[str, int] = {}

  def add(self, leaf: str, box: slices.Slices, array: np.ndarray) -> None:
    """Adds a box of a leaf.

    Args:
      leaf: its name.
      box: slices of it.
      array: contiguous; holds the elements of the box.

    Raises:
      ValueError: naming source and leaf, if the leaf is complete and its
        checksum differs from the recorded one.
    """
    known = leaf in self._checksums or leaf in self._shared
    if not known or not array.size:
      return
    shape = self._shapes[leaf]
    if array.size == math.prod(shape):
      value = crc32(array)
    else:
      value = self._joined(leaf, part_of(shape, box, array))
    if value is None:
      return
    if leaf in self._checksums:
      check(self._source, leaf, value, self._checksums[leaf])
    if leaf in self._shared:
      with self._lock:
        self._values[leaf] = value
        values = dict(self._values)
      self._shared[leaf].check(self._source, values)

  def _joined(self, leaf, part):
    """Returns the checksum of a leaf once its parts are complete."""
    itemsize = part[3] // math.prod(b - a for a, b in part[0])
    num_bytes = math.prod(self._shapes[leaf]) * itemsize
    with self._lock:
      parts = self._parts.setdefault(leaf, {})
      if len(parts) < _MOST_BOXES:
        parts[str(part[0])] = part
      value = joined(parts.values(), num_bytes)
      if value is not None:
        del self._parts[leaf]
      return value
