# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""A few of the interrupts of benchmarks/kills.py."""

import importlib
import pathlib
import random
import sys
import threading

import pytest

import soupjax as sj

FOLDER = str(pathlib.Path(__file__).parents[2] / "benchmarks")
sys.path.insert(0, FOLDER)
kills = importlib.import_module("kills")
sys.path.remove(FOLDER)


@pytest.mark.parametrize("name", ["mix", "save", "greedy"])
def test_interrupted_calls_leave_nothing(tmp_path, name):
  outcomes, problems = kills.interrupt_calls(
    name, 6, tmp_path, random.Random(0), megabytes=8
  )
  assert not problems and sum(outcomes.values()) == 6


def test_threads_that_go_on_are_found_out(tmp_path, monkeypatch):
  end = threading.Event()

  def call():
    threading.Thread(target=end.wait, name="soupjax-mix-0").start()

  monkeypatch.setattr(kills, "_call", lambda *_: (call, None))
  _, problems = kills.interrupt_calls("mix", 1, tmp_path, random.Random(0), 0.1)
  end.set()
  assert "mix 0: soupjax-mix-0 is at work" in problems


def test_leftovers_and_wrong_values_are_found_out(tmp_path):
  kills.write_models(tmp_path, 0.1)
  out = tmp_path / "soup.npz"
  sj.mix(sj.rules.linear(), tmp_path / "m?.npz", out=out)
  assert not kills.problems_of(tmp_path, out, 1)
  (tmp_path / ".soup.tmp").touch()
  assert kills.problems_of(tmp_path, out, 2) == [
    "left .soup.tmp",
    "wrong values",
  ]


def test_every_kind_has_trials():
  for kind in kills.KINDS:
    assert list(kills.trials(kind, 1))
