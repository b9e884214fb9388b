# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""A loop over items that several threads share."""

from collections.abc import Callable, Mapping, Sequence
import threading
from typing import TypeVar

from soupjax.soups.core import precision

Item, Buffer = TypeVar("Item"), TypeVar("Buffer")


def for_each(
  items: Sequence[Item],
  do: Callable[[Item, Buffer], None],
  *,
  count: int,
  name: str,
  make_buffer: Callable[[], Buffer],
) -> None:
  """Calls `do(item, buffer)` for every item; raises the first error of a call.

  No thread is running afterwards, even after an error, so callers may close the
  files that the threads write to.

  Args:
    items: taken in order, each by the next free thread.
    do: called in several threads. After an error or an interrupt (Ctrl-C), no
      thread takes more items.
    count: maximum number of threads.
    name: prefix of the threads' names.
    make_buffer: called once in each thread.
  """
  waiting, lock = iter(items), threading.Lock()
  do_in_mode = precision.inherited(do)
  errors: list[BaseException] = []
  # Thread -> event set at its end. `Thread.join` is unreliable here: after an
  # interrupted join, Python 3.11 treats a running thread as ended.
  ends: dict[threading.Thread, threading.Event] = {}

  def loop():
    with lock:
      if errors:
        return
      end = ends[threading.current_thread()] = threading.Event()
    try:
      buffer = make_buffer()
      while not errors:
        with lock:
          try:
            item = next(waiting)
          except StopIteration:
            return
        do_in_mode(item, buffer)
    except BaseException as e:  # noqa: B036 - raised again below.
      errors.append(e)
    finally:
      end.set()

  workers = [
    threading.Thread(target=loop, name=f"{name}-{i}", daemon=True)
    for i in range(min(count, len(items)))
  ]
  try:
    for worker in workers:
      worker.start()
    for worker in workers:
      worker.join()
  except BaseException as e:  # noqa: B036 - raised again below.
    with lock:
      # A thread that starts later sees this and does nothing.
      errors.insert(0, e)
    _wait(ends)
  if errors:
    raise errors[0]


def _wait(ends: Mapping[threading.Thread, threading.Event]) -> None:
  """Waits for all threads, ignoring further interrupts."""
  while True:
    try:
      for worker, end in ends.items():
        end.wait()
        worker.join()
      return
    except KeyboardInterrupt:
      continue
