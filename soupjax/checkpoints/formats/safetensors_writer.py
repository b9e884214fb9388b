# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes safetensors block by block, in one file or in shards with an index."""

from collections.abc import Mapping, Sequence
import functools
import json
import math
import os
import struct
from typing import Any

import jax

from soupjax import files
from soupjax.checkpoints.formats import block_writer, leaf_digest, safetensors
from soupjax.soups.core import tree

_ALIGNMENT = 64
_SEAL = "0" * 128  # As long as that of `leaf_digest.seal`.


def check(
  specs: Mapping[str, jax.ShapeDtypeStruct],
  provenance: Mapping[str, Any] | None = None,
) -> None:
  """Checks that the format can hold these leaves.

  Raises:
    ValueError: naming a leaf whose name or dtype the format cannot hold.
  """
  del provenance  # It can have any size.
  for leaf, spec in specs.items():
    if leaf == "__metadata__":
      raise ValueError(
        f"A leaf cannot be called {leaf!r} in a safetensors file. Rename it or "
        "choose another format."
      )
    if spec.dtype not in safetensors.NAMES:
      raise ValueError(
        f"Leaf {leaf!r} has dtype {spec.dtype}, which safetensors files cannot "
        "hold. Choose dtype= or another format."
      )


class SafetensorsWriter(block_writer.RangeWriter):
  """Writes one file, or a directory of shards with an index."""

  def __init__(
    self,
    path: str,
    specs: Mapping[str, jax.ShapeDtypeStruct],
    order: Sequence[str],
    provenance: Mapping[str, Any],
    *,
    shard_bytes: int | None = None,
    text: Mapping[str, str] | None = None,
    first: bool = True,
  ):
    """Opens the files and leaves room for the headers.

    Args:
      path: a file; an existing directory if `shard_bytes` is given.
      specs: leaf -> shape and dtype.
      order: the order of the leaves.
      provenance: a record as long as the one that `finish` gets.
      shard_bytes: most bytes of data in a shard; a larger leaf gets its own.
      text: additional metadata.
      first: whether this process creates the files and writes the headers.

    Raises:
      ValueError: if the format lacks a dtype, or the disk is full.
    """
    check(specs)
    self.path, self.specs, self.text = path, specs, dict(text or {})
    self.sharded = shard_bytes is not None
    # Sorted by descending item size, so that all numbers are aligned.
    order = sorted(order, key=lambda leaf: -specs[leaf].dtype.itemsize)
    self.shards = _shards(specs, order, shard_bytes)
    self._starts, self._entries, places, sizes = {}, {}, {}, {}
    for shard, leaves in self.shards.items():
      file = self._file(shard)
      starts, entries, num_bytes = _laid_out(leaves, specs)
      self._entries[shard] = entries
      header = self._header(shard, provenance, dict.fromkeys(leaves, 0), _SEAL)
      first_byte = -(-(8 + len(header)) // _ALIGNMENT) * _ALIGNMENT
      self._starts[shard] = first_byte
      places |= {leaf: (file, first_byte + at) for leaf, at in starts.items()}
      sizes[file] = first_byte + num_bytes
    super().__init__(specs, places, sizes, first=first)

  def _file(self, shard: str) -> str:
    return os.path.join(self.path, shard) if self.sharded else self.path

  def _header(self, shard, provenance, checksums, seal=None) -> bytes:
    leaves = self.shards[shard]
    recorded = {leaf: f"{checksums[leaf]:08x}" for leaf in leaves}
    record = {**provenance, "crc32": recorded}
    if seal is None:
      seal = leaf_digest.seal(
        {leaf: self.specs[leaf] for leaf in leaves}, record
      )
    metadata = {
      **self.text,
      "soupjax": json.dumps(record),
      leaf_digest.KEY: seal,
    }
    # Joined as text, since a dict of all entries would take most of the time
    # and memory.
    head = json.dumps({"__metadata__": metadata}, separators=(",", ":"))
    return f"{head[:-1]}{self._entries[shard]}}}".encode()

  def _write_headers(self, provenance, checksums):
    for shard in self.shards:
      header = self._header(shard, provenance, checksums)
      room = self._starts[shard] - 8
      assert len(header) <= room, (len(header), room)
      fd = self._fds[self._file(shard)]
      block_writer.write_all(fd, struct.pack("<Q", room), 0)
      block_writer.write_all(fd, header.ljust(room), 8)
    if self.sharded:
      total = tree.num_bytes(self.specs.values())
      names = {leaf: s for s, leaves in self.shards.items() for leaf in leaves}
      files.write_json(
        os.path.join(self.path, "model.safetensors.index.json"),
        {"metadata": {"total_size": total}, "weight_map": names},
      )


@functools.lru_cache(maxsize=4096)
def _entry(shape, dtype) -> tuple[str, int]:
  """Returns the JSON of a leaf before its offsets, and its number of bytes."""
  name, shape_text = safetensors.NAMES[dtype], str(list(shape)).replace(" ", "")
  text = f'{{"dtype":"{name}","shape":{shape_text},"data_offsets":['
  return text, math.prod(shape) * dtype.itemsize


def _laid_out(leaves, specs) -> tuple[dict[str, int], str, int]:
  """Returns leaf -> first byte, the JSON of all leaves, and the total size."""
  starts, entries, at = {}, [], 0
  quoted = json.JSONEncoder().encode
  for leaf in leaves:
    text, num_bytes = _entry(specs[leaf].shape, specs[leaf].dtype)
    starts[leaf], end = at, at + num_bytes
    entries.append(f",{quoted(leaf)}:{text}{at},{end}]}}")
    at = end
  return starts, "".join(entries), at


def _shards(specs, order, shard_bytes) -> dict[str, list[str]]:
  """Returns name of the shard -> its leaves."""
  shards: list[list[str]] = [[]]
  filled = 0
  for leaf in order:
    _, num_bytes = _entry(specs[leaf].shape, specs[leaf].dtype)
    if shard_bytes and shards[-1] and filled + num_bytes > shard_bytes:
      shards.append([])
      filled = 0
    shards[-1].append(leaf)
    filled += num_bytes
  return {
    f"model-{i:05d}-of-{len(shards):05d}.safetensors": leaves
    for i, leaves in enumerate(shards, start=1)
  }
