# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Hands the result of a mix to the devices of a mesh.

Blocks are merged on the host, so that one result goes to the devices instead of
K ingredients, and each process reads only what its own devices hold.
"""

import threading
from typing import Any

import jax
import numpy as np

from soupjax.soups.core import slices
from soupjax.soups.core.ingredient import Ingredient, is_cut, sharding_of
from soupjax.soups.engine import plan as planning


def _held(plan, sharding, leaf) -> dict[Any, slices.Slices]:
  """Device of this process -> what it holds of a leaf."""
  spec = plan.specs[leaf]
  where = _where(plan, sharding, leaf)
  if where is None:
    return {jax.local_devices()[0]: slices.whole(spec.shape)}
  return {
    device: slices.normalise(index, spec.shape)
    for device, index in where.addressable_devices_indices_map(
      spec.shape
    ).items()
  }


def _where(plan, sharding, leaf):
  """The sharding of a leaf; None for one device, or the host."""
  spec = plan.specs[leaf]
  return None if is_cut(spec) else sharding_of(sharding, leaf, spec)


def _wanted(held) -> list[slices.Slices]:
  """Boxes to be read: one if the devices together hold a box."""
  unique = []
  for box in held.values():
    if box not in unique:
      unique.append(box)
  if not unique:
    return []
  around = slices.bounding(unique) if unique[0] else ()
  if slices.size(around) == sum(slices.size(box) for box in unique):
    return [around]
  return unique


def parts(plan: planning.Plan, sharding: Any) -> dict[str, list[slices.Slices]]:
  """What this process needs of every leaf.

  Args:
    plan: of the mix.
    sharding: as in `Ingredient.load`.

  Returns:
    Leaf -> slices.
  """
  return {leaf: _wanted(_held(plan, sharding, leaf)) for leaf in plan.specs}


def held(source: Ingredient) -> dict[str, list[slices.Slices]]:
  """What this process writes of a tree that may be spread over a mesh.

  Args:
    source: a tree in memory.

  Returns:
    Leaf -> slices; over all processes, every element is in one of them.
  """
  found = {}
  for leaf, spec in source.specs.items():
    array = source.reader(leaf, None)
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
      found[leaf] = [
        slices.normalise(shard.index, spec.shape)
        for shard in array.addressable_shards
        if shard.replica_id == 0
      ]
    else:  # The same in all processes.
      first = jax.process_index() == 0
      found[leaf] = [slices.whole(spec.shape)] if first else []
  return found


def host_bytes(plan: planning.Plan, sharding: Any) -> int:
  """Host memory for the largest leaves under way, one a thread."""
  sizes = [
    sum(slices.size(box) for box in found) * plan.specs[leaf].dtype.itemsize
    for leaf, found in parts(plan, sharding).items()
  ]
  return sum(sorted(sizes)[-plan.threads :])


class MeshWriter:
  """A writer whose leaves go to their devices as soon as they are whole."""

  def __init__(self, plan: planning.Plan, sharding: Any):
    self._plan, self._sharding = plan, sharding
    self._lock = threading.Lock()
    self._parts: dict[str, list[tuple[slices.Slices, np.ndarray]]] = {}
    self._missing: dict[str, int] = {}
    self._arrays: dict[str, jax.Array] = {}

  def _begin(self, leaf):
    if leaf not in self._parts:
      wanted = _wanted(_held(self._plan, self._sharding, leaf))
      dtype = self._plan.specs[leaf].dtype
      self._parts[leaf] = [
        (box, np.empty(slices.shape_of(box), dtype)) for box in wanted
      ]
      self._missing[leaf] = sum(slices.size(box) for box in wanted)

  def write(self, leaf: str, box: slices.Slices, array: np.ndarray) -> None:
    """See `soupjax.soups.engine.run.Writer`."""
    with self._lock:
      self._begin(leaf)
      found = self._parts[leaf]
    for around, place in found:
      if slices.intersection(box, around) == box:
        target = place[slices.inside(box, around)] if box else place
        np.copyto(target, array.reshape(slices.shape_of(box)))
        break
    with self._lock:
      self._missing[leaf] -= array.size
      if self._missing[leaf]:
        return
    self._place(leaf)

  def _place(self, leaf):
    """Moves a whole leaf to its devices, and forgets it here."""
    spec, found = self._plan.specs[leaf], self._parts.pop(leaf)
    where = _where(self._plan, self._sharding, leaf)
    if where is None:
      # Integers of 64 bits stay on the host: JAX would cut them to 32.
      whole = found[0][1]
      self._arrays[leaf] = whole if is_cut(spec) else jax.device_put(whole)
      return
    shards = []
    held = _held(self._plan, self._sharding, leaf)
    for device, box in held.items():
      for around, place in found:
        # A 0-d or empty box is inside any.
        if (
          not slices.size(box)
          or not box
          or (slices.intersection(box, around) == box)
        ):
          part = place[slices.inside(box, around)] if box else place
          shards.append(jax.device_put(part, device))
          break
    self._arrays[leaf] = jax.make_array_from_single_device_arrays(
      spec.shape, where, shards
    )

  def array(self, leaf: str) -> jax.Array:
    """Returns a leaf after the mix."""
    if leaf not in self._arrays:  # Of zero size: nothing was written.
      self._begin(leaf)
      self._place(leaf)
    return self._arrays[leaf]
