# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes the parameters of one model, whole or not at all."""

from collections.abc import Mapping
import os
from typing import Any

import jax

from soupjax import buckets, files, processes
from soupjax.checkpoints import (
  bucket_writer,
  destination,
  mesh_writer,
  readable,
  replaceable,
)
from soupjax.checkpoints.formats.recognise import absolute
from soupjax.soups import rules
from soupjax.soups.core import tree
from soupjax.soups.core.ingredient import Ingredient, as_ingredient
from soupjax.soups.engine import plan as planning
from soupjax.soups.engine import run as engine

PyTree = Any


def save_params(
  path: str | os.PathLike,
  params: Any,
  *,
  metadata: dict[str, Any] | None = None,
) -> None:
  """Writes parameters, whole or not at all.

  Args:
    path: path of a new file (`*.safetensors`, `*.npz`, or `*.pt`, `*.pth` and
      `*.bin` for torch) or Orbax directory (anything else, without `*`, `?` and
      `[`).
    params: a pytree of arrays, on the host or on a mesh; or an Ingredient, or
      the path of a checkpoint.
    metadata: JSON to store with the weights.

  Raises:
    ValueError: if `path` exists or has the suffix of another format, or the
      tree cannot be stored: it has no leaves, a leaf is not an array, two
      leaves would get the same name, or a reader would miss one.

  Examples:
    >>> sj.save_params("a.safetensors", {"w": jnp.arange(3.0)})
    >>> sj.load_params("a.safetensors")
    {'w': array([0., 1., 2.], dtype=float32)}
  """
  path = absolute(path)
  file_format = destination.format_of(path, None)
  in_bucket = buckets.is_remote(path)
  if in_bucket:
    buckets.check_bucket(path)
  taken = buckets.exists if in_bucket else os.path.lexists
  if taken(path) and not (in_bucket and replaceable.is_interrupted(path)):
    raise ValueError(f"{path} exists already: delete it or choose another.")
  params = as_ingredient(params, "params").load()
  if file_format != "orbax":
    write(path, params, metadata)
    return
  if in_bucket:
    specs = tree.value_specs(tree.flatten(params)[0], "the tree to save")
    expected = readable.check_names(path, specs)
    bucket_writer.start(path, params, metadata)()
    if jax.process_index() == 0:
      readable.check_written(path, path, expected)
    processes.barrier("published")
    return
  _write_orbax(path, params, metadata)


def _write_orbax(path, params, metadata):
  # Imported here because importing Orbax takes a second.
  from soupjax.checkpoints.formats import orbax

  leaves, _ = tree.flatten(params)
  specs = tree.value_specs(leaves, "the tree to save")
  expected = readable.check_names(path, specs)
  temporary = str(files.temporary_name(path))
  first = jax.process_index() == 0
  # Orbax writes in threads that cannot be stopped.
  with files.uninterrupted():
    if first and os.path.lexists(temporary):
      replaceable.check_leftover(temporary, is_directory=True)
      destination.remove(temporary)
    processes.barrier("prepared")
    try:
      orbax.save(temporary, params, metadata, path)
      if first:
        readable.check_written(temporary, path, expected)
        os.rename(temporary, path)
    except BaseException:
      if first:
        destination.remove(temporary)
      raise
    processes.barrier("published")


def write(
  path: str | os.PathLike,
  params: PyTree,
  metadata: Mapping[str, Any] | None = None,
  *,
  overwrite: bool = False,
  text: Mapping[str, str] | None = None,
) -> None:
  """Writes a tree to a safetensors, npz or torch file, whole or not at all.

  Leaves may be sharded over a mesh of several processes, each of which writes
  the slices on its own devices.

  Args:
    path: `*.safetensors`, `*.npz` or `*.pt`.
    params: a pytree of arrays.
    metadata: JSON to store with the weights.
    overwrite: whether to replace an existing checkpoint.
    text: text metadata, for safetensors only, such as `{"format": "pt"}`.

  Raises:
    ValueError: if `path` exists or cannot be written.
  """
  source = Ingredient.from_params("params", params)
  plan = planning.make(
    rules.linear(), [source], base=source, select={"": "keep"}
  )
  target = destination.Destination(path, None, None, overwrite, plan, text)
  metadata = dict(metadata or {})
  target.check(metadata)
  pieces = planning.pieces(plan, mesh_writer.owned_slices(source), {})
  with target.opened(metadata) as writer:
    engine.run(plan, pieces, writer, check_finite=False)
    writer.finish(metadata)
