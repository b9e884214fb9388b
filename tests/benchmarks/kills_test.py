# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Whether benchmarks/kills.py notices what is wrong.

Its interrupts hit the whole process: they do not run among other tests.
"""

import importlib
import pathlib
import sys
import threading

import soupjax as sj

FOLDER = str(pathlib.Path(__file__).parents[2] / "benchmarks")
sys.path.insert(0, FOLDER)
kills = importlib.import_module("kills")
sys.path.remove(FOLDER)


def test_threads_that_go_on_are_found_out():
  end = threading.Event()
  thread = threading.Thread(target=end.wait, name="soupjax-mix-0")
  thread.start()
  assert kills.at_work("soupjax-mix") == ["soupjax-mix-0"]
  end.set()
  thread.join()
  assert not kills.at_work("soupjax-mix-0")


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
