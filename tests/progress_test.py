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


def test_images_within_a_step_are_shown_with_the_time_left(clock, capsys):
  progress = progress_lib.Progress(
    "evaluate", 3, unit="models", step_images=100
  )
  for model in "abc":
    for dataset in ("minival", "fog"):
      clock[0] += 9 if dataset == "fog" else 16
      progress.add_images(50, f"{model} on {dataset}")
    progress.step()
  lines = capsys.readouterr().out.splitlines()
  assert lines == [
    "evaluate     0/3 models, a on minival",
    # 100 images in 25 s, without the first 50.
    "evaluate     1/3 models, 4 images/s, 38 s left, b on minival",
    "evaluate     2/3 models, 4 images/s, 12 s left, c on minival",
    "evaluate     3/3 models, 4.2 images/s, 75.0 s",
  ]


def test_steps_of_an_earlier_run_do_not_count_as_pace(clock, capsys):
  progress = progress_lib.Progress("evaluate", 4, unit="models", step_images=20)
  for _ in range(2):
    clock[0] += 11
    progress.step()
  for _ in range(2):
    for _ in range(2):
      clock[0] += 100
      progress.add_images(10, "c\ud800 on test")
    progress.step()
  lines = capsys.readouterr().out.splitlines()
  assert lines[:2] == ["evaluate     1/4 models", "evaluate     2/4 models"]
  # Ten images in 100 s; 20 of 40 are left.
  assert lines[3].endswith("2/4 models, 0.1 images/s, 3 min left, c? on test")
  assert lines[-1] == "evaluate     4/4 models, 0.1 images/s, 422.0 s"


def test_a_finished_stage_has_no_pace(clock, capsys):
  progress_lib.Progress("evaluate", 1, step_images=9).step()
  assert capsys.readouterr().out == "evaluate     1/1 steps, 0.0 s\n"


def test_a_line_is_not_wider_than_the_terminal(clock, capsys, monkeypatch):
  monkeypatch.setattr(progress_lib.sys.stdout, "isatty", lambda: True)
  monkeypatch.setenv("COLUMNS", "40")
  progress = progress_lib.Progress("evaluate", 9, step_images=9)
  clock[0] += 1
  progress.add_images(1, "a long name of a model on gaussian_noise")
  line = capsys.readouterr().out.removeprefix("\r\033[K")
  assert line == "evaluate     0/9 steps, a long name of a"[:39]


@pytest.mark.parametrize(
  ("seconds", "text"), [(119, "119 s"), (900, "15 min"), (11520, "3.2 h")]
)
def test_durations(seconds, text):
  assert progress_lib._duration(seconds) == text


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
