# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Atomic writes, JSON, locks and free disk space."""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import errno
import fcntl
import io
import json
import os
import pathlib
import resource
import secrets
import shutil
import signal
import stat
import threading
from typing import Any, BinaryIO
import zlib

import numpy as np

from soupjax import buckets

# Errors of a full disk.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TOO_MANY_OPEN = (errno.EMFILE, errno.ENFILE)
_MOST_OPEN = 1 << 16
_MAX_JSON = 100_000_000


def temporary_name(path: str | os.PathLike) -> pathlib.Path:
  """Returns the temporary name of a file or directory while it is written."""
  path = pathlib.Path(path)
  name, encoded = path.name, os.fsencode(path.name)
  if len(encoded) > 200:  # Most file systems allow 255 bytes.
    name = f"{zlib.crc32(encoded):08x}"
  return path.with_name(f".{name}.tmp")


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
  """Delays Ctrl-C and SIGTERM until the end of a block.

  Steps that belong together, such as two renames, or creating a file and
  removing it after an error, are not interrupted halfway.
  """
  received: list[int] = []
  handlers: dict[int, Any] = {}
  # Only the main thread receives signals. A handler that is not a Python
  # function ends the process at once or ignores the signal; it is left alone.
  if threading.current_thread() is threading.main_thread():
    for number in (signal.SIGINT, signal.SIGTERM):
      if callable(handler := signal.getsignal(number)):
        handlers[number] = handler
  try:
    for number in handlers:
      signal.signal(number, lambda number, frame: received.append(number))
    yield
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)
    for number in received[:1]:
      handlers[number](number, None)


def path_of(path: str | os.PathLike) -> Any:
  """Returns an absolute `pathlib.Path`, or an `epath.Path` for an address.

  Raises:
    ValueError: if the bucket of an address cannot be reached.
  """
  if not buckets.is_remote(path):
    return pathlib.Path(path).expanduser().absolute()
  from etils import epath

  buckets.check_bucket(path)
  return epath.Path(os.fspath(path).rstrip("/"))


def make_directory(path: str | os.PathLike) -> None:
  """Makes a directory and its parents; does nothing for an address."""
  if not buckets.is_remote(path):
    os.makedirs(path, exist_ok=True)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a temporary file that gets its final name if the block succeeds.

  For an address, yields a buffer that is uploaded if the block succeeds.

  Raises:
    ValueError: if the disk is full or the path cannot be written.
  """
  if buckets.is_remote(path):
    buffer = io.BytesIO()
    yield buffer
    buckets.write(path, buffer.getvalue())
    return
  temporary = temporary_name(path)
  with uninterrupted():
    try:
      with open(temporary, "wb") as f:
        yield f
        f.flush()
        os.fsync(f.fileno())
      os.replace(temporary, path)
    except BaseException as e:
      with contextlib.suppress(OSError):
        os.unlink(temporary)
      if isinstance(e, OSError):
        explain(e, os.fspath(path))
      raise


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text file completely or not at all."""
  with replacing(path) as f:
    # Surrogates stand for bytes of file names that are not valid UTF-8.
    f.write(text.encode("utf-8", "surrogateescape"))


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes JSON completely or not at all.

  Raises:
    ValueError: if a number is NaN or infinite, which JSON does not allow.
  """
  write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_arrays(path: str | os.PathLike, arrays: dict[str, Any]) -> None:
  """Writes named arrays to an `.npz` file completely or not at all."""
  make_directory(os.path.dirname(path) or ".")
  with replacing(path) as f:
    np.savez(f, **arrays)


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads an `.npz` file of `write_arrays`; returns name -> array.

  Raises:
    OSError, ValueError, EOFError, zipfile.BadZipFile: if it is missing or
      damaged.
  """
  remote = buckets.is_remote(path)
  # One request for the whole object, instead of one for each array.
  source = io.BytesIO(buckets.read(path)) if remote else path
  try:
    with np.load(source, allow_pickle=False) as stored:
      return dict(stored)
  # Damaged data; an unknown compression; a single array without a name.
  except (zlib.error, NotImplementedError, TypeError) as e:
    raise ValueError(f"{path} is damaged: {e}") from e


