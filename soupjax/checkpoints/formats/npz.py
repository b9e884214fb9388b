# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""NumPy `.npz` archives, the format of big_vision and AugReg weights.

Uncompressed members, which `np.savez` writes, are read by ranges. Compressed
members must be decoded from their start, so they are read whole. bfloat16 is
stored as `|V2`, NumPy's descriptor for unknown dtypes of two bytes.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import io
import json
import math
import struct
import sys
from typing import Any
import zipfile
import zlib

import jax
import ml_dtypes
import numpy as np

from soupjax.checkpoints.formats import (
  block_writer,
  byte_ranges,
  leaf_digest,
  params_of_state,
)
from soupjax.soups.core import crc32, tree
from soupjax.soups.core.ingredient import Ingredient

_LOCAL_MAGIC = b"PK\x03\x04"
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_COMMENT = 65535
_END_MAGIC, _END_SIZE = b"PK\x05\x06", 22
_MAX_HEADER = 65536 + 16
_MAX_DEFLATED = 1040


def bad(path: str, reason: Any) -> ValueError:
  """Returns the error for a damaged archive."""
  return ValueError(
    f"{path} is not a valid archive: {reason}. Copy it again or leave it out."
  )


def open_archive(file: byte_ranges.ByteFile) -> zipfile.ZipFile:
  """Opens a zip file.

  Raises:
    ValueError: if it is not a zip file or is cut short.
  """
  try:
    return zipfile.ZipFile(file.stream())
  except Exception as e:  # Damaged lists raise many kinds of errors.
    reason = f"{e} (cut short or not a zip file)"
    raise bad(file.path, reason) from e


def members(file: byte_ranges.ByteFile) -> list[str]:
  """Returns the names in an archive.

  Raises:
    ValueError: if it is not a zip file or is cut short.
  """
  with open_archive(file) as archive:
    return archive.namelist()


def data_offset(file: byte_ranges.ByteFile, info: zipfile.ZipInfo) -> int:
  """Returns the offset of a member's bytes.

  Raises:
    ValueError: if the member's header is damaged or its bytes are cut short.
  """
  # One read: no character of the name has more than four bytes.
  most = _LOCAL.size + 4 * len(info.orig_filename)
  header = file.read(
    info.header_offset,
    max(_LOCAL.size, min(most, file.size - info.header_offset)),
  )
  if header[:4] != _LOCAL_MAGIC:
    raise bad(file.path, f"member {info.filename!r} has no header")
  # The lengths may differ from those in the list of members, the name may not.
  name_size, extra_size = _LOCAL.unpack_from(header)[-2:]
  name = header[_LOCAL.size : _LOCAL.size + name_size]
  encoding = "utf-8" if info.flag_bits & 0x800 else "cp437"
  if (
    len(name) < name_size
    or name.decode(encoding, "replace") != info.orig_filename
  ):
    raise bad(
      file.path,
      f"member {info.filename!r} is called {name!r:.80} in its own header",
    )
  start = info.header_offset + _LOCAL.size + name_size + extra_size
  if start + info.compress_size > file.size:
    raise bad(file.path, f"member {info.filename!r} ends outside the file")
  # Deflate needs at least one bit for 258 bytes.
  factor = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _MAX_DEFLATED}
  most = factor.get(info.compress_type, math.inf) * info.compress_size
  if info.file_size > most:
    raise bad(
      file.path,
      f"member {info.filename!r} claims {info.file_size} bytes, too many for "
      f"{info.compress_size} compressed ones",
    )
  return start


def _check_listed(
  file: byte_ranges.ByteFile,
  infos: Sequence[zipfile.ZipInfo],
  ends: Sequence[int],
) -> None:
  """Checks that every member is in the list, and none is inside another.

  A flipped bit in the list can make one entry hide the next.
  """
  before = 0
  for info, end in sorted(zip(infos, ends), key=lambda pair: pair[1]):
    if info.header_offset < before:
      raise bad(file.path, f"member {info.filename!r} is inside another")
    before = end
  listed = {info.header_offset for info in infos}
  for end in {0, *ends} - listed:
    # A streamed member is followed by its sizes, which take 16 or 24 bytes.
    for start in (end, end + 16, end + 24):
      if start not in listed and file.size >= start + 4:
        if file.read(start, 4) == _LOCAL_MAGIC:
          raise bad(file.path, f"the member at byte {start} is not in its list")


