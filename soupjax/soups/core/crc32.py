# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""CRC-32, as in zip files, of data seen in pieces."""

from collections.abc import Iterable, Sequence
import functools
import zlib

import numpy as np

# More are not compared with each other.
_MOST_BOXES = 5_000
_POLYNOMIAL = 0xEDB88320  # Bit-reversed: bit 31 is the constant term.


def crc32(array: np.ndarray) -> int:
  """CRC-32 of the bytes of a contiguous array."""
  return extend(0, array)


def extend(value: int, array: np.ndarray) -> int:
  """Goes on with a CRC-32 over the bytes of a contiguous array."""
  return zlib.crc32(array.reshape(-1).view(np.uint8), value)


def check(path: str, leaf: str, found: int, expected: int) -> None:
  """Compares a checksum.

  Raises:
    ValueError: naming file and leaf, if it differs.
  """
  if found != expected:
    raise ValueError(
      f"Leaf {leaf!r} of {path} is damaged: its checksum is {found:08x}, and "
      f"{expected:08x} was recorded when it was written. Copy it again from "
      "its source."
    )


def _times(a: int, b: int) -> int:
  """Product of two polynomials over GF(2), modulo that of CRC-32."""
  product = 0
  while a:
    if a & 0x80000000:
      product ^= b
    a = (a << 1) & 0xFFFFFFFF
    b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
  return product


@functools.lru_cache(maxsize=4096)
def _zeros(num_bytes: int) -> int:
  """x ** (8 * num_bytes): what that many zero bytes do to a CRC."""
  power, square, n = 0x80000000, 0x00800000, num_bytes  # x**0 and x**8.
  while n:
    if n & 1:
      power = _times(power, square)
    square = _times(square, square)
    n >>= 1
  return power


def combine(pieces: Iterable[tuple[int, int]]) -> int:
  """CRC-32 of data from those of its consecutive pieces.

  Args:
    pieces: CRC-32 and number of bytes of each, in order.
  """
  total = 0
  for value, num_bytes in pieces:
    total = _times(_zeros(num_bytes), total) ^ value
  return total


def whole(pieces: Iterable[tuple[int, int, int]], num_bytes: int) -> int | None:
  """CRC-32 of data from pieces in any order, some perhaps given twice.

  Args:
    pieces: first byte, number of bytes and CRC-32 of each.
    num_bytes: of all data.

  Returns:
    None if the pieces overlap or leave a gap.
  """
  found, end = sorted({tuple(piece) for piece in pieces}), 0
  for start, size, _ in found:
    if start != end:
      return None
    end += size
  if end != num_bytes:
    return None
  return combine((value, size) for _, size, value in found)


def of_runs(array: np.ndarray, runs: Iterable[tuple[int, int]]) -> int:
  """What an array that holds runs of some data adds to its CRC-32.

  Args:
    array: contiguous; the runs one after the other.
    runs: first element and number of elements of each in the data, ascending.

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
  """What `_moved` makes of each of the four bytes: a tenth of its time."""
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


# Bounds on every axis; first byte, end, bytes in between, `of_runs`.
Part = tuple[Sequence[Sequence[int]], int, int, int, int]


def joined(parts: Iterable[Part], num_bytes: int) -> int | None:
  """CRC-32 of an array from slices of it, some perhaps given twice.

  Args:
    parts: of each box start and stop on every axis, the byte at which it
      begins, the one after its last, how many are its own, and `of_runs`.
    num_bytes: of the array.

  Returns:
    None if the slices overlap or leave a gap, or are too many to tell.
  """
  different = {str(part[0]): part for part in parts}.values()
  different = sorted(different, key=lambda part: part[2])
  if sum(part[3] for part in different) != num_bytes:
    return None
  # All stretches of the data, as rows are?
  ends = [0, *(part[2] for part in different)]
  if any(
    part[1] != end or part[2] - part[1] != part[3]
    for end, part in zip(ends, different)
  ) and not _disjoint([part[0] for part in different]):
    return None
  total = before = 0
  for _, _, end, _, value in different:
    total, before = _moved(total, end - before) ^ value, end
  return _moved(total, num_bytes - before)


def _disjoint(bounds: Sequence[Sequence[Sequence[int]]]) -> bool:
  """Whether no two slices share an element."""
  if len(bounds) > _MOST_BOXES:
    return False
  starts, stops = np.moveaxis(np.array(bounds, np.int64), -1, 0)
  for k in range(len(bounds) - 1):
    above = np.maximum(starts[k], starts[k + 1 :])
    below = np.minimum(stops[k], stops[k + 1 :])
    if (above < below).all(axis=1).any():
      return False
  return True
