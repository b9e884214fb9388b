# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import sys

import pytest

from soupjax import progress as progress_lib


@pytest.fixture
def clock(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(progress_lib.time, "monotonic", lambda: now[0])
  return now


def test_a_log_gets_a_line_now_and_then(clock, capsys):
  progress = progress_lib.Progress("sweep", 41)
  clock[0] += 20  # The first step compiles, and does not count as pace.
  progress.step(images=8)
  for _ in range(40):
    clock[0] += 1
    progress.step(images=8, note="member 1/2")
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 5
  assert lines[0].split() == "sweep 1/41 steps".split()
  assert lines[1].startswith("sweep        11/41 steps, 8 images/s, 30 s left")
  assert lines[-1].endswith("41/41 steps, 8 images/s, 60.0 s, member 1/2")


def test_a_resumed_stage_counts_on(clock, capsys):
  progress = progress_lib.Progress("cook", 5, unit="candidates", start=3)
  for _ in range(2):
    clock[0] += 3
    progress.step()
  assert capsys.readouterr().out == "cook         5/5 candidates, 6.0 s\n"


def test_a_terminal_gets_one_line(clock, capsys, monkeypatch):
  monkeypatch.setattr(progress_lib.sys.stdout, "isatty", lambda: True)
  progress = progress_lib.Progress("cook", 2)
  for _ in range(2):
    clock[0] += 1
    progress.step()
  out = capsys.readouterr().out
  assert out.count("\r") == 2 and out.endswith("\n") and out.count("\n") == 1


def test_bytes_are_shown_as_gb(clock, capsys):
  progress = progress_lib.Progress("mix", 4 * 10**9, unit="bytes")
  for _ in range(4):
    clock[0] += 10
    progress.step(10**9)
  lines = capsys.readouterr().out.splitlines()
  assert lines[1] == "mix          2.000/4.000 GB, 0.10 GB/s, 20 s left"
  assert lines[-1] == "mix          4.000/4.000 GB, 0.10 GB/s, 40.0 s"


def test_another_stream(clock, capsys):
  progress_lib.Progress("mix", 1, file=sys.stderr).step()
  assert capsys.readouterr() == ("", "mix          1/1 steps, 0.0 s\n")