def read_json(path: str | os.PathLike) -> Any:
  """Reads a JSON file.

  Raises:
    ValueError: if it is missing, damaged, larger than 100 MB or not a regular
      file. The message names the file.
  """
  with contextlib.ExitStack() as stack:
    if buckets.is_remote(path):
      num_bytes = buckets.identity(path)[0]
    else:
      f = stack.enter_context(open_input(path))
      num_bytes = os.fstat(f.fileno()).st_size
    if num_bytes > _MAX_JSON:
      raise ValueError(
        f"{path} has {num_bytes} bytes, but JSON files may have at most "
        f"{_MAX_JSON}: move it away if it is not part of a checkpoint."
      )
    text = buckets.read(path) if buckets.is_remote(path) else f.read()
  try:
    return json.loads(text)
  # Invalid JSON or encoding, or brackets nested too deeply.
  except (ValueError, RecursionError) as e:
    raise ValueError(
      f"{path} is not valid JSON: {e}. Copy it again or delete it."
    ) from e


def check_regular(path: str | os.PathLike) -> os.stat_result:
  """Returns the status of an input file, following links.

  Raises:
    ValueError: if it is missing or not a regular file. Reading from a pipe or a
      device could block, or never end.
  """
  try:
    status = os.stat(path)
  except (OSError, ValueError) as e:
    raise _unreadable(path, e) from e
  if not stat.S_ISREG(status.st_mode):
    kind = "directory" if stat.S_ISDIR(status.st_mode) else "pipe or device"
    raise ValueError(
      f"{os.fspath(path)} is a {kind} where a file is expected. Copy the file "
      "there, or leave it out."
    )
  return status


def open_input(path: str | os.PathLike) -> io.FileIO:
  """Opens a regular file for unbuffered reading.

  Raises:
    ValueError: if it cannot be opened. The message names the file and reason.
    OSError: if too many files are open.
  """
  check_regular(path)
  try:
    # O_NONBLOCK, in case a pipe has replaced the file since the check.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
  except OSError as e:
    if e.errno in TOO_MANY_OPEN:
      raise
    raise _unreadable(path, e) from e
  return io.FileIO(fd, "rb")


def _unreadable(path, error) -> ValueError:
  reason = getattr(error, "strerror", None) or error
  name = os.fspath(path)
  name = name if len(name) < 300 else f"{name[:300]}..."
  return ValueError(
    f"{name} cannot be read: {reason}. Check the path and its permissions."
  )


def open_limit() -> int:
  """Returns the number of files that this process may have open."""
  soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
  return _MOST_OPEN if soft == resource.RLIM_INFINITY else soft


def raise_open_limit() -> int:
  """Raises the limit on open files of this process as far as the system allows.

  Returns:
    The number of files that the process may now have open.
  """
  _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  most = _MOST_OPEN if hard == resource.RLIM_INFINITY else min(hard, _MOST_OPEN)
  if open_limit() < most:
    # Some systems allow fewer than they report.
    with contextlib.suppress(OSError, ValueError):
      resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
  return open_limit()