def _array_header(
  path: str, leaf: str, start: bytes
) -> tuple[jax.ShapeDtypeStruct, bool, int]:
  """Returns spec, whether the order is column-major, and header length.

  Args:
    path: path of the file.
    leaf: name of the leaf.
    start: the first bytes of the member, at least its array header.
  """
  # Leaves of one shape share a header. It is parsed once, since this is slow.
  (length,) = struct.unpack_from("<H", start.ljust(10), 8)
  head = start[: 10 + length] if start[6:7] == b"\1" else start
  try:
    shape, fortran, dtype, length = _parsed_header(head)
  # NumPy raises many kinds of errors for damaged headers.
  except Exception as e:
    raise bad(path, f"{leaf!r} has no valid array header ({e})") from e
  if dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None:
    dtype = np.dtype(ml_dtypes.bfloat16)
  if dtype.byteorder == ">":
    raise ValueError(
      f"Leaf {leaf!r} of {path} is big-endian: save it again as {dtype.name}."
    )
  spec = tree.shared_spec(shape, dtype)
  return spec, fortran and len(shape) > 1, length


@functools.lru_cache(maxsize=4096)
def _parsed_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
  """Returns shape, whether the order is column-major, dtype and length."""
  stream = io.BytesIO(head)
  read = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }[np.lib.format.read_magic(stream)]
  shape, fortran, dtype = read(stream)
  if not all(type(n) is int and n >= 0 for n in shape):
    raise ValueError(f"shape {shape}")
  return shape, fortran, dtype, stream.tell()


@functools.lru_cache(maxsize=4096)
def _share_in_checksum(head: bytes, num_bytes: int) -> int:
  """Returns the part of a member's CRC-32 that is due to its array header."""
  return crc32.combine([(zlib.crc32(head), len(head)), (0, num_bytes)])


def open_checkpoint(
  path: str, name: str, entry: str | None = None
) -> Ingredient:
  """Opens an archive lazily: reads its list and the array headers.

  Args:
    path: path of the file.
    name: name of the ingredient.
    entry: the model's entry in a train state; None follows the rule of
      `params_of_state`.

  Returns:
    The ingredient. Names with '/' make nested dicts; a train state is reduced
    to its weights; arrays of text or objects are ignored. CRC-32 values of
    uncompressed members are verified when these are read whole.

  Raises:
    ValueError: if it is damaged, has members that are not arrays, or has no
      arrays of numbers.
  """
  file = byte_ranges.ByteFile(path)
  specs, places, packed, checksums, ends = {}, {}, {}, {}, []
  ignored: dict[str, str] = {}
  with open_archive(file) as archive:
    for info in archive.infolist():
      leaf = sys.intern(info.filename.removesuffix(".npy"))
      if leaf in specs or leaf in ignored:
        raise ValueError(f"{path} has leaf {leaf!r} twice.")
      start = data_offset(file, info)
      ends.append(start + info.compress_size)
      stored = info.compress_type == zipfile.ZIP_STORED
      if stored:
        head = file.read(start, min(info.file_size, _MAX_HEADER))
      else:
        head = inflate(archive, path, info, _MAX_HEADER)
      spec, fortran, length = _array_header(path, leaf, head)
      if not tree.is_number(spec.dtype):
        ignored[leaf] = f"dtype {spec.dtype}"
        continue
      specs[leaf], num_bytes = spec, info.file_size - length
      if math.prod(spec.shape) * spec.dtype.itemsize != num_bytes:
        raise bad(path, f"{leaf!r} has {info.file_size} bytes for {spec.shape}")
      if stored and not fortran:
        places[leaf] = byte_ranges.Place(file, start + length)
        share = _share_in_checksum(head[:length], num_bytes)
        checksums[leaf] = info.CRC ^ share
      else:
        packed[leaf] = (info.filename, length, fortran)
    if ignored and not specs:
      raise params_of_state.NotAModel(
        f"{path} holds no arrays of numbers, only {ignored}. Pickled objects "
        "are never loaded."
      )
    _check_listed(file, archive.infolist(), ends)
    comment = _comment(file, archive)
    leaf_digest.check(
      path,
      specs,
      comment.get(leaf_digest.KEY),
      comment.get("soupjax"),
      has_checksums=False,
    )
  ingredient = byte_ranges.ingredient(
    name,
    path,
    specs,
    places,
    order=list(specs),
    checksums=checksums,
    others={path: file.identity},  # Compressed leaves have no place.
  )

  def read_whole(leaf):
    member, length, fortran = packed[leaf]
    with open_archive(file) as archive:
      data = inflate(archive, path, archive.getinfo(member))
    return np.frombuffer(data, specs[leaf].dtype, offset=length).reshape(
      specs[leaf].shape, order="F" if fortran else "C"
    )

  ingredient = dataclasses.replace(ingredient, ignored=ignored)
  if packed:
    ingredient = byte_ranges.with_whole_leaves(
      ingredient, path, packed, read_whole, self_checked=packed
    )
  return params_of_state.of(ingredient, entry)


def inflate(
  archive: zipfile.ZipFile,
  path: str,
  info: zipfile.ZipInfo,
  limit: int | None = None,
) -> bytes:
  """Returns the decoded bytes of a member, or the first `limit` of them.

  Raises:
    ValueError: if it is damaged.
  """
  try:
    with archive.open(info) as f:
      return f.read(limit) if limit else f.read()
  except Exception as e:  # Decoders raise many kinds of errors.
    raise bad(path, f"member {info.filename!r}: {e!r}") from e


