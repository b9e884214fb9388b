# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes Orbax checkpoints block by block.

Orbax itself needs whole leaves in memory, and tensorstore copies and encodes
every chunk. An uncompressed chunk of zarr3 is its elements and their CRC-32C,
without which a flipped bit is restored silently. This writer puts them straight
into the data file of an OCDBT database, and adds the index of the database and
Orbax's metadata at the end. Compression would hardly shrink float weights.
"""

from collections.abc import Iterator, Mapping, Sequence
import errno
import itertools
import json
import math
import os
import pathlib
import time
from typing import Any, NamedTuple
import uuid

import jax
import numpy as np
import tensorstore as ts

from soupjax import files, processes
from soupjax.checkpoints.formats import (
  block_writer,
  leaf_digest,
  orbax_arrays,
)
from soupjax.soups.core import crc32, slices

# The most bytes of a chunk, which a reader decodes at once. A chunk is also the
# smallest block: larger ones would not fit the processor's cache.
CHUNK_BYTES = 1 << 20
_CRC_BYTES = 4
# Chunks that are written in one call, of at most 1,024 parts.
_BATCH = 500


def chunk_shape(
  spec: jax.ShapeDtypeStruct, source: tuple[int, ...] | None = None
) -> tuple[int, ...]:
  """Chooses the chunk shape of a leaf.

  Args:
    spec: shape and dtype of the leaf.
    source: the chunk shape of the ingredients; these chunks are not cut.

  Returns:
    A chunk shape: several rows, or part of one if rows are long. Chunks of a
    leaf follow one another in row-major order.
  """
  shape, most = spec.shape, max(1, CHUNK_BYTES // spec.dtype.itemsize)
  for axis, n in enumerate(shape):
    row = math.prod(shape[axis + 1 :])
    together = min(source[axis], n) if source else 1
    if n > 1 and (together > 1 or row <= most):
      units = -(-n // together)
      count = -(-units // max(1, most // (row * together)))
      # Chunks of about the same size, since the last one is stored in full.
      rows = min(n, -(-units // count) * together)
      return (*[1] * axis, rows, *shape[axis + 1 :])
  return (1,) * len(shape)


def check(
  specs: Mapping[str, jax.ShapeDtypeStruct],
  provenance: Mapping[str, Any] | None = None,
) -> None:
  """Checks that Orbax can hold these leaves.

  Raises:
    ValueError: naming an empty leaf, or names that Orbax would lose.
  """
  del provenance  # It can have any size.
  # Keys are joined with dots, and a store ignores empty keys.
  stored: dict[str, str] = {}
  for leaf, spec in specs.items():
    key = leaf.replace("/", ".")
    if key in stored:
      raise ValueError(
        f"Leaves {stored[key]!r} and {leaf!r} would both be stored as {key!r} "
        "by Orbax. Rename one of them or write safetensors."
      )
    stored[key] = leaf
    if leaf.startswith("/") or leaf.endswith("/") or "//" in leaf:
      raise ValueError(
        f"Leaf {leaf!r} has an empty key, which Orbax cannot store. Rename it "
        "or write safetensors."
      )
    if not spec.size:
      raise ValueError(
        f"Leaf {leaf!r} has shape {spec.shape}: Orbax stores no empty arrays. "
        "Write safetensors or npz, or leave the leaf out."
      )


def num_bytes(
  specs: Mapping[str, jax.ShapeDtypeStruct],
  chunks: Mapping[str, tuple[int, ...]],
) -> int:
  """Estimates the bytes of a checkpoint on disk, on the high side.

  Args:
    specs: leaf -> shape and dtype.
    chunks: leaf -> chunk shape; chunks at the edge are stored in full.
  """
  total = 8192
  for leaf, spec in specs.items():
    layout = _Layout.of(spec, chunks[leaf], 0)
    name = len(leaf.encode("utf-8", "replace"))
    # Metadata of the leaf and its checksum; entries of the index have its name.
    total += layout.end + 640 + 2 * name + layout.count * (name + 48)
  return total


class _Layout(NamedTuple):
  """The chunks of a leaf in the data file, one after the other.

  Attributes:
    start: byte of the file at which the first chunk begins.
    line: number of elements in each contiguous run that is cut into chunks; the
      last chunk of a run is padded.
    chunk: number of elements in a chunk.
    count: number of chunks.
    itemsize: bytes of an element.
  """

  start: int
  line: int
  chunk: int
  count: int
  itemsize: int

  @classmethod
  def of(
    cls, spec: jax.ShapeDtypeStruct, chunk: tuple[int, ...], start: int
  ) -> "_Layout":
    """Places the chunks of a leaf, whose shape is from `chunk_shape`."""
    axis = next((i for i, n in enumerate(chunk) if n > 1), len(chunk))
    line, size = math.prod(spec.shape[axis:]), math.prod(chunk)
    count = math.prod(spec.shape[:axis]) * -(-line // size)
    return cls(start, line, size, count, spec.dtype.itemsize)

  @property
  def stride(self) -> int:
    """Bytes from one chunk to the next."""
    return self.chunk * self.itemsize + _CRC_BYTES

  @property
  def end(self) -> int:
    """The byte after the last chunk."""
    return self.start + self.count * self.stride

  def chunks(self, first: int, n: int) -> Iterator[tuple[int, int]]:
    """Yields the offset in the file and the size of each chunk in a run.

    Args:
      first: the first element, at which a chunk begins.
      n: number of elements, up to the end of a chunk.

    Yields:
      Offset in bytes and number of elements, without padding.
    """
    end = first + n
    while first < end:
      line, at = divmod(first, self.line)
      index = line * -(-self.line // self.chunk) + at // self.chunk
      size = min(self.chunk, self.line - at)
      yield self.start + index * self.stride, size
      first += size


class OrbaxWriter(block_writer.RangeWriter):
  """Writes a directory that Orbax restores; blocks consist of whole chunks."""

  def __init__(
    self,
    path: str,
    specs: Mapping[str, jax.ShapeDtypeStruct],
    order: Sequence[str],
    treedef: Any,
    chunks: Mapping[str, tuple[int, ...]],
    *,
    first: bool = True,
  ):
    """Opens the data file.

    Args:
      path: an existing directory.
      specs: leaf -> shape and dtype, in the order of `treedef`.
      order: the order of the leaves in the file.
      treedef: treedef of the tree.
      chunks: leaf -> chunk shape, from `chunk_shape`.
      first: whether this process creates the files and writes the headers.

    Raises:
      ValueError: if zarr does not know the dtype of a leaf, or the disk is
        full.
    """
    self.path, self._chunks = path, chunks
    self._arrays = array_metadata(specs, chunks)
    self._keys = keys_of(specs, treedef)
    self._state = os.path.join(path, "state")
    # A name that is never used again, since readers may cache files by name.
    self._name = f"d/{processes.gather_json(uuid.uuid4().hex)[0]}"
    file = os.path.join(self._state, self._name)
    os.makedirs(os.path.dirname(file), exist_ok=True)
    self._layouts, self._end = {}, 0
    for leaf in order:
      layout = _Layout.of(specs[leaf], chunks[leaf], self._end)
      self._layouts[leaf], self._end = layout, layout.end
    # Byte of a chunk -> its checksum, which follows elements and padding.
    self._crcs: dict[int, bytes] = {}
    places = {leaf: (file, at.start) for leaf, at in self._layouts.items()}
    super().__init__(specs, places, {file: self._end}, first=first)
    self._fd = self._fds[file]

  def _store(self, spans, row):
    for chunks in self._batches(spans, row):
      data = []
      for _, offset, part, size in chunks:
        padding = np.zeros(size - part.size, part.dtype)
        whole = np.concatenate([part, padding]) if padding.size else part
        checksum = crc32.crc32c(whole).to_bytes(_CRC_BYTES, "little")
        self._crcs[offset] = checksum
        data += [part.view(np.uint8), padding.tobytes() + checksum]
      block_writer.write_all(self._fd, data, chunks[0][1])

  def _load(self, spans, row):
    for chunks in self._batches(spans, row):
      tails, data = [], []
      for _, _, part, size in chunks:
        padding = (size - part.size) * part.itemsize
        tails.append(bytearray(padding + _CRC_BYTES))
        data += [part.view(np.uint8), tails[-1]]
      n = block_writer.read_all(self._fd, data, chunks[0][1])
      for (leaf, offset, part, _), tail in zip(chunks, tails):
        n -= part.nbytes + len(tail)
        zeros = bytes(len(tail) - _CRC_BYTES)
        if n < 0 or tail != zeros + self._crcs[offset]:
          raise ValueError(
            f"Leaf {leaf!r} was not written correctly: a chunk is cut short or "
            "has another checksum. Is the disk faulty?"
          )

  def _batches(self, spans, row):
    """Yields lists of chunks that follow one another in the file.

    Args:
      spans: boxes of whole chunks.
      row: flat; holds their elements.

    Yields:
      Leaf, place in the file, elements and full size of each chunk.
    """
    batch, end = [], 0
    for leaf, box, start, stop, first in spans:
      runs, layout = ((first, stop - start),), self._layouts[leaf]
      if first is None:
        runs = slices.contiguous_runs(self.specs[leaf].shape, box)
      for run in runs:
        for offset, n in layout.chunks(*run):
          if batch and (offset != end or len(batch) == _BATCH):
            yield batch
            batch = []
          batch.append((leaf, offset, row[start : start + n], layout.chunk))
          start, end = start + n, offset + layout.stride
    if batch:
      yield batch

  def _write_headers(self, provenance, checksums):
    self._write_index()
    recorded = {leaf: f"{value:08x}" for leaf, value in checksums.items()}
    record = {**provenance, "crc32": recorded}
    seal = {leaf_digest.KEY: leaf_digest.seal(self.specs, record)}
    # In both files, so that the loss of one is noticed.
    self._write_tree(seal)
    self._write_record({"soupjax": record, **seal})
    sync_tree(self.path)

  def _write_index(self):
    """Writes the keys of the database: metadata and chunks of each leaf."""
    entries: list[orbax_arrays.Entry] = []
    for leaf, layout in self._layouts.items():
      keys = ".".join(key for key, _ in self._keys[leaf])
      prefix = orbax_arrays.folder(keys)
      entries.append((f"{prefix}zarr.json".encode(), self._arrays[leaf]))
      grid = [
        range(-(-n // c))
        for n, c in zip(self.specs[leaf].shape, self._chunks[leaf])
      ]
      for k, index in enumerate(itertools.product(*grid)):
        key = "/".join(map(str, ("c", *index)))
        at = layout.start + k * layout.stride
        entries.append((f"{prefix}{key}".encode(), (at, layout.stride)))
    data, manifest = orbax_arrays.index(entries, self._name, self._end)
    block_writer.write_all(self._fd, data, self._end)
    path = pathlib.Path(self._state, "manifest.ocdbt")
    path.write_bytes(manifest)

  def _write_tree(self, custom_metadata):
    _write_json(
      os.path.join(self._state, "_METADATA"),
      tree_metadata(self._keys, custom_metadata),
    )

  def _write_record(self, custom_metadata):
    _write_json(
      os.path.join(self.path, "_CHECKPOINT_METADATA"),
      checkpoint_metadata(custom_metadata),
    )
    pathlib.Path(self.path, "orbax.checkpoint").touch()


def tree_metadata(
  keys: Mapping[str, Sequence[tuple[str, int]]],
  custom_metadata: Any,
  *,
  use_ocdbt: bool = True,
) -> dict[str, Any]:
  """Returns the content of `_METADATA`, which describes a tree.

  Args:
    keys: the result of `keys_of`.
    custom_metadata: JSON to store with it.
    use_ocdbt: whether the arrays are in a database, or each in a directory.
  """
  tree = {
    str(tuple(k for k, _ in parts)): {
      "key_metadata": [{"key": k, "key_type": t} for k, t in parts],
      "value_metadata": {
        "value_type": "np.ndarray",
        "skip_deserialize": False,
      },
    }
    for parts in keys.values()
  }
  return {
    "tree_metadata": tree,
    "use_ocdbt": use_ocdbt,
    "use_zarr3": True,
    "store_array_data_equal_to_fill_value": True,
    "custom_metadata": custom_metadata,
  }


def checkpoint_metadata(custom_metadata: Any) -> dict[str, Any]:
  """Returns the content of `_CHECKPOINT_METADATA`."""
  now = time.time_ns()
  handler = (
    "orbax.checkpoint.experimental.v1._src.handlers.pytree_handler."
    "PyTreeHandler"
  )
  return {
    "item_handlers": {"state": handler},
    "metrics": {},
    "performance_metrics": {},
    "init_timestamp_nsecs": now,
    "commit_timestamp_nsecs": now,
    "custom_metadata": custom_metadata,
  }


def _write_json(path, value):
  """Writes JSON without line breaks, which takes a tenth of the time."""
  files.write_text(path, json.dumps(value))


def array_metadata(
  specs: Mapping[str, jax.ShapeDtypeStruct],
  chunks: Mapping[str, tuple[int, ...]],
) -> dict[str, bytes]:
  """Returns leaf -> zarr.json, as tensorstore writes it.

  Raises:
    ValueError: naming a leaf whose dtype zarr does not know.
  """
  texts: dict[Any, bytes] = {}
  for leaf, spec in specs.items():
    key = (spec.shape, spec.dtype, chunks[leaf])
    if key not in texts:
      try:
        texts[key] = _zarr_json(*key)
      except ValueError as e:
        raise ValueError(
          f"Leaf {leaf!r} of dtype {spec.dtype} cannot be written: {e}. "
          "Choose dtype= or another format."
        ) from e
  return {
    leaf: texts[spec.shape, spec.dtype, chunks[leaf]]
    for leaf, spec in specs.items()
  }


def _zarr_json(shape, dtype, chunk) -> bytes:
  metadata = {
    "shape": list(shape),
    "data_type": str(dtype),
    "chunk_grid": {
      "name": "regular",
      "configuration": {"chunk_shape": list(chunk)},
    },
    "codecs": [
      {"name": "bytes", "configuration": {"endian": "little"}},
      {"name": "crc32c"},
    ],
  }
  # With a context of its own, the store is empty.
  array = ts.open(
    {"driver": "zarr3", "kvstore": "memory://", "metadata": metadata},
    create=True,
    context=ts.Context(),
  ).result()
  return array.kvstore.read("zarr.json").result().value


def keys_of(
  specs: Mapping[str, jax.ShapeDtypeStruct], treedef: Any
) -> dict[str, Sequence[tuple[str, int]]]:
  """Returns leaf -> its keys and their types: 1 in a list, 2 in a dict."""
  names = jax.tree.unflatten(treedef, list(specs))
  return {
    leaf: [
      (
        jax.tree_util.keystr((key,), simple=True),
        1 if isinstance(key, jax.tree_util.SequenceKey) else 2,
      )
      for key in path
    ]
    for path, leaf in jax.tree_util.tree_flatten_with_path(names)[0]
  }


def explain(error: Exception, path: str) -> None:
  """Raises a clear error for what tensorstore reports about a disk.

  Args:
    error: the error that is being handled. If it has another cause, nothing is
      raised.
    path: the output that was being written.

  Raises:
    ValueError: naming the output and a fix.
  """
  text = str(error)
  if "No space left" in text or "RESOURCE_EXHAUSTED" in text:
    error = OSError(errno.ENOSPC, text)
  elif "DATA_LOSS" in text:
    raise ValueError(
      f"{path} was not written correctly: {text.splitlines()[0]}. Is the disk "
      "faulty?"
    ) from error
  if isinstance(error, OSError):
    files.explain(error, path)


def sync_tree(path: str) -> None:
  """Flushes all files in a directory to disk."""
  for folder, _, names in os.walk(path):
    for name in [*names, "."]:
      fd = os.open(os.path.join(folder, name), os.O_RDONLY)
      try:
        os.fsync(fd)
      except OSError as e:
        files.explain(e, path)
        raise
      finally:
        os.close(fd)
