# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""NumPy `.npz` archives, as big_vision and AugReg publish their weights.

Members that are stored as they are, which is what `np.savez` does, are read by
ranges. Compressed ones are inflated from the start for every piece that is
wanted, hence best read whole. bfloat16 is kept as `|V2`, which is how NumPy
writes a dtype that it does not know.
"""

from collections.abc import Mapping, Sequence
import io
import json
import lzma
import os
import struct
from typing import Any
import zipfile
import zlib

import jax
import ml_dtypes
import numpy as np

from soupjax import files
from soupjax.checkpoints.formats import (
  byte_ranges,
  leaf_digest,
  params_of_state,
)
from soupjax.soups.core import crc32, slices
from soupjax.soups.core.ingredient import Ingredient

_LOCAL_MAGIC = b"PK\x03\x04"
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_COMMENT = 65535


def bad(path: str, reason: Any) -> ValueError:
  """The error about an archive that is damaged."""
  return ValueError(
    f"{path} is not a sound archive: {reason}. Copy it again, or leave it out."
  )


def open_archive(path: str) -> zipfile.ZipFile:
  """Opens a zip file.

  Raises:
    ValueError: if it is none, or cut short.
  """
  try:
    place = (
      byte_ranges.remote_path(path) if byte_ranges.is_remote(path) else None
    )
    return zipfile.ZipFile(place.open("rb") if place else path)
  except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as e:
    raise bad(path, f"{e} (cut short, or no zip file)") from e


def data_offset(file: byte_ranges.ByteFile, info: zipfile.ZipInfo) -> int:
  """Where the bytes of a member begin.

  Raises:
    ValueError: if its own header is damaged, or its bytes are not all there.
  """
  header = file.read(info.header_offset, _LOCAL.size)
  if header[:4] != _LOCAL_MAGIC:
    raise bad(file.path, f"member {info.filename!r} has no header")
  # Its lengths may differ from those in the list of members, its name not.
  name, extra = _LOCAL.unpack(header)[-2:]
  found = file.read(info.header_offset + _LOCAL.size, name)
  encoding = "utf-8" if info.flag_bits & 0x800 else "cp437"
  if found.decode(encoding, "replace") != info.orig_filename:
    raise bad(
      file.path,
      f"member {info.filename!r} is called {found!r:.80} in its own header",
    )
  start = info.header_offset + _LOCAL.size + name + extra
  if start + info.compress_size > file.size:
    raise bad(file.path, f"member {info.filename!r} ends outside the file")
  return start


def _check_listed(
  file: byte_ranges.ByteFile,
  infos: Sequence[zipfile.ZipInfo],
  ends: Sequence[int],
) -> None:
  """Checks that no member follows another without being in the list.

  A flipped bit in the list can make one entry swallow the next.
  """
  listed = {info.header_offset for info in infos}
  # Where sizes were unknown when a member was begun, they come after it.
  for end in [0, *ends, *(end + skip for end in ends for skip in (16, 24))]:
    if end not in listed and file.size >= end + 4:
      if file.read(end, 4) == _LOCAL_MAGIC:
        raise bad(file.path, f"the member at byte {end} is not in its list")


def _array_header(path, name, head: bytes) -> tuple[jax.ShapeDtypeStruct, int]:
  stream = io.BytesIO(head)
  try:
    version = np.lib.format.read_magic(stream)
    read = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, fortran, dtype = read(stream)
    if not all(type(n) is int and n >= 0 for n in shape):
      raise ValueError(f"shape {shape}")
  # Of a damaged header, numpy lets almost anything through.
  except Exception as e:
    raise bad(path, f"{name!r} has no array header ({e})") from e
  if fortran and len(shape) > 1:
    shape = ("fortran", *shape)
  if dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None:
    dtype = np.dtype(ml_dtypes.bfloat16)
  if dtype.hasobject or dtype.kind not in "biufc" and dtype.name != "bfloat16":
    raise ValueError(
      f"Leaf {name!r} of {path} has dtype {dtype}: only numbers can be read. "
      "Pickled objects are never loaded."
    )
  if dtype.byteorder == ">":
    raise ValueError(
      f"Leaf {name!r} of {path} is big-endian: save it again as {dtype.name}."
    )
  return (shape, dtype), stream.tell()


def open_checkpoint(path: str, name: str) -> Ingredient:
  """Opens an archive lazily: reads its list and the array headers.

  Args:
    path: of the file.
    name: the ingredient's name.

  Returns:
    The ingredient. Names with '/' make nested dicts; a train state is cut to
    its weights. The CRC-32 of a stored member is checked when it is read whole.

  Raises:
    ValueError: if it is damaged, or holds anything but numbers.
  """
  file = byte_ranges.ByteFile(path)
  specs, places, packed, sums = {}, {}, {}, {}
  with open_archive(path) as archive:
    ends = []
    for info in archive.infolist():
      leaf = info.filename.removesuffix(".npy")
      if leaf in specs:
        raise ValueError(f"{path} has leaf {leaf!r} twice.")
      start = data_offset(file, info)
      ends.append(start + info.compress_size)
      stored = info.compress_type == zipfile.ZIP_STORED
      if stored:
        head = file.read(start, min(info.file_size, 65536 + 16))
      else:
        head = inflate(archive, path, info, 65536 + 16)
      (shape, dtype), length = _array_header(path, leaf, head)
      fortran = shape[:1] == ("fortran",)
      shape = shape[1:] if fortran else shape
      specs[leaf] = jax.ShapeDtypeStruct(shape, dtype)
      if slices.size(slices.whole(shape)) * dtype.itemsize != (
        info.file_size - length
      ):
        raise bad(path, f"{leaf!r} has {info.file_size} bytes for {shape}")
      if stored and not fortran:
        places[leaf] = byte_ranges.Place(file, start + length)
        # The recorded checksum covers the header as well.
        sums[leaf] = _without(info.CRC, head[:length], info.file_size - length)
      else:
        packed[leaf] = (info.filename, length, fortran)
    _check_listed(file, archive.infolist(), ends)
    leaf_digest.check(path, specs, _comment(path, archive).get(leaf_digest.KEY))
  found = byte_ranges.ingredient(
    name, path, specs, places, order=list(specs), checksums=sums
  )
  return params_of_state.of(
    _with_packed(found, path, packed) if packed else found
  )


def _without(whole: int, head: bytes, rest: int) -> int:
  """CRC-32 of what follows a head, from that of both."""
  return whole ^ crc32.combine([(zlib.crc32(head), len(head)), (0, rest)])


def inflate(
  archive: zipfile.ZipFile,
  path: str,
  info: zipfile.ZipInfo,
  limit: int | None = None,
) -> bytes:
  """Decodes a member, or its first bytes.

  Raises:
    ValueError: if it is damaged.
  """
  try:
    with archive.open(info) as f:
      return f.read(limit) if limit else f.read()
  except (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,  # NotImplementedError too.
    OSError,
    ValueError,
    struct.error,
  ) as e:
    raise bad(path, f"member {info.filename!r}: {e}") from e


def _with_packed(found: Ingredient, path: str, packed) -> Ingredient:
  """Adds leaves that must be decoded: compressed, or in column-major order."""

  def whole(leaf):
    member, length, fortran = packed[leaf]
    spec = found.specs[leaf]
    with open_archive(path) as archive:
      data = inflate(archive, path, archive.getinfo(member))
    return np.frombuffer(data, spec.dtype, offset=length).reshape(
      spec.shape, order="F" if fortran else "C"
    )

  return byte_ranges.with_whole_leaves(found, path, packed, whole)


def comment(path: str) -> dict[str, Any]:
  """Returns the record that soupjax left in an archive, {} if there is none."""
  with open_archive(path) as archive:
    return _comment(path, archive).get("soupjax", {})


def _comment(path, archive) -> dict[str, Any]:
  text = archive.comment
  if b"soupjax" not in text:
    return {}
  try:
    found = json.loads(text)
    if not isinstance(found["soupjax"], dict):
      raise TypeError("its record is no object")
    return found
  except (ValueError, KeyError, TypeError, RecursionError) as e:
    raise bad(path, f"its comment is damaged ({e!r})") from e


def check(
  specs: Mapping[str, jax.ShapeDtypeStruct], provenance: Mapping[str, Any]
) -> None:
  """Checks that an archive can hold some leaves and a record.

  Raises:
    ValueError: naming a leaf whose dtype has no place in this format, or if the
      record is too long for a comment.
  """
  for leaf, spec in specs.items():
    _npy_header(leaf, spec)
  _text(specs, provenance)


def _text(specs, provenance) -> bytes:
  digest = leaf_digest.digest(specs)
  text = json.dumps({"soupjax": provenance, leaf_digest.KEY: digest}).encode()
  if len(text) > _MAX_COMMENT:
    raise ValueError(
      f"The record of this soup has {len(text)} bytes, and an npz file takes "
      f"{_MAX_COMMENT}. Write safetensors or Orbax."
    )
  return text


class NpzWriter:
  """Writes an archive of stored members, for `np.load` and big_vision."""

  def __init__(
    self,
    path: str,
    specs: Mapping[str, jax.ShapeDtypeStruct],
    order: Sequence[str],
    *,
    create: bool = True,
  ):
    """Makes the file, without headers.

    Args:
      path: of the file.
      specs: leaf -> shape and dtype.
      order: the order of the members.
      create: False in all processes but the first.

    Raises:
      ValueError: if a dtype has no place in this format, or the disk is full.
    """
    self.order = list(order)
    self._specs = {leaf: specs[leaf] for leaf in order}
    self._heads: dict[str, tuple[int, bytes, int]] = {}
    at, places = 0, {}
    for leaf in self.order:
      head = _npy_header(leaf, specs[leaf])
      size = slices.size(slices.whole(specs[leaf].shape))
      size *= specs[leaf].dtype.itemsize
      self._heads[leaf] = (at, head, size)
      at += len(self._local(leaf, 0)) + len(head)
      places[leaf] = at
      at += size
    self._end = at
    self._fd = files.open_for_writing({path: at}, create=create)[path]
    places = {leaf: (self._fd, offset) for leaf, offset in places.items()}
    self.ranges = byte_ranges.RangeWriter(specs, places)
    self.write = self.ranges.write
    self._flusher = files.Flusher([self._fd])

  def _info(self, leaf, value) -> zipfile.ZipInfo:
    at, head, size = self._heads[leaf]
    info = zipfile.ZipInfo(f"{leaf}.npy", (1980, 1, 1, 0, 0, 0))
    info.header_offset, info.CRC = at, value
    info.file_size = info.compress_size = len(head) + size
    return info

  def _local(self, leaf, value) -> bytes:
    # Always with 64-bit sizes: one length whatever the size.
    return self._info(leaf, value).FileHeader(zip64=True)

  def finish(
    self, provenance: Mapping[str, Any], *, first: bool = True
  ) -> None:
    """Reads everything back, and writes headers and the list of members.

    Args:
      provenance: the record; kept as the comment of the archive.
      first: whether this is the process that writes the headers.

    Raises:
      ValueError: naming a leaf that differs from what was written, or if the
        record is too long for a comment.
    """
    sums = self.ranges.read_back()
    if first:
      infos = []
      for leaf in self.order:
        at, head, size = self._heads[leaf]
        value = crc32.combine(
          [(zlib.crc32(head), len(head)), (sums[leaf], size)]
        )
        infos.append(self._info(leaf, value))
        byte_ranges.write_all(self._fd, self._local(leaf, value) + head, at)
      byte_ranges.write_all(self._fd, self._tail(infos, provenance), self._end)
    self._flusher.stop()
    os.fsync(self._fd)
    self.close()

  def _tail(self, infos, provenance) -> bytes:
    """The list of members and the record, as `zipfile` writes them."""
    stream = _Tail(self._end)
    with zipfile.ZipFile(stream, "w") as archive:
      archive.filelist = infos
      archive.NameToInfo = {info.filename: info for info in infos}
      archive.start_dir = self._end
      archive.comment = _text(self._specs, provenance)
    return stream.getvalue()

  def close(self) -> None:
    """Closes the file."""
    self._flusher.stop()
    if self._fd >= 0:
      os.close(self._fd)
      self._fd = -1


class _Tail(io.BytesIO):
  """The end of a file that begins elsewhere."""

  def __init__(self, start: int):
    super().__init__()
    self._start = start

  def tell(self) -> int:
    return super().tell() + self._start

  def seek(self, offset: int, whence: int = 0) -> int:
    return super().seek(offset - (self._start if whence == 0 else 0), whence)


def _npy_header(leaf: str, spec: jax.ShapeDtypeStruct) -> bytes:
  dtype = spec.dtype
  if dtype == ml_dtypes.bfloat16:
    text = "|V2"
  elif dtype.kind in "biufc" and dtype.isbuiltin == 1:
    # NumPy would write a name for 8-bit floats that it cannot read.
    text = np.lib.format.dtype_to_descr(dtype)
  else:
    raise ValueError(
      f"Leaf {leaf!r} has dtype {dtype}, which npz files cannot hold. Choose "
      "dtype=, or another format."
    )
  stream = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    stream, {"descr": text, "fortran_order": False, "shape": spec.shape}
  )
  return stream.getvalue()
