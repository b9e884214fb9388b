# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Plans of fine-tuning runs, made without reading data or computing."""

from collections.abc import Sequence
import json
import math
import re
from typing import Any

import jax

from soupjax import config as config_lib
from soupjax import sharding
from soupjax.tasks.finetune import config as settings
from soupjax.tasks.finetune import pixels, run, step

PyTree = Any


def plan(
  config,
  sweep: Sequence[dict[str, Any]] | None,
  index: int | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> str:
  """Describes a run on some devices, which may be fake.

  Args:
    config: with the keys of `config.default_config`.
    sweep: dotted overrides, one dict per member; None runs the config itself.
    index: index of the one member to run; None runs all.
    devices: devices of the mesh; None for all devices of JAX.

  Returns:
    A text with the config, number of parameters, bytes on each device, sharding
    of each leaf, and the steps of each member.

  Raises:
    ValueError: if the config or that of a member is invalid, or there is no
      member with the index.
  """
  config = settings.with_model_of_start(config)
  settings.check(config)
  pixels.check(config)
  members = run.chosen(run.members_of(config, "", sweep), index)
  mesh = step.make_mesh(config, devices=devices)
  model = settings.build_model(config)
  params = step.abstract_params(config, model)
  l2_sp = config.hyper.l2_sp > 0
  compiled = step.compile_step(config, model, mesh, params, l2_sp=l2_sp)
  state, places = compiled.shapes, compiled.places
  # Gradients and moving averages cover only the parameters that are trained.
  trained = state.ema[0] if state.ema else state.params
  trained_places = places.ema[0] if state.ema else places.params
  parts = {
    "parameters": (state.params, places.params),
    f"optimizer ({config.optimizer.name})": (state.opt_state, places.opt_state),
    f"moving averages {tuple(config.hyper.ema)}": (state.ema, places.ema),
    "gradient": (trained, trained_places),
  }
  if config.hyper.sam_rho:
    parts["uphill parameters (SAM)"] = (trained, trained_places)
  parts["start, for the next member"] = (state.params, places.params)
  size = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
  lines = [
    json.dumps(config_lib.to_dict(config), indent=2),
    "",
    f"{size:,} parameters ({size / 1e9:.2f} B) in "
    f"{len(jax.tree.leaves(params))} leaves",
    f"Mesh {dict(mesh.shape)} of {mesh.size} devices "
    f"({mesh.devices.flat[0].device_kind})",
    "",
    "Bytes on each device, without activations",
    *_bytes_table(parts),
    "",
    "Where parameters go (None: a dimension that is whole on every device)",
    *_places_table(params, places.params),
    "",
    *_steps(config, members),
  ]
  return "\n".join(lines)


def _bytes(specs: PyTree, places: PyTree) -> tuple[int, int]:
  """Returns the total bytes and those on each device."""
  whole = on_each = 0
  for spec, place in zip(jax.tree.leaves(specs), jax.tree.leaves(places)):
    whole += math.prod(spec.shape) * spec.dtype.itemsize
    on_each += math.prod(place.shard_shape(spec.shape)) * spec.dtype.itemsize
  return whole, on_each


def _bytes_table(parts) -> list[str]:
  rows = [(name, *_bytes(*part)) for name, part in parts.items()]
  rows.append(("sum", sum(r[1] for r in rows), sum(r[2] for r in rows)))
  width = max(len(name) for name, _, _ in rows)
  return [
    f"  {name:<{width}} {on_each / 1e9:9.3f} GB of {whole / 1e9:9.3f} GB"
    for name, whole, on_each in rows
  ]


def _places_table(params, places) -> list[str]:
  """Lists the leaves; leaves that differ only in the block share a row."""
  groups: dict[tuple[str, str, str], int] = {}
  for (name, spec), (_, place) in zip(
    sharding.named(params), sharding.named(places)
  ):
    row = (
      re.sub(r"block_\d+", "block_*", name),
      f"{spec.dtype}{list(spec.shape)}",
      f"({', '.join(map(str, place.spec))})",
    )
    groups[row] = groups.get(row, 0) + 1
  widths = [max(len(row[i]) for row in groups) for i in range(2)]
  return [
    f"  {name:<{widths[0]}} {shape:<{widths[1]}} {spec}"
    + (f" x {count}" if count > 1 else "")
    for (name, shape, spec), count in groups.items()
  ]


def _steps(config, members) -> list[str]:
  """Lists the steps and images of every member, if known without data."""
  num_train = config.data.num_train or None
  lines = []
  for member in members:
    try:
      steps = settings.steps(member.config, "hyper.total", num_train)
      images = steps * member.config.data.batch_size
      length = f"{steps:,} steps, {images:,} images"
    except ValueError as e:
      length = f"{member.config.hyper.total} ({e})"
    differs = config_lib.differences(
      config_lib.to_dict(config), config_lib.to_dict(member.config)
    )
    # Members differ from the config on purpose: show "key=b", not "a before".
    changed = [re.sub(r": .* before, (.*) now$", r"=\1", d) for d in differs]
    lines.append(f"  {member.name}: {'; '.join([length, *changed])}")
  chunks = run.chunked(members, max(config.population, 1))
  kinds = run.chunked(members, len(members))
  header = ", ".join(
    f"{count} {noun}{'s' * (count > 1)}"
    for count, noun in ((len(members), "member"), (len(kinds), "compilation"))
  )
  if config.population > 1:
    header += f", up to {config.population} at once in {len(chunks)} groups"
  return [header, *lines]
