# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Measures training on CIFAR-10 with data in memory, by Grain, and without.

python benchmarks/input_pipeline.py --images=DIR [--seconds=20] [--rounds=3]

DIR has train.tar with CLASS/*.jpg in it, or class folders in train/. The step
is that of configs/finetune/cifar10.py or, with --small, of a model that costs a
tenth as much, to imitate an accelerator. Three ways are measured in turns
within one process: all images in memory and augmented on the device; the same
augmentation of images that Grain's threads decode; and the step alone on a
batch that is already on the device, which is the upper limit. Prints medians
over rounds of images per second, their ratios, and whether the step or reading
limits each way.
"""

import argparse
import statistics
import time
import types

import jax
import numpy as np

from soupjax import config as config_lib
from soupjax import data
from soupjax.tasks.finetune import batches as batches_lib
from soupjax.tasks.finetune import config as finetune_config
from soupjax.tasks.finetune import step as finetune_step

CONFIG = "configs/finetune/cifar10.py"
# From this share of the step's speed on, the step counts as the limit.
NEAR = 0.9


def rate(call, images: int, seconds: float) -> float:
  """Returns images a second of `call()`, which waits for its results."""
  count, began = 0, time.perf_counter()
  while time.perf_counter() - began < seconds:
    call()
    count += 1
  return count * images / (time.perf_counter() - began)


def ways(config, train: data.Source):
  """Returns name -> function that trains for one call, and images per call."""
  mesh = finetune_step.make_mesh(config)
  model = finetune_config.build_model(config)
  size = config.data.image_size
  params = jax.jit(model.init)(
    jax.random.key(0), np.zeros((1, size, size, 3), np.float32)
  )["params"]
  compiled = finetune_step.compile_step(config, model, mesh, params)
  hyper, key = compiled.ready(
    finetune_config.hyper(config, len(train)), np.uint32(0)
  )

  def trained(next_batch):
    state = compiled.begin(params)

    def call():
      nonlocal state
      state, metrics = compiled.step(state, next_batch(), key, hyper, None)
      jax.block_until_ready(metrics)

    call()  # Compiles, and fills the read-ahead buffers.
    return call

  def opened(in_memory):
    part = config_lib.updated(config, {"data.in_memory": in_memory})
    job = types.SimpleNamespace(train=train, mesh=mesh, held={})
    return batches_lib.open_batches(job, [part])

  held, read = opened(True), opened(False)
  batch = held.next()
  images = config.steps_per_call * config.data.batch_size
  return {
    "step alone": trained(lambda: batch),
    "in memory": trained(held.next),
    "Grain": trained(read.next),
  }, images


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--images", required=True)
  parser.add_argument("--seconds", type=float, default=20)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--limit", type=int, help="use only so many images")
  parser.add_argument("--small", action="store_true")
  args = parser.parse_args()
  config = config_lib.load(CONFIG, f"pretrain,images={args.images}")
  if args.small:
    config = config_lib.updated(
      config, {"model.width": 48, "model.depth": 3, "model.mlp_dim": 96}
    )
  train = data.open_source(config.data.name, config.data.train)
  if args.limit:
    train = data.subset(train, np.arange(args.limit), train.name)
  calls, images = ways(config, train)
  rates = {name: [] for name in calls}
  for _ in range(args.rounds):
    for name, call in calls.items():
      rates[name].append(rate(call, images, args.seconds))
  medians = {name: statistics.median(r) for name, r in rates.items()}
  alone = medians["step alone"]
  for name, median in medians.items():
    limit = "the step" if median >= NEAR * alone else "reading"
    print(
      f"{name:<12} {median:>10,.0f} images/s, {median / alone:.2f} of the "
      f"step alone; the limit is {limit}"
    )
  print(
    f"in memory against Grain: {medians['in memory'] / medians['Grain']:.2f}"
  )


if __name__ == "__main__":
  main()
