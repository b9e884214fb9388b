# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Kills change nothing: the same weights, bit for bit."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import chex
import pytest

import soupjax as sj

ROOT = pathlib.Path(__file__).parents[3]
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


def command(workdir):
  return [
    sys.executable, "-m", "soupjax.main",
    f"--config={ROOT / 'configs' / 'finetune' / 'digits.py'}",
    f"--workdir={workdir}",
    *(f"--config.{k}={v}" for k, v in OVERRIDES.items()),
  ]  # fmt: skip


def environment():
  # Not the eight devices of the other tests.
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  # Half of a run would be compilation.
  env["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
  return {**env, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}


def finish(workdir, *more):
  """Runs to the end; returns what it said."""
  done = subprocess.run(
    [*command(workdir), *more],
    env=environment(),
    check=False,
    capture_output=True,
    text=True,
    timeout=280,
  )
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
  process = subprocess.Popen(
    command(workdir),
    env=environment(),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  deadline = time.monotonic() + 200
  while not (workdir / "state_00000060").exists():
    assert process.poll() is None, "the run ended before it could be killed"
    assert time.monotonic() < deadline
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  process.wait()
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
  # What changes no result may be another.
  said = finish(tmp_path / "run", "--config.checkpoint=60steps")
  assert "damaged" not in said
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
  said = finish(tmp_path / "run")
  assert f"{newest.name} is damaged" in said
  same(tmp_path / "run", unbroken)