@contextlib.contextmanager
def new_directory(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Makes a temporary directory that gets its final name if the block succeeds.

  Args:
    path: the final name; it must not exist.

  Yields:
    The temporary directory, next to the final one and empty.

  Raises:
    ValueError: if `path` exists.
  """
  path = pathlib.Path(path)
  if path.exists():
    raise ValueError(f"{path} exists already: delete it, or choose another.")
  temporary = temporary_name(path)
  try:
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    os.rename(temporary, path)
  except BaseException:
    with uninterrupted():
      shutil.rmtree(temporary, ignore_errors=True)
    raise


@contextlib.contextmanager
def mark(directory: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Creates an empty file with a unique name, and removes it after the block.

  A process that sees the file sees the same directory, not just the same path.

  Args:
    directory: an existing directory.

  Yields:
    The path of the file.
  """
  path = pathlib.Path(directory, f".mark_{secrets.token_hex(8)}")
  try:
    write_text(path, "")
    yield path
  finally:
    with contextlib.suppress(OSError):
      path.unlink()


def lock(path: str | os.PathLike, busy: str | None = None) -> int:
  """Locks a file or directory until the process ends, even if it is killed.

  Args:
    path: a file, which is created if it does not exist, or a directory.
    busy: error message if another process holds the lock; None to wait for it.

  Returns:
    A file descriptor; closing it releases the lock.

  Raises:
    ValueError: with the message `busy`, if another process holds the lock.
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
  """Opens files for reading and writing at their final size.

  Args:
    sizes: path -> bytes.
    create: whether to drop existing content and reserve the space; False if
      another process does so.

  Returns:
    Path -> file descriptor.

  Raises:
    ValueError: if the disk lacks the space, or there are too many files.
    OSError: if a file cannot be opened.
  """
  # O_CREAT always: processes may get here in any order.
  flags = os.O_RDWR | os.O_CREAT | (os.O_TRUNC if create else 0)
  if len(sizes) > open_limit() // 4:  # Inputs are open at the same time.
    raise_open_limit()
  fds: dict[str, int] = {}
  try:
    for path, num_bytes in sizes.items():
      try:
        fds[path] = os.open(path, flags, 0o666)
      except OSError as e:
        if e.errno in TOO_MANY_OPEN:
          raise ValueError(
            f"{path} cannot be written: this process may open {open_limit()} "
            f"files, and the output has {len(sizes)}. Raise the limit with "
            "ulimit -n, or choose a larger shard_bytes."
          ) from e
        raise
      if create:
        _allocate(fds[path], num_bytes, path)
  except BaseException:
    for fd in fds.values():
      os.close(fd)
    raise
  return fds


def _allocate(fd, num_bytes, path):
  """Reserves the space of a file, so that a full disk is noticed at once."""
  try:
    os.posix_fallocate(fd, 0, max(num_bytes, 1))
  except OSError as e:
    # Only a full disk matters here: some file systems cannot reserve space.
    if e.errno in _FULL:
      explain(e, f"{path} ({num_bytes / 1e9:.3f} GB)")
    os.ftruncate(fd, num_bytes)


def explain(error: OSError, path: str) -> None:
  """Raises a clear error if the cause is a full disk or a missing permission.

  Args:
    error: the error that is being handled. Nothing is raised for other causes.
    path: the output that was being written.

  Raises:
    ValueError: naming the output and a fix.
  """
  if error.errno in _FULL:
    raise ValueError(
      f"No space left for {path}, so it was not written. Free some space and "
      "start again, or choose another path."
    ) from error
  if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
    raise ValueError(
      f"{path} cannot be written ({error.strerror}): choose another path or "
      "change the permissions of its directory."
    ) from error


class Flusher:
  """Flushes files to disk in the background, so that the final sync is short.

  A thread runs from the start until `stop`.
  """

  def __init__(self, fds: Iterable[int]):
    self._fds = list(fds)
    self._stopped = threading.Event()
    self._thread = threading.Thread(target=self._loop, daemon=True)
    self._thread.start()

  def _loop(self):
    while not self._stopped.wait(0.1):
      for fd in self._fds:
        # The final fsync reports errors.
        with contextlib.suppress(OSError):
          os.fdatasync(fd)

  def stop(self) -> None:
    """Ends the thread and waits for it; then the files may be closed."""
    self._stopped.set()
    self._thread.join()


def above(path: str) -> str:
  """Returns the nearest ancestor of a path that exists, which may be a file."""
  folder = os.path.dirname(path)
  while not os.path.lexists(folder):
    folder = os.path.dirname(folder)
  return folder


def free_bytes(path: str) -> int:
  """Returns the free disk space at a path, which need not exist."""
  return shutil.disk_usage(above(path)).free


def check_writable(path: str) -> None:
  """Checks that a file or directory can be created at a path.

  Raises:
    ValueError: if an ancestor is a file or read-only, or a name is too long.
  """
  folder = above(path)
  limit = os.pathconf(folder, "PC_NAME_MAX")
  for name in pathlib.PurePath(path).parts:
    if len(os.fsencode(name)) > limit:
      raise ValueError(
        f"{path} cannot be written: {name[:20]}... has more than {limit} "
        "bytes. Choose a shorter name."
      )
  if not os.path.isdir(folder):
    raise ValueError(
      f"{path} cannot be written: {folder} is not a directory. Choose another "
      "path."
    )
  if not os.access(folder, os.W_OK | os.X_OK):
    raise ValueError(
      f"{path} cannot be written: no write permission in {folder}. Choose "
      "another path or change its permissions."
    )


def check_room(path: str, needed: int) -> None:
  """Checks that the disk of an output has enough free space.

  Args:
    path: path of the output, which need not exist.
    needed: its size in bytes.

  Raises:
    ValueError: if the disk has fewer free bytes.
  """
  free = free_bytes(path)
  if needed > free:
    raise ValueError(
      f"{path} needs {needed / 1e9:.3f} GB, but only {free / 1e9:.3f} GB are "
      "free. Free some space or choose another path."
    )
