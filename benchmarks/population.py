# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Compares training tiny members at once with training them one by one.

  python benchmarks/population.py             # two minutes on 2 cores

Each way runs in its own process, in turns. The result is the ratio of the
medians within one run of this script.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

CONFIGS = pathlib.Path(__file__).parents[1] / "configs" / "finetune"


def images_a_second(step, images: int, seconds: float) -> float:
  """Returns images per second of `step()`, after two warm-up calls.

  Args:
    step: function that waits for its result.
    images: number of images in a call.
    seconds: minimum duration of the measurement.
  """
  step(), step()
  count, began = 0, time.perf_counter()
  while time.perf_counter() - began < seconds:
    step()
    count += 1
  return count * images / (time.perf_counter() - began)


def members(
  together: bool, count: int, seconds: float, overrides=None
) -> float:
  """Returns images per second of a sweep of tiny models on random images.

  Args:
    together: whether all members are trained at once, or only one of them.
    count: number of members.
    seconds: minimum duration of the measurement.
    overrides: changes of configs/finetune/digits.py.
  """
  import jax
  import numpy as np

  from soupjax import config as config_lib
  from soupjax import sharding
  from soupjax.tasks.finetune import config as finetune_config
  from soupjax.tasks.finetune import step as finetune_step

  overrides = {"steps_per_call": 1, **(overrides or {})}
  config = config_lib.load(str(CONFIGS / "digits.py"), **overrides)
  at_once = count if together else 1
  mesh = finetune_step.make_mesh(config, at_once)
  model = finetune_config.build_model(config)
  batch = config.data.batch_size
  params = jax.jit(model.init)(
    jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32)
  )["params"]
  compiled = finetune_step.compile_step(
    config, model, mesh, params, count=at_once
  )
  one = finetune_config.hyper(config, 100)
  rng = np.random.default_rng(0)
  data = {
    "images": rng.normal(size=(1, batch, 16, 16, 3)).astype(np.float32),
    "labels": rng.integers(0, 10, (1, batch)),
  }
  seed, axes = np.uint32(0), (None, "data")
  if together:
    # So many steps that no member finishes.
    one = jax.tree.map(lambda x: np.stack([x] * count), one)
    one = one.replace(total_steps=np.full(count, 1e9, np.float32))
    data = {k: np.stack([v] * count, axis=1) for k, v in data.items()}
    seed = np.arange(count, dtype=np.uint32)
    axes = (None, "member", "data")
  hyper, key = compiled.ready(one, seed)
  state = compiled.begin(params)

  def step():
    nonlocal state
    on_devices = sharding.put_batch(mesh, data, axes)
    for _ in range(10):
      state, metrics = compiled.step(state, on_devices, key, hyper, None)
    jax.block_until_ready(metrics)

  return images_a_second(step, 10 * batch * at_once, seconds)


def run(name: str, *arguments, devices: int = 1) -> float:
  """Calls a function of this file in a new process; returns its result."""
  env = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
  code = f"import population; print('R', population.{name}(*{arguments!r}))"
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=pathlib.Path(__file__).parent,
    env=env,
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    raise RuntimeError(done.stderr[-3000:])
  return float(done.stdout.rpartition("R ")[2])


def compare(title, ours, theirs, repeat: int) -> dict[str, float]:
  """Runs two functions in turns; prints and returns their medians.

  Args:
    title: text before the figures.
    ours: positional and keyword arguments of `run`.
    theirs: those of the baseline.
    repeat: number of turns.
  """
  found = [(run(*theirs[0], **theirs[1]), run(*ours[0], **ours[1]))
           for _ in range(repeat)]  # fmt: skip
  base, mine = (statistics.median(x) for x in zip(*found))
  print(
    f"{title}: {mine:,.1f} against {base:,.1f} images/s, {mine / base:.2f} x",
    flush=True,
  )
  return {"ours": mine, "theirs": base, "ratio": mine / base, "runs": found}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--repeat", type=int, default=3)
  parser.add_argument("--seconds", type=float, default=10.0)
  parser.add_argument("--out", default="")
  args = parser.parse_args()
  cores = os.cpu_count() or 1
  results = compare(
    f"8 tiny members at once on {cores} CPU devices against one by one",
    (("members", True, 8, args.seconds), {"devices": cores}),
    (("members", False, 8, args.seconds), {}),
    args.repeat,
  )
  if args.out:
    pathlib.Path(args.out).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
  main()
