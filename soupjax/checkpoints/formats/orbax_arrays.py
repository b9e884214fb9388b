# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The files and arrays of an Orbax tree, and the index of a new tree.

Arrays are read with tensorstore. Metadata is untrusted: the sizes it claims are
compared with those of the files before tensorstore reserves memory for them.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import json
import math
import os
import time
from typing import Any
import uuid

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from soupjax import buckets, files
from soupjax.checkpoints.formats import byte_ranges, input_files
from soupjax.soups.core import crc32

_COMPRESSION = 1 << 16  # Highest compression ratio of zstd.
_SMALL = 64 << 20  # Bytes that any array may claim.
_COPIES = 4  # Copies of a chunk in memory while it is decoded.


def identities(path: str, root: epath.Path) -> dict[str, input_files.Identity]:
  """Returns path -> identity of the metadata and data files of a tree.

  In a bucket, only the metadata files are included.

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
  content = files.read_json(file)
  if type(content) is not dict:
    raise ValueError(f"{file} is not a JSON object")
  return content


def check_index(root: epath.Path) -> None:
  """Reads the index of a tree, so that damage raises an error.

  Orbax only logs such an error and returns a tree without leaves.

  Raises:
    ValueError: naming a file that is missing or damaged. For damage in the
      database, tensorstore raises its own errors.
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
    database = _database(str(root))
    ts.KvStore.open(database, context=new_context()).result().list().result()
  elif described.get("use_ocdbt"):
    raise ValueError(f"{root / 'manifest.ocdbt'} is missing")


def folder(key: str) -> str:
  """Returns the prefix of an array in a database, from keys joined by dots."""
  return f"{key}/" if key else ""


def tree_of_specs(root: epath.Path) -> Any:
  """Returns the tree of shapes and dtypes, without a call for every leaf.

  Orbax opens each array to describe it, which takes half a millisecond.

  Args:
    root: directory of a tree that `check_index` has accepted.

  Returns:
    The tree; None if it has leaves other than zarr3 arrays, or if a local tree
    does not use OCDBT.
  """
  described = metadata(root / "_METADATA")
  leaves = described["tree_metadata"].values()
  known = {"jax.Array", "np.ndarray"}
  is_database = (root / "manifest.ocdbt").exists()
  if not (
    described.get("use_zarr3") is True
    and (is_database or byte_ranges.is_remote(root))
    and all(leaf["value_metadata"]["value_type"] in known for leaf in leaves)
  ):
    return None
  keys = sorted(
    [(k["key"], k["key_type"]) for k in leaf["key_metadata"]] for leaf in leaves
  )
  base = _database(str(root)) if is_database else store(str(root))
  kvstore = ts.KvStore.open(base, context=new_context()).result()
  names = [".".join(key for key, _ in path) for path in keys]
  reads = [kvstore.read(folder(name) + "zarr.json") for name in names]
  specs: dict[bytes, jax.ShapeDtypeStruct] = {}  # Most leaves share one.
  tree: dict[Any, Any] = {}
  for path, name, read in zip(keys, names, reads):
    text = read.result().value
    if text not in specs:
      specs[text] = _spec(name, json.loads(text))
    node = tree
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = specs[text]
  return _with_lists(tree)


def _spec(name, described) -> jax.ShapeDtypeStruct:
  shape = described["shape"]
  if not all(type(n) is int and n >= 0 for n in shape):
    raise ValueError(f"{name!r} has shape {shape!r:.80}")
  return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(described["data_type"]))


def _with_lists(node):
  """Turns (key, type) -> value into a dict, or a list if the type is 1."""
  if not isinstance(node, dict):
    return node
  values = {key: _with_lists(value) for key, value in node.items()}
  if values and all(kind == 1 for _, kind in values):
    return [values[str(i), 1] for i in range(len(values))]
  return {key: value for (key, _), value in values.items()}


def new_context() -> ts.Context:
  """Returns a context to share among arrays that are opened together."""
  # Without a cache every open reads the OCDBT index again.
  return ts.Context(
    {
      "cache_pool": {"total_bytes_limit": 0},
      "cache_pool#ocdbt": {"total_bytes_limit": 100_000_000},
      **buckets.retries(),
    }
  )


def _database(root: str) -> dict[str, Any]:
  """Returns the tensorstore spec of the OCDBT database of a tree."""
  return {
    "driver": "ocdbt",
    "base": store(root),
    "cache_pool": "cache_pool#ocdbt",
  }


def opener(root: str, num_bytes: float) -> Callable[[str], ts.TensorStore]:
  """Returns a function that opens an array of a tree, and caches it.

  Args:
    root: the directory with its `_METADATA`.
    num_bytes: total size of the files of the tree.

  Returns:
    A function of the keys of a leaf, joined by dots. It raises a ValueError if
    the leaf is outside the directory, cannot be opened, or claims more bytes
    than the files or the memory can hold.
  """
  place, context = epath.Path(root), new_context()
  zarr3 = metadata(place / "_METADATA").get("use_zarr3") is True
  is_database = (place / "manifest.ocdbt").exists()

  @functools.cache
  def open_array(key):
    if ".." in key.split("/"):
      raise ValueError(f"{root} has a leaf {key!r}, outside its directory")
    kvstore = _database(root) if is_database else store(root)
    kvstore["path"] = f"{kvstore.get('path', '')}{key}/"
    spec = {
      "driver": "zarr3" if zarr3 else "zarr",
      "kvstore": kvstore,
      # Orbax stores zeros too, so a missing chunk is damage.
      "fill_missing_data_reads": False,
    }
    array = ts.open(spec, context=context, open=True, read=True).result()
    _check_chunks(key, array, num_bytes)
    return array

  return open_array


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


