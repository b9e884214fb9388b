# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes torch zip files block by block, without torch.

`torch.load(path, weights_only=True)` returns a dict from leaf name to tensor.
Its pickle is assembled from the few opcodes that such a dict needs. The record
of soupjax is one more member, which torch ignores.
"""

from collections.abc import Iterator, Mapping, Sequence
import json
import math
import struct
from typing import Any
import zipfile
import zlib

import jax

from soupjax.checkpoints.formats import block_writer, leaf_digest, torch

_FOLDER = "soup"
_ALIGNMENT = 64
_EXTRA = struct.Struct("<2sH")
# Opcodes of protocol 2, as in the module pickletools of Python.
_PROTO, _STOP = b"\x80\x02", b"."
_MARK, _TUPLE, _EMPTY_TUPLE = b"(", b"t", b")"
_EMPTY_DICT, _SETITEMS = b"}", b"u"
_REDUCE, _BINPERSID, _NEWFALSE = b"R", b"Q", b"\x89"
_MAX_STRIDE = 2**63 - 1


def _global(module: str, name: str) -> bytes:
  return f"c{module}\n{name}\n".encode()


def _text(value: str) -> bytes:
  data = value.encode()
  return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
  if value < 1 << 31:
    return b"J" + struct.pack("<i", value)
  data = value.to_bytes(8, "little", signed=True)
  return b"\x8a" + bytes([len(data)]) + data


def _integers(values: Sequence[int]) -> bytes:
  return _MARK + b"".join(map(_integer, values)) + _TUPLE


def _storage(key: int, kind: bytes, count: int) -> bytes:
  parts = _text("storage"), kind, _text(str(key)), _text("cpu"), _integer(count)
  return _MARK + b"".join(parts) + _TUPLE + _BINPERSID


def _tensor(key: int, spec: jax.ShapeDtypeStruct) -> bytes:
  """Returns the opcodes that make one tensor from its own storage."""
  strides = [math.prod(spec.shape[i + 1 :]) for i in range(len(spec.shape))]
  kind, dtype = torch.kinds_of(spec.dtype)
  hooks = _global("collections", "OrderedDict") + _EMPTY_TUPLE + _REDUCE
  view = _integer(0), _integers(spec.shape), _integers(strides), _NEWFALSE
  if dtype is None:
    call, last = "_rebuild_tensor_v2", b""
    storage = _storage(key, _global("torch", kind), spec.size)
  else:
    call, last = "_rebuild_tensor_v3", _global("torch", dtype)
    num_bytes = spec.size * spec.dtype.itemsize
    storage = _storage(key, _global("torch.storage", kind), num_bytes)
  arguments = b"".join([storage, *view, hooks, last])
  call = _global("torch._utils", call)
  return call + _MARK + arguments + _TUPLE + _REDUCE


def _pickle(specs: Mapping[str, jax.ShapeDtypeStruct]) -> bytes:
  """Returns data.pkl: a dict from leaf name to tensor."""
  items = [
    _text(leaf) + _tensor(key, spec)
    for key, (leaf, spec) in enumerate(specs.items())
  ]
  inner = _EMPTY_DICT + _MARK + b"".join(items) + _SETITEMS
  return _PROTO + inner + _STOP


def check(
  specs: Mapping[str, jax.ShapeDtypeStruct],
  provenance: Mapping[str, Any] | None = None,
) -> None:
  """Checks that torch can hold these leaves.

  Raises:
    ValueError: naming a leaf with a dtype that torch lacks.
  """
  del provenance  # It can have any size.
  for leaf, spec in specs.items():
    try:
      torch.kinds_of(spec.dtype)
    except KeyError as e:
      raise ValueError(
        f"Leaf {leaf!r} has dtype {spec.dtype}, which torch files cannot hold. "
        "Choose dtype= or another format."
      ) from e


class TorchWriter(block_writer.RangeWriter):
  """Writes one file, for torch from version 1.6 on.

  Tensors in dtypes that older versions lack, such as 8-bit floats, need a newer
  one.
  """

  def __init__(
    self,
    path: str,
    specs: Mapping[str, jax.ShapeDtypeStruct],
    order: Sequence[str],
    *,
    first: bool = True,
  ):
    """Opens the file and leaves room for the headers.

    Args:
      path: path of the file.
      specs: leaf -> shape and dtype.
      order: the order of the leaves.
      first: whether this process creates the file and writes the headers.

    Raises:
      ValueError: if the format lacks a dtype, or the disk is full.
    """
    check(specs)
    specs = {leaf: specs[leaf] for leaf in order}
    self._small = {
      "data.pkl": _pickle(specs),
      "byteorder": b"little",
      "version": b"3\n",
    }
    # Name of a member -> offset of its header, extra field, size of its data.
    self._members: dict[str, tuple[int, bytes, int]] = {}
    at, places = 0, {}
    sizes = {name: len(data) for name, data in self._small.items()}
    for key, (leaf, spec) in enumerate(specs.items()):
      name = f"data/{key}"
      sizes[name] = spec.size * spec.dtype.itemsize
      places[leaf] = name
    for name, num_bytes in sizes.items():
      start = at + len(
        self._info(name, (at, b"", num_bytes), 0).FileHeader(True)
      )
      # At least the header of the extra field, so that the data is aligned.
      padding = -(start + _EXTRA.size) % _ALIGNMENT
      extra = _EXTRA.pack(b"FB", padding) + bytes(padding)
      self._members[name] = (at, extra, num_bytes)
      at = start + len(extra) + num_bytes
    self._path, self._end = path, at
    starts = {leaf: (path, self._start(name)) for leaf, name in places.items()}
    self._names = places
    super().__init__(specs, starts, {path: at}, first=first)

  def _info(self, name, member, checksum) -> zipfile.ZipInfo:
    at, extra, num_bytes = member
    info = zipfile.ZipInfo(f"{_FOLDER}/{name}", (1980, 1, 1, 0, 0, 0))
    info.header_offset, info.extra, info.CRC = at, extra, checksum
    info.file_size = info.compress_size = num_bytes
    return info

  def _start(self, name: str) -> int:
    """Returns the offset of a member's data, 64-bit sizes included."""
    member = self._members[name]
    return member[0] + len(self._info(name, member, 0).FileHeader(True))

  def _infos(self, checksums) -> Iterator[zipfile.ZipInfo]:
    crcs = {name: checksums[leaf] for leaf, name in self._names.items()}
    crcs |= {name: zlib.crc32(data) for name, data in self._small.items()}
    for name, member in self._members.items():
      yield self._info(name, member, crcs[name])

  def _write_headers(self, provenance, checksums):
    infos, fd = list(self._infos(checksums)), self._fds[self._path]
    for info in infos:
      name = info.filename.removeprefix(f"{_FOLDER}/")
      header = info.FileHeader(True) + self._small.get(name, b"")
      block_writer.write_all(fd, header, info.header_offset)
    record = {
      **provenance,
      "crc32": {k: f"{c:08x}" for k, c in checksums.items()},
    }
    sealed = {
      "soupjax": record,
      leaf_digest.KEY: leaf_digest.seal(self.specs, record),
    }
    with open(self._path, "r+b") as file:
      file.seek(self._end)
      with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(
          zipfile.ZipInfo(f"{_FOLDER}/{torch.RECORD}", (1980, 1, 1, 0, 0, 0)),
          json.dumps(sealed),
        )
        archive.filelist = [*infos, *archive.filelist]
