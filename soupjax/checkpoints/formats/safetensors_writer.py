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
from soupjax.checkpoints.formats import byte_ranges, leaf_digest, safetensors
from soupjax.soups.core import slices

_ALIGNMENT = 64


def check(specs: Mapping[str, jax.ShapeDtypeStruct]) -> None:
  """Checks that the format can hold some leaves.

  Raises:
    ValueError: naming a leaf whose dtype has no name in it.
  """
  for leaf, spec in specs.items():
    if spec.dtype not in safetensors.NAMES:
      raise ValueError(
        f"Leaf {leaf!r} has dtype {spec.dtype}, which safetensors files cannot "
        "hold. Choose dtype=, or another format."
      )


class SafetensorsWriter:
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
    create: bool = True,
  ):
    """Makes the files, without their headers.

    Args:
      path: a file; a directory that exists if `shard_bytes` is given.
      specs: leaf -> shape and dtype.
      order: the order of the leaves.
      provenance: as long as the one that `finish` will get.
      shard_bytes: the most data in one shard; a larger leaf has its own.
      text: more metadata.
      create: False in all processes but the first.

    Raises:
      ValueError: if a dtype has no name in this format, or the disk is full.
    """
    check(specs)
    self.path = path
    self.specs = specs
    self.text = dict(text or {})
    self.sharded = shard_bytes is not None
    # Numbers of one size are aligned if the large ones come first.
    order = sorted(order, key=lambda leaf: -specs[leaf].dtype.itemsize)
    self.shards = _shards(specs, order, shard_bytes)
    self._starts = {
      shard: self._start(leaves, provenance)
      for shard, leaves in self.shards.items()
    }
    sizes, offsets = {}, {}
    for shard, leaves in self.shards.items():
      at = self._starts[shard]
      for leaf in leaves:
        offsets[leaf] = shard, at
        at += _num_bytes(specs[leaf])
      sizes[self._file(shard)] = at
    fds = files.open_for_writing(sizes, create=create)
    self._fds = {shard: fds[self._file(shard)] for shard in self.shards}
    places = {leaf: (self._fds[s], at) for leaf, (s, at) in offsets.items()}
    self.ranges = byte_ranges.RangeWriter(specs, places)
    self.write = self.ranges.write
    self._flusher = files.Flusher(self._fds.values())

  def _file(self, shard: str) -> str:
    return os.path.join(self.path, shard) if self.sharded else self.path

  def _header(self, leaves, provenance, sums) -> bytes:
    record = {**provenance, "crc32": {k: f"{sums[k]:08x}" for k in leaves}}
    header: dict[str, Any] = {
      "__metadata__": {
        **self.text,
        "soupjax": json.dumps(record),
        leaf_digest.KEY: leaf_digest.digest({k: self.specs[k] for k in leaves}),
      }
    }
    at = 0
    for leaf in leaves:
      n = _num_bytes(self.specs[leaf])
      header[leaf] = {
        "dtype": safetensors.NAMES[self.specs[leaf].dtype],
        "shape": list(self.specs[leaf].shape),
        "data_offsets": [at, at + n],
      }
      at += n
    return json.dumps(header, separators=(",", ":")).encode()

  def _start(self, leaves, provenance) -> int:
    header = self._header(leaves, provenance, dict.fromkeys(leaves, 0))
    return -(-(8 + len(header)) // _ALIGNMENT) * _ALIGNMENT

  def finish(
    self, provenance: Mapping[str, Any], *, first: bool = True
  ) -> None:
    """Reads everything back and writes the headers.

    Args:
      provenance: the record, complete.
      first: whether this is the process that writes the headers.

    Raises:
      ValueError: naming a leaf that differs from what was written.
    """
    sums = self.ranges.read_back()
    if first:
      for shard, leaves in self.shards.items():
        header = self._header(leaves, provenance, sums)
        room = self._starts[shard] - 8
        assert len(header) <= room, (len(header), room)
        data = struct.pack("<Q", room) + header.ljust(room)
        byte_ranges.write_all(self._fds[shard], data, 0)
      if self.sharded:
        self._write_index()
    self._flusher.stop()
    for fd in self._fds.values():
      os.fsync(fd)
    self.close()

  def _write_index(self):
    total = sum(_num_bytes(spec) for spec in self.specs.values())
    names = {leaf: s for s, leaves in self.shards.items() for leaf in leaves}
    files.write_json(
      os.path.join(self.path, "model.safetensors.index.json"),
      {"metadata": {"total_size": total}, "weight_map": names},
    )

  def close(self) -> None:
    """Closes the files."""
    self._flusher.stop()
    while self._fds:
      os.close(self._fds.popitem()[1])


def _num_bytes(spec) -> int:
  return slices.size(slices.whole(spec.shape)) * spec.dtype.itemsize


def _shards(specs, order, shard_bytes) -> dict[str, list[str]]:
  shards: list[list[str]] = [[]]
  filled = 0
  for leaf in order:
    n = _num_bytes(specs[leaf])
    if shard_bytes is not None and shards[-1] and filled + n > shard_bytes:
      shards.append([])
      filled = 0
    shards[-1].append(leaf)
    filled += n
  count = len(shards)
  return {
    f"model-{i:05d}-of-{count:05d}.safetensors": leaves
    for i, leaves in enumerate(shards, start=1)
  }
