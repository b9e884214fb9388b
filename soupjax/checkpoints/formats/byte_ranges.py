# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Files in which every leaf is one stretch of bytes, read by ranges.

Reads go into memory that the caller owns and uses again: that is several times
as fast as fresh arrays, and mapped files would count as memory of the process.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
import concurrent.futures
import dataclasses
import errno
import os
import threading
from typing import Any
import zlib

import jax
import numpy as np

from soupjax import processes
from soupjax.soups.core import crc32, slices, tree
from soupjax.soups.core.ingredient import Ingredient, Storage


def is_remote(path: str | os.PathLike) -> bool:
  """Whether a path is an address such as gs://bucket/file."""
  return "://" in os.fspath(path)


def remote_path(path: str | os.PathLike) -> Any:
  """Returns an `epath.Path`.

  Raises:
    ValueError: if the package for that kind of address is missing.
  """
  from etils import epath

  kind = os.fspath(path).split("://")[0]
  package = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}.get(kind)
  if package is None:
    raise ValueError(
      f"{os.fspath(path)}: addresses begin with gs://, s3:// or az://, not "
      f"{kind}://. Copy the file to a local path."
    )
  try:
    found = epath.Path(os.fspath(path))
    found.exists()  # The package is imported when it is first needed.
  except ImportError as e:
    raise ValueError(
      f"{os.fspath(path)} cannot be read without {package}: pip install "
      f"soupjax[{kind}]."
    ) from e
  return found


