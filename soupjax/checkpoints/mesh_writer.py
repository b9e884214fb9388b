# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Puts the result of a mix on the devices of a mesh.

Blocks are merged on the host, so that one result is transferred instead of K
ingredients. Each process reads only the slices on its own devices.
"""

from collections.abc import Sequence
import threading
from typing import Any

import jax
import numpy as np

from soupjax.soups.core import slices
from soupjax.soups.core.ingredient import Ingredient, sharding_of
from soupjax.soups.core.precision import is_cut
from soupjax.soups.engine import plan as planning


def _leaf_sharding(plan, sharding, leaf):
  """Returns the sharding of a leaf; None for the default device or the host."""
  spec = plan.specs[leaf]
  return None if is_cut(spec) else sharding_of(sharding, leaf, spec)


def _device_slices(sharding, shape) -> dict[Any, slices.Slices]:
  """Returns each device of this process -> its slices of a leaf."""
  if sharding is None:
    return {jax.local_devices()[0]: slices.whole(shape)}
  indices = sharding.addressable_devices_indices_map(shape)
  return {
    device: slices.normalise(index, shape) for device, index in indices.items()
  }


def _to_read(sharding, shape) -> list[slices.Slices]:
  """Returns the slices to read: one if the devices fill their bounding box."""
  unique = []
  for box in _device_slices(sharding, shape).values():
    if box not in unique:
      unique.append(box)
  if not unique:
    return []
  around = slices.bounding(unique) if unique[0] else ()
  if slices.size(around) == sum(map(slices.size, unique)):
    return [around]
  return unique


def parts(plan: planning.Plan, sharding: Any) -> dict[str, list[slices.Slices]]:
  """Returns leaf -> slices that this process needs.

  Args:
    plan: the plan of the mix.
    sharding: as in `Ingredient.load`.
  """
  return {
    leaf: _to_read(_leaf_sharding(plan, sharding, leaf), spec.shape)
    for leaf, spec in plan.specs.items()
  }


def owned_slices(source: Ingredient) -> dict[str, list[slices.Slices]]:
  """Returns leaf -> slices that this process writes.

  Args:
    source: a tree in memory, perhaps sharded over a mesh. Together the
      processes write every element once.
  """
  owned = {}
  for leaf, spec in source.specs.items():
    array = source.reader(leaf, None)
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
      owned[leaf] = [
        slices.normalise(shard.index, spec.shape)
        for shard in array.addressable_shards
        if shard.replica_id == 0
      ]
    else:  # All processes have the whole leaf.
      first = jax.process_index() == 0
      owned[leaf] = [slices.whole(spec.shape)] if first else []
  return owned


def host_bytes(plan: planning.Plan, sharding: Any) -> int:
  """Returns the bytes in host memory of the largest leaves, one per thread."""
  sizes = [
    sum(map(slices.size, boxes)) * plan.specs[leaf].dtype.itemsize
    for leaf, boxes in parts(plan, sharding).items()
  ]
  return sum(sorted(sizes)[-plan.threads :])


class MeshWriter:
  """Moves every leaf to its devices as soon as it is complete."""

  def __init__(self, plan: planning.Plan, sharding: Any):
    self._plan, self._sharding = plan, sharding
    self._lock = threading.Lock()
    self._parts: dict[str, list[tuple[slices.Slices, np.ndarray]]] = {}
    self._missing: dict[str, int] = {}
    self._arrays: dict[str, jax.Array] = {}

  def _allocate(self, leaf):
    spec = self._plan.specs[leaf]
    sharding = _leaf_sharding(self._plan, self._sharding, leaf)
    boxes = _to_read(sharding, spec.shape)
    self._parts[leaf] = [
      (box, np.empty(slices.shape_of(box), spec.dtype)) for box in boxes
    ]
    self._missing[leaf] = sum(map(slices.size, boxes))

  def write(self, spans: Sequence[slices.Span], row: np.ndarray) -> None:
    """Writes one block; see `soupjax.soups.engine.run.Writer`."""
    for leaf, box, start, stop, _ in spans:
      self._write(leaf, box, row[start:stop])

  def _write(self, leaf, box, array):
    with self._lock:
      if leaf not in self._parts:
        self._allocate(leaf)
      leaf_parts = self._parts[leaf]
    np.copyto(_inside(leaf_parts, box), array.reshape(slices.shape_of(box)))
    with self._lock:
      self._missing[leaf] -= array.size
      if self._missing[leaf]:
        return
    self._place(leaf)

  def _place(self, leaf):
    """Moves a complete leaf to its devices and frees its host memory."""
    spec, leaf_parts = self._plan.specs[leaf], self._parts.pop(leaf)
    sharding = _leaf_sharding(self._plan, self._sharding, leaf)
    if sharding is None:
      # 64-bit leaves stay on the host if JAX would cut them to 32 bits.
      whole = leaf_parts[0][1]
      self._arrays[leaf] = whole if is_cut(spec) else jax.device_put(whole)
      return
    self._arrays[leaf] = jax.make_array_from_single_device_arrays(
      spec.shape,
      sharding,
      [
        jax.device_put(_inside(leaf_parts, box), device)
        for device, box in _device_slices(sharding, spec.shape).items()
      ],
    )

  def array(self, leaf: str) -> jax.Array:
    """Returns a leaf after the mix."""
    if leaf not in self._arrays:  # It is empty, so nothing was written.
      self._allocate(leaf)
      self._place(leaf)
    return self._arrays[leaf]


def _inside(parts, box) -> np.ndarray:
  """Returns the view of a box in the part that contains it."""
  for around, part in parts:
    # A 0-d or empty box is in every part.
    if not slices.size(box) or slices.intersection(box, around) == box:
      return part[slices.inside(box, around)] if box else part
  raise AssertionError(f"{box} is not in {[around for around, _ in parts]}")
