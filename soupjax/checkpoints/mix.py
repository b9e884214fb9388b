# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Mixes checkpoints into a file or onto a mesh: the engine with paths."""

from collections.abc import Callable, Mapping
import dataclasses
import os
import sys
from typing import Any

import jax
import numpy as np

from soupjax import processes
from soupjax.checkpoints import destination, mesh_writer
from soupjax.checkpoints import provenance as provenance_lib
from soupjax.progress import Progress
from soupjax.soups import rules
from soupjax.soups.core import slices
from soupjax.soups.core.ingredient import (
  Model,
  Models,
  as_ingredient,
  as_ingredients,
  sharding_of,
)
from soupjax.soups.engine import plan as planning
from soupjax.soups.engine import run as engine

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixed:
  """What came out of a mix.

  Attributes:
    params: the tree, unless it went to a file.
    path: where it was written, None if it was not.
    table: the plan, as printed by a dry run.
    provenance: the record that travels with the soup.
    report: bytes and seconds of this process; None after a dry run.
  """

  params: PyTree | None
  path: str | None
  table: str
  provenance: Mapping[str, Any]
  report: engine.Report | None


def mix(
  rule: rules.Rule,
  ingredients: Models,
  *,
  base: Model | None = None,
  out: str | os.PathLike | None = None,
  sharding: Any = None,
  dtype: Any = None,
  select: Mapping[str, Any] | None = None,
  block_bytes: int = planning.BLOCK_BYTES,
  threads: int | None = None,
  format: str | None = None,
  shard_bytes: int | None = None,
  overwrite: bool = False,
  hash_inputs: bool = False,
  check_finite: bool = True,
  max_host_bytes: int | None = None,
  dry_run: bool = False,
  progress: bool | Callable[[int, int], None] | None = None,
) -> Mixed:
  """Merges checkpoints of any size, block by block.

  Nothing is read before everything that metadata can tell has been checked. In
  several processes each calls this with the same arguments, reads its share and
  writes its share.

  Args:
    rule: from `soupjax.soups.rules`, as `rules.linear()`.
    ingredients: models in any form: trees, Ingredients, paths or patterns.
    base: the model that the rule or `select` refers to, in any form.
    out: where to write; nothing must be there. `*.safetensors` and `*.npz` are
      files, anything else is an Orbax directory unless `format` says otherwise.
      None returns the tree.
    sharding: without `out`, where the tree goes: as in `Ingredient.load`. Each
      process reads only what its own devices hold. None: the default device.
    dtype: of the floating leaves; None keeps that of the ingredients.
    select: regular expression -> "keep", "skip", a number or K numbers; see
      `soupjax.soups.engine.plan.make`.
    block_bytes: what one thread holds of all ingredients together.
    threads: how many read and average; None asks the machine.
    format: "orbax", "safetensors" or "npz", if `out` does not tell.
    shard_bytes: cuts safetensors into shards of that size, with an index;
      `out` is then a directory.
    overwrite: replaces what is at `out`.
    hash_inputs: records content hashes of all inputs (CRC-32 of every leaf;
      takes about as long as reading them once more) and warns of twins.
    check_finite: refuses a soup with NaN or infinity.
    max_host_bytes: refuses to begin if buffers would take more host memory.
    dry_run: checks, plans and stops.
    progress: prints bytes, GB/s and time left to stderr; None if that is a
      terminal. Or called with the bytes read so far and in all.

  Returns:
    The tree or its path, and the record.

  Raises:
    ValueError: naming ingredient, leaf, offending value and fix, if something
      does not fit.
    TypeError: if an argument is of another kind.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> models = [make("a", {"w": jnp.array([1.0, 4.0])}),
    ...           make("b", {"w": jnp.array([3.0, 8.0])})]
    >>> mixed = sj.mix(sj.rules.linear(), models, out="soup.safetensors")
    >>> sj.load_params("soup.safetensors")["w"]
    array([2., 6.], dtype=float32)
  """
  _check_types(
    rule,
    sharding,
    block_bytes=block_bytes,
    threads=threads,
    shard_bytes=shard_bytes,
    max_host_bytes=max_host_bytes,
  )
  ingredients = as_ingredients(ingredients)
  base = None if base is None else as_ingredient(base, "base")
  rule = _opened(rule)
  if out is not None and sharding is not None:
    raise ValueError(
      "Give out= or sharding=, not both: mix onto the mesh and save_params "
      "from there."
    )
  plan = planning.make(
    rule,
    ingredients,
    base=base,
    dtype=dtype,
    select=select,
    block_bytes=block_bytes,
    threads=threads or min(8, (os.cpu_count() or 1) + 1),
  )
  target = None
  if out is not None:
    target = destination.Destination.of(
      out, format, shard_bytes, overwrite, plan
    )
  pieces = _pieces(plan, target, sharding)
  writer_bytes = (
    target.host_bytes if target else mesh_writer.host_bytes(plan, sharding)
  )
  needed = engine.host_bytes(plan, pieces) + writer_bytes
  table = provenance_lib.table(plan, pieces, target, needed)
  provenance = provenance_lib.of(plan, hash_inputs)
  _check_memory(needed, max_host_bytes, plan, block_bytes, table)
  if target:
    target.check(provenance)
  if dry_run:
    return Mixed(
      params=None, path=None, table=table, provenance=provenance, report=None
    )
  settings = {
    "hash_inputs": hash_inputs,
    "check_finite": check_finite,
    "progress": _progress(progress),
    "processes": processes.all_of_them(),
  }
  params = path = None
  if target is None:
    params, report = _onto_mesh(plan, pieces, sharding, settings)
    provenance = provenance_lib.complete(provenance, plan, report)
  else:
    path = target.path
    with target.opened(provenance) as writer:
      report = engine.run(plan, pieces, writer, **settings)
      provenance = provenance_lib.complete(provenance, plan, report)
      writer.finish(provenance)
  return Mixed(
    params=params,
    path=path,
    table=table,
    provenance=provenance,
    report=report,
  )


