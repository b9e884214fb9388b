# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning in two processes of two devices each, on one machine."""

import json
import pathlib

import chex
import helpers
import jax

import soupjax as sj
from soupjax import sharding
from soupjax.tasks.finetune import run as finetune_run

WORKER = pathlib.Path(__file__).with_name("finetune_worker.py")


def test_two_processes_stopped_and_started_again_give_the_numbers_of_one(
  tmp_path, monkeypatch
):
  helpers.run_workers(WORKER, tmp_path, str(tmp_path / "two"), "5")
  assert (tmp_path / "two" / "state_00000005").exists()
  assert not (tmp_path / "two" / "done.json").exists()
  helpers.run_workers(WORKER, tmp_path, str(tmp_path / "two"), "-1")
  one = sharding.make_mesh({"data": 1}, jax.devices()[:1])
  monkeypatch.setattr(sharding, "make_mesh", lambda axes, devices=None: one)
  finetune_run.run(helpers.finetune_config(), tmp_path / "one")
  for name in ("last", "last_ema_0.9"):
    ours, theirs = (
      sj.open_ingredient(tmp_path / run / "ingredients" / name)
      for run in ("two", "one")
    )
    chex.assert_trees_all_close(
      helpers.without_noise(ours.load()),
      helpers.without_noise(theirs.load()),
      atol=2e-4,
    )
    assert ours.hyperparameters == theirs.hyperparameters
    assert abs(
      ours.metrics["minival/loss"] - theirs.metrics["minival/loss"]
    ) < (1e-3)
  lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [4, 8, 12]
