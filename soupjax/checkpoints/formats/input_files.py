# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Keeps a bounded number of input files open and detects their changes.

A soup is made of the files that were opened when it was planned. If another
program rewrote or replaced one of them meanwhile, the soup would mix two
versions.
"""

import collections
from collections.abc import Callable, Iterator, Mapping
import contextlib
import os
import threading
from typing import Any, Protocol
import weakref

from soupjax import files

# Files in buckets that are open at the same time.
_MOST_REMOTE = 32

# Size in bytes, time of the last change in ns, and inode. In a bucket: size, 0,
# and a number for the ETag or generation.
Identity = tuple[int, int, int]


def identity_of(status: os.stat_result) -> Identity:
  """Returns the identity of a local file from its status."""
  return status.st_size, status.st_mtime_ns, status.st_ino


def identity(path: str) -> Identity:
  """Returns the identity of a local file.

  Raises:
    ValueError: if it is missing or not a regular file.
  """
  return identity_of(files.check_regular(path))


def difference(path: str, before: Identity, now: Identity) -> str:
  """Describes how a file has changed; "" if it has not."""
  if before == now:
    return ""
  if before[0] != now[0]:
    cut = "was cut short: it " if now[0] < before[0] else ""
    return f"{path} {cut}has {now[0]} bytes instead of {before[0]}"
  if before[2] != now[2]:
    return f"{path} has been replaced by another file"
  return f"{path} has been rewritten"


def first_difference(
  identities: Mapping[str, Identity],
  identify: Callable[[str], Identity] = identity,
) -> str:
  """Describes the first file that has changed or disappeared; "" if none has.

  Args:
    identities: path -> identity when it was opened.
    identify: returns the identity now.
  """
  for path, before in identities.items():
    try:
      change = difference(path, before, identify(path))
    except (ValueError, OSError) as e:
      change = str(e)
    if change:
      return change
  return ""


class File(Protocol):
  """A file that `OpenFiles` opens and closes.

  Attributes:
    handle: the open file, None while it is closed.
    users: the number of threads that read it now.
  """

  handle: Any
  users: int

  def open(self) -> Any:
    """Opens the file."""


class OpenFiles:
  """Opens files on demand and closes the least recently read ones."""

  def __init__(self, most: int | None = None):
    """Starts without files.

    Args:
      most: the number of files to keep open; None takes half of what the
        system allows.
    """
    self._most = most
    self._lock = threading.Lock()
    # In order of last use. Weak references, so that unused files are closed.
    self._order: collections.OrderedDict[weakref.ref[Any], None] = (
      collections.OrderedDict()
    )

  @contextlib.contextmanager
  def opened(self, file: File) -> Iterator[Any]:
    """Yields the handle of a file, which stays open meanwhile.

    Raises:
      ValueError: if it cannot be opened.
    """
    handle = self._take(file)
    if handle is None:
      new = self._open(file)
      handle = self._take(file, new)
      if handle is not new:  # Another thread was faster.
        new.close()
      self._close_idle(self._limit())
    try:
      yield handle
    finally:
      with self._lock:
        file.users -= 1

  def _take(self, file, new=None):
    """Returns the handle of a file, `new` if it has none, and marks its use."""
    with self._lock:
      if file.handle is None:
        file.handle = new
      if file.handle is not None:
        file.users += 1
        self._order[weakref.ref(file)] = None
        self._order.move_to_end(weakref.ref(file))
      return file.handle

  def _limit(self) -> int:
    if self._most is not None:
      return self._most
    soft = files.open_limit()
    # The other half is for outputs, Orbax and the rest of the program.
    if len(self._order) > soft // 2:
      soft = files.raise_open_limit()
    return max(1, soft // 2)

  def _open(self, file):
    for attempt in (files.raise_open_limit, lambda: self._close_idle(0)):
      try:
        return file.open()
      except OSError as e:
        if e.errno not in files.TOO_MANY_OPEN:
          raise
        attempt()
    try:
      return file.open()
    except OSError as e:
      raise ValueError(
        f"Too many open files ({e}): this process may open "
        f"{files.open_limit()}. Raise the limit with ulimit -n, or close files."
      ) from e

  def _close_idle(self, most: int) -> None:
    """Closes files that nobody reads until at most `most` are open."""
    with self._lock:
      for _ in range(len(self._order) - most):
        reference, _ = self._order.popitem(last=False)
        file = reference()
        if file is None:
          continue
        if file.users:
          self._order[reference] = None
          continue
        file.handle.close()
        file.handle = None


LOCAL = OpenFiles()
REMOTE = OpenFiles(_MOST_REMOTE)
