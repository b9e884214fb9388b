# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The programs of a fine-tuning run, with shapes in place of arrays."""

from collections.abc import Iterator, Sequence
import functools
import math
from typing import Any

import jax

from soupjax import sharding
from soupjax.evaluators import Evaluator
from soupjax.tasks.finetune import config as settings
from soupjax.tasks.finetune import objective, pixels, run, step, towers
from soupjax.tasks.programs.report import (
  Program,
  bytes_on_each,
  fewer,
  on_mesh,
)

PyTree = Any


def programs(
  config,
  sweep: Sequence[dict[str, Any]] | None,
  index: int | None,
  devices: Sequence[jax.Device],
) -> Iterator[Program]:
  """Yields the programs of a run: every different train step, and evaluation.

  Args:
    config: with the keys of `config.default_config`.
    sweep: dotted overrides, one dict per member; None runs the config itself.
    index: index of the one member to run; None runs all.
    devices: devices of the mesh; they need not exist.

  Raises:
    ValueError: if the config is invalid, or does not fit the devices.
  """
  config = settings.with_model_of_start(config)
  settings.check(config)
  pixels.check(config)
  all_members = run.members_of(config, "", sweep)
  members = run.chosen(all_members, index)
  options = settings.shared_options([m.config for m in all_members])
  model = settings.build_model(config)
  groups: dict[Any, list[Any]] = {}
  for chunk in run.chunked(members, max(config.population, 1)):
    key = settings.static(chunk[0].config, **options), len(chunk)
    groups.setdefault(key, []).append(chunk)
  params = step.abstract_params(config, model)
  state_bytes = 0
  for (_, count), chunks in groups.items():
    program, held = _train_step(
      chunks, model, params, devices, count=count, **options
    )
    state_bytes = max(state_bytes, held)
    yield program
  mesh = step.make_mesh(config, devices=devices)
  yield _evaluation(config, model, mesh, params, state_bytes)


def _train_step(chunks, model, params, devices, *, count, off, l2_sp):
  """Returns the train step of some groups, and the bytes of its state."""
  config = chunks[0][0].config
  mesh = step.make_mesh(config, count, devices)
  start = on_mesh(params, step.param_shardings(config, model, mesh))
  compiled = step.compile_step(
    config, model, mesh, params, off=off, l2_sp=l2_sp, count=count
  )
  shared = step.abstract_shared(config, mesh, model, l2_sp, start)
  args = step.abstract_arguments(config, mesh, compiled, shared, count)
  names = [member.name for chunk in chunks for member in chunk]
  of = "" if names == ["run"] else f" of {names[0]}"
  if len(names) > 1:
    of += f" and {len(names) - 1} more"
  state, begin = bytes_on_each(args[0]), bytes_on_each(start)
  program = Program(
    name=f"train step{of}",
    function=compiled.step,
    args=args,
    beside={}
    if "start" in (shared or {})
    else {"start, for the next member": begin},
    advice=functools.partial(
      _advice, config, mesh.shape["data"], state + 2 * begin
    ),
  )
  return program, state


def _advice(config, devices: int, fixed: int, needed: int, room: int) -> str:
  """Lists settings to change if a train step needs too much memory.

  Args:
    config: the config of a member.
    devices: number of devices that a batch is split over.
    fixed: bytes of state, start and gradient on each device.
    needed: bytes that the step needs on each device.
    room: bytes available on each device.
  """
  batch = config.data.batch_size
  at_once = batch // config.accumulate
  fits = fewer(at_once, needed, room, fixed, devices)
  lines = []
  for parts in range(config.accumulate + 1, batch // devices + 1):
    if fits and not batch % (parts * devices) and batch // parts <= fits:
      lines.append(
        f"about accumulate={parts} (now {config.accumulate}), or "
        f"data.batch_size={fits * config.accumulate} (now {batch})"
      )
      break
  if config.model.get("remat_policy", "none") in ("none", None):
    lines.append("model.remat_policy='nothing_saveable' with model.scan=True")
  if config.sharding.preset == "replicated":
    lines.append("sharding.preset='fsdp', which splits state and gradient")
  if config.model.get("dtype_mm", "float32") == "float32":
    lines.append("model.dtype_mm='bfloat16'")
  if config.hyper.ema:
    lines.append(f"fewer moving averages (now {len(config.hyper.ema)})")
  times = math.ceil(needed / room)
  lines.append(f"a slice of {times} times as many devices or more")
  return (
    f"State, start and gradient take {fixed / 1e9:.3g} GB of it. Change, in "
    f"order of cost: {'; '.join(lines)}."
  )


def _evaluation(config, model, mesh, params, state_bytes: int) -> Program:
  """Returns the evaluation of minival, which runs between train steps."""
  size = config.data.image_size
  count = settings.eval_batch_size(config, mesh.shape["data"])
  places = step.param_shardings(config, model, mesh)
  start = on_mesh(params, places)
  forward = model
  if objective.recipe_of(config).pairs:
    forward = towers.forward(model)
    start = towers.abstract_head(
      config, model, start, sharding.replicated(mesh)
    )
  evaluator = Evaluator(forward, (), mesh=mesh)
  return Program(
    name=f"evaluation of {count} images",
    function=evaluator.program(),
    args=(start, evaluator.abstract_batch(count, (size, size, 3))),
    beside={"rest of the state, start": state_bytes},
    advice=lambda needed, room: _fewer_images(
      mesh, count, needed, room, state_bytes + bytes_on_each(start)
    ),
  )


def _fewer_images(mesh, count, needed, room, fixed) -> str:
  fits = fewer(count, needed, room, fixed, mesh.shape["data"])
  if not fits:
    return "The state alone leaves no room for images: see the train step."
  return f"Set data.eval_batch_size to about {fits} (now {count})."
