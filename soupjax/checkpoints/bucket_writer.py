# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes a tree on a mesh to a bucket, as a checkpoint that Orbax restores.

Orbax 0.12 writes to gs:// and local paths. This writer uses tensorstore's own
drivers for gs:// and s3://, and one object per chunk, so that processes need no
shared index: each writes the chunks on its own devices. Every chunk has a
CRC-32C. The files that readers require come last: `_CHECKPOINT_METADATA`, and
then `commit_success.txt`, which Orbax requires in gs:// buckets.
"""

from collections.abc import Callable
import json
import math
from typing import Any

import jax
import numpy as np
import tensorstore as ts

from soupjax import buckets, processes
from soupjax.checkpoints.formats import orbax_arrays, orbax_writer
from soupjax.soups.core import slices, tree

# Most bytes in a chunk, unless one row is larger. Each chunk is one object and
# is read whole.
_CHUNK_BYTES = 16 << 20


def start(
  path: str, params: Any, metadata: dict[str, Any] | None = None
) -> Callable[[], None]:
  """Starts writing a tree.

  Args:
    path: address of a new checkpoint.
    params: a tree of arrays, which may be donated or changed after the call.
    metadata: JSON to store with it.

  Returns:
    A function that waits for the writes and completes the checkpoint. All
    processes must call it. It raises a ValueError if the store cannot be
    reached.

  Raises:
    ValueError: if Orbax cannot store a leaf, or the store cannot be reached.
  """
  leaves, treedef = tree.flatten(params)
  specs = tree.value_specs(leaves, "the tree to save")
  orbax_writer.check(specs)
  chunks = {leaf: _chunk(value) for leaf, value in leaves.items()}
  keys = orbax_writer.keys_of(specs, treedef)
  names = {
    leaf: orbax_arrays.folder(".".join(key for key, _ in keys[leaf]))
    for leaf in specs
  }
  first, root = jax.process_index() == 0, f"{path}/state"
  buckets.check_bucket(path)
  context = orbax_arrays.new_context()
  store = ts.KvStore.open(orbax_arrays.store(root), context=context).result()
  if first:
    buckets.remove(path)  # Remains of an interrupted save.
    buckets.write(f"{path}/{buckets.UNFINISHED}", b"")
    texts = orbax_writer.array_metadata(specs, chunks)
    with buckets.explained(path):
      for write in [
        store.write(f"{names[leaf]}zarr.json", text)
        for leaf, text in texts.items()
      ]:
        write.result()
  processes.barrier(f"created {path}")
  writes = []
  with buckets.explained(path):
    for leaf, value in leaves.items():
      kvstore = orbax_arrays.store(root)
      kvstore["path"] += names[leaf]
      spec = {
        "driver": "zarr3",
        "kvstore": kvstore,
        # Readers treat a missing chunk as damage.
        "store_data_equal_to_fill_value": True,
      }
      boxes = _owned(value, first)
      array = ts.open(spec, context=context, open=True).result()
      for box, part in boxes:
        # tensorstore may read the array until the write is done.
        writes.append(
          array[box].write(
            np.array(part), can_reference_source_data_indefinitely=True
          )
        )

  def finish():
    with buckets.explained(path):
      for write in writes:
        write.result()
      processes.barrier(f"wrote {path}")
      if first:
        described = orbax_writer.tree_metadata(keys, None, use_ocdbt=False)
        buckets.write(f"{root}/_METADATA", json.dumps(described).encode())
        record = orbax_writer.checkpoint_metadata(metadata or {})
        text = json.dumps(record).encode()
        buckets.write(f"{root}/commit_success.txt", b"")
        buckets.write(f"{path}/_CHECKPOINT_METADATA", text)
        buckets.write(f"{path}/commit_success.txt", b"")
        buckets.remove(f"{path}/{buckets.UNFINISHED}")
      processes.barrier(f"completed {path}")

  return finish


def _chunk(value) -> tuple[int, ...]:
  """Returns a chunk shape that divides the shards of an array."""
  shape = tuple(np.shape(value))
  if isinstance(value, jax.Array):
    shape = value.sharding.shard_shape(shape)
  if not shape:
    return ()
  row = math.prod(shape[1:]) * np.dtype(value.dtype).itemsize
  divisors = (n for n in range(shape[0], 0, -1) if shape[0] % n == 0)
  rows = next((n for n in divisors if n * row <= _CHUNK_BYTES), 1)
  return (rows, *shape[1:])


def _owned(value, first: bool) -> list[tuple[Any, np.ndarray]]:
  """Returns the boxes of an array that this process writes, with values."""
  if isinstance(value, jax.Array) and not value.is_fully_replicated:
    return [
      (slices.normalise(shard.index, value.shape), np.asarray(shard.data))
      for shard in value.addressable_shards
      if shard.replica_id == 0
    ]
  if not first:
    return []
  if isinstance(value, jax.Array):
    value = value.addressable_data(0)
  return [(slices.whole(np.shape(value)), np.asarray(value))]
