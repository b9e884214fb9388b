# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import importlib.util
import sys
import zlib

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from soupjax.soups.core import crc32, slices


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_pieces_combine_to_the_checksum_of_all(parts):
  pieces = [(zlib.crc32(part), len(part)) for part in parts]
  assert crc32.combine(pieces) == zlib.crc32(b"".join(parts))


def test_arrays_of_any_shape():
  array = np.arange(12, dtype=np.float32).reshape(3, 4)
  assert crc32.crc32(array) == zlib.crc32(array.tobytes())
  assert crc32.crc32(np.zeros((0, 3))) == 0
  half = crc32.crc32(array[:1])
  assert crc32.extend(half, array[1:]) == crc32.crc32(array)


def test_crc32c_is_that_of_rfc_3720():
  digits = np.frombuffer(b"123456789", np.uint8)
  assert crc32.crc32c(digits) == 0xE3069283
  assert crc32.crc32c(np.zeros((2, 4), np.float32)) == 0x8A9136AA


def test_whole_from_pieces_in_any_order():
  data = np.arange(100, dtype=np.uint8)
  pieces = [(a, b - a, crc32.crc32(data[a:b])) for a, b in ((0, 30), (30, 100))]
  assert crc32.whole(pieces[::-1], 100) == crc32.crc32(data)
  assert crc32.whole([*pieces, list(pieces[0])], 100) == crc32.crc32(data)
  assert crc32.whole(pieces[1:], 100) is None
  assert crc32.whole(pieces[:1], 100) is None
  overlap = (20, 80, crc32.crc32(data[20:]))
  assert crc32.whole([pieces[0], overlap], 100) is None
  assert crc32.whole([], 0) == 0


def part(array, box):
  """A part of a checksum, made in the same way as by the engine."""
  runs = list(slices.contiguous_runs(array.shape, box))
  start, end = (n * array.itemsize for n in (runs[0][0], sum(runs[-1])))
  bounds = [[axis.start, axis.stop] for axis in box]
  value = crc32.of_runs(np.ascontiguousarray(array[box]), runs)
  return bounds, start, end, array[box].nbytes, value


@given(st.data(), st.lists(st.integers(1, 7), max_size=3))
def test_joined_from_boxes_in_any_order(data, shape):
  array = np.random.default_rng(0).integers(0, 99, shape).astype(np.int16)
  pieces = [slices.whole(tuple(shape))]
  for _ in range(data.draw(st.integers(0, 6))):
    at = data.draw(st.integers(0, len(pieces) - 1))
    axes = [i for i, s in enumerate(pieces[at]) if s.stop - s.start > 1]
    if axes:
      box, axis = pieces.pop(at), data.draw(st.sampled_from(axes))
      cut = data.draw(st.integers(box[axis].start + 1, box[axis].stop - 1))
      for half in (slice(box[axis].start, cut), slice(cut, box[axis].stop)):
        pieces.append((*box[:axis], half, *box[axis + 1 :]))
  parts = data.draw(st.permutations([part(array, box) for box in pieces]))
  expected = crc32.crc32(array)
  assert crc32.joined(parts, array.nbytes) == expected
  assert crc32.joined([*parts, parts[0]], array.nbytes) == expected
  assert crc32.joined(parts[1:], array.nbytes) is None


def test_boxes_that_overlap_have_no_checksum():
  array = np.arange(16, dtype=np.int8).reshape(4, 4)
  half, rest = slice(0, 2), slice(2, 4)
  left, below = (
    part(array, (slice(0, 4), half)),
    part(array, (rest, slice(0, 4))),
  )
  assert crc32.joined([left, below], 16) is None


def test_a_leaf_read_in_slices_is_compared_once_it_is_complete():
  array = np.arange(24, dtype=np.float32).reshape(4, 6)
  boxes = [
    (slice(0, 4), slice(0, 2)),
    (slice(0, 3), slice(2, 6)),
    (slice(3, 4), slice(2, 6)),
  ]
  for damaged in (False, True):
    checksum = crc32.crc32(array) ^ damaged
    ledger = crc32.Ledger("file", {"w": (4, 6)}, {"w": checksum})
    for _ in range(2):  # Also a second time.
      for box in (boxes[0], *boxes[:2]):
        ledger.add("w", box, np.ascontiguousarray(array[box]))
      ledger.add("other", (), array)
      if not damaged:
        ledger.add("w", boxes[2], array[boxes[2]])
        continue
      with pytest.raises(ValueError, match="'w' of file"):
        ledger.add("w", boxes[2], array[boxes[2]])


def test_leaves_that_share_a_checksum():
  array = np.arange(10, dtype=np.int16)
  shapes = {"b": (6,), "a": (2, 2)}
  sizes = {"b": 12, "a": 8}
  for damaged in (False, True):
    shared = [crc32.Shared(crc32.crc32(array) ^ damaged, sizes)]
    ledger = crc32.Ledger("file", shapes, {}, shared)
    ledger.add("a", slices.whole((2, 2)), array[6:])
    ledger.add("b", (slice(0, 4),), array[:4])
    if not damaged:
      ledger.add("b", (slice(4, 6),), array[4:6])
      continue
    with pytest.raises(ValueError, match="'b or a' of file"):
      ledger.add("b", (slice(4, 6),), array[4:6])


def test_zlib_is_used_where_isal_is_missing(monkeypatch):
  monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)
  spec = importlib.util.spec_from_file_location("crc32_copy", crc32.__file__)
  copy = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(copy)
  assert copy._crc32 is zlib.crc32
  array = np.arange(9, dtype=np.int16)
  assert copy.crc32(array) == crc32.crc32(array) == zlib.crc32(array)
