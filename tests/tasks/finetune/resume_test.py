# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Kills change nothing: the same weights, bit for bit."""

import json
import shutil

import chex
import helpers
import pytest

import soupjax as sj

# 100 images in batches of 16: every state is saved in mid-epoch.
OVERRIDES = {
  "data.name": "digits",
  "data.train_ops": "random_crop({image_size}, 2)|"
  "randaug({randaug_layers}, {randaug_magnitude})|value_range(-1, 1)",
  "steps_per_call": 1,
  "model.width": 16,
  "model.depth": 1,
  "model.mlp_dim": 32,
  "model.dropout": 0.1,
  "data.batch_size": 16,
  "data.augment.randaug_layers": 1,
  "data.augment.randaug_magnitude": 5.0,
  "hyper.total": "130steps",
  "hyper.mixup": 0.2,
  "hyper.ema": (0.9, 0.999),
  "checkpoint": "20steps",
  "ingredients": "50steps",
  "probe.total": "5steps",
}
NAMES = [
  name
  for stem in ("step_00000050", "step_00000100", "last")
  for name in (stem, f"{stem}_ema_0.9", f"{stem}_ema_0.999")
]


def arguments(workdir):
  return [
    f"--config={helpers.DIGITS}",
    f"--workdir={workdir}",
    *(f"--config.{k}={v}" for k, v in OVERRIDES.items()),
  ]


def finish(workdir, *more):
  """Runs to the end; returns the messages."""
  done = helpers.soupjax(*arguments(workdir), *more)
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stderr


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("unbroken") / "run"
  finish(workdir)
  return workdir


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
  """A run that was killed (-9) some steps after its third state."""
  workdir = tmp_path_factory.mktemp("killed") / "run"
  helpers.kill_soupjax_when(workdir, "state_00000060", *arguments(workdir))
  assert not (workdir / "done.json").exists()
  return workdir


def same(a, b):
  for name in NAMES:
    ours, theirs = a / "ingredients" / name, b / "ingredients" / name
    chex.assert_trees_all_equal(sj.load_params(ours), sj.load_params(theirs))
    for file in ("metrics.json", "hyperparameters.json"):
      assert json.loads((ours / file).read_text()) == json.loads(
        (theirs / file).read_text()
      )


def test_a_killed_run_ends_as_an_unbroken_one(unbroken, killed, tmp_path):
  shutil.copytree(killed, tmp_path / "run")
  log = tmp_path / "run" / "metrics.jsonl"
  log.write_text(
    log.read_text().replace('"step": 50,', '"step": 50, "old": 1,')
  )
  # A setting that changes no result may change.
  messages = finish(tmp_path / "run", "--config.checkpoint=60steps")
  assert "damaged" not in messages
  same(tmp_path / "run", unbroken)
  lines = [json.loads(line) for line in log.read_text().splitlines()]
  assert [line["step"] for line in lines] == [25, 50, 75, 100, 125]
  # It went on; it did not start again.
  assert [line["step"] for line in lines if "old" in line] == [50]


def test_a_damaged_state_costs_only_its_steps(unbroken, killed, tmp_path):
  shutil.copytree(killed, tmp_path / "run")
  newest = max((tmp_path / "run").glob("state_*"))
  file = max(newest.glob("arrays/**/d/*"), key=lambda p: p.stat().st_size)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(bytes(data))
  messages = finish(tmp_path / "run")
  assert f"{newest.name} is damaged" in messages
  same(tmp_path / "run", unbroken)
