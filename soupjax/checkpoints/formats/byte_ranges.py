# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads leaves that are byte ranges of a file.

Reads fill memory that the caller owns and reuses. This is several times faster
than allocating new arrays. Files are not memory-mapped, since the system would
count them as memory of the process.
"""

from collections.abc import (
  Callable,
  Collection,
  Iterator,
  Mapping,
  Sequence,
)
import contextlib
import dataclasses
import functools
import io
import math
import os
import pathlib
import resource
import threading
from typing import Any, NamedTuple

import jax
import numpy as np

from soupjax import buckets, files
from soupjax.checkpoints.formats import input_files
from soupjax.soups.core import crc32, slices, tree
from soupjax.soups.core.ingredient import Ingredient, Storage

MAX_DEPTH = 100
_MAX_AXES = 64  # As in NumPy.
_MAX_LEAVES = 1_000_000
_MAX_BYTES = 2**63 - 1


is_remote = buckets.is_remote


def remote_path(path: str | os.PathLike) -> Any:
  """Returns an `epath.Path`.

  Raises:
    ValueError: if the package for that kind of address is missing, or the
      bucket cannot be reached.
  """
  from etils import epath

  buckets.check_bucket(path)
  return epath.Path(os.fspath(path))


def is_directory(path: str) -> bool:
  """Whether a local or remote path is a directory."""
  return (buckets.is_directory if is_remote(path) else os.path.isdir)(path)


def names_in(path: str) -> list[str]:
  """Returns the names in a local or remote directory."""
  return (buckets.listdir if is_remote(path) else os.listdir)(path)


def as_path(path: str) -> Any:
  """Returns a `pathlib.Path`, or an `epath.Path` for a remote address."""
  return remote_path(path) if is_remote(path) else pathlib.Path(path)


def identity(path: str) -> input_files.Identity:
  """Returns the identity of a local or remote file.

  Raises:
    ValueError: if it is missing or not a regular file.
  """
  if not is_remote(path):
    return input_files.identity(path)
  return buckets.identity(path)


class ByteFile:
  """A local or remote file whose ranges several threads may read.

  It is opened only when it is read, and must not change before that.

  Attributes:
    path: as given.
    size: bytes in the file.
    identity: size, time and inode of the file.
  """

  def __init__(self, path: str | os.PathLike):
    """Records the identity of the file without opening it.

    Raises:
      ValueError: if it is missing or not a regular file.
    """
    self.handle: Any = None
    self.path = os.fspath(path)
    self.users = 0
    self._pool, self._lock = input_files.LOCAL, None
    if is_remote(self.path):
      self._pool, self._lock = input_files.REMOTE, threading.Lock()
    self.identity = identity(self.path)
    self.size = self.identity[0]

  def __del__(self):
    if self.handle is not None:
      self.handle.close()

  def open(self) -> Any:
    """Opens the file for `input_files.OpenFiles`.

    Raises:
      ValueError: if it has changed since its identity was recorded.
    """
    if self._lock is not None:
      now = identity(self.path)
      handle = buckets.open_object(self.path)
    else:
      handle = files.open_input(self.path)
      now = input_files.identity_of(os.fstat(handle.fileno()))
    if change := input_files.difference(self.path, self.identity, now):
      handle.close()
      raise ValueError(f"{change} since it was opened. Open it again.")
    if self._lock is None:
      # Doubles the read-ahead of the system.
      os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return handle

  def read_into(self, offset: int, out: np.ndarray) -> None:
    """Fills a contiguous array with the bytes that start at `offset`.

    Raises:
      ValueError: if the range is not inside the file, or the file has changed.
    """
    if offset < 0:
      raise ValueError(f"{self.path} is damaged: it refers to byte {offset}.")
    view, done = memoryview(out.reshape(-1).view(np.uint8)), 0
    while done < len(view):
      with self._pool.opened(self) as handle:
        if self._lock is None:
          n = os.preadv(handle.fileno(), [view[done:]], offset + done)
        else:
          with self._lock:
            part = buckets.read_range(handle, offset + done, len(view) - done)
          n = len(part)
          view[done : done + n] = part
      if n == 0:
        raise ValueError(
          f"{self.path} is cut short: it has {self.size} bytes instead of at "
          f"least {offset + len(view)}. Copy it again."
        )
      done += n

  def read(self, offset: int, num_bytes: int) -> bytes:
    """Returns a range of bytes; see `read_into`."""
    if offset + num_bytes > self.size:  # Before memory is reserved for it.
      raise ValueError(
        f"{self.path} is cut short: it has {self.size} bytes instead of at "
        f"least {offset + num_bytes}. Copy it again."
      )
    out = np.empty(num_bytes, np.uint8)
    self.read_into(offset, out)
    return out.tobytes()

  def stream(self) -> io.BufferedReader:
    """Returns a stream of the file, for libraries that need one."""
    # Each read from a bucket is a request, so reads are larger.
    size = io.DEFAULT_BUFFER_SIZE if self._lock is None else 1 << 20
    return io.BufferedReader(_Stream(self), size)


class Window:
  """A range of a `ByteFile`, read like a file of its own.

  Attributes:
    path: path of the file.
    start: offset of the range in the file, in bytes.
    size: bytes in the range.
  """

  def __init__(self, file: ByteFile, start: int, size: int):
    """Checks that the range is inside the file.

    Raises:
      ValueError: if it is not.
    """
    if min(start, size) < 0 or start + size > file.size:
      raise ValueError(
        f"{file.path} is cut short: it has {file.size} bytes instead of at "
        f"least {start + size}. Copy it again."
      )
    self.path, self.start, self.size = file.path, start, size
    self._file = file

  def read_into(self, offset: int, out: np.ndarray) -> None:
    """Fills an array; see `ByteFile.read_into`."""
    if offset < 0 or offset + out.nbytes > self.size:
      raise ValueError(f"{self.path} is damaged: a part of it is cut short.")
    self._file.read_into(self.start + offset, out)

  read = ByteFile.read

  def stream(self) -> io.BufferedReader:
    """Returns a stream of the range; see `ByteFile.stream`."""
    return io.BufferedReader(_Stream(self))


class _Stream(io.RawIOBase):
  """A seekable stream of the bytes of a `ByteFile` or a `Window`."""

  def __init__(self, file: ByteFile | Window):
    self._file, self._position = file, 0

  def readable(self):
    return True

  def seekable(self):
    return True

  def seek(self, offset, whence=os.SEEK_SET):
    start = {
      os.SEEK_SET: 0,
      os.SEEK_CUR: self._position,
      os.SEEK_END: self._file.size,
    }[whence]
    if start + offset < 0:
      raise OSError(f"{self._file.path} has no byte {start + offset}")
    self._position = start + offset
    return self._position

  def readinto(self, buffer):
    n = max(0, min(len(buffer), self._file.size - self._position))
    view = np.frombuffer(buffer, np.uint8)[:n]
    self._file.read_into(self._position, view)
    self._position += n
    return n


def memory() -> int:
  """Returns the bytes of memory that a process may use."""
  most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  limit, _ = resource.getrlimit(resource.RLIMIT_AS)
  return most if limit == resource.RLIM_INFINITY else min(most, limit)


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
  """Turns any error about an untrusted file into a ValueError that names it."""
  try:
    yield
  except Exception as e:
    folder = path if is_remote(path) else os.path.dirname(path)
    if isinstance(e, ValueError) and folder in str(e):
      raise
    raise ValueError(
      f"{path} is damaged or not a checkpoint ({type(e).__name__}: "
      f"{e!s:.200}). Copy it again from its source."
    ) from e


def check_claims(path: str, leaf: str, spec: jax.ShapeDtypeStruct) -> None:
  """Checks that NumPy and JAX can hold a leaf.

  Raises:
    ValueError: if it has too many axes, elements or levels of names, or its
      name is not text.
  """
  problem = _too_large(spec.shape, spec.dtype)
  if leaf.count("/") > MAX_DEPTH:
    problem = problem or f"more than {MAX_DEPTH} levels in its name"
  if not leaf.isascii() and leaf.encode(errors="replace").decode() != leaf:
    problem = problem or "a name that is not valid text"
    leaf = ascii(leaf)
  if problem:
    name = leaf if len(leaf) < 80 else f"{leaf[:80]}..."
    raise ValueError(
      f"{path} is damaged: leaf {name!r} has {problem:.300}. Copy it again."
    )


@functools.lru_cache(maxsize=4096)
def _too_large(shape: tuple[int, ...], dtype: np.dtype) -> str:
  """Describes why no array can have this shape; "" if one can."""
  if len(shape) > _MAX_AXES:
    return f"{len(shape)} axes, and arrays have at most {_MAX_AXES}"
  if math.prod(max(n, 1) for n in shape) * dtype.itemsize > _MAX_BYTES:
    return f"shape {list(shape)}, which is more than an array can hold"
  return ""


class Place(NamedTuple):
  """The location of a leaf, which is stored row-major and little-endian."""

  file: Any
  offset: int


def ranges(
  spans: Sequence[slices.Span],
  places: Mapping[str, tuple[Any, int]],
  specs: Mapping[str, jax.ShapeDtypeStruct],
) -> Iterator[tuple[Any, int, int, int]]:
  """Joins spans that are adjacent both in a file and in a flat array.

  Args:
    spans: boxes of leaves of the same dtype.
    places: leaf -> file and the offset at which it starts, in bytes.
    specs: leaf -> shape and dtype.

  Yields:
    File, offset in it, and first and last byte (exclusive) in the array.
  """
  if not spans:
    return
  item = specs[spans[0].leaf].dtype.itemsize
  file, end, start, stop = None, 0, 0, 0
  for leaf, box, at, until, first in spans:
    place, origin = places[leaf]
    runs = ((first, until - at),)
    if first is None:
      runs = slices.contiguous_runs(specs[leaf].shape, box)
    for first, n in runs:
      offset = origin + first * item
      if place is not file or offset != end or at * item != stop:
        if stop > start:
          yield file, end - (stop - start), start, stop
        file, end, start, stop = place, offset, at * item, at * item
      end, stop, at = end + n * item, stop + n * item, at + n
  if stop > start:
    yield file, end - (stop - start), start, stop


def ingredient(
  name: str,
  path: str,
  specs: Mapping[str, jax.ShapeDtypeStruct],
  places: Mapping[str, Place],
  *,
  order: Sequence[str] | None = None,
  checksums: Mapping[str, int] | None = None,
  shared: Sequence[crc32.Shared] = (),
  others: Mapping[str, input_files.Identity] | None = None,
) -> Ingredient:
  """Makes an ingredient from the places of its leaves.

  Args:
    name: name of the ingredient.
    path: path of its file or directory.
    specs: leaf -> shape and dtype.
    places: leaf -> location of its first byte.
    order: leaves in file order; None sorts by offset.
    checksums: leaf -> CRC-32, where known.
    shared: checksums over several leaves.
    others: path -> identity of files that describe the leaves.

  Raises:
    ValueError: if there are no leaves.
  """
  if not specs:
    raise ValueError(f"{path} holds no arrays: there is nothing to average.")
  if len(specs) > _MAX_LEAVES:
    raise ValueError(
      f"{path} has {len(specs)} leaves, more than {_MAX_LEAVES}: give the path "
      "of a checkpoint of one model."
    )
  for leaf, spec in specs.items():
    check_claims(path, leaf, spec)
  nested, treedef = tree.nest(specs)

  def read(spans, out):
    data = out.view(np.uint8)
    for file, offset, start, stop in ranges(spans, places, specs):
      file.read_into(offset, data[start:stop])

  if order is None:
    order = sorted(
      places, key=lambda k: (places[k].file.path, places[k].offset)
    )
  sources = {id(place.file): place.file for place in places.values()}
  storage = Storage(
    read=read,
    order=tuple(order),
    checksums=dict(checksums or {}),
    num_bytes=sum(file.size for file in sources.values()),
    shared=tuple(shared),
  )
  return Ingredient(
    name=name,
    specs=nested,
    treedef=treedef,
    reader=reader(path, specs, storage),
    path=path,
    storage=storage,
    changed=changed(
      {file.path: file.identity for file in sources.values()} | (others or {})
    ),
  )


def changed(
  identities: Mapping[str, input_files.Identity],
) -> Callable[[], str]:
  """Returns an `Ingredient.changed` from path -> identity at opening."""
  return functools.partial(input_files.first_difference, identities, identity)


def reader(path: str, specs: Mapping[str, Any], storage: Storage):
  """Returns an `Ingredient.reader` that compares checksums."""
  shapes = {leaf: spec.shape for leaf, spec in specs.items()}
  ledger = crc32.Ledger(path, shapes, storage.checksums, storage.shared)

  def read(leaf, index):
    spec = specs[leaf]
    box, steps = slices.without_steps(index, spec.shape)
    try:
      flat = _aligned(slices.size(box), spec.dtype)
    except MemoryError as e:
      raise ValueError(
        f"Leaf {leaf!r} of {path} has shape {spec.shape}: there is not enough "
        "memory to read it. Close other programs or use a larger machine."
      ) from e
    out = flat.reshape(slices.shape_of(box))
    with naming(path):
      storage.read_box(leaf, box, flat)
    ledger.add(leaf, box, flat)
    return out[steps] if steps else out

  return read


def _aligned(size: int, dtype: np.dtype) -> np.ndarray:
  """Returns new memory aligned to 64 bytes, which JAX need not copy."""
  num_bytes = size * dtype.itemsize
  raw = np.empty(num_bytes + 64, np.uint8)
  first = -raw.ctypes.data % 64
  return raw[first : first + num_bytes].view(dtype)


def with_whole_leaves(
  ingredient: Ingredient,
  path: str,
  leaves: Collection[str],
  read_whole: Callable[[str], np.ndarray],
  self_checked: Collection[str] = (),
) -> Ingredient:
  """Replaces the reader of leaves that can only be read whole.

  Args:
    ingredient: reads all other leaves.
    path: path of the file, for errors.
    leaves: names of the leaves that can only be read whole.
    read_whole: returns one of them, given its name.
    self_checked: leaves that `read_whole` itself compares with a checksum.
  """
  read_ranges = ingredient.storage.read

  def read(spans, out):
    read_ranges([span for span in spans if span.leaf not in leaves], out)
    for leaf, box, start, stop, _ in spans:
      if leaf in leaves:
        part = read_whole(leaf)[box]
        np.copyto(out[start:stop].reshape(part.shape), part)

  storage = dataclasses.replace(
    ingredient.storage,
    read=read,
    chunks={leaf: ingredient.specs[leaf].shape for leaf in leaves},
    self_checked=frozenset(self_checked),
  )
  return dataclasses.replace(
    ingredient, storage=storage, reader=reader(path, ingredient.specs, storage)
  )
