# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The files and arrays of an Orbax tree, read with tensorstore.

Metadata is untrusted: what it claims is compared with the size of the files
before tensorstore reserves memory for it.
"""

from collections.abc import Mapping
import json
import math
import os
from typing import Any

from etils import epath
import tensorstore as ts

from soupjax import files
from soupjax.checkpoints.formats import byte_ranges, input_files

_COMPRESSION = 1 << 16  # Highest compression ratio of zstd.
_SMALL = 64 << 20  # Bytes that are never too many to claim.
_COPIES = 4  # Of a chunk in memory, while it is decoded.


def identities(path: str, root: epath.Path) -> dict[str, input_files.Identity]:
  """Returns file -> identity of the metadata and data of a tree.

  In a bucket, these are the metadata only.

  Raises:
    ValueError: if one is not a regular file: tensorstore could block on it.
  """
  names = [root / "_METADATA", root / "manifest.ocdbt"]
  names += [epath.Path(path) / "_CHECKPOINT_METADATA"]
  paths = [os.fspath(name) for name in names if name.exists()]
  if not byte_ranges.is_remote(path):
    # Other files, such as logs, may be beside them.
    for entry in os.scandir(root):
      if entry.is_dir():
        for folder, _, files_in in os.walk(entry.path):
          paths += [os.path.join(folder, name) for name in files_in]
      elif entry.name.startswith("_"):
        paths.append(entry.path)
  return {file: byte_ranges.identity(file) for file in paths}


def num_bytes(
  path: str, identities: Mapping[str, input_files.Identity]
) -> float:
  """Returns the size of all files; infinity in a bucket (unknown there)."""
  if byte_ranges.is_remote(path):
    return math.inf
  return sum(size for size, _, _ in identities.values())


def metadata(file: epath.Path) -> dict[str, Any]:
  """Reads a metadata file.

  Raises:
    ValueError: if it is not a JSON object.
  """
  local = not byte_ranges.is_remote(file)
  content = files.read_json(file) if local else json.loads(file.read_text())
  if type(content) is not dict:
    raise ValueError(f"{file} is not a JSON object")
  return content


def check_index(root: epath.Path) -> None:
  """Reads the index of a tree, so that damage raises an error.

  Orbax only logs such an error and returns a tree without leaves.
  """
  described = metadata(root / "_METADATA")
  leaves = described.get("tree_metadata")
  if type(leaves) is not dict:
    raise ValueError(f"{root / '_METADATA'} has no tree_metadata")
  for leaf in leaves.values():
    if len(leaf["key_metadata"]) > byte_ranges.MAX_DEPTH:
      raise ValueError(f"{root / '_METADATA'} has too many nested keys")
  if (root / "manifest.ocdbt").exists():
    # Verifies the checksum of every index node without reading weights.
    store = _database(str(root))
    ts.KvStore.open(store, context=new_context()).result().list().result()
  elif described.get("use_ocdbt"):
    raise ValueError(f"{root / 'manifest.ocdbt'} is missing")


def new_context() -> ts.Context:
  """Returns a context to share among arrays that are opened together."""
  # Without a cache every open reads the OCDBT index again.
  return ts.Context(
    {
      "cache_pool": {"total_bytes_limit": 0},
      "cache_pool#ocdbt": {"total_bytes_limit": 100_000_000},
    }
  )


def _database(root: str) -> dict[str, Any]:
  """Returns the tensorstore spec of the OCDBT database of a tree."""
  return {
    "driver": "ocdbt",
    "base": _store(root),
    "cache_pool": "cache_pool#ocdbt",
  }


def open_leaf(
  root: str, context: ts.Context, num_bytes: float, key: str
) -> ts.TensorStore:
  """Opens one array of a tree.

  Args:
    root: the directory with its `_METADATA`.
    context: of tensorstore.
    num_bytes: of all files of the tree.
    key: the keys of the leaf, joined by dots.
  """
  place = epath.Path(root)
  zarr3 = metadata(place / "_METADATA").get("use_zarr3") is True
  if ".." in key.split("/"):
    raise ValueError(f"{root} has a leaf {key!r}, outside of its directory")
  store = _store(root)
  if (place / "manifest.ocdbt").exists():
    store = {**_database(root), "path": f"{key}/"}
  else:
    store["path"] += f"{key}/"
  spec = {
    "driver": "zarr3" if zarr3 else "zarr",
    "kvstore": store,
    # Orbax stores zeros too, so a missing chunk is damage.
    "fill_missing_data_reads": False,
  }
  array = ts.open(spec, context=context, open=True, read=True).result()
  _check_chunks(key, array, num_bytes)
  return array


def _check_chunks(key: str, array: ts.TensorStore, num_bytes: float) -> None:
  """Compares what an array claims with its files and the memory.

  tensorstore reserves memory for a chunk before it reads it, and ends the
  process if there is not enough.
  """
  item = array.dtype.numpy_dtype.itemsize
  size = math.prod(array.shape) * item
  chunk = math.prod(array.chunk_layout.read_chunk.shape or array.shape) * item
  most = max(_COMPRESSION * num_bytes, _SMALL)
  if size > most or chunk > max(size, _SMALL):
    raise ValueError(
      f"{key!r} claims shape {array.shape} in chunks of {chunk} bytes, but the "
      f"checkpoint has only {num_bytes} bytes"
    )
  if chunk * _COPIES > byte_ranges.memory():
    raise ValueError(
      f"the chunks of {key!r} have {chunk} bytes, too many for the memory of "
      "this machine"
    )


def _store(root: str) -> dict[str, Any]:
  """Returns the tensorstore spec of a local directory or one in a bucket."""
  kind, is_address, rest = root.partition("://")
  if not is_address:
    # A file:// address would give '?', '#' and '%' a meaning.
    return {"driver": "file", "path": f"{root}/"}
  drivers = {"gs": "gcs", "s3": "s3"}
  if kind not in drivers:
    raise ValueError(
      f"{root}: Orbax checkpoints are read from gs:// and s3:// only. Copy it "
      "to a local path."
    )
  bucket, _, path = rest.partition("/")
  return {"driver": drivers[kind], "bucket": bucket, "path": f"{path}/"}
