# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Base classes of the writers: block by block, compared with the disk."""

from collections.abc import Mapping
import os
import threading
from typing import Any
import zlib

import jax
import numpy as np

from soupjax import files, processes
from soupjax.soups.core import crc32, slices
from soupjax.soups.engine import threads

_SCRATCH = threading.local()


class BlockWriter:
  """Writes blocks in any order and verifies them before the headers.

  Subclasses store a block in `_store`, compute the checksum of stored bytes in
  `_checksum`, make all blocks readable in `_flush`, and write the metadata in
  `_write_headers`.
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
    self._checksums: dict[str, list[tuple[slices.Slices, int]]] = {
      leaf: [] for leaf in specs
    }

  def write(self, leaf: str, box: slices.Slices, array: np.ndarray) -> None:
    """Writes one block; see `soupjax.soups.engine.run.Writer`."""
    if not array.size:
      return
    array = np.ascontiguousarray(array)
    value = crc32.crc32(array)
    self._store(leaf, box, array)
    with self._lock:
      self._checksums[leaf].append((box, value))

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
    parts: dict[str, list[tuple[int, int, int]]] = {}

    def compare(leaf, _):
      parts[leaf] = self._compare(leaf)

    threads.for_each(
      list(self.specs),
      compare,
      count=2,
      name="soupjax-compare",
      make_buffer=lambda: None,
    )
    everywhere, checksums = processes.gather_json(parts), {}
    for leaf, spec in self.specs.items():
      checksums[leaf] = crc32.whole(
        [part for process in everywhere for part in process[leaf]],
        spec.size * spec.dtype.itemsize,
      )
      if checksums[leaf] is None:
        # Some blocks are not contiguous in the leaf, so read it in order.
        checksums[leaf] = self._checksum(leaf, slices.whole(spec.shape))
    return checksums

  def _compare(self, leaf: str) -> list[tuple[int, int, int]]:
    """Returns first byte, length and CRC-32 of the contiguous blocks."""
    spec, parts = self.specs[leaf], []
    for box, expected in self._checksums[leaf]:
      value = self._checksum(leaf, box)
      if value != expected:
        raise ValueError(
          f"Leaf {leaf!r} was not written as it is: the bytes on disk have "
          f"checksum {value:08x} instead of {expected:08x}. Is the disk sound?"
        )
      runs = list(slices.contiguous_runs(spec.shape, box))
      if len(runs) == 1:
        first, n = (k * spec.dtype.itemsize for k in runs[0])
        parts.append((first, n, value))
    return parts


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

  def _store(self, leaf, box, array):
    fd, offset = self.places[leaf]
    data, at = memoryview(array.reshape(-1).view(np.uint8)), 0
    item = array.dtype.itemsize
    for first, n in slices.contiguous_runs(self.specs[leaf].shape, box):
      write_all(fd, data[at : at + n * item], offset + first * item)
      at += n * item

  def _checksum(self, leaf, box):
    spec, (fd, offset) = self.specs[leaf], self.places[leaf]
    item, value = spec.dtype.itemsize, 0
    for first, n in slices.contiguous_runs(spec.shape, box):
      value = _extend(value, fd, offset + first * item, n * item)
    return value

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


def _extend(value: int, fd: int, offset: int, num_bytes: int) -> int:
  """Continues a CRC-32 with bytes of a file; -1 if the file is too short."""
  if not hasattr(_SCRATCH, "view"):
    _SCRATCH.view = memoryview(bytearray(1 << 20))
  while num_bytes > 0:
    view = _SCRATCH.view[: min(num_bytes, len(_SCRATCH.view))]
    n = os.preadv(fd, [view], offset)
    if n == 0:
      return -1
    value = zlib.crc32(view[:n], value)
    offset, num_bytes = offset + n, num_bytes - n
  return value


def write_all(fd: int, data: Any, offset: int) -> None:
  """Writes bytes at an offset.

  Args:
    fd: of the file.
    data: bytes, or a list of at most 1,000 parts that follow one another.
    offset: of the first byte.

  Raises:
    ValueError: if the disk is full.
  """
  parts = data if isinstance(data, list) else [data]
  while parts:
    try:
      n = os.pwritev(fd, parts, offset)
    except OSError as e:
      files.explain(e, "the output")
      raise
    offset += n
    while parts and n >= len(parts[0]):
      n -= len(parts[0])
      parts = parts[1:]
    if n:
      parts = [memoryview(parts[0])[n:], *parts[1:]]
