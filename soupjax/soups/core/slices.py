# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Rectangular parts of an array, and how to cut them into blocks.

`Slices` is a tuple of one slice per axis, each with a start and a stop; that of
a 0-d array is `()`. Variables of this type are called `box`.
"""

from collections.abc import Iterator, Sequence
import functools
import math
from typing import Any, NamedTuple

Slices = tuple[slice, ...]
Shape = tuple[int, ...]


class Span(NamedTuple):
  """A box of a leaf, and its place in a flat array that holds several.

  Attributes:
    leaf: its name.
    box: part of the leaf, stored in row-major order.
    start: element of the flat array at which it begins.
    stop: the element after its last.
    first: position of the first element in the whole leaf, if the box is known
      to be contiguous there.
  """

  leaf: str
  box: Slices
  start: int
  stop: int
  first: int | None = None


@functools.lru_cache(maxsize=4096)
def whole(shape: Shape) -> Slices:
  """Returns the box that covers an array."""
  return tuple(slice(0, n) for n in shape)


def normalise(index: Sequence[Any] | None, shape: Shape) -> Slices:
  """Turns an index of slices without steps into a box.

  Args:
    index: as many slices as axes, or fewer; None for everything.
    shape: of the array.

  Raises:
    ValueError: if the index has steps, or too many slices.
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
  """Splits an index into a box and an index into that box.

  Args:
    index: as many slices as axes, or fewer; None for everything.
    shape: of the array.

  Returns:
    The smallest box that contains the indexed elements, and the slices with
    steps that pick them from it; these are () if the box needs no picking.
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
  """Returns the shape of a box."""
  return tuple([s.stop - s.start for s in box])


def size(box: Slices) -> int:
  """Returns the number of elements in a box."""
  product = 1
  for s in box:
    product *= s.stop - s.start
  return product


def bounding(boxes: Sequence[Slices]) -> Slices:
  """Returns the smallest box that contains all of several boxes."""
  return tuple(
    slice(min(s.start for s in axis), max(s.stop for s in axis))
    for axis in zip(*boxes)
  )


def intersection(a: Slices, b: Slices) -> Slices | None:
  """Returns the common part of two boxes, or None if they are disjoint."""
  both = tuple(
    slice(max(s.start, t.start), min(s.stop, t.stop)) for s, t in zip(a, b)
  )
  return both if all(s.start < s.stop for s in both) else None


def inside(box: Slices, outer: Slices) -> Slices:
  """Returns a box in coordinates relative to the corner of another."""
  return tuple(
    slice(s.start - o.start, s.stop - o.start) for s, o in zip(box, outer)
  )


def touched(shape: Shape, box: Slices, chunk: Shape | None) -> int:
  """Counts the elements of all chunks that a box overlaps.

  Args:
    shape: of the array.
    box: the part to read.
    chunk: shape of the stored chunks, which are cut at the edges of the array;
      None if the array can be read in any parts.
  """
  if chunk is None or not size(box):
    return size(box)
  total = 1
  for n, part, step in zip(shape, box, chunk):
    step = max(1, step)
    end = min(n, -(-part.stop // step) * step)
    total *= end - part.start // step * step
  return total


def first_of(shape: Shape, box: Slices) -> int | None:
  """Returns the position of the first element of a box, in row-major order.

  Returns None if the box is not contiguous.

  Args:
    shape: of the whole array.
    box: a part of it.
  """
  first, stride, is_cut = 0, 1, False
  for axis in range(len(shape) - 1, -1, -1):
    start, stop, n = box[axis].start, box[axis].stop, shape[axis]
    if is_cut and stop - start != 1:
      return None
    is_cut = is_cut or stop - start != n
    first += start * stride
    stride *= n
  return first


def contiguous_runs(shape: Shape, box: Slices) -> Iterator[tuple[int, int]]:
  """Cuts a box into runs that are contiguous in row-major memory.

  Args:
    shape: of the whole array.
    box: a part of it.

  Yields:
    For each run in order, its first element, counted in the whole array, and
    its number of elements.
  """
  if size(box) == 0:
    return
  first = first_of(shape, box)
  if first is not None:
    yield first, size(box)
    return
  # The trailing axes that the box covers, and one more, form a run.
  axis, length = len(shape) - 1, 1
  while box[axis] == slice(0, shape[axis]):
    length *= shape[axis]
    axis -= 1
  length *= box[axis].stop - box[axis].start
  strides = [math.prod(shape[i + 1 :]) for i in range(axis + 1)]

  def walk(i, offset):
    if i == axis:
      yield offset + box[i].start * strides[i], length
      return
    for j in range(box[i].start, box[i].stop):
      yield from walk(i + 1, offset + j * strides[i])

  yield from walk(0, 0)


def split(
  box: Slices,
  limit: int,
  chunk: Shape | None = None,
  room: int | None = None,
) -> list[Slices]:
  """Cuts a box into pieces that follow one another in row-major order.

  Args:
    box: the part to cut.
    limit: maximum number of elements per piece.
    chunk: shape of the stored chunks; None if the array can be cut anywhere.
      Pieces end at the edges of chunks, even if they then have more than
      `limit` elements.
    room: maximum number of elements in the first piece, if it can be that
      small; then all pieces but the last are as large as possible. If None, all
      pieces are of about the same size.

  Returns:
    The pieces, as boxes.
  """
  shape = shape_of(box)
  axis = next((i for i, n in enumerate(shape) if n > 1), None)
  if axis is None or size(box) <= (limit if room is None else room):
    return [box]
  row = math.prod(shape[axis + 1 :])
  together = max(1, min(chunk[axis], shape[axis])) if chunk else 1
  start, stop = box[axis].start, box[axis].stop
  before, after = box[:axis], box[axis + 1 :]
  if together == 1 and row > limit:
    pieces = []
    for i in range(start, stop):
      part = split((*before, slice(i, i + 1), *after), limit, chunk, room)
      room = None if room is None else room_after(part, limit, room)
      pieces += part
    return pieces
  first, last = start // together, -(-stop // together)
  most = max(1, limit // (together * row))
  if room is None:
    count = -(-(last - first) // most)
    edges = [first + (last - first) * i // count for i in range(count + 1)]
  else:
    second = first + (room // (together * row) or most)
    edges = [first, *range(second, last, most), last]
  return [
    (*before, slice(max(start, a * together), min(stop, b * together)), *after)
    for a, b in zip(edges, edges[1:])
  ]


def room_after(pieces: Sequence[Slices], limit: int, room: int) -> int:
  """Returns the number of free elements in the last block after packing pieces.

  Args:
    pieces: in order; one that does not fit begins a new block.
    limit: elements per block.
    room: free elements before.
  """
  for piece in pieces:
    n = size(piece)
    room = room - n if n <= room else limit - n
  return room
