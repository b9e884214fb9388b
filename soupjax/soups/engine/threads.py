# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""A loop over items that several threads share."""

from collections.abc import Callable, Sequence
import threading
from typing import TypeVar

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

  Args:
    items: taken in order, each by the next free thread.
    do: called in several threads. After an error, no thread takes more items.
    count: maximum number of threads.
    name: of the threads.
    make_buffer: called once in each thread.
  """
  waiting, lock, errors = iter(items), threading.Lock(), []

  def loop():
    try:
      buffer = make_buffer()
      while not errors:
        with lock:
          try:
            item = next(waiting)
          except StopIteration:
            return
        do(item, buffer)
    except BaseException as e:  # noqa: B036 - raised again below.
      errors.append(e)

  workers = [
    threading.Thread(target=loop, name=f"{name}-{i}", daemon=True)
    for i in range(min(count, len(items)))
  ]
  for worker in workers:
    worker.start()
  for worker in workers:
    worker.join()
  if errors:
    raise errors[0]