def store(root: str) -> dict[str, Any]:
  """Returns the tensorstore spec of a local directory or one in a bucket."""
  if byte_ranges.is_remote(root):
    return buckets.kvstore(root)
  # A file:// address would give '?', '#' and '%' a meaning.
  return {"driver": "file", "path": f"{root}/"}


# A key of a database, and its value, or the offset and number of the bytes that
# hold it in the data file.
Entry = tuple[bytes, bytes | tuple[int, int]]

_MANIFEST, _NODE = 0x0CDB3A2A, 0x0CDB20DE  # Magic numbers.
_NODE_BYTES = 4 << 20  # Readers decode a node at once.


def index(
  entries: Sequence[Entry], name: str, start: int
) -> tuple[bytes, bytes]:
  """Encodes the index of an OCDBT database with one data file.

  The format is tensorstore's version 0, uncompressed: a tree of nodes in the
  data file, and a manifest that refers to the root, all with a CRC-32C.

  Args:
    entries: the keys and values of the database, in any order.
    name: path of the data file in the database.
    start: byte of the data file at which the nodes will be written.

  Returns:
    The nodes and the content of manifest.ocdbt.
  """
  nodes, height = bytearray(), 0
  level = [
    _leaf_node(part, name)
    for part in _split(sorted(entries), lambda e: len(e[0]) + len(e[1]) + 32)
  ]
  while True:
    # First key, place and statistics of each node.
    children = []
    for first, node, count, tree_bytes, value_bytes in level:
      place = (start + len(nodes), len(node))
      statistics = (count, tree_bytes + len(node), value_bytes)
      children.append((first, place, statistics))
      nodes += node
    if len(level) == 1:
      break
    height += 1
    level = [
      _inner_node(part, name, height)
      for part in _split(children, lambda child: len(child[0]) + 64)
    ]
  ((_, place, statistics),) = children
  manifest = b"".join(
    [
      uuid.uuid4().bytes,
      b"\0",  # One manifest.
      *map(_varint, (1024, 8 << 20)),  # For later writers.
      b"\4\0",  # Width of the tree of versions, and no compression.
      _file_table(name),
      *map(_varint, (1, 1)),  # One version, which is the first.
      bytes([height, 0]),
      *map(_varint, (*place, *statistics)),
      time.time_ns().to_bytes(8, "little"),
      b"\0",  # No other versions.
    ]
  )
  return bytes(nodes), _sealed(_MANIFEST, manifest)


def _split(items, size):
  """Yields parts of a list with at most `_NODE_BYTES` each."""
  part, total = [], 0
  for item in items:
    n = size(item)
    if part and total + n > _NODE_BYTES:
      yield part
      part, total = [], 0
    part.append(item)
    total += n
  yield part


def _leaf_node(entries, name):
  """Encodes keys with values.

  Returns:
    First key, node, number of keys, and bytes of nodes and of values below it.
  """
  keys, values = zip(*entries)
  inline = [v for v in values if isinstance(v, bytes)]
  places = [v for v in values if not isinstance(v, bytes)]
  lengths = (len(v) if isinstance(v, bytes) else v[1] for v in values)
  body = [
    *_header(0, name, keys),
    *keys,
    *map(_varint, lengths),
    bytes(not isinstance(v, bytes) for v in values),
    bytes(len(places)),  # The index of the data file, 0, for each.
    *(_varint(at) for at, _ in places),
    *inline,
  ]
  node = _sealed(_NODE, b"".join(body))
  return keys[0], node, len(keys), 0, sum(n for _, n in places)


def _inner_node(children, name, height):
  """Encodes references to nodes; returns the same as `_leaf_node`."""
  keys, places, statistics = zip(*children)
  columns = (*zip(*places), *zip(*statistics))
  body = [
    *_header(height, name, keys),
    bytes(len(keys)),  # No common prefixes of the keys below are left out.
    *keys,
    bytes(len(keys)),  # The index of the data file, 0, for each.
    *(_varint(n) for column in columns for n in column),
  ]
  node = _sealed(_NODE, b"".join(body))
  return keys[0], node, *map(sum, zip(*statistics))


def _header(height, name, keys):
  """Returns the beginning of a node, whose keys are stored in full."""
  return [
    bytes([height]),
    _file_table(name),
    _varint(len(keys)),
    bytes(len(keys) - 1),
    *(_varint(len(key)) for key in keys),
  ]


def _file_table(name: str) -> bytes:
  path = name.encode()
  return b"\1" + _varint(len(path)) + b"\0" + path


def _sealed(magic: int, body: bytes) -> bytes:
  """Adds magic number, length, version, compression (none) and CRC-32C."""
  length = (len(body) + 18).to_bytes(8, "little")
  data = magic.to_bytes(4, "big") + length + b"\0\0" + body
  checksum = crc32.crc32c(np.frombuffer(data, np.uint8))
  return data + checksum.to_bytes(4, "little")


def _varint(n: int) -> bytes:
  """Encodes a number in groups of 7 bits, the lowest first."""
  groups = []
  while n > 127:
    groups.append(n & 127 | 128)
    n >>= 7
  return bytes([*groups, n])
