# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Atomic writes, JSON, and what a disk has room for."""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import errno
import fcntl
import json
import os
import pathlib
import shutil
import threading
from typing import Any, BinaryIO

import numpy as np


def temporary_name(path: str | os.PathLike) -> pathlib.Path:
  """Returns the name that a file or directory has while it is written."""
  path = pathlib.Path(path)
  return path.with_name(f".{path.name}.tmp")


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a temporary file that takes its final name on success."""
  temporary = temporary_name(path)
  with open(temporary, "wb") as f:
    yield f
    f.flush()
    os.fsync(f.fileno())
  os.replace(temporary, path)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text file, whole or not at all."""
  with replacing(path) as f:
    f.write(text.encode("utf-8"))


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes JSON, as `write_text` does; NaN is refused, it is not JSON."""
  write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_arrays(path: str | os.PathLike, arrays: dict[str, Any]) -> None:
  """Writes named arrays as an `.npz`, whole or not at all."""
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  with replacing(path) as f:
    np.savez(f, **arrays)


def read_json(path: str | os.PathLike) -> Any:
  """Reads a JSON file.

  Raises:
    ValueError: if it is damaged, naming the file.
  """
  try:
    return json.loads(pathlib.Path(path).read_bytes())
  except ValueError as e:  # Of json, or of the encoding.
    raise ValueError(f"{path} is not valid JSON: {e}. Delete it.") from e


@contextlib.contextmanager
def new_directory(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Gives a temporary directory that takes its final name on success.

  Args:
    path: the final name; nothing must be there.

  Yields:
    The temporary directory, beside the final one; what a killed run left in it
    is removed first.

  Raises:
    ValueError: if `path` exists.
  """
  path = pathlib.Path(path)
  if path.exists():
    raise ValueError(f"{path} exists already: delete it, or choose another.")
  temporary = temporary_name(path)
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  yield temporary
  os.rename(temporary, path)


def lock(path: str | os.PathLike, busy: str | None = None) -> int:
  """Locks a file or directory; the lock ends with the process, however.

  Args:
    path: of a file, made if it does not exist, or of a directory.
    busy: the error if another process holds the lock; None waits for it.

  Returns:
    A file descriptor; closing it ends the lock.

  Raises:
    ValueError: saying `busy`.
  """
  flags = os.O_RDONLY | (0 if os.path.isdir(path) else os.O_CREAT)
  fd = os.open(path, flags, 0o666)
  try:
    fcntl.flock(fd, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
  except BaseException as e:
    os.close(fd)
    if isinstance(e, BlockingIOError):
      raise ValueError(busy) from None
    raise
  return fd


def open_for_writing(
  sizes: Mapping[str, int], *, create: bool = True
) -> dict[str, int]:
  """Opens files for reading and writing, as large as they will be.

  Args:
    sizes: path -> bytes; what is in the files is dropped.
    create: False if another process has made them.

  Returns:
    Path -> file descriptor.

  Raises:
    ValueError: if there is no room for them.
    OSError: if they cannot be opened.
  """
  flags = os.O_RDWR | (os.O_CREAT | os.O_TRUNC if create else 0)
  fds: dict[str, int] = {}
  try:
    for path, num_bytes in sizes.items():
      fds[path] = os.open(path, flags, 0o666)
      if create:
        _allocate(fds[path], num_bytes, path)
  except BaseException:
    for fd in fds.values():
      os.close(fd)
    raise
  return fds


def _allocate(fd, num_bytes, path):
  """Makes a file that large, so that a full disk shows at once."""
  try:
    os.posix_fallocate(fd, 0, max(num_bytes, 1))
  except OSError as e:
    if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
      raise ValueError(
        f"No space left for {path}: it needs {num_bytes / 1e9:.3f} GB. Nothing "
        "was published. Free some, or choose another out=."
      ) from e
    # Some file systems cannot; writing will tell.
    os.ftruncate(fd, num_bytes)


class Flusher:
  """Moves what is written to disk all along, so that the end is short."""

  def __init__(self, fds: Iterable[int]):
    self._fds = list(fds)
    self._stopped = threading.Event()
    self._thread = threading.Thread(target=self._loop, daemon=True)
    self._thread.start()

  def _loop(self):
    while not self._stopped.wait(0.1):
      for fd in self._fds:
        # What goes wrong here, the last fsync reports.
        with contextlib.suppress(OSError):
          os.fdatasync(fd)

  def stop(self) -> None:
    """Waits for what is under way; the files may be closed then."""
    self._stopped.set()
    self._thread.join()


def above(path: str) -> str:
  """The nearest directory above a path, or the file that is in the way."""
  folder = os.path.dirname(path)
  while not os.path.lexists(folder):
    folder = os.path.dirname(folder)
  return folder


def free_bytes(path: str) -> int:
  """Free space on the disk of a path that need not exist."""
  return shutil.disk_usage(above(path)).free


def check_writable(path: str) -> None:
  """Checks that something can be made at a path.

  Raises:
    ValueError: if a file is where a directory must be, or it is read-only.
  """
  folder = above(path)
  if not os.path.isdir(folder):
    raise ValueError(
      f"{path} cannot be written: {folder} is no directory. Choose another "
      "path."
    )
  if not os.access(folder, os.W_OK | os.X_OK):
    raise ValueError(
      f"{path} cannot be written: {folder} is read-only, or not yours. Choose "
      "another path, or change its permissions."
    )


def check_room(path: str, needed: int, free: int) -> None:
  """Compares what is needed with what is free.

  Raises:
    ValueError: if there is too little.
  """
  if needed > free:
    raise ValueError(
      f"{path} needs {needed / 1e9:.3f} GB, and {free / 1e9:.3f} GB are free. "
      "Free some, or choose another path."
    )
