# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""CRC-32 (the one of zip files) of data that is seen in pieces."""

from collections.abc import Iterable
import functools
import zlib

import numpy as np

_POLYNOMIAL = 0xEDB88320  # Bit-reversed: bit 31 is the constant term.


def crc32(array: np.ndarray) -> int:
  """CRC-32 of the bytes of a contiguous array."""
  return extend(0, array)


def extend(value: int, array: np.ndarray) -> int:
  """Goes on with a CRC-32 over the bytes of a contiguous array."""
  return zlib.crc32(array.reshape(-1).view(np.uint8), value)


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
