# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Meshes and shardings: the one place that makes them."""

from collections.abc import Callable, Mapping, Sequence
import math
import re

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np


def make_mesh(
  axes: Mapping[str, int], devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Makes a mesh whose axes `jit` shards over by itself.

  `jax.make_mesh` makes axes of type Explicit, on which gradients of Linen
  modules fail; these are Auto.

  Args:
    axes: name -> number of devices; one may be -1, for all that are left.
    devices: all devices if None.

  Returns:
    The mesh.

  Raises:
    ValueError: if the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = list(axes.values())
  known = math.prod(s for s in sizes if s != -1)
  if sizes.count(-1) == 1 and known and len(devices) % known == 0:
    sizes[sizes.index(-1)] = len(devices) // known
  if math.prod(sizes) != len(devices) or min(sizes, default=1) < 1:
    raise ValueError(
      f"Axes {dict(axes)} do not fit {len(devices)} devices: sizes must "
      "multiply to their number."
    )
  return Mesh(
    np.asarray(devices).reshape(sizes),
    tuple(axes),
    axis_types=(AxisType.Auto,) * len(sizes),
  )


def fsdp(
  mesh: Mesh, axis: str = "data", *, min_size: int = 2**20
) -> Callable[[str, jax.ShapeDtypeStruct], NamedSharding]:
  """Shards every large leaf along its largest dimension that divides evenly.

  Args:
    mesh: from `make_mesh`.
    axis: the mesh axis to shard over.
    min_size: leaves with fewer elements are replicated.

  Returns:
    A function of leaf name and spec, for `Ingredient.load(sharding=...)`.
  """
  count = mesh.shape[axis]

  def place(leaf, spec):
    del leaf
    fits = [d for d, n in enumerate(spec.shape) if n and n % count == 0]
    if not fits or math.prod(spec.shape) < min_size:
      return NamedSharding(mesh, PartitionSpec())
    largest = max(fits, key=lambda d: spec.shape[d])
    parts = [None] * len(spec.shape)
    parts[largest] = axis
    return NamedSharding(mesh, PartitionSpec(*parts))

  return place


def by_rules(
  mesh: Mesh, rules: Sequence[tuple[str, PartitionSpec]]
) -> Callable[[str, jax.ShapeDtypeStruct], NamedSharding]:
  """Shards leaves by the first rule whose regex is found in their name.

  Args:
    mesh: from `make_mesh`.
    rules: (regex, spec); leaves that no rule matches are replicated.

  Returns:
    A function of leaf name and spec, for `Ingredient.load(sharding=...)`. It
    raises a ValueError naming the leaf if a dimension is not divisible.
  """

  def place(leaf, spec):
    for pattern, parts in rules:
      if re.search(pattern, leaf):
        sharding = NamedSharding(mesh, parts)
        try:
          sharding.shard_shape(spec.shape)
        except ValueError as e:
          raise ValueError(
            f"Rule {pattern!r} -> {parts} does not fit leaf {leaf!r} of shape "
            f"{spec.shape} on a mesh of {dict(mesh.shape)}."
          ) from e
        return sharding
    return NamedSharding(mesh, PartitionSpec())

  return place
