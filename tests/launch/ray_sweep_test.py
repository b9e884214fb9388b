# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""A sweep on a Ray cluster of this machine, whose workers are killed."""

import collections
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import helpers
import numpy as np
import pytest

import soupjax as sj
from soupjax.soups.core import tree as tree_lib

SCRIPT = helpers.ROOT / "launch" / "ray_sweep.py"
# The last member fails by itself. Every end of a member is written down.
CONFIG = f"""
import os
from soupjax import config as config_lib
from soupjax.tasks.finetune import loop

def finish_and_tell(member, finish=loop._finish):
  finish(member)
  with open(os.environ["FINISHED"], "a") as f:
    f.write(member.name + "\\n")
if loop._finish.__name__ == "_finish":  # A worker reads this file again.
  loop._finish = finish_and_tell

def get_config(arg=None):
  config = config_lib.load({helpers.DIGITS!r}, "runlocal")
  return config_lib.updated(config, {{
    "hyper.warmup": "0steps", "hyper.total": "6steps", "probe.total": "0steps",
    "data.batch_size": 8, "data.batch_ops": "", "model.depth": 1,
    "model.width": 16, "model.mlp_dim": 32, "checkpoint": "2steps"}})

def get_sweep():
  for seed in range(12):
    yield {{"seed": seed, "hyper.learning_rate": 1e-3}}
  yield {{"seed": 12, "hyper.learning_rate": 1e30}}
"""


def environment(**more):
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  env |= {"PYTHONPATH": str(helpers.ROOT), "JAX_PLATFORMS": "cpu"}
  env |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "RAY_AUTH_MODE": "disabled"}
  env |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
  return env | more


def workers(driver: int) -> list[int]:
  """Returns the processes below a driver that train a member now."""
  parents, training = {}, []
  for path in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      pid, status = int(path.name), (path / "stat").read_text()
      parents[pid] = int(status.rpartition(")")[2].split()[1])
      if (path / "cmdline").read_bytes().startswith(b"ray::member_"):
        training.append(pid)
    except (OSError, ValueError):
      continue  # It has just ended.

  def is_below(pid):
    while pid > 1 and pid != driver:
      pid = parents.get(pid, 0)
    return pid == driver

  return [pid for pid in training if is_below(pid)]


def params(workdir: pathlib.Path, k: int):
  path = workdir / f"member_{k:03d}" / "ingredients" / "last"
  return tree_lib.flatten(sj.open_ingredient(path).load())[0]


@pytest.mark.slow
def test_members_whose_workers_are_killed_finish_once_with_the_same_bits(
  tmp_path,
):
  pytest.importorskip("ray", reason="pip install ray (extra ray)")
  (tmp_path / "twelve.py").write_text(CONFIG)
  flags = [f"--config={tmp_path}/twelve.py", f"--workdir={tmp_path}/ray"]
  with open(tmp_path / "log", "wb") as log:
    driver = subprocess.Popen(
      [sys.executable, str(SCRIPT), *flags, "--retries=9"],
      env=environment(FINISHED=str(tmp_path / "finished")),
      stdout=log,
      stderr=log,
    )
  draw, kills, deadline = random.Random(0), 0, time.monotonic() + 250
  try:
    while driver.poll() is None and time.monotonic() < deadline:
      time.sleep(draw.uniform(0.5, 2))
      if kills < 5 and (training := workers(driver.pid)):
        os.kill(draw.choice(training), signal.SIGKILL)
        kills += 1
  finally:
    driver.terminate()
    driver.wait(30)
  text = (tmp_path / "log").read_text()
  assert kills >= 3, text[-3000:]
  assert driver.returncode == 1, text[-3000:]
  assert "1 of 13 members failed" in text and "member_012: " in text
  names = [f"member_{k:03d}" for k in range(12)]
  finished = (tmp_path / "finished").read_text().split()
  assert collections.Counter(finished) == dict.fromkeys(names, 1)
  assert all(text.count(f"{name} is done") == 1 for name in names)
  # One by one.
  alone = [flags[0], f"--workdir={tmp_path}/alone", "--sweep"]
  subprocess.run(
    [sys.executable, "-m", "soupjax.main", *alone],
    env=environment(FINISHED=str(tmp_path / "alone_finished")),
    check=False,
    timeout=200,
  )
  for k in range(12):
    ours, theirs = (params(tmp_path / name, k) for name in ("ray", "alone"))
    assert ours.keys() == theirs.keys()
    for leaf, value in ours.items():
      assert np.array_equal(value, theirs[leaf]), (k, leaf)


def script(*arguments, before="", after=""):
  """Runs the script in a fork of the console script."""
  code = f"""
import runpy
{before}
name = "__main__" if not {after!r} else "ray_sweep"
script = runpy.run_path({str(SCRIPT)!r}, run_name=name)
{after}
"""
  return helpers.soupjax(*arguments, code=code)


RUN = [f"--config={helpers.DIGITS}:runlocal", "--workdir=/tmp/none"]


@pytest.mark.parametrize(
  "arguments,culprit",
  [
    ([f"--config={helpers.COOK_CONFIG}", "--workdir=x"], "'cook' has no sweep"),
    (RUN[:1], "Give --workdir"),
    ([*RUN, "--sweep_index=0"], "--sweep_index is not for"),
    ([*RUN, "--distributed"], "--distributed is not for"),
    ([*RUN, "--resource=TPU"], "--resource=TPU: write NAME=AMOUNT"),
    ([*RUN, "--address=localhost:1"], "answers at localhost:1 (Connection"),
    (RUN, "pip install 'soupjax[ray]'"),
  ],
)
def test_bad_commands_are_named(arguments, culprit):
  done = script(*arguments, before="sys.modules['ray'] = None")
  assert done.returncode == 1
  assert culprit in done.stderr
  assert len(done.stderr.splitlines()) <= 2


def test_a_dry_run_shows_members_and_resources(tmp_path):
  done = script(*RUN, "--dry_run", "--gpus=2", "--resource=TPU=4")
  assert done.returncode == 0, done.stderr
  assert "member_001" in done.stdout
  assert "2 Ray tasks of 1 CPU, 2 GPU, 4 TPU each" in done.stdout


def test_a_worker_that_does_not_see_the_workdir():
  after = """
import pathlib
script["train"](None, pathlib.Path("/nowhere/.mark"))
"""
  done = script(after=after)
  assert "--workdir=/nowhere is not shared" in done.stderr
