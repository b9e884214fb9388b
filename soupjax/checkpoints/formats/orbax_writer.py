# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes Orbax checkpoints block by block.

Orbax itself needs whole leaves in memory. This writer stores arrays with
tensorstore in Orbax's layout (zarr3 in an OCDBT store) and adds Orbax's
metadata. Chunks have a bounded size and a checksum, without which a flipped bit
is restored silently. They are not compressed, since float weights hardly
shrink.
"""

from collections.abc import Mapping, Sequence
import contextlib
import errno
import math
import os
import pathlib
import time
from typing import Any

import jax
import tensorstore as ts

from soupjax import files
from soupjax.checkpoints.formats import block_writer, leaf_digest
from soupjax.soups.core import slices

# The sizes of a chunk, which a reader decodes at once, and of a commit, which
# stays in memory until then.
CHUNK_BYTES = 4 << 20
COMMIT_BYTES = 64 << 20


def chunk_shape(
  spec: jax.ShapeDtypeStruct, source: tuple[int, ...] | None = None
) -> tuple[int, ...]:
  """Chooses the chunk shape of a leaf.

  Args:
    spec: shape and dtype of the leaf.
    source: the chunk shape of the ingredients; these chunks are not cut.

  Returns:
    A chunk shape: several rows, or part of one if rows are long.
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
  """Estimates the size of a checkpoint on disk, rather too high.

  Args:
    specs: leaf -> shape and dtype.
    chunks: leaf -> chunk shape; chunks at the edge are stored in full.
  """
  weights = count = 0
  for leaf, spec in specs.items():
    grid = [-(-n // c) for n, c in zip(spec.shape, chunks[leaf])]
    count += math.prod(grid)
    weights += math.prod(grid) * math.prod(chunks[leaf]) * spec.dtype.itemsize
  # Metadata of a leaf, an entry of the index, an index for each commit, and
  # what differs between runs: commits end in any order.
  commits = 1 + weights // COMMIT_BYTES
  metadata = 640 * len(specs) + 64 * count + 4096 * (1 + commits)
  return weights + metadata + weights // 10_000


class OrbaxWriter(block_writer.BlockWriter):
  """Writes a directory that Orbax restores; blocks consist of whole chunks."""

  def __init__(
    self,
    path: str,
    specs: Mapping[str, jax.ShapeDtypeStruct],
    treedef: Any,
    chunks: Mapping[str, tuple[int, ...]],
  ):
    """Creates the store of this process.

    Args:
      path: an existing directory.
      specs: leaf -> shape and dtype, in the order of `treedef`.
      treedef: of the tree.
      chunks: leaf -> chunk shape.

    Raises:
      ValueError: if zarr does not know the dtype of a leaf.
    """
    index, self._count = jax.process_index(), jax.process_count()
    super().__init__(specs, first=index == 0)
    self.path = path
    self._chunks = chunks
    self._context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
    self._state = os.path.join(path, "state")
    # Several processes cannot write to one store at the same time.
    self._folder = self._state if self._count == 1 else self._part(index)
    os.makedirs(self._folder, exist_ok=True)
    self._keys = _keys(specs, treedef)
    self._transaction, self._uncommitted = ts.Transaction(), 0
    self._pending = None
    arrays = {leaf: self._create(leaf) for leaf in specs}
    self._commit()
    self._arrays = {k: a.with_transaction(None) for k, a in arrays.items()}

  def _part(self, index: int) -> str:
    return os.path.join(self._state, f"ocdbt.process_{index}")

  def _base(self, folder: str) -> dict[str, Any]:
    # Synced once at the end instead of at each commit.
    return {"driver": "file", "path": f"{folder}/", "file_io_sync": False}

  def _create(self, leaf):
    spec = self.specs[leaf]
    settings = {
      "driver": "zarr3",
      # Otherwise a leaf of zeros has no chunks and reads as missing.
      "store_data_equal_to_fill_value": True,
      "kvstore": {
        "driver": "ocdbt",
        "base": self._base(self._folder),
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
        "dtype= or another format."
      ) from e

  def _store(self, spans, row):
    for leaf, box, start, stop, _ in spans:
      block = row[start:stop].reshape(slices.shape_of(box))
      with self._lock:
        target = self._arrays[leaf].with_transaction(self._transaction)
        _wait(target[box].write(block), self.path)
        self._uncommitted += block.nbytes
        if self._uncommitted >= COMMIT_BYTES:
          self._begin_commit()

  def _begin_commit(self) -> None:
    """Commits in the background, one transaction at a time."""
    if self._pending is not None:
      _wait(self._pending, self.path)
    self._pending = self._transaction.commit_async()
    self._transaction, self._uncommitted = ts.Transaction(), 0

  def _commit(self) -> None:
    """Commits everything and waits for it."""
    self._begin_commit()
    _wait(self._pending, self.path)
    self._pending = None

  def _load(self, spans, row):
    for leaf, box, start, stop, _ in spans:
      block = ts.array(row[start:stop].reshape(slices.shape_of(box)))
      _wait(block.write(self._arrays[leaf][box]), self.path)

  def _flush(self):
    self._commit()
    sync_tree(self._folder)

  def _write_headers(self, provenance, checksums):
    if self._count > 1:
      self._merge()
    recorded = {leaf: f"{value:08x}" for leaf, value in checksums.items()}
    record = {**provenance, "crc32": recorded}
    seal = {leaf_digest.KEY: leaf_digest.seal(self.specs, record)}
    # In both files, so that the loss of one is noticed.
    self._write_tree(seal)
    self._write_record({"soupjax": record, **seal})
    sync_tree(self.path)

  def _sync(self):
    """Does nothing: stores and headers are synced when they are written."""

  def _merge(self):
    """Joins the stores of all processes by reference, without a copy."""
    context, keys = ts.Context(), set()
    merged = ts.KvStore.open(
      {"driver": "ocdbt", "base": self._base(self._state)}, context=context
    ).result()
    transaction = ts.Transaction(atomic=True)
    for index in range(self._count):
      part = ts.KvStore.open(
        {"driver": "ocdbt", "base": self._base(self._part(index))},
        context=context,
      ).result()
      keys.update(part.list().result())
      target = merged.with_transaction(transaction)
      part.experimental_copy_range_to(target).result()
    transaction.commit_async().result()
    if set(merged.list().result()) != keys:
      raise ValueError(
        f"{self.path} lacks chunks that were written. Is the disk sound?"
      )

  def _write_tree(self, custom_metadata):
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
        "custom_metadata": custom_metadata,
      },
    )

  def _write_record(self, custom_metadata):
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
        "custom_metadata": custom_metadata,
      },
    )
    pathlib.Path(self.path, "orbax.checkpoint").touch()

  def close(self) -> None:
    """Drops everything that is not committed; afterwards nothing is written."""
    self._transaction.abort()
    if self._pending is not None:
      with contextlib.suppress(ValueError, OSError, RuntimeError):
        self._pending.result()  # The commit cannot be stopped.


def _keys(specs, treedef) -> dict[str, Sequence[tuple[str, int]]]:
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


def _wait(future, path):
  """Waits for tensorstore and explains its errors."""
  try:
    return future.result()
  except (ValueError, OSError, RuntimeError) as e:
    explain(e, path)
    raise


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
      f"{path} was not written as it is: {text.splitlines()[0]}. Is the disk "
      "sound?"
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
