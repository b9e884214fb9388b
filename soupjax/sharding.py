# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""All meshes and shardings of the package are made here."""

from collections.abc import Callable, Mapping, Sequence
import math
import re
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from soupjax.soups.core import tree as tree_lib

PyTree = Any
# Rules for `of_state`: heads and hidden units of a ViT or Mixer are split, with
# one all-reduce per layer (arXiv 1909.08053, section 3).
TENSOR_PARALLEL = (
  (r"(query|key|value)/kernel$", (None, "model", None)),
  (r"(query|key|value)/bias$", ("model", None)),
  (r"MultiHeadDotProductAttention_\d+/out/kernel$", ("model", None, None)),
  (r"Dense_0/kernel$", (None, "model")),
  (r"Dense_0/bias$", ("model",)),
  (r"Dense_1/kernel$", ("model", None)),
)


def make_mesh(
  axes: Mapping[str, int], devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Makes a mesh with axes of type Auto, for which `jit` chooses the shardings.

  The axes of `jax.make_mesh` are Explicit by default, and gradients of Linen
  modules fail on these.

  Args:
    axes: name -> number of devices; one of them may be -1, for the rest.
    devices: None for all devices.

  Returns:
    The mesh.

  Raises:
    ValueError: if the product of the sizes is not the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = list(axes.values())
  known = math.prod(s for s in sizes if s != -1)
  if sizes.count(-1) == 1 and known and len(devices) % known == 0:
    sizes[sizes.index(-1)] = len(devices) // known
  if math.prod(sizes) != len(devices) or min(sizes, default=1) < 1:
    raise ValueError(
      f"Axes {dict(axes)} do not fit {len(devices)} devices: the product of "
      "the sizes must be the number of devices."
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
    min_size: leaves with fewer elements are replicated, like those without such
      a dimension.

  Returns:
    A function of leaf name and spec, for `Ingredient.load(sharding=...)`.
  """
  count = mesh.shape[axis]

  def sharding_of(leaf, spec):
    del leaf
    fits = [d for d, n in enumerate(spec.shape) if n and n % count == 0]
    if not fits or math.prod(spec.shape) < min_size:
      return NamedSharding(mesh, PartitionSpec())
    largest = max(fits, key=lambda d: spec.shape[d])
    parts = [None] * len(spec.shape)
    parts[largest] = axis
    return NamedSharding(mesh, PartitionSpec(*parts))

  return sharding_of


def by_rules(
  mesh: Mesh, rules: Sequence[tuple[str, PartitionSpec]]
) -> Callable[[str, jax.ShapeDtypeStruct], NamedSharding]:
  """Shards leaves by the first rule whose regex matches part of their name.

  Args:
    mesh: from `make_mesh`.
    rules: (regex, spec); leaves without a rule are replicated.

  Returns:
    A function of leaf name and spec, for `Ingredient.load(sharding=...)`. It
    raises a ValueError naming the leaf if a dimension is not divisible.
  """

  def sharding_of(leaf, spec):
    for pattern, parts in rules:
      if re.search(pattern, leaf):
        return _checked(mesh, pattern, parts, leaf, spec.shape)
    return NamedSharding(mesh, PartitionSpec())

  return sharding_of


def _checked(mesh, pattern, parts, leaf, shape) -> NamedSharding:
  sharding = NamedSharding(mesh, parts)
  try:
    sharding.shard_shape(shape)
  except ValueError as e:
    raise ValueError(
      f"Rule {pattern!r} -> {parts} does not fit leaf {leaf!r} of shape "
      f"{shape} on a mesh of {dict(mesh.shape)}."
    ) from e
  return sharding


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that copies arrays to every device of a mesh."""
  return NamedSharding(mesh, PartitionSpec())


def along(mesh: Mesh, *axes: str | None) -> NamedSharding:
  """Returns a sharding of leading dimensions over mesh axes.

  For example, `along(mesh, "data")` splits a batch over the axis "data".
  """
  return NamedSharding(mesh, PartitionSpec(*axes))


def put_batch(
  mesh: Mesh, batch: Mapping[str, Any], axes: Sequence[str | None] = ("data",)
) -> dict[str, jax.Array]:
  """Spreads this process's part of a batch over its devices.

  Args:
    mesh: from `make_mesh`.
    batch: name -> array on the host.
    axes: a mesh axis or None for each of the leading dimensions.

  Returns:
    Name -> array of the whole batch, over all processes.
  """
  place = along(mesh, *axes)
  return {
    name: jax.make_array_from_process_local_data(place, np.asarray(value))
    for name, value in batch.items()
  }


def of_state(
  mesh: Mesh,
  state: PyTree,
  params: PyTree,
  rules: Sequence[tuple[str, Any]],
  *,
  fsdp_axis: str = "data",
  fsdp_min_size: int = 2**20,
) -> PyTree:
  """Shards a train state by a list of (regex, rule).

  Args:
    mesh: from `make_mesh`.
    state: any tree of arrays or specs. A leaf, such as a moment or a moving
      average, is sharded like a parameter if its name ends with the parameter's
      and their shapes are equal. If only the names match (rows and columns of
      Adafactor), it is sharded only under "fsdp". Other leaves are replicated.
    params: tree of arrays or specs.
    rules: the first whose regex matches part of the parameter's name applies.
      Rules are "replicated", "fsdp" (see `fsdp`), or a tuple with a mesh axis
      or None for each of the last dimensions, so that one rule fits both
      looped and scanned blocks. Leaves without a rule are replicated.
    fsdp_axis: the mesh axis that "fsdp" shards over.
    fsdp_min_size: leaves with fewer elements are replicated under "fsdp".

  Returns:
    A tree like `state`, of shardings.

  Raises:
    ValueError: if a rule is unknown or does not fit a shape, naming the leaf,
      or the rules do not match any leaf.
  """
  specs = dict(named(params))
  over = fsdp(mesh, fsdp_axis, min_size=fsdp_min_size)
  _check_rules(mesh, rules, list(specs))
  shardings: dict[str, NamedSharding] = {}
  kinds: dict[str, Any] = {}
  for name, spec in specs.items():
    pattern, rule = next(
      ((p, r) for p, r in rules if re.search(p, name)), ("", "replicated")
    )
    kinds[name] = rule
    if rule == "replicated":
      shardings[name] = replicated(mesh)
    elif rule == "fsdp":
      shardings[name] = over(name, spec)
    elif len(rule) > len(spec.shape):
      raise ValueError(
        f"Rule {pattern!r} -> {rule} does not fit leaf {name!r} of shape "
        f"{tuple(spec.shape)}, which has fewer dimensions."
      )
    else:
      parts = (None,) * (len(spec.shape) - len(rule)) + tuple(rule)
      parts = PartitionSpec(*parts)
      shardings[name] = _checked(mesh, pattern, parts, name, spec.shape)

  def sharding_of(path, leaf):
    # The longest match wins: "mu/head/bias" belongs to "head/bias", not "bias".
    parts = tree_lib.name_of(path).split("/")
    suffixes = ("/".join(parts[k:]) for k in range(len(parts)))
    name = next((name for name in suffixes if name in specs), None)
    if name is None:
      return replicated(mesh)
    if tuple(leaf.shape) == tuple(specs[name].shape):
      return shardings[name]
    return over(name, leaf) if kinds[name] == "fsdp" else replicated(mesh)

  return jax.tree_util.tree_map_with_path(sharding_of, state)


def named(tree: PyTree) -> list[tuple[str, Any]]:
  """Lists the leaves of a tree with names like "head/kernel"."""
  paths, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [(tree_lib.name_of(path), leaf) for path, leaf in paths]


def _check_rules(mesh, rules, names):
  patterns = [pattern for pattern, _ in rules]
  if rules and not any(re.search(p, name) for p in patterns for name in names):
    raise ValueError(
      f"The sharding rules {patterns} do not match any leaf; names look like "
      f"{names[0]!r}."
    )
  for pattern, rule in rules:
    if rule in ("replicated", "fsdp"):
      continue
    if isinstance(rule, str) or not set(rule) <= {None, *mesh.shape}:
      raise ValueError(
        f"Sharding rule {rule!r} for {pattern!r} must be 'replicated', 'fsdp', "
        f"or a tuple of None and axes of the mesh {dict(mesh.shape)}."
      )


def share(mesh: Mesh, axis: str, count: int, what: str) -> None:
  """Checks that a mesh axis splits a count evenly.

  Args:
    mesh: from `make_mesh`.
    axis: name of the axis.
    count: such as a batch size.
    what: name of the count, for errors.

  Raises:
    ValueError: if it does not. The message has the nearest counts that fit.
  """
  devices = mesh.shape[axis]
  if count % devices:
    lower, upper = count // devices * devices, -(-count // devices) * devices
    near = f"{lower} or {upper}" if lower else f"{upper}"
    raise ValueError(
      f"{what} is {count}, which is not divisible by the {devices} devices on "
      f"mesh axis {axis!r}: make it {near}."
    )
