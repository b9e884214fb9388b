# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes the parameters of one model, whole or not at all."""

from collections.abc import Mapping
import dataclasses
import os
from typing import Any

from soupjax.checkpoints import destination, mesh_writer
from soupjax.soups import rules
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
    path: `*.safetensors` and `*.npz` are files, anything else is an Orbax
      directory, whose path must not have `*`, `?` or `[` in it; nothing must
      be there.
    params: a pytree of arrays, on the host or on a mesh; or an Ingredient, or
      the path of a checkpoint.
    metadata: JSON to keep with the weights.

  Raises:
    ValueError: if something is at `path`, or the tree cannot be stored: it has
      no leaves, one is no array, or two would get one name.

  Examples:
    >>> sj.save_params("a.safetensors", {"w": jnp.arange(3.0)})
    >>> sj.load_params("a.safetensors")
    {'w': array([0., 1., 2.], dtype=float32)}
  """
  path = os.path.abspath(os.path.expanduser(os.fspath(path)))
  if os.path.exists(path):
    raise ValueError(f"{path} exists already: delete it, or choose another.")
  params = as_ingredient(params, "params").load()
  if path.endswith((".safetensors", ".npz")):
    write(path, params, metadata)
    return
  # Orbax takes a second to import: only where it is needed.
  from soupjax.checkpoints.formats import orbax

  orbax.save(path, params, metadata)


def write(
  path: str | os.PathLike,
  params: PyTree,
  metadata: Mapping[str, Any] | None = None,
  *,
  overwrite: bool = False,
  text: Mapping[str, str] | None = None,
) -> None:
  """Writes a tree to a safetensors or npz file, whole or not at all.

  Leaves may be spread over a mesh, also of several processes: each writes what
  its own devices hold.

  Args:
    path: `*.safetensors` or `*.npz`.
    params: a pytree of arrays.
    metadata: JSON to keep with the weights.
    overwrite: replaces what is at `path`.
    text: more metadata, of safetensors only; as `{"format": "pt"}`.

  Raises:
    ValueError: if something is there, or cannot be written.
  """
  source = Ingredient.from_params("params", params)
  plan = planning.make(
    rules.linear(), [source], base=source, select={"": "keep"}
  )
  target = destination.Destination.of(path, None, None, overwrite, plan)
  target = dataclasses.replace(target, text=text)
  metadata = dict(metadata or {})
  target.check(metadata)
  pieces = planning.pieces(plan, mesh_writer.held(source), {})
  with target.opened(metadata) as writer:
    engine.run(plan, pieces, writer, check_finite=False)
    writer.finish(metadata)
