# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Rectangular parts of an array, and how to cut them into blocks.

`Slices` is a tuple of slices with a start and a stop, one an axis; that of a
0-d array is `()`. A variable that holds one is called `box`.
"""

from collections.abc import Iterator, Sequence
import math
from typing import Any

Slices = tuple[slice, ...]
Shape = tuple[int, ...]


def whole(shape: Shape) -> Slices:
  """The slices of a whole array."""
  return tuple(slice(0, n) for n in shape)


def normalise(index: Sequence[Any] | None, shape: Shape) -> Slices:
  """Turns an index of slices without steps into a box.

  Args:
    index: as many slices as axes, or fewer; None for everything.
    shape: of the array.

  Raises:
    ValueError: if it is no such index.
  """
  index = tuple(index or ())
  if len(index) > len(shape) or not all(
    isinstance(s, slice) and s.step in (None, 1) for s in index
  ):
    raise ValueError(
      f"Expected at most {len(shape)} slices without steps, got {index}."
    )
  index += (slice(None),) * (len(shape) - len(index))
  return tuple(
    slice(start, max(start, stop))
    for start, stop, _ in (s.indices(n) for s, n in zip(index, shape))
  )


def without_steps(
  index: Sequence[slice] | None, shape: Shape
) -> tuple[Slices, tuple[slice, ...]]:
  """Splits an index into a box and what is left to do with it.

  Args:
    index: as many slices as axes, or fewer; None for everything.
    shape: of the array.

  Returns:
    The smallest box around it, and slices that pick it out of that; these are
    () if there is nothing to pick.
  """
  index = tuple(index or ())
  if all(s.step in (None, 1) for s in index):
    return normalise(index, shape), ()
  ranges = [range(*s.indices(n)) for s, n in zip(index, shape)]
  around = tuple(
    slice(min(r[0], r[-1]), max(r[0], r[-1]) + 1) if r else slice(0, 0)
    for r in ranges
  )
  return (
    normalise(around, shape),
    tuple(slice(None, None, r.step) for r in ranges),
  )


def shape_of(box: Slices) -> Shape:
  """The shape of a box."""
  return tuple(s.stop - s.start for s in box)


def size(box: Slices) -> int:
  """The number of elements in a box."""
  return math.prod(shape_of(box))


def bounding(boxes: Sequence[Slices]) -> Slices:
  """The smallest box around others."""
  return tuple(
    slice(min(s.start for s in axis), max(s.stop for s in axis))
    for axis in zip(*boxes)
  )


def intersection(a: Slices, b: Slices) -> Slices | None:
  """The box that two have in common, None if there is none."""
  both = tuple(
    slice(max(s.start, t.start), min(s.stop, t.stop)) for s, t in zip(a, b)
  )
  return both if all(s.start < s.stop for s in both) else None


def inside(box: Slices, outer: Slices) -> Slices:
  """A box in coordinates that start at the corner of another."""
  return tuple(
    slice(s.start - o.start, s.stop - o.start) for s, o in zip(box, outer)
  )


def touched(shape: Shape, box: Slices, chunk: Shape) -> int:
  """Elements that are read for a box where only chunks can be read.

  Args:
    shape: of the array.
    box: what is wanted.
    chunk: of an array that is stored in chunks; those on an edge end with it.
  """
  if not size(box):
    return 0
  total = 1
  for n, part, step in zip(shape, box, chunk):
    step = max(1, step)
    end = min(n, -(-part.stop // step) * step)
    total *= end - part.start // step * step
  return total


def contiguous_runs(shape: Shape, box: Slices) -> Iterator[tuple[int, int]]:
  """Cuts a box into stretches that are contiguous in row-major memory.

  Args:
    shape: of the whole array.
    box: a part of it.

  Yields:
    The first element, counted in the whole array, and the number of elements
    of each stretch, in order.
  """
  if size(box) == 0:
    return
  # Trailing axes that are taken whole, and one more, form one stretch.
  axis = len(shape)
  stride = 1
  while axis > 0:
    axis -= 1
    part = box[axis].stop - box[axis].start
    if part != shape[axis]:
      break
    stride *= shape[axis]
  else:
    yield 0, stride
    return
  length = part * stride
  strides = [math.prod(shape[i + 1 :]) for i in range(axis + 1)]

  def walk(i, offset):
    if i == axis:
      yield offset + box[i].start * strides[i], length
      return
    for j in range(box[i].start, box[i].stop):
      yield from walk(i + 1, offset + j * strides[i])

  yield from walk(0, 0)


def split(box: Slices, limit: int, chunk: Shape | None = None) -> list[Slices]:
  """Cuts a box into pieces that are contiguous among themselves, in order.

  Args:
    box: what to cut.
    limit: the most elements a piece should have.
    chunk: shape of what is stored together, None if any cut will do. Pieces
      end where chunks do, and one has more than `limit` elements if a chunk
      has.

  Returns:
    Boxes of about one size.
  """
  shape = shape_of(box)
  axis = next((i for i, n in enumerate(shape) if n > 1), None)
  if axis is None or size(box) <= limit:
    return [box]
  row = math.prod(shape[axis + 1 :])
  together = min(chunk[axis], shape[axis]) if chunk else 1
  start, stop = box[axis].start, box[axis].stop
  before, after = box[:axis], box[axis + 1 :]
  if together <= 1 and row > limit:
    return [
      piece
      for i in range(start, stop)
      for piece in split((*before, slice(i, i + 1), *after), limit, chunk)
    ]
  together = max(together, 1)
  first, last = start // together, -(-stop // together)
  most = max(1, limit // (together * row))
  count = -(-(last - first) // most)
  edges = [first + (last - first) * i // count for i in range(count + 1)]
  return [
    (
      *before,
      slice(max(start, a * together), min(stop, b * together)),
      *after,
    )
    for a, b in zip(edges, edges[1:])
  ]
