# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Estimates a fine-tuning run's memory and disk space, without reading data."""

from collections.abc import Sequence
import math
import os
from typing import Any

import jax

from soupjax import buckets, data, files
from soupjax.tasks import estimate
from soupjax.tasks.finetune import config as settings
from soupjax.tasks.finetune import objective, programs, run, step, towers

PyTree = Any


def needs(
  config,
  sweep: Sequence[dict[str, Any]] | None,
  index: int | None,
  workdir: str | None,
) -> estimate.Estimate:
  """Estimates the memory and disk space of a run on the present devices.

  Compiles the programs, unless the devices are CPUs and the model is large.

  Args:
    config: with the keys of `config.default_config`.
    sweep: dotted overrides, one dict per member; None runs the config itself.
    index: index of the one member to run; None runs all.
    workdir: directory of the run; None for the working directory.
  """
  config = settings.with_model_of_start(config)
  program = estimate.program_bytes()
  members = run.chosen(run.members_of(config, "", sweep), index)
  at_once = max(map(len, run.chunked(members, max(config.population, 1))))
  model = settings.build_model(config)
  params = step.abstract_params(config, model)
  weights = _bytes(params)
  image = 12 * config.data.image_size**2
  batch = image * config.data.batch_size * at_once
  held, minival, notes = _decoded(config, image)
  device, state = _device(config, sweep, index, at_once, model, params)
  if device is None:
    notes.append(
      "all device memory: --topology=v5e:4x4 compiles the step for a TPU; for "
      "other accelerators, do the dry run on them"
    )
    device = {}
  else:
    device["next batch"] = batch / jax.device_count()
    device["decoded images"] = held + (minival if minival <= 1e9 else 0)
  tokens = 0
  if objective.recipe_of(config).pairs:
    tokens = 4 * math.prod(towers.prompt_shape(config, model))
    if towers.may_have_captions(config) and not config.data.num_train:
      notes.append("tokens of captions: data.num_train is not set")
  share = 1 / jax.process_count()
  states, along = _saves(config, members, notes)
  threads = min(os.cpu_count() or 1, 8)
  return estimate.training(
    program=program,
    device=device,
    devices_on_host=sum(d.platform == "cpu" for d in jax.local_devices()),
    weights=weights,
    state=state,
    images=held + minival * share,
    batches=0 if held else (threads + 1) * batch * share,
    tokens=tokens,
    members=len(members),
    at_once=at_once,
    ingredients=(1 + along) * (1 + len(config.hyper.ema)),
    states=states,
    share=share,
    free=_free(workdir or "."),
    notes=tuple(notes),
  )


def _bytes(specs: PyTree) -> int:
  leaves = jax.tree.leaves(specs)
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


def _device(config, sweep, index, at_once, model, params):
  """Returns part -> bytes on each device, and the bytes of a train state.

  The parts are None if the programs are not compiled.
  """
  mesh = step.make_mesh(config, at_once)
  compiled = step.compile_step(config, model, mesh, params, count=at_once)
  state = _bytes(compiled.shapes)
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
  if not estimate.can_compile(jax.devices(), count):
    return None, state
  device = estimate.of_programs(
    programs.programs(config, sweep, index, jax.devices())
  )
  return device, state


def _saves(config, members, notes: list[str]) -> tuple[int, int]:
  """Returns how many train states and ingredients are saved along a run.

  The counts leave out the end. Appends notes on those that are unknown.
  """

  def count(key):
    lengths = [_steps(m.config, "hyper.total") for m in members]
    every = _steps(config, key)
    if None in (*lengths, every):
      notes.append(f"saving every {config[key]}: data.num_train is not set")
      return 0
    return (max(lengths) - 1) // max(every, 1)

  return count("checkpoint"), count("ingredients") if config.ingredients else 0


def _steps(config, key: str) -> int | None:
  """Returns a duration in steps; None if it depends on the data."""
  try:
    return settings.steps(config, key, config.data.num_train or None)
  except ValueError:
    return None


def _decoded(config, image: int) -> tuple[float, float, list[str]]:
  """Returns the bytes of the decoded train set and minival, and notes.

  Args:
    config: with `data`.
    image: bytes of one decoded image.
  """
  c = config.data
  room, notes = c.cache_gb * 1e9, []
  minival = held = 0.0
  if c.minival:
    notes.append(f"decoded images of minival, at most {c.cache_gb:g} GB")
  else:
    minival = image * c.minival_per_class * c.num_classes
    minival = minival if minival <= room else 0.0
  ops = data.Preprocess(settings.ops(config, "train_ops"))
  if c.in_memory is not False and not ops.random_ops:
    if not c.num_train:
      notes.append(
        f"decoded images to train on, at most {c.cache_gb:g} GB: "
        "data.num_train is not set"
      )
    elif c.num_train * image <= room:
      held = c.num_train * image
  return held, minival, notes


def _free(workdir) -> float | None:
  """Returns the free bytes on the disk of a directory; None for a bucket."""
  if buckets.is_remote(workdir):
    return None
  return files.free_bytes(os.path.abspath(workdir))