def record(path: str) -> dict[str, Any]:
  """Returns the record that soupjax left in an archive, {} if it left none."""
  file = byte_ranges.ByteFile(path)
  open_checkpoint(path, "")  # Compares the record with its digest.
  with open_archive(file) as archive:
    return _comment(file, archive).get("soupjax", {})


def _comment(file, archive) -> dict[str, Any]:
  comment = archive.comment
  # A wrong length would hide the comment.
  start = file.size - _END_SIZE - len(comment)
  if file.read(start, 4) != _END_MAGIC:
    size = min(file.size, _MAX_COMMENT)
    if b"soupjax" in file.read(file.size - size, size):
      raise bad(file.path, "its comment is cut short")
  if b"soupjax" not in comment:
    return {}
  try:
    comment = json.loads(comment)
    if not isinstance(comment, dict):
      raise TypeError("it is not an object")
    return comment
  except (ValueError, TypeError, RecursionError) as e:
    raise bad(file.path, f"its comment is damaged ({e!r})") from e


def check(
  specs: Mapping[str, jax.ShapeDtypeStruct], provenance: Mapping[str, Any]
) -> None:
  """Checks that an archive can hold these leaves and this record.

  Raises:
    ValueError: naming a leaf whose dtype the format lacks, or the size of a
      record that is too long for a comment.
  """
  for leaf, spec in specs.items():
    _npy_header(leaf, spec)
  _new_comment(specs, provenance)


def _new_comment(specs, provenance) -> bytes:
  seal = leaf_digest.seal(specs, provenance)
  comment = {"soupjax": provenance, leaf_digest.KEY: seal}
  text = json.dumps(comment).encode()
  if len(text) > _MAX_COMMENT:
    raise ValueError(
      f"The record of this soup has {len(text)} bytes, and an npz file takes "
      f"{_MAX_COMMENT}. Write safetensors or Orbax."
    )
  return text


class NpzWriter(block_writer.RangeWriter):
  """Writes an archive of uncompressed members, for NumPy and big_vision."""

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
      order: the order of the members.
      first: whether this process creates the file and writes the headers.

    Raises:
      ValueError: if the format lacks a dtype, or the disk is full.
    """
    # Leaf -> offset of its member, array header, bytes of its data.
    self._heads: dict[str, tuple[int, bytes, int]] = {}
    at, places = 0, {}
    for leaf in order:
      head = _npy_header(leaf, specs[leaf])
      num_bytes = specs[leaf].size * specs[leaf].dtype.itemsize
      self._heads[leaf] = (at, head, num_bytes)
      at += len(self._info(leaf, 0).FileHeader(zip64=True)) + len(head)
      places[leaf] = (path, at)
      at += num_bytes
    self._path, self._end = path, at
    specs = {leaf: specs[leaf] for leaf in order}
    super().__init__(specs, places, {path: at}, first=first)

  def _info(self, leaf, checksum) -> zipfile.ZipInfo:
    at, head, num_bytes = self._heads[leaf]
    info = zipfile.ZipInfo(f"{leaf}.npy", (1980, 1, 1, 0, 0, 0))
    info.header_offset, info.CRC = at, checksum
    info.file_size = info.compress_size = len(head) + num_bytes
    return info

  def _write_headers(self, provenance, checksums):
    infos, fd = [], self._fds[self._path]
    for leaf, (at, head, num_bytes) in self._heads.items():
      parts = [(zlib.crc32(head), len(head)), (checksums[leaf], num_bytes)]
      infos.append(self._info(leaf, crc32.combine(parts)))
      # With 64-bit sizes, so that the header's length does not depend on them.
      header = infos[-1].FileHeader(zip64=True) + head
      block_writer.write_all(fd, header, at)
    with open(self._path, "r+b") as file:
      file.seek(self._end)
      with zipfile.ZipFile(file, "w") as archive:
        archive.filelist = infos
        archive.comment = _new_comment(self.specs, provenance)


def _npy_header(leaf: str, spec: jax.ShapeDtypeStruct) -> bytes:
  dtype = spec.dtype
  if "\0" in leaf:
    raise ValueError(
      f"Leaf {leaf!r} has a NUL in its name, where npz files end a name. "
      "Rename it or choose another format."
    )
  if dtype == ml_dtypes.bfloat16:
    descriptor = "|V2"
  elif dtype.kind in "biufc" and dtype.isbuiltin == 1:
    # For 8-bit floats, NumPy would write a name that it cannot read.
    descriptor = np.lib.format.dtype_to_descr(dtype)
  else:
    raise ValueError(
      f"Leaf {leaf!r} has dtype {dtype}, which npz files cannot hold. Choose "
      "dtype= or another format."
    )
  stream = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    stream, {"descr": descriptor, "fortran_order": False, "shape": spec.shape}
  )
  return stream.getvalue()
