# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Training batches on the devices, drawn from memory or read ahead by Grain.

Both ways give the same examples at every step, so a restarted run may switch
between them.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from soupjax import data, sharding
from soupjax.data import in_memory
from soupjax.tasks.finetune import config as settings
from soupjax.tasks.finetune import objective, towers


class Batches:
  """Batches of one member, or of several that are trained side by side."""

  def __init__(self, mesh, loaders, steps: int, held: "HeldOnDevices | None"):
    """Wraps one loader per member; see `open_batches`."""
    self._mesh, self._loaders, self._steps = mesh, loaders, steps
    self._held = held
    self._axes = (None, *["member"] * (len(loaders) > 1), "data")

  def next(self) -> dict[str, jax.Array]:
    """Returns the batches for the next call of the train step.

    Returns:
      "images" (steps, batch, height, width, 3) and "labels" (steps, batch),
      sharded over the batch; with several members, (steps, members, batch,
      ...). Recipes that embed images have (..., batch, size) as "images".
    """
    if self._held is not None:
      indices = [loader.next_indices(self._steps) for loader in self._loaders]
      return self._held.take(_joined(indices), self._axes)
    drawn = [[next(x) for _ in range(self._steps)] for x in self._loaders]
    batch = {
      key: _joined([_stacked([b[key] for b in batches]) for batches in drawn])
      for key in ("images", "labels")
    }
    return sharding.put_batch(self._mesh, batch, self._axes)

  def get_state(self) -> list[dict[str, Any]]:
    """Returns the position of every member in its data, as JSON values."""
    return [loader.get_state() for loader in self._loaders]

  def set_state(self, states: Sequence[dict[str, Any]]) -> None:
    """Continues from the positions that `get_state` returned."""
    for loader, state in zip(self._loaders, states):
      loader.set_state(state)

  def close(self) -> None:
    """Stops reading ahead."""
    for loader in self._loaders:
      loader.close()


def _stacked(arrays):
  return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def _joined(arrays):
  """Joins the arrays of several members along a new second axis."""
  return arrays[0] if len(arrays) == 1 else np.stack(arrays, axis=1)


class HeldOnDevices:
  """A decoded train set, copied to every device or, if too large, on hosts."""

  def __init__(self, mesh, held: in_memory.Held, room: float):
    """Copies the set to the devices if it takes at most `room` bytes there."""
    self._mesh = mesh
    self._arrays = {"images": held.images, "labels": held.labels}
    self._takers: dict[Any, Any] = {}
    cpu = mesh.devices.flat[0].platform == "cpu"
    copies = len(mesh.local_devices) if cpu else 1  # CPUs share one memory.
    self._on_devices = copies * held.images.nbytes <= room
    if self._on_devices:
      everywhere = sharding.replicated(mesh)
      self._arrays = {
        key: _place(x, everywhere) for key, x in self._arrays.items()
      }

  def take(self, indices: np.ndarray, axes) -> dict[str, jax.Array]:
    """Gathers examples by their index in the set, sharded along `axes`."""
    place = sharding.along(self._mesh, *axes)
    if not self._on_devices:
      return {
        key: _place(indices, place, x.__getitem__)
        for key, x in self._arrays.items()
      }
    if axes not in self._takers:
      self._takers[axes] = jax.jit(
        lambda arrays, at: {key: x[at] for key, x in arrays.items()},
        out_shardings=place,
      )
    return self._takers[axes](self._arrays, _place(indices, place))


def _place(array, place, read=lambda part: part) -> jax.Array:
  """Places an array on the devices, after applying `read` to each part."""
  shape = array.shape + read(array[:0]).shape[array.ndim :]
  return jax.make_array_from_callback(
    shape, place, lambda index: read(array[index[: array.ndim]])
  )


def hold(config, train: data.Source, mesh) -> HeldOnDevices | None:
  """Decodes the train set into memory, if its size and the config allow it.

  Args:
    config: with `data.in_memory`, `data.cache_gb` and `data.train_ops`.
    train: the train set.
    mesh: the device mesh.

  Returns:
    The decoded set, or None if Grain should read it.

  Raises:
    ValueError: if `data.in_memory` is True, but the set exceeds `data.cache_gb`
      or `data.train_ops` draws random numbers.
  """
  required, ops = config.data.in_memory, settings.ops(config, "train_ops")
  if required is False:
    return None
  if required:
    in_memory.check_deterministic(ops)
  elif data.Preprocess(ops).random_ops:
    return None
  needed, room = in_memory.bytes_needed(train, ops), config.data.cache_gb * 1e9
  if needed > room:
    if required:
      raise ValueError(
        f"data.in_memory: decoded, {train.name} takes {needed:,} bytes, more "
        f"than data.cache_gb={config.data.cache_gb:g} ({room:,.0f} bytes). "
        "Raise data.cache_gb, or leave data.in_memory unset."
      )
    return None
  stats = mesh.local_devices[0].memory_stats() or {}
  # Most of an accelerator's memory is left for the model.
  room = min(room, stats.get("bytes_limit", np.inf) / 5)
  return HeldOnDevices(mesh, in_memory.hold(train, ops), room)


def open_batches(job, configs: Sequence[Any]) -> Batches:
  """Opens the batches of members that are trained side by side.

  Args:
    job: the sweep's job, which keeps decoded train sets in `held`.
    configs: one config per member.
  """
  ops, *others = {settings.ops(config, "train_ops") for config in configs}
  held = None
  if not others:
    if ops not in job.held:
      if objective.recipe_of(configs[0]).embedded:
        job.held[ops] = _embedded(job, configs[0], ops)
      else:
        job.held[ops] = hold(configs[0], job.train, job.mesh)
    held = job.held[ops]
  loaders = [_loader(job.train, config, held) for config in configs]
  return Batches(job.mesh, loaders, configs[0].steps_per_call, held)


def _embedded(job, config, ops: str) -> HeldOnDevices:
  """Embeds the train set once for all members, with the locked image tower."""
  room = config.data.cache_gb * 1e9
  return HeldOnDevices(job.mesh, towers.embedded(job, ops), room)


def _loader(train, config, held):
  options = {
    "batch_size": config.data.batch_size,
    "seed": config.seed,
    "preprocess": settings.ops(config, "train_ops"),
  }
  if held is not None:
    return in_memory.IndexLoader(train, **options)
  return data.train_loader(
    train,
    num_workers=config.data.num_workers,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    **options,
  )