def _check_types(rule, sharding, **numbers):
  if not isinstance(rule, rules.Rule):
    raise TypeError(
      "rule must be one of sj.rules, such as sj.rules.linear(), got "
      f"{rule!r:.80}."
    )
  for name, value in numbers.items():
    if value is not None and not (
      isinstance(value, int | np.integer) and not isinstance(value, bool)
    ):
      raise TypeError(
        f"{name} must be a whole number, as {name}="
        f"{'4' if name == 'threads' else '4 << 30'}, got {value!r:.80}."
      )
  if not (
    sharding is None
    or callable(sharding)
    or isinstance(sharding, jax.sharding.Sharding)
  ):
    raise TypeError(
      "sharding must be a jax.sharding.Sharding, or a function of leaf name "
      f"and spec that returns one, got {sharding!r:.80}."
    )


def _check_sharding(plan, sharding):
  """Checks that every leaf can be cut as wanted."""
  for leaf, spec in plan.specs.items():
    where = sharding_of(sharding, leaf, spec)
    try:
      if where is not None:
        where.shard_shape(spec.shape)
    except Exception as e:  # JAX has an exception of its own for it.
      raise ValueError(
        f"Leaf {leaf!r} of shape {spec.shape} cannot be cut as {where}: "
        f"{str(e).splitlines()[0]:.200} Give another sharding for this leaf, "
        "as a function of leaf name and spec."
      ) from e


def _check_memory(needed, limit, plan, block_bytes, table):
  if limit is not None and needed > limit:
    raise ValueError(
      f"This mix would hold {needed / 1e6:.1f} MB in host memory, more than "
      f"max_host_bytes={limit}. Lower block_bytes (now {block_bytes}) or "
      f"threads (now {plan.threads}).\n{table}"
    )


def _opened(rule):
  """Opens the models that a rule reads besides the ingredients."""
  opened = tuple(
    as_ingredient(model, f"{rule.name} statistics {k}")
    for k, model in enumerate(rule.extra)
  )
  return dataclasses.replace(rule, extra=opened)


def _pieces(plan, target, sharding):
  if target is None:
    _check_sharding(plan, sharding)
    return planning.pieces(plan, mesh_writer.parts(plan, sharding), plan.chunks)
  whole = {leaf: [slices.whole(s.shape)] for leaf, s in plan.specs.items()}
  pieces = planning.pieces(plan, whole, target.chunks)
  sizes = [slices.size(box) for _, box in pieces]
  return planning.share(pieces, sizes, jax.process_index(), jax.process_count())


def _onto_mesh(plan, pieces, sharding, settings):
  writer = mesh_writer.MeshWriter(plan, sharding)
  report = engine.run(plan, pieces, writer, **settings)
  leaves = [writer.array(leaf) for leaf in plan.specs]
  return jax.tree.unflatten(plan.treedef, leaves), report


def _progress(wanted):
  """Returns the callback that shows progress, or None."""
  if callable(wanted):
    return wanted
  if wanted is None:
    wanted = sys.stderr.isatty()
  if not wanted or jax.process_index() != 0:
    return None
  progress = Progress("mix", 0, unit="bytes", file=sys.stderr)

  def show(done, total):
    progress.total = total
    progress.step(done - progress.done)

  return show
