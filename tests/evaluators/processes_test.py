# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Early rejection in two processes of two devices each, on one machine."""

import importlib.util
import json
import pathlib

import helpers

WORKER = pathlib.Path(__file__).with_name("early_rejection_worker.py")


def test_two_processes_decide_what_one_does(tmp_path):
  spec = importlib.util.spec_from_file_location("worker", WORKER)
  worker = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(worker)
  expected = worker.greedy_soups(0, 1)
  helpers.run_workers(WORKER, tmp_path, str(tmp_path), seconds=120)
  two = [
    json.loads((tmp_path / f"decisions_{k}.json").read_text()) for k in (0, 1)
  ]
  assert two[0] == two[1]
  # How early a candidate is rejected depends on the order of the images.
  assert [[d[:3] for d in soup] for soup in two[0]] == [
    [d[:3] for d in soup] for soup in expected
  ]
  assert any(d[3] for d in two[0][0]) and any(d[3] for d in two[0][1])
