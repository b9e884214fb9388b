# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import math

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from soupjax.soups.core import slices

SHAPES = st.lists(st.integers(1, 7), max_size=4).map(tuple)


def pick_box(data, shape):
  ends = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in shape]
  return tuple(slice(a, b) for a, b in ends)


@given(SHAPES, st.data())
def test_runs_are_the_elements_of_a_box_in_order(shape, data):
  box = pick_box(data, shape)
  flat = np.arange(math.prod(shape))
  pieces = [
    flat[first : first + n] for first, n in slices.contiguous_runs(shape, box)
  ]
  expected = flat.reshape(shape)[box].reshape(-1)
  assert np.array_equal(np.concatenate([[], *pieces]), expected)


@given(SHAPES, st.data())
def test_a_box_is_contiguous_if_it_is_one_run(shape, data):
  box = pick_box(data, shape)
  flat = np.arange(math.prod(shape)).reshape(shape)[box].reshape(-1)
  first = slices.first_of(shape, box)
  if flat.size:
    is_run = flat[-1] - flat[0] == flat.size - 1
    assert first == (flat[0] if is_run else None)


def test_whole_rows_are_one_run():
  assert list(slices.contiguous_runs((4, 5), slices.whole((4, 5)))) == [(0, 20)]
  assert list(slices.contiguous_runs((4, 5), (slice(1, 3), slice(0, 5)))) == [
    (5, 10)
  ]
  assert list(slices.contiguous_runs((), ())) == [(0, 1)]
  assert (
    len(list(slices.contiguous_runs((4, 5), (slice(1, 3), slice(0, 4))))) == 2
  )


@given(SHAPES, st.integers(1, 50), st.data())
def test_pieces_cover_a_box_once_and_are_bounded(shape, limit, data):
  box = pick_box(data, shape)
  count = np.zeros(shape, int)
  room = data.draw(st.none() | st.integers(0, limit))
  for piece in slices.split(box, limit, room=room):
    count[piece] += 1
    assert slices.size(piece) <= limit
    assert slices.shape_of(piece) == count[piece].shape
  expected = np.zeros(shape, int)
  expected[box] = 1
  assert np.array_equal(count, expected)


@given(SHAPES, st.integers(1, 50), st.data())
def test_pieces_end_where_chunks_do(shape, limit, data):
  chunk = tuple(data.draw(st.integers(1, n)) for n in shape)
  # An axis is cut into long chunks only if all later axes are whole, as Orbax
  # does, so that pieces never need half of a chunk.
  cut = next((i for i, c in enumerate(chunk) if c > 1), len(shape))
  chunk = (*chunk[: cut + 1], *shape[cut + 1 :])
  count = np.zeros(shape, int)
  for piece in slices.split(slices.whole(shape), limit, chunk):
    count[piece] += 1
    for axis, s in enumerate(piece):
      assert s.start % chunk[axis] == 0
      assert s.stop % chunk[axis] == 0 or s.stop == shape[axis]
  assert (count == 1).all()


def test_pieces_of_one_leaf_have_about_one_size():
  sizes = [slices.size(b) for b in slices.split(slices.whole((100, 10)), 330)]
  assert sizes == [250] * 4


def test_normalise_returns_a_box_with_all_axes():
  assert slices.normalise(None, (3, 4)) == (slice(0, 3), slice(0, 4))
  assert slices.normalise((slice(-2, None),), (3, 4)) == (
    slice(1, 3),
    slice(0, 4),
  )
  assert slices.normalise((slice(5, 2),), (9,)) == (slice(5, 5),)
  for index in [(slice(0, 3, 2),), (1,), (slice(None),) * 3]:
    with pytest.raises(ValueError, match="2 slices"):
      slices.normalise(index, (3, 4))


def test_boxes_around_common_to_and_relative_to_others():
  a = (slice(0, 2), slice(3, 5))
  b = (slice(1, 4), slice(0, 4))
  assert slices.bounding([a, b]) == (slice(0, 4), slice(0, 5))
  assert slices.intersection(a, b) == (slice(1, 2), slice(3, 4))
  assert slices.intersection(a, (slice(2, 4), slice(0, 9))) is None
  assert slices.inside((slice(1, 2), slice(3, 4)), b) == (
    slice(0, 1),
    slice(3, 4),
  )


@given(SHAPES, st.data())
def test_steps_are_those_of_numpy(shape, data):
  index = tuple(data.draw(st.slices(n)) for n in shape)
  array = np.arange(math.prod(shape)).reshape(shape)
  box, steps = slices.without_steps(index, shape)
  part = array[box]
  assert np.array_equal(part[steps] if steps else part, array[index])


def test_elements_of_the_chunks_that_a_box_touches():
  rng = np.random.default_rng(0)
  for _ in range(200):
    shape = tuple(rng.integers(1, 9, 2))
    chunk = tuple(rng.integers(1, 10, 2))
    ends = [sorted(rng.integers(0, n + 1, 2)) for n in shape]
    box = tuple(slice(int(a), int(b)) for a, b in ends)
    # Numbers of chunks, at every element.
    number = np.indices(shape) // np.array(chunk)[:, None, None]
    number = number[0] * 100 + number[1]
    expected = np.isin(number, number[box]).sum()
    assert slices.touched(shape, box, chunk) == expected
  assert slices.touched((), (), ()) == 1


def test_pieces_fill_the_room_of_a_block():
  def sizes(*shape, room):
    return [
      slices.size(b) for b in slices.split(slices.whole(shape), 12, room=room)
    ]

  assert sizes(10, 4, room=9) == [8, 12, 12, 8]
  assert sizes(10, 4, room=3) == [12, 12, 12, 4]
  assert sizes(3, 5, 4, room=12) == [12, 8, 4, 12, 4, 8, 12]
