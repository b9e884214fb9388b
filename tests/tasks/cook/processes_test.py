# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Cooking and diagnosis in two processes of two devices each."""

import json
import pathlib

import chex
import helpers
import numpy as np

import soupjax as sj
from soupjax.tasks import diagnose
from soupjax.tasks.cook import run as cook
from soupjax.tasks.finetune import run as finetune_run

WORKER = pathlib.Path(__file__).with_name("cook_worker.py")


def test_two_processes_cook_what_one_does(tmp_path):
  sweep = tmp_path / "sweep"
  overrides = [{"seed": k, "hyper.learning_rate": 5e-3 * k} for k in (1, 2)]
  config = helpers.finetune_config(**{"hyper.ema": ()})
  finetune_run.run(config, sweep, sweep=overrides)
  why = {run: tmp_path / f"why_{run}" for run in ("one", "two")}
  helpers.run_workers(
    WORKER, tmp_path, str(sweep), str(tmp_path / "two"), str(why["two"])
  )
  cook.run(
    helpers.cook_config(sweep, **{"cook.greedy.early_reject": False}),
    tmp_path / "one",
  )
  two, one = (
    helpers.result_values(tmp_path / "two"),
    helpers.result_values(tmp_path / "one"),
  )
  assert {model for model, _ in one} == {model for model, _ in two}
  for place, value in two.items():
    assert abs(value - one[place]) < 0.011, place
  for name in ("uniform", "greedy", "greedy_loss"):
    soups = [
      sj.load_params(tmp_path / run / "soups" / name) for run in ("one", "two")
    ]
    chex.assert_trees_all_equal(*soups)
  decisions = [
    json.loads((tmp_path / run / "soups/greedy/greedy.json").read_text())
    for run in ("one", "two")
  ]
  assert decisions[0]["selected"] == decisions[1]["selected"]
  alphas = [
    json.loads(
      (tmp_path / run / "soups/learned_layer/learned.json").read_text()
    )
    for run in ("one", "two")
  ]
  for layer, expected in alphas[0]["alphas"].items():
    np.testing.assert_allclose(expected, alphas[1]["alphas"][layer], atol=1e-3)
  diagnose.run(helpers.diagnose_config(sweep), why["one"])
  one, two = (
    json.loads((path / "diagnosis.json").read_text()) for path in why.values()
  )
  assert one == two and len(one["midpoints"]) == 1
  assert {p.name for p in why["one"].iterdir()} == {
    p.name for p in why["two"].iterdir()
  }
  printed = [(tmp_path / f"log_{k}").read_text() for k in range(2)]
  table = (why["two"] / "diagnosis.txt").read_text()
  assert printed[0].count(table) == 2 and "barrier" not in printed[1]