class ByteFile:
  """A file read by ranges, from several threads at once.

  Attributes:
    path: as given.
    size: bytes in the file.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = os.fspath(path)
    self._lock = None
    if is_remote(self.path):
      self._lock = threading.Lock()
      found = remote_path(self.path)
      self.size = found.stat().length
      self._file = found.open("rb")
    else:
      self._file = open(self.path, "rb", buffering=0)
      self.size = os.fstat(self._file.fileno()).st_size
      # Doubles how far the system reads ahead.
      os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)

  def read_into(self, offset: int, out: np.ndarray) -> None:
    """Fills a contiguous array with bytes from `offset` on.

    Raises:
      ValueError: if the file ends before, or begins after `offset`.
    """
    if offset < 0:
      raise ValueError(f"{self.path} is damaged: it refers to byte {offset}.")
    view, done = memoryview(out.reshape(-1).view(np.uint8)), 0
    while done < len(view):
      if self._lock is None:
        n = os.preadv(self._file.fileno(), [view[done:]], offset + done)
      else:
        with self._lock:
          self._file.seek(offset + done)
          part = self._file.read(len(view) - done)
        n = len(part)
        view[done : done + n] = part
      if n == 0:
        raise ValueError(
          f"{self.path} is cut short: it ends after {self.size} bytes, and "
          f"{offset + len(view)} are needed. Copy it again."
        )
      done += n

  def read(self, offset: int, num_bytes: int) -> bytes:
    """Reads some bytes; see `read_into`."""
    out = np.empty(num_bytes, np.uint8)
    self.read_into(offset, out)
    return out.tobytes()


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
  """Where a leaf is: row-major, little-endian, from `offset` on."""

  file: ByteFile
  offset: int


def ingredient(
  name: str,
  path: str,
  specs: Mapping[str, jax.ShapeDtypeStruct],
  places: Mapping[str, Place],
  *,
  order: Sequence[str] | None = None,
  checksums: Mapping[str, int] | None = None,
) -> Ingredient:
  """Makes an ingredient of leaves at known places.

  Args:
    name: what to call it.
    path: where it is.
    specs: leaf -> shape and dtype.
    places: leaf -> place.
    order: leaves in file order; None sorts by offset.
    checksums: leaf -> CRC-32, where known.

  Raises:
    ValueError: if there are no leaves.
  """
  if not specs:
    raise ValueError(f"{path} holds no arrays: there is nothing to average.")
  nested, treedef = tree.nest(specs)

  def read_box(leaf, box, out):
    place, at = places[leaf], 0
    item = specs[leaf].dtype.itemsize
    for first, n in slices.contiguous_runs(specs[leaf].shape, box):
      place.file.read_into(place.offset + first * item, out[at : at + n])
      at += n

  if order is None:
    order = sorted(
      places, key=lambda k: (places[k].file.path, places[k].offset)
    )
  files = {id(place.file): place.file for place in places.values()}
  storage = Storage(
    read_box=read_box,
    order=tuple(order),
    checksums=dict(checksums or {}),
    num_bytes=sum(file.size for file in files.values()),
  )
  return Ingredient(
    name=name,
    specs=nested,
    treedef=treedef,
    reader=reader(path, specs, storage),
    path=path,
    storage=storage,
  )


def reader(path: str, specs: Mapping[str, Any], storage: Storage):
  """Makes `Ingredient.reader`, which checks whole leaves against checksums."""

  def read(leaf, index):
    spec = specs[leaf]
    box, steps = slices.without_steps(index, spec.shape)
    flat = _aligned(slices.size(box), spec.dtype)
    out = flat.reshape(slices.shape_of(box))
    storage.read_box(leaf, box, flat)
    if leaf in storage.checksums and out.size and out.shape == spec.shape:
      crc32.check(path, leaf, crc32.crc32(flat), storage.checksums[leaf])
    return out[steps] if steps else out

  return read


def _aligned(size: int, dtype: np.dtype) -> np.ndarray:
  """New memory on a 64-byte boundary: `jax.device_put` need not copy it."""
  num_bytes = size * dtype.itemsize
  raw = np.empty(num_bytes + 64, np.uint8)
  first = -raw.ctypes.data % 64
  return raw[first : first + num_bytes].view(dtype)


class RangeWriter:
  """Writes leaves to places in files that are open for it.

  Every piece is written where it belongs, whatever the order, and remembered
  with its checksum.
  """

  def __init__(
    self,
    specs: Mapping[str, jax.ShapeDtypeStruct],
    places: Mapping[str, tuple[int, int]],
  ):
    """Makes one.

    Args:
      specs: leaf -> shape and dtype.
      places: leaf -> file descriptor and offset.
    """
    self.specs = specs
    self.places = places
    self._pieces: dict[str, list[tuple[slices.Slices, int]]] = {
      k: [] for k in specs
    }
    self._lock = threading.Lock()

  def write(self, leaf: str, box: slices.Slices, array: np.ndarray) -> None:
    """See `soupjax.soups.engine.run.Writer`."""
    if not array.size:
      return
    array = np.ascontiguousarray(array).reshape(-1)
    value = crc32.crc32(array)
    fd, offset = self.places[leaf]
    data, at = memoryview(array.view(np.uint8)), 0
    item = array.dtype.itemsize
    for first, n in slices.contiguous_runs(self.specs[leaf].shape, box):
      write_all(fd, data[at : at + n * item], offset + first * item)
      at += n * item
    with self._lock:
      self._pieces[leaf].append((box, value))

  def read_back(self) -> dict[str, int]:
    """Reads every piece again, each process its own, and compares it.

    Returns:
      Leaf -> CRC-32, over all processes.

    Raises:
      ValueError: naming the leaf whose bytes on disk differ.
    """
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      mine = dict(zip(self.specs, pool.map(self._read_back, self.specs)))
    everywhere, sums = processes.gather_json(mine), {}
    for leaf, spec in self.specs.items():
      size = slices.size(slices.whole(spec.shape)) * spec.dtype.itemsize
      parts = [part for one in everywhere for part in one[leaf]]
      sums[leaf] = crc32.whole(parts, size)
      if sums[leaf] is None:
        # Pieces that are no stretch of the file: once more in its order.
        sums[leaf] = _crc_of(*self.places[leaf], size, 0)
    return sums

  def _read_back(self, leaf: str) -> list[tuple[int, int, int]]:
    """First byte, bytes and CRC-32 of what is one stretch of the file."""
    spec, (fd, offset) = self.specs[leaf], self.places[leaf]
    item, parts = spec.dtype.itemsize, []
    for box, expected in self._pieces[leaf]:
      found, stretches = 0, list(slices.contiguous_runs(spec.shape, box))
      for first, n in stretches:
        found = _crc_of(fd, offset + first * item, n * item, found)
      if found != expected:
        raise ValueError(
          f"Leaf {leaf!r} was not written as it is: the bytes on disk have "
          f"checksum {found:08x} instead of {expected:08x}. Is the disk sound?"
        )
      if len(stretches) == 1:
        first, n = stretches[0]
        parts.append((first * item, n * item, found))
    return parts


_SCRATCH = threading.local()


def _crc_of(fd: int, offset: int, num_bytes: int, value: int) -> int:
  """Continues a CRC-32 with bytes of a file."""
  if not hasattr(_SCRATCH, "view"):
    _SCRATCH.view = memoryview(bytearray(1 << 20))
  while num_bytes > 0:
    view = _SCRATCH.view[: min(num_bytes, len(_SCRATCH.view))]
    n = os.preadv(fd, [view], offset)
    if n == 0:
      return -1
    value = zlib.crc32(view[:n], value)
    offset, num_bytes = offset + n, num_bytes - n
  return value


def write_all(fd: int, data: memoryview | bytes, offset: int) -> None:
  """Writes bytes at an offset.

  Raises:
    ValueError: if the disk is full.
  """
  data = memoryview(data)
  while len(data):
    try:
      n = os.pwrite(fd, data, offset)
    except OSError as e:
      raise explained(e) from e
    data, offset = data[n:], offset + n


def explained(error: OSError, path: Any = "the output") -> Exception:
  """Turns a full disk or a missing permission into a ValueError."""
  if error.errno in (errno.ENOSPC, errno.EDQUOT):
    return ValueError(
      f"No space left for {path}: nothing was published. Free some, or choose "
      "another out=."
    )
  if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
    return ValueError(
      f"{path} cannot be written ({error.strerror}): choose another out=, or "
      "change the permissions of its directory."
    )
  return error


def with_whole_leaves(
  found: Ingredient,
  path: str,
  leaves: Collection[str],
  whole: Callable[[str], np.ndarray],
) -> Ingredient:
  """Replaces how some leaves are read, which only come whole.

  Args:
    found: the ingredient, that reads all others.
    path: of the file, for errors.
    leaves: their names.
    whole: returns all of such a leaf.
  """
  plain = found.storage.read_box

  def read_box(leaf, box, out):
    if leaf not in leaves:
      plain(leaf, box, out)
      return
    part = whole(leaf)[box]
    np.copyto(out.reshape(part.shape), part)

  storage = dataclasses.replace(
    found.storage,
    read_box=read_box,
    chunks={leaf: found.specs[leaf].shape for leaf in leaves},
  )
  return dataclasses.replace(
    found, storage=storage, reader=reader(path, found.specs, storage)
  )
