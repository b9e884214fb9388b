# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""A population of tiny members against the same members one by one.

  python benchmarks/population.py             # two minutes on 2 cores

Every contestant runs in a process of its own, one after another, in turns; what
counts is the ratio of medians within one run.
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
  """Times `step()`, which waits for its result, after two warm-up calls."""
  step(), step()
  count, began = 0, time.perf_counter()
  while time.perf_counter() - began < seconds:
    step()
    count += 1
  return count * images / (time.perf_counter() - began)


def members(
  together: bool, count: int, seconds: float, overrides=None
) -> float:
  """Images a second of a sweep of tiny models on digits."""
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
    # Long enough that nobody comes to its end.
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
  """Runs a contestant in a process of its own."""
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
  """Runs two contestants in turns; prints and returns their medians."""
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
