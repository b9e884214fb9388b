# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning in two processes of two devices each, on one machine."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import chex
from finetuning import quiet, small
import jax

import soupjax as sj
from soupjax import sharding
from soupjax.tasks import finetune_sweep

ROOT = pathlib.Path(__file__).parents[2]
WORKER = pathlib.Path(__file__).with_name("finetune_worker.py")


def run_two(
  logs: pathlib.Path, *arguments: str, worker: pathlib.Path = WORKER
) -> None:
  """Runs two workers; kills both if one fails."""
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  workers, deadline = [], time.monotonic() + 280
  for index in range(2):
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env |= {"ADDRESS": f"localhost:{port}", "COUNT": "2", "INDEX": str(index)}
    with open(logs / f"log_{index}", "wb") as log:
      workers.append(
        subprocess.Popen(
          [sys.executable, str(worker), *arguments],
          env={**env, "PYTHONPATH": str(ROOT)},
          stdout=log,
          stderr=log,
          start_new_session=True,
        )
      )
  try:
    while any(w.poll() is None for w in workers):
      if any(w.poll() not in (None, 0) for w in workers):
        time.sleep(1)
        break
      assert time.monotonic() < deadline, "timeout"
      time.sleep(0.05)
  finally:
    for w in workers:
      if w.poll() is None:
        os.killpg(w.pid, signal.SIGKILL)
      w.wait()
  texts = [(logs / f"log_{i}").read_text()[-3000:] for i in range(2)]
  assert [w.returncode for w in workers] == [0, 0], "\n".join(texts)


def test_two_processes_stopped_and_started_again_give_the_numbers_of_one(
  tmp_path, monkeypatch
):
  run_two(tmp_path, str(tmp_path / "two"), "5")
  assert (tmp_path / "two" / "state_00000005").exists()
  assert not (tmp_path / "two" / "done.json").exists()
  run_two(tmp_path, str(tmp_path / "two"), "-1")
  one = sharding.make_mesh({"data": 1}, jax.devices()[:1])
  monkeypatch.setattr(sharding, "make_mesh", lambda axes: one)
  # As in the workers: random weights are the same then.
  jax.config.update("jax_disable_most_optimizations", True)
  try:
    finetune_sweep.run(small(), tmp_path / "one")
  finally:
    jax.config.update("jax_disable_most_optimizations", False)
  for name in ("last", "last_ema_0.9"):
    ours, theirs = (
      sj.open_ingredient(tmp_path / run / "ingredients" / name)
      for run in ("two", "one")
    )
    chex.assert_trees_all_close(
      quiet(ours.load()), quiet(theirs.load()), atol=2e-4
    )
    assert ours.hyperparameters == theirs.hyperparameters
    assert abs(
      ours.metrics["minival/loss"] - theirs.metrics["minival/loss"]
    ) < (1e-3)
  lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [4, 8, 12]
