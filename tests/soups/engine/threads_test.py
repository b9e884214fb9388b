# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import signal
import threading
import time

import pytest

from soupjax.soups.engine import threads


def for_each(items, do, count=3):
  threads.for_each(items, do, count=count, name="test", make_buffer=list)


@pytest.mark.parametrize("count", [1, 3, 50])
def test_every_item_is_done_once_and_buffers_belong_to_one_thread(count):
  buffers, lock = {}, threading.Lock()

  def do(item, buffer):
    buffer.append(item)
    with lock:
      buffers.setdefault(threading.get_ident(), buffer)
    assert buffers[threading.get_ident()] is buffer

  for_each(range(20), do, count)
  done = [item for buffer in buffers.values() for item in buffer]
  assert sorted(done) == list(range(20))


def test_an_error_stops_all_threads_and_is_raised():
  calls = []

  def do(item, buffer):
    calls.append(item)
    if item == 2:
      raise OSError("gone")
    time.sleep(0.01)

  with pytest.raises(OSError, match="gone"):
    for_each(range(200), do)
  assert len(calls) < 200


def test_no_items():
  for_each([], lambda item, buffer: pytest.fail("called"))


def test_no_thread_is_at_work_after_interrupts():
  done = []

  def do(item, buffer):
    if item == 2:
      for _ in range(2):  # The second one comes while threads are joined.
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.05)
    time.sleep(0.05)
    done.append(item)

  with pytest.raises(KeyboardInterrupt):
    for_each(range(200), do)
  assert not [t for t in threading.enumerate() if t.name.startswith("test-")]
  assert 2 in done and len(done) < 20
