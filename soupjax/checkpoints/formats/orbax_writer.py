# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes Orbax checkpoints block by block.

Orbax itself wants whole leaves in memory. Here the arrays are written with
tensorstore as Orbax would (zarr3 in an OCDBT store), in chunks of bounded size,
uncompressed (float weights hardly compress) and with a checksum each (without
one a flipped bit is restored silently), and Orbax's metadata goes beside them.
"""

from collections.abc import Mapping, Sequence
import concurrent.futures
import math
import os
import pathlib
import threading
import time
from typing import Any

import jax
import numpy as np
import tensorstore as ts

from soupjax import files, processes
from soupjax.checkpoints.formats import byte_ranges, leaf_digest
from soupjax.soups.core import crc32, slices

# Chunks are what others read at once; a commit is what is held in memory.
CHUNK_BYTES = 4 << 20
COMMIT_BYTES = 64 << 20


def chunk_shape(
  spec: jax.ShapeDtypeStruct, source: tuple[int, ...] | None = None
) -> tuple[int, ...]:
  """Chooses how a leaf is cut in storage.

  Args:
    spec: its shape and dtype.
    source: the chunks that it is read in, which stay together.

  Returns:
    A chunk shape: some rows, or part of one if rows are long.
  """
  shape, most = spec.shape, max(1, CHUNK_BYTES // spec.dtype.itemsize)
  chunk = [1] * len(shape)
  for axis, n in enumerate(shape):
    row = math.prod(shape[axis + 1 :])
    together = min(source[axis], n) if source else 1
    if n > 1 and (together > 1 or row <= most):
      fits = max(1, most // (row * together)) * together
      return (*chunk[:axis], min(n, fits), *shape[axis + 1 :])
  return tuple(chunk)


def check(specs: Mapping[str, jax.ShapeDtypeStruct]) -> None:
  """Checks that Orbax can hold a tree.

  Raises:
    ValueError: naming a leaf that is empty.
  """
  for leaf, spec in specs.items():
    if not math.prod(spec.shape):
      raise ValueError(
        f"Leaf {leaf!r} has shape {spec.shape}: Orbax stores no empty arrays. "
        "Write safetensors or npz, or leave it out with select."
      )


def num_bytes(
  specs: Mapping[str, jax.ShapeDtypeStruct],
  chunks: Mapping[str, tuple[int, ...]],
) -> int:
  """About how much a checkpoint takes on disk, rather too much.

  Args:
    specs: leaf -> shape and dtype.
    chunks: leaf -> chunk shape; the last of an axis is stored in full.
  """
  weights = count = 0
  for leaf, spec in specs.items():
    fit = [-(-n // c) for n, c in zip(spec.shape, chunks[leaf])]
    count += math.prod(fit)
    weights += math.prod(fit) * math.prod(chunks[leaf]) * spec.dtype.itemsize
  # Metadata of a leaf, an entry of the index, and an index for each commit.
  commits = 1 + weights // COMMIT_BYTES
  return weights + 640 * len(specs) + 64 * count + 4096 * (1 + commits)


class OrbaxWriter:
  """Writes a directory that Orbax restores."""

  def __init__(
    self,
    path: str,
    specs: Mapping[str, jax.ShapeDtypeStruct],
    treedef: Any,
    chunks: Mapping[str, tuple[int, ...]],
    *,
    process: tuple[int, int] = (0, 1),
  ):
    """Makes the store.

    Args:
      path: a directory that exists.
      specs: leaf -> shape and dtype, in the order of `treedef`.
      treedef: of the tree.
      chunks: leaf -> chunk shape; pieces that are written end where chunks do.
      process: index and number of processes that write.

    Raises:
      ValueError: if a leaf is of a dtype that zarr does not know.
    """
    self.path, self.specs, self.treedef = path, specs, treedef
    self._index, self._count = process
    self._chunks = chunks
    self._context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
    self._state = os.path.join(path, "state")
    os.makedirs(self._store(), exist_ok=True)
    self._keys = _keys(specs, treedef)
    self._lock = threading.Lock()
    self._transaction, self._held = ts.Transaction(), 0
    self._pending = None
    self._pieces: dict[str, list[tuple[slices.Slices, int]]] = {
      k: [] for k in specs
    }
    arrays = {leaf: self._create(leaf) for leaf in specs}
    self._flush()
    self._arrays = {k: a.with_transaction(None) for k, a in arrays.items()}

  def _store(self) -> str:
    # Processes that share one store get in each other's way.
    if self._count == 1:
      return self._state
    return os.path.join(self._state, f"ocdbt.process_{self._index}")

  def _base(self, folder: str) -> dict[str, Any]:
    # Flushed once at the end instead of at each commit.
    return {"driver": "file", "path": f"{folder}/", "file_io_sync": False}

  def _create(self, leaf):
    spec = self.specs[leaf]
    settings = {
      "driver": "zarr3",
      # Without it a leaf of zeros would have no chunk, which reads as lost.
      "store_data_equal_to_fill_value": True,
      "kvstore": {
        "driver": "ocdbt",
        "base": self._base(self._store()),
        "path": f"{'.'.join(k for k, _ in self._keys[leaf])}/",
        "config": {"max_inline_value_bytes": 1024},
      },
      "metadata": {
        "shape": list(spec.shape),
        "data_type": str(spec.dtype),
        "chunk_grid": {
          "name": "regular",
          "configuration": {"chunk_shape": list(self._chunks[leaf])},
        },
        "codecs": [
          {"name": "bytes", "configuration": {"endian": "little"}},
          {"name": "crc32c"},
        ],
      },
    }
    try:
      return ts.open(
        settings,
        create=True,
        open=True,
        context=self._context,
        transaction=self._transaction,
      ).result()
    except ValueError as e:
      raise ValueError(
        f"Leaf {leaf!r} of dtype {spec.dtype} cannot be written: {e}. Choose "
        "dtype=, or another format."
      ) from e

  def _commit(self, limit: int) -> None:
    """Ends the transaction if it holds more than `limit` bytes."""
    if self._held < limit:
      return
    if self._pending is not None:
      _wait(self._pending, self.path)
    self._pending = self._transaction.commit_async()
    self._transaction, self._held = ts.Transaction(), 0

  def write(self, leaf: str, box: slices.Slices, array: np.ndarray) -> None:
    """See `soupjax.soups.engine.run.Writer`; slices consist of whole chunks."""
    value = crc32.crc32(np.ascontiguousarray(array))
    part = array.reshape(slices.shape_of(box))
    with self._lock:
      target = self._arrays[leaf].with_transaction(self._transaction)
      _wait(target[box].write(part), self.path)
      self._pieces[leaf].append((box, value))
      self._held += array.nbytes
      self._commit(COMMIT_BYTES)

  def finish(
    self, provenance: Mapping[str, Any], *, first: bool = True
  ) -> None:
    """Reads everything back and writes Orbax's metadata.

    Args:
      provenance: the record.
      first: whether this is the process that writes the metadata.

    Raises:
      ValueError: naming a leaf that differs from what was written.
    """
    self._flush()
    sums = self._read_back(self._arrays, self._pieces)
    sync_tree(self._store())
    processes.barrier("stored")
    if first:
      self._write_tree()
      if self._count > 1:
        self._merge()
      record = {k: f"{value:08x}" for k, value in sums.items()}
      self._write_record({**provenance, "crc32": record})
      sync_tree(self.path)

  def _flush(self):
    self._commit(0)
    _wait(self._pending, self.path)
    self._pending = None

  def _read_back(self, arrays, pieces) -> dict[str, int]:
    """Compares all pieces; returns the checksums of all leaves."""

    def one(leaf):
      parts, spec = [], self.specs[leaf]
      for box, expected in pieces[leaf]:
        array = arrays[leaf]
        found = crc32.crc32(_wait(array[box].read(order="C"), self.path))
        if found != expected:
          raise ValueError(
            f"Leaf {leaf!r} was not written as it is: the bytes on disk have "
            f"checksum {found:08x} instead of {expected:08x}. Is the disk "
            "sound?"
          )
        first, item = (
          next(slices.contiguous_runs(spec.shape, box))[0],
          spec.dtype.itemsize,
        )
        parts.append((first * item, slices.size(box) * item, found))
      return parts

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      mine = dict(zip(pieces, pool.map(one, pieces)))
    everywhere = processes.gather_json(mine)
    return {
      leaf: crc32.whole(
        [part for process in everywhere for part in process[leaf]],
        slices.size(slices.whole(spec.shape)) * spec.dtype.itemsize,
      )
      for leaf, spec in self.specs.items()
    }

  def _merge(self):
    """Joins the stores of all processes by reference: no bytes move."""
    context, keys = ts.Context(), set()
    merged = ts.KvStore.open(
      {"driver": "ocdbt", "base": self._base(self._state)}, context=context
    ).result()
    transaction = ts.Transaction(atomic=True)
    for i in range(self._count):
      folder = os.path.join(self._state, f"ocdbt.process_{i}")
      one = ts.KvStore.open(
        {"driver": "ocdbt", "base": self._base(folder)}, context=context
      ).result()
      keys.update(one.list().result())
      target = merged.with_transaction(transaction)
      one.experimental_copy_range_to(target).result()
    transaction.commit_async().result()
    if set(merged.list().result()) != keys:
      raise ValueError(
        f"{self.path} lacks chunks that were written. Is the disk sound?"
      )

  def _write_tree(self):
    tree = {
      str(tuple(k for k, _ in keys)): {
        "key_metadata": [{"key": k, "key_type": t} for k, t in keys],
        "value_metadata": {
          "value_type": "np.ndarray",
          "skip_deserialize": False,
        },
      }
      for keys in self._keys.values()
    }
    files.write_json(
      os.path.join(self._state, "_METADATA"),
      {
        "tree_metadata": tree,
        "use_ocdbt": True,
        "use_zarr3": True,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
      },
    )

  def _write_record(self, record):
    now = time.time_ns()
    handler = (
      "orbax.checkpoint.experimental.v1._src.handlers.pytree_handler."
      "PyTreeHandler"
    )
    files.write_json(
      os.path.join(self.path, "_CHECKPOINT_METADATA"),
      {
        "item_handlers": {"state": handler},
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": now,
        "commit_timestamp_nsecs": now,
        "custom_metadata": {
          "soupjax": record,
          leaf_digest.KEY: leaf_digest.digest(self.specs),
        },
      },
    )
    pathlib.Path(self.path, "orbax.checkpoint").touch()

  def close(self) -> None:
    """Drops what is not committed."""
    self._transaction.abort()


def _keys(specs, treedef) -> dict[str, Sequence[tuple[str, int]]]:
  """Leaf -> its keys and whether each is of a list (1) or a dict (2)."""
  named = jax.tree.unflatten(treedef, list(specs))
  found = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(named)[0]:
    found[leaf] = [
      (
        jax.tree_util.keystr((key,), simple=True),
        1 if isinstance(key, jax.tree_util.SequenceKey) else 2,
      )
      for key in path
    ]
  return found


def _wait(future, path):
  """Waits for tensorstore, and explains a full disk."""
  try:
    return future.result()
  except (ValueError, OSError, RuntimeError) as e:
    found = explained(e, path)
    if found is e:
      raise
    raise found from e


def explained(error: Exception, path: str) -> Exception:
  """Turns what tensorstore says of a disk that cannot be written into ours."""
  text = str(error)
  if "No space left" in text or "RESOURCE_EXHAUSTED" in text:
    return ValueError(
      f"No space left for {path}: nothing was published. Free some, or choose "
      "another out=."
    )
  if "DATA_LOSS" in text:
    return ValueError(
      f"{path} was not written as it is: {text.splitlines()[0]}. Is the disk "
      "sound?"
    )
  if isinstance(error, OSError):
    return byte_ranges.explained(error, path)
  return error


def sync_tree(path: str) -> None:
  """Flushes all files below a directory to disk."""
  for folder, _, names in os.walk(path):
    for name in [*names, "."]:
      fd = os.open(os.path.join(folder, name), os.O_RDONLY)
      try:
        os.fsync(fd)
      except OSError as e:
        raise byte_ranges.explained(e, path) from e
      finally:
        os.close(fd)
