# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Base classes of the writers, which write blocks and read them back."""

from collections.abc import Mapping, Sequence
import os
import threading
from typing import Any

import jax
import numpy as np

from soupjax import files, processes
from soupjax.checkpoints.formats import byte_ranges
from soupjax.soups.core import crc32, slices
from soupjax.soups.engine import blocks, threads

# Elements per read when the checksum of a leaf is computed in row-major order.
_ELEMENTS = 1 << 18


class BlockWriter:
  """Writes blocks in any order and verifies them before writing the headers.

  Subclasses store a block in `_store`, read it back in `_load`, make all blocks
  readable in `_flush`, write the metadata in `_write_headers`, and flush all to
  disk in `_sync`.
  """

  def __init__(self, specs: Mapping[str, jax.ShapeDtypeStruct], *, first: bool):
    """Starts without blocks.

    Args:
      specs: leaf -> shape and dtype.
      first: whether this is the process that writes the headers.
    """
    self.specs = specs
    self._first = first
    self._lock = threading.Lock()
    # The spans of each block and their CRC-32s.
    self._written: list[tuple[Sequence[slices.Span], list[int]]] = []

  def write(self, spans: Sequence[slices.Span], row: np.ndarray) -> None:
    """Writes one block; see `soupjax.soups.engine.run.Writer`."""
    checksums = _checksums(spans, row)
    self._store(spans, row)
    with self._lock:
      self._written.append((spans, checksums))

  def finish(self, provenance: Mapping[str, Any]) -> None:
    """Reads everything back and writes the headers; all processes call this.

    Args:
      provenance: the complete record.

    Raises:
      ValueError: naming a leaf whose bytes on disk differ from those written.
    """
    self._flush()
    checksums = self._read_back()
    if self._first:
      self._write_headers(provenance, checksums)
    self._sync()

  def _read_back(self) -> dict[str, int]:
    """Returns the CRC-32 of every leaf after comparing every block.

    Each process reads its own blocks.
    """
    threads.for_each(
      self._written,
      self._compare,
      count=2,
      name="soupjax-compare",
      make_buffer=blocks.Buffer,
    )
    # First byte, length and CRC-32 of the parts that are contiguous.
    parts: dict[str, list[tuple[int, int, int]]] = {}
    for spans, values in self._written:
      item = self.specs[spans[0].leaf].dtype.itemsize
      for (leaf, _, start, stop, first), value in zip(spans, values):
        if first is not None:
          part = (first * item, (stop - start) * item, value)
          parts.setdefault(leaf, []).append(part)
    everywhere = processes.gather_json(parts)
    return {
      leaf: self._joined(
        leaf, [p for process in everywhere for p in process.get(leaf, ())]
      )
      for leaf in self.specs
    }

  def _compare(self, block, buffer: blocks.Buffer) -> None:
    """Raises a ValueError if a block on disk differs from what was written."""
    spans, expected = block
    dtype = self.specs[spans[0].leaf].dtype
    row = buffer.array("row", (spans[-1].stop,), dtype)
    self._load(spans, row)
    for span, before, now in zip(spans, expected, _checksums(spans, row)):
      if before != now:
        raise ValueError(
          f"Leaf {span.leaf!r} was not written correctly: the bytes on disk "
          f"have checksum {now:08x} instead of {before:08x}. Is the disk "
          "faulty?"
        )

  def _joined(self, leaf: str, parts: Sequence[tuple[int, int, int]]) -> int:
    """Returns the CRC-32 of a leaf from those of its contiguous parts."""
    spec, value = self.specs[leaf], 0
    whole = crc32.whole(parts, spec.size * spec.dtype.itemsize)
    if whole is not None:
      return whole
    # Some parts are not contiguous in the leaf, so read it in order.
    for box in slices.split(slices.whole(spec.shape), _ELEMENTS):
      row = np.empty(slices.size(box), spec.dtype)
      self._load([slices.Span(leaf, box, 0, row.size)], row)
      value = crc32.extend(value, row)
    return value


def _checksums(spans, row) -> list[int]:
  return [crc32.crc32(row[start:stop]) for _, _, start, stop, _ in spans]


class RangeWriter(BlockWriter):
  """Writes leaves as byte ranges of files.

  Attributes:
    places: leaf -> file descriptor and offset.
  """

  def __init__(
    self,
    specs: Mapping[str, jax.ShapeDtypeStruct],
    places: Mapping[str, tuple[str, int]],
    sizes: Mapping[str, int],
    *,
    first: bool,
  ):
    """Opens the files.

    Args:
      specs: leaf -> shape and dtype.
      places: leaf -> path and offset.
      sizes: path -> bytes to reserve.
      first: whether this process creates the files and writes the headers.

    Raises:
      ValueError: if the disk is full.
    """
    super().__init__(specs, first=first)
    self._fds = files.open_for_writing(sizes, create=first)
    self.places = {
      leaf: (self._fds[path], offset) for leaf, (path, offset) in places.items()
    }
    self._flusher = files.Flusher(self._fds.values())

  def _store(self, spans, row):
    data = memoryview(row.view(np.uint8))
    for fd, offset, start, stop in self._ranges(spans):
      write_all(fd, data[start:stop], offset)

  def _load(self, spans, row):
    data = memoryview(row.view(np.uint8))
    for fd, offset, start, stop in self._ranges(spans):
      start += read_all(fd, data[start:stop], offset)
      if start < stop:
        item = row.dtype.itemsize
        leaf = next(s.leaf for s in spans if s.stop * item > start)
        raise ValueError(
          f"Leaf {leaf!r} was not written correctly: the file ends before "
          "it. Is the disk faulty?"
        )

  def _ranges(self, spans):
    return byte_ranges.ranges(spans, self.places, self.specs)

  def _flush(self):
    """Does nothing: written bytes can be read at once."""

  def _sync(self):
    self._flusher.stop()
    for fd in self._fds.values():
      os.fsync(fd)
    self.close()

  def close(self) -> None:
    """Closes the files."""
    self._flusher.stop()
    while self._fds:
      os.close(self._fds.popitem()[1])


def write_all(fd: int, data: Any, offset: int) -> None:
  """Writes bytes at an offset.

  Args:
    fd: file descriptor.
    data: bytes, or a list of at most 1,000 parts that follow one another.
    offset: offset of the first byte.

  Raises:
    ValueError: if the disk is full.
  """
  try:
    _all(os.pwritev, fd, data, offset)
  except OSError as e:
    files.explain(e, "the output")
    raise


def read_all(fd: int, data: Any, offset: int) -> int:
  """Fills memory with the bytes at an offset.

  Args:
    fd: file descriptor.
    data: memory, or a list of at most 1,000 parts to fill one after the other.
    offset: offset of the first byte.

  Returns:
    The number of bytes read; fewer only if the file ends.
  """
  return _all(os.preadv, fd, data, offset)


def _all(move, fd, data, offset) -> int:
  """Repeats a read or write, which may transfer fewer bytes than asked for."""
  parts, total = data if isinstance(data, list) else [data], 0
  while parts:
    n = move(fd, parts, offset + total)
    if n == 0:
      break
    total += n
    while parts and n >= len(parts[0]):
      n -= len(parts[0])
      parts = parts[1:]
    if n:
      parts = [memoryview(parts[0])[n:], *parts[1:]]
  return total
