# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Mixes checkpoints into a file or onto a mesh."""

from collections.abc import Callable, Mapping
import dataclasses
import os
import sys
from typing import Any

import jax
import numpy as np

from soupjax import processes
from soupjax import sharding as sharding_lib
from soupjax.checkpoints import companions, destination, mesh_writer
from soupjax.checkpoints import provenance as provenance_lib
from soupjax.progress import Progress
from soupjax.soups import rules
from soupjax.soups.core import slices, tree
from soupjax.soups.core.ingredient import (
  Model,
  Models,
  as_ingredient,
  as_ingredients,
  explaining_changes,
  sharding_of,
)
from soupjax.soups.engine import combine
from soupjax.soups.engine import plan as planning
from soupjax.soups.engine import run as engine

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixed:
  """The result of a mix.

  Attributes:
    params: the tree; None if it was written to a file, and after a dry run.
    path: path of the output; None without `out`, and after a dry run.
    table: the plan, which a dry run prints.
    provenance: the record that is stored with the soup.
    report: bytes and seconds of this process; None after a dry run.
    host_bytes: bytes of this process's buffers, without imports and
      compilation.
    temporary_bytes: bytes of temporary memory that the compiled rule needs in
      all threads together; None without a dry run.
    disk_bytes: bytes of the output; 0 without `out`. A checkpoint that it
      replaces is removed only afterwards.
  """

  params: PyTree | None
  path: str | None
  table: str
  provenance: Mapping[str, Any]
  report: engine.Report | None
  host_bytes: int = 0
  temporary_bytes: int | None = None
  disk_bytes: int = 0


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

  All checks that need only metadata come before any weights are read. With
  several processes, all must call this with the same arguments; each reads and
  writes its share.

  Args:
    rule: from `soupjax.soups.rules`, such as `rules.linear()`.
    ingredients: models in any form: trees, Ingredients, paths or patterns.
    base: the model that the rule or `select` refers to, in any form.
    out: path of a new file (`*.safetensors`, `*.npz`, or `*.pt`, `*.pth` and
      `*.bin` for torch) or Orbax directory (any other name, unless `format` is
      given). None returns the tree.
    sharding: sharding of the returned tree, as in `Ingredient.load`. Each
      process reads only the slices on its own devices. None: the default
      device.
    dtype: dtype of the floating-point leaves; None keeps that of the
      ingredients.
    select: regular expression -> "keep", "skip", a number or K numbers; see
      `soupjax.soups.engine.plan.make`.
    block_bytes: size of the blocks of all ingredients together, per thread.
    threads: number of threads that read and merge; None: one more than the
      number of CPUs, at most 8.
    format: "orbax", "safetensors", "npz", "torch" or "hub" (a directory for
      the Hugging Face hub with a model card); None goes by the suffix of `out`.
    shard_bytes: the size of safetensors shards in a directory `out` with an
      index; None writes one file.
    overwrite: replaces an existing checkpoint or empty directory at `out`, and
      nothing else.
    hash_inputs: records content hashes of all inputs (CRC-32 of every leaf;
      takes about as long as reading them again) and warns about identical
      inputs.
    check_finite: refuses a soup with NaN or infinity.
    max_host_bytes: limit on host memory; larger mixes are refused.
    dry_run: stops after all checks and the plan.
    progress: whether to print bytes, GB/s and time left to stderr; None: only
      if it is a terminal. A function is called with bytes read and total bytes.

  Returns:
    The tree or its path, the provenance record and more; see `Mixed`.

  Raises:
    ValueError: if inputs, output or settings do not fit together, naming
      ingredient, leaf, value and fix.
    TypeError: if an argument has the wrong type.

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
  extra = tuple(
    as_ingredient(model, f"{rule.name} statistics {k}")
    for k, model in enumerate(rule.extra)
  )
  if out is not None and sharding is not None:
    raise ValueError(
      "Give out= or sharding=, not both: mix onto the mesh and save_params "
      "from there."
    )
  target = None
  sources = [*ingredients, *([] if base is None else [base]), *extra]
  # The chunks of some formats are read here.
  with explaining_changes(sources), tree.without_collection():
    plan = planning.make(
      dataclasses.replace(rule, extra=extra),
      ingredients,
      base=base,
      dtype=dtype,
      select=select,
      block_bytes=block_bytes,
      threads=threads or min(8, (os.cpu_count() or 1) + 1),
    )
    averaged = (k for k, g in plan.groups.items() if len(g.models) > 1)
    companions.check_vocabularies(
      plan.sources[: plan.count], [plan.specs[leaf].shape for leaf in averaged]
    )
    if out is not None:
      target = destination.Destination(
        out, format, shard_bytes, overwrite, plan
      )
      if target.on_mesh:
        mesh = sharding_lib.make_mesh({"data": -1})
        sharding = sharding_lib.fsdp(mesh, min_size=2**16)
    to_disk = target if target and not target.on_mesh else None
    pieces = _pieces(plan, to_disk, sharding)
    needed = engine.host_bytes(plan, pieces) + (
      to_disk.host_bytes if to_disk else mesh_writer.host_bytes(plan, sharding)
    )
    table = provenance_lib.table(plan, pieces, target, needed)
    provenance = provenance_lib.of(plan, hash_inputs)
  if max_host_bytes is not None and needed > max_host_bytes:
    raise ValueError(
      f"This mix would need {needed / 1e6:.1f} MB of host memory, more than "
      f"max_host_bytes={max_host_bytes}. Lower block_bytes (now {block_bytes}) "
      f"or threads (now {plan.threads}).\n{table}"
    )
  if target:
    target.check(provenance)
  params = report = None
  if not dry_run:
    settings = {
      "hash_inputs": hash_inputs,
      "check_finite": check_finite,
      "progress": _progress(progress),
      "processes": processes.all_of_them(),
    }
    if to_disk is None:
      writer = mesh_writer.MeshWriter(plan, sharding)
      report = engine.run(plan, pieces, writer, **settings)
      params = jax.tree.unflatten(plan.treedef, map(writer.array, plan.specs))
      provenance = provenance_lib.complete(provenance, plan, report)
      if target:
        target.save(params, provenance)
        params = None
    else:
      with to_disk.opened(provenance) as file_writer:
        report = engine.run(plan, pieces, file_writer, **settings)
        with tree.without_collection():
          provenance = provenance_lib.complete(provenance, plan, report)
          to_disk.describe(provenance)
          file_writer.finish(provenance)
  return Mixed(
    params=params,
    path=None if target is None or dry_run else target.path,
    table=table,
    provenance=provenance,
    report=report,
    host_bytes=needed,
    temporary_bytes=combine.temporary_bytes(plan, pieces) if dry_run else None,
    disk_bytes=0 if target is None else target.num_bytes,
  )


