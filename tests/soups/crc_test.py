# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import zlib

from hypothesis import given
from hypothesis import strategies as st
import numpy as np

from soupjax.soups import crc


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_pieces_combine_to_the_checksum_of_all(parts):
  pieces = [(zlib.crc32(part), len(part)) for part in parts]
  assert crc.combine(pieces) == zlib.crc32(b"".join(parts))


def test_arrays_of_any_shape():
  array = np.arange(12, dtype=np.float32).reshape(3, 4)
  assert crc.crc32(array) == zlib.crc32(array.tobytes())
  assert crc.crc32(np.zeros((0, 3))) == 0
  half = crc.crc32(array[:1])
  assert crc.extend(half, array[1:]) == crc.crc32(array)


def test_whole_from_pieces_in_any_order():
  data = np.arange(100, dtype=np.uint8)
  pieces = [(a, b - a, crc.crc32(data[a:b])) for a, b in ((0, 30), (30, 100))]
  assert crc.whole(pieces[::-1], 100) == crc.crc32(data)
  assert crc.whole([*pieces, list(pieces[0])], 100) == crc.crc32(data)
  assert crc.whole(pieces[1:], 100) is None
  assert crc.whole(pieces[:1], 100) is None
  overlap = (20, 80, crc.crc32(data[20:]))
  assert crc.whole([pieces[0], overlap], 100) is None
  assert crc.whole([], 0) == 0
