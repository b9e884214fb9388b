# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark of an accelerator in its tiny mode, and parts that fail."""

import argparse
import importlib
import json
import sys

import helpers
import pytest

FOLDER = helpers.ROOT / "benchmarks"
sys.path.insert(0, str(FOLDER))
accelerator = importlib.import_module("accelerator")
sys.path.remove(str(FOLDER))


def test_every_part_on_a_cpu(tmp_path):
  out = tmp_path / "accelerator.json"
  done = helpers.soupjax(
    "--tiny",
    f"--out={out}",
    f"--folder={tmp_path}",
    path=[FOLDER],
    code="import accelerator; accelerator.main()",
  )
  assert done.returncode == 0, done.stderr
  results = json.loads(out.read_text())
  size = accelerator.sizes(tiny=True)
  assert list(results["parts"]) == list(accelerator.parts(size))
  figures = {k: part["figures"] for k, part in results["parts"].items()}
  errors = [k for k, part in results["parts"].items() if "error" in part]
  assert errors == []
  assert set(figures["ceilings"]) == {
    "matrix_flops",
    "copy_bytes",
    "host_to_device_bytes",
  }
  step = figures["train mu/16"]
  assert step["None"]["flops"] > 0 and step["None"]["batch"] == 2
  assert "cudnn" in step["cudnn"]["error"].lower()
  assert set(figures["population"]) == {"together", "one by one"}
  assert set(figures["averaging"]) == {"average_bytes", "load_bytes"}
  assert set(figures["learned"]) >= {"device", "host", "disk"}
  assert figures["evaluation"]["mu/16"] > 0
  assert "| mu/16 | default | 2 |" in done.stdout
  assert not list(tmp_path.glob("tmp*"))  # Its checkpoints are gone.


def test_the_budgets_fit_into_the_time():
  size = accelerator.sizes(tiny=False)
  budgets = [limit for _, limit in accelerator.parts(size).values()]
  assert sum(budgets) <= 60 * accelerator.MINUTES == 480


def test_a_part_that_fails_or_hangs_keeps_its_figures(tmp_path, monkeypatch):
  stub = tmp_path / "stub.py"
  stub.write_text(
    "import os, sys, time\n"
    'print(\'FIGURES{"figures": {"a": 1}}\', flush=True)\n'
    "name = sys.argv[sys.argv.index('--worker') + 1]\n"
    "time.sleep(99) if name == 'averaging' else os._exit(3)\n"
  )
  monkeypatch.setattr(accelerator, "__file__", str(stub))
  budget = {"averaging": (None, 1), "learned": (None, 9)}
  monkeypatch.setattr(accelerator, "parts", lambda size: budget)
  arguments = argparse.Namespace(
    tiny=False, only="", minutes=8.0, folder=str(tmp_path)
  )
  results = accelerator.measure(arguments)
  assert "stopped after 1 s" in results["averaging"]["error"]
  assert "exit code 3" in results["learned"]["error"]
  assert [part["figures"] for part in results.values()] == [{"a": 1}] * 2
  arguments.minutes = 0.0
  results = accelerator.measure(arguments)
  assert "no time left" in results["learned"]["error"]
  text = accelerator.table({"device": "none", "versions": {}, "parts": results})
  assert "| learned failed | no time left" in text


def test_an_unknown_part_is_named(tmp_path):
  arguments = argparse.Namespace(
    tiny=True, only="learning", minutes=8.0, folder=str(tmp_path)
  )
  with pytest.raises(SystemExit, match="learning.*learned"):
    accelerator.measure(arguments)