def _check_types(rule, sharding, **numbers):
  if not isinstance(rule, rules.Rule):
    raise TypeError(
      "rule must be one of sj.rules, such as sj.rules.linear(), got "
      f"{rule!r:.80}."
    )
  for name, value in numbers.items():
    whole = isinstance(value, int | np.integer | None)
    if not whole or isinstance(value, bool):
      raise TypeError(
        f"{name} must be a whole number, such as {name}="
        f"{'4' if name == 'threads' else '4 << 30'}, got {value!r:.80}."
      )
  if not isinstance(sharding, jax.sharding.Sharding | Callable | None):
    raise TypeError(
      "sharding must be a jax.sharding.Sharding, or a function of leaf name "
      f"and spec that returns one, got {sharding!r:.80}."
    )


def _check_sharding(plan, sharding):
  """Checks that the sharding fits the shape of every leaf."""
  for leaf, spec in plan.specs.items():
    leaf_sharding = sharding_of(sharding, leaf, spec)
    try:
      if leaf_sharding is not None:
        leaf_sharding.shard_shape(spec.shape)
    except Exception as e:  # The class that JAX raises is not public.
      raise ValueError(
        f"Leaf {leaf!r} of shape {spec.shape} cannot be sharded as "
        f"{leaf_sharding}: {str(e).splitlines()[0]:.200} Give a function "
        "of leaf name and spec that returns another sharding for this leaf."
      ) from e


def _pieces(plan, target, sharding):
  """Returns the pieces of the output that this process makes."""
  if target is None:
    _check_sharding(plan, sharding)
    return planning.pieces(plan, mesh_writer.parts(plan, sharding), plan.chunks)
  whole = {leaf: [slices.whole(s.shape)] for leaf, s in plan.specs.items()}
  pieces = planning.pieces(plan, whole, target.chunks)
  if jax.process_count() == 1:
    return pieces
  sizes = [slices.size(box) for _, box in pieces]
  return planning.share(pieces, sizes, jax.process_index(), jax.process_count())


def _progress(progress):
  """Returns the callback that reports progress, or None."""
  if callable(progress):
    return progress
  if progress is None:
    progress = sys.stderr is not None and sys.stderr.isatty()
  if not progress or jax.process_index() != 0:
    return None
  bar = Progress("mix", 0, unit="bytes", file=sys.stderr)

  def show(done, total):
    bar.total = total
    bar.step(done - bar.done)

  return show
