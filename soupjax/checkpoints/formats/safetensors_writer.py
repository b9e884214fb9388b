# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes safetensors block by block, in one file or in shards with an index."""

from collections.abc import Mapping, Sequence
import json
import os
import struct
from typing import Any

import jax

from soupjax import files
from soupjax.checkpoints.formats import block_writer, leaf_digest, safetensors

_ALIGNMENT = 64


def check(
  specs: Mapping[str, jax.ShapeDtypeStruct],
  provenance: Mapping[str, Any] | None = None,
) -> None:
  """Checks that the format can hold these leaves.

  Raises:
    ValueError: naming a leaf whose dtype the format lacks.
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
      provenance: of the same length as the one that `finish` gets.
      shard_bytes: the most data in one shard; a larger leaf gets its own.
      text: more metadata.
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
    self._starts, places, sizes = {}, {}, {}
    for shard, leaves in self.shards.items():
      file = self._file(shard)
      header = self._header(leaves, provenance, dict.fromkeys(leaves, 0))
      at = -(-(8 + len(header)) // _ALIGNMENT) * _ALIGNMENT
      self._starts[shard] = at
      for leaf in leaves:
        places[leaf] = file, at
        at += _num_bytes(specs[leaf])
      sizes[file] = at
    super().__init__(specs, places, sizes, first=first)

  def _file(self, shard: str) -> str:
    return os.path.join(self.path, shard) if self.sharded else self.path

  def _header(self, leaves, provenance, checksums) -> bytes:
    recorded = {leaf: f"{checksums[leaf]:08x}" for leaf in leaves}
    record = {**provenance, "crc32": recorded}
    specs = {leaf: self.specs[leaf] for leaf in leaves}
    header: dict[str, Any] = {
      "__metadata__": {
        **self.text,
        "soupjax": json.dumps(record),
        leaf_digest.KEY: leaf_digest.seal(specs, record),
      }
    }
    at = 0
    for leaf in leaves:
      end = at + _num_bytes(self.specs[leaf])
      header[leaf] = {
        "dtype": safetensors.NAMES[self.specs[leaf].dtype],
        "shape": list(self.specs[leaf].shape),
        "data_offsets": [at, end],
      }
      at = end
    return json.dumps(header, separators=(",", ":")).encode()

  def _write_headers(self, provenance, checksums):
    for shard, leaves in self.shards.items():
      header = self._header(leaves, provenance, checksums)
      room = self._starts[shard] - 8
      assert len(header) <= room, (len(header), room)
      data = struct.pack("<Q", room) + header.ljust(room)
      block_writer.write_all(self._fds[self._file(shard)], data, 0)
    if self.sharded:
      total = sum(map(_num_bytes, self.specs.values()))
      names = {leaf: s for s, leaves in self.shards.items() for leaf in leaves}
      files.write_json(
        os.path.join(self.path, "model.safetensors.index.json"),
        {"metadata": {"total_size": total}, "weight_map": names},
      )


def _num_bytes(spec) -> int:
  return spec.size * spec.dtype.itemsize


def _shards(specs, order, shard_bytes) -> dict[str, list[str]]:
  """Returns name of the shard -> its leaves."""
  shards: list[list[str]] = [[]]
  filled = 0
  for leaf in order:
    num_bytes = _num_bytes(specs[leaf])
    if shard_bytes and shards[-1] and filled + num_bytes > shard_bytes:
      shards.append([])
      filled = 0
    shards[-1].append(leaf)
    filled += num_bytes
  return {
    f"model-{i:05d}-of-{len(shards):05d}.safetensors": leaves
    for i, leaves in enumerate(shards, start=1)
  }
