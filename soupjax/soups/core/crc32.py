# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""CRC-32 (the one of zip files) of data that arrives in pieces."""

from collections.abc import Iterable, Sequence
import functools
import zlib

import numpy as np

# With more boxes than this, overlaps are not looked for.
_MOST_BOXES = 5_000
_POLYNOMIAL = 0xEDB88320  # Bit-reversed: bit 31 is the constant term.


def crc32(array: np.ndarray) -> int:
  """Returns the CRC-32 of the bytes of a contiguous array."""
  return extend(0, array)


def extend(value: int, array: np.ndarray) -> int:
  """Extends a CRC-32 by the bytes of a contiguous array."""
  return zlib.crc32(array.reshape(-1).view(np.uint8), value)


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
    total = _times(_zeros(num_bytes), total) ^ value
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
  """Returns the share of some runs of the data in its CRC-32.

  Args:
    array: contiguous; holds the runs one after the other.
    runs: first element and number of elements of each run, ascending.

  Returns:
    The CRC-32 up to the end of the last run; the parts of different runs are
    joined by exclusive or.
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
    total ^= zlib.crc32(data[at:stop])
    at, before = stop, end
  return total


@functools.lru_cache(maxsize=64)
def _tables(num_bytes: int) -> tuple[list[int], ...]:
  """Tables of `_moved` for each of the four bytes; ten times as fast."""
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
    parts: start and stop on every axis of each box, the byte at which it
      begins, the one after its last, its number of bytes, and `of_runs`.
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
