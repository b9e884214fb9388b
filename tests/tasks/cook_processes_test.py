# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Cooking in two processes of two devices each, on one machine."""

import json
import pathlib

import chex
from cook_sweep_test import accuracies, config_of, finetuning
import numpy as np
import workers

import soupjax as sj
from soupjax.tasks import cook_sweep
from soupjax.tasks.finetune import run as finetune_run

WORKER = pathlib.Path(__file__).with_name("cook_worker.py")


def test_two_processes_cook_what_one_does(tmp_path):
  sweep = tmp_path / "sweep"
  overrides = [{"seed": k, "hyper.learning_rate": 5e-3 * k} for k in (1, 2)]
  config = finetuning.small(**{"hyper.ema": ()})
  finetune_run.run(config, sweep, sweep=overrides)
  workers.run(WORKER, tmp_path, str(sweep), str(tmp_path / "two"))
  cook_sweep.run(
    config_of(sweep, **{"cook.early_reject": False}), tmp_path / "one"
  )
  two, one = accuracies(tmp_path / "two"), accuracies(tmp_path / "one")
  # Ensembles need the logits of all in one process.
  assert {m for m, _ in one} - {m for m, _ in two} == {
    "ensemble", "greedy_ensemble",
  }  # fmt: skip
  for where, value in two.items():
    assert abs(value - one[where]) < 0.011, where
  for name in ("uniform", "greedy"):
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
  for layer, values in alphas[0]["alphas"].items():
    np.testing.assert_allclose(values, alphas[1]["alphas"][layer], atol=1e-3)
