# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Finds, opens and reads checkpoints, whatever their format."""

from collections.abc import Sequence
import dataclasses
import glob
import os
import pathlib
import re
from typing import Any

from soupjax import files
from soupjax.checkpoints.formats import byte_ranges
from soupjax.checkpoints.formats.recognise import absolute, recognise
from soupjax.soups.core.ingredient import Ingredient, as_ingredient

PyTree = Any

# Suffixes of files that `**` should find.
_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth", ".bin", ".ckpt")


def find_ingredients(
  pattern: str | os.PathLike | Sequence[str | os.PathLike],
) -> list[Ingredient]:
  """Opens all checkpoints that a pattern matches; reads metadata only.

  Args:
    pattern: a path with `*`, `?`, `[...]` or `**` in it, or several. A path
      that is there is taken as it is, whatever is in it. Names that begin with
      a dot are never matched. Where `**` matches, directories and files that
      are no checkpoints are passed over.

  Returns:
    Ingredients in natural order of their paths (2 before 10), named by the part
    of the path that tells them apart, each checkpoint once. `metrics.json` and
    `hyperparameters.json` in its directory are read with it, or beside it if
    it is called `params`.

  Raises:
    ValueError: if nothing matches, or a match is not a checkpoint.

  Examples:
    >>> for name in ("a", "b"):
    ...   sj.save_params(f"sweep/{name}.npz", {"w": jnp.zeros(2)})
    >>> [model.name for model in sj.find_ingredients("sweep/*.npz")]
    ['a.npz', 'b.npz']
  """
  patterns = [pattern] if isinstance(pattern, (str, os.PathLike)) else pattern
  patterns, paths = list(patterns), []
  if not patterns:
    raise ValueError("No ingredient found: got no pattern to look for.")
  for one in patterns:
    found = _matches(os.fspath(one))
    if not found:
      raise ValueError(
        f"No ingredient found: nothing matches {os.fspath(one)!r} (looked from "
        f"{os.getcwd()})."
      )
    paths += sorted(found, key=_natural)
  opened: dict[str, tuple[str, Ingredient]] = {}
  for path in paths:
    path = path if byte_ranges.is_remote(path) else os.path.abspath(path)
    inner, opener = recognise(path)
    key = inner if byte_ranges.is_remote(inner) else os.path.realpath(inner)
    if key not in opened:
      opened[key] = path, _open(path, inner, opener)
  names = _short_names([path for path, _ in opened.values()])
  return [
    dataclasses.replace(ingredient, name=name)
    for (_, ingredient), name in zip(opened.values(), names)
  ]


def _matches(pattern: str) -> list[str]:
  if not byte_ranges.is_remote(pattern):
    pattern = os.path.expanduser(pattern)
    if os.path.exists(pattern):
      return [pattern]
    found = glob.glob(pattern, recursive=True)
    return _checkpoints(found) if "**" in pattern else found
  # The part before the first wildcard is the directory to look in.
  fixed = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0]
  place = byte_ranges.remote_path(fixed)
  if fixed == pattern.rpartition("/")[0] and not re.search(r"[*?\[]", pattern):
    return [pattern]
  return [os.fspath(p) for p in place.glob(pattern[len(fixed) + 1 :])]


def _checkpoints(paths: Sequence[str]) -> list[str]:
  """Those of many paths at which there are checkpoints, not parts of them."""
  kept: list[str] = []
  # Directories come before what is in them.
  for path in sorted(os.path.abspath(p) for p in paths):
    above = pathlib.PurePath(path).parents
    if not any(pathlib.PurePath(one) in above for one in kept):
      if _may_be_checkpoint(path):
        kept.append(path)
  return kept


def _may_be_checkpoint(path: str) -> bool:
  """Whether a path is worth opening; a damaged checkpoint is."""
  place = pathlib.Path(path)
  if not place.is_dir():
    return place.name.endswith(_SUFFIXES)
  from soupjax.checkpoints.formats import orbax

  if orbax.is_orbax(place) or orbax.is_orbax(place / "params"):
    return True
  # Without an index, every file in a directory is a checkpoint by itself.
  return any(place.glob("*.safetensors.index.json"))


def open_ingredient(path: str | os.PathLike) -> Ingredient:
  """Opens one checkpoint lazily, whatever its format; reads metadata only.

  The format is recognised by content: Orbax directories of either layout (or
  with one in `params/`), safetensors files, directories and indices, `.npz`
  files, and torch zip files.

  Args:
    path: of the checkpoint.

  Returns:
    The ingredient, named by the last part of its path that is not `params`.

  Raises:
    ValueError: if there is nothing there, it is damaged, or nothing that is
      understood.

  Examples:
    >>> sj.save_params("a.npz", {"head": {"bias": jnp.arange(3.0)}})
    >>> model = sj.open_ingredient("a.npz")
    >>> model.specs["head/bias"]
    ShapeDtypeStruct(shape=(3,), dtype=float32)
    >>> model.read("head/bias")
    array([0., 1., 2.], dtype=float32)
  """
  path = absolute(path)
  return _open(path, *recognise(path))


def _open(path: str, inner: str, opener) -> Ingredient:
  """Opens what `recognise` found at a path, with what lies beside it."""
  return dataclasses.replace(
    opener(inner, _short_names([path])[0]),
    metrics=_sidecar(path, "metrics.json"),
    hyperparameters=_sidecar(path, "hyperparameters.json"),
  )


def load_params(model: Any, *, sharding: Any = None) -> PyTree:
  """Reads the parameters of one model.

  Args:
    model: a path, as for `open_ingredient`; or an Ingredient, or a tree.
    sharding: as in `Ingredient.load`; None reads into host memory.

  Returns:
    The tree, in nested dicts and lists.

  Raises:
    ValueError: if it is not a whole checkpoint.
  """
  return as_ingredient(model, "params").load(sharding=sharding)


def _natural(path: str) -> list[Any]:
  return [
    (1, int(part), "") if part.isdecimal() else (0, 0, part)
    for part in re.split(r"(\d+)", path)
  ]


def _short_names(paths: Sequence[str]) -> list[str]:
  """Drops the leading and trailing path components that all have in common."""
  parts = [pathlib.PurePath(path).parts for path in paths]
  # No name: it is where the weights are in a run. Unless two would be one.
  shorter = [p[:-1] if p[-1] == "params" and p[1:] else p for p in parts]
  if len(set(shorter)) == len(set(parts)):
    parts = shorter
  if len(parts) == 1:
    return [parts[0][-1]]
  # One component is left of the shortest, so that names differ as paths do.
  spare = min(len(p) for p in parts) - 1
  front = 0
  while front < spare and len({p[front] for p in parts}) == 1:
    front += 1
  back = 0
  while back < spare - front and len({p[-1 - back] for p in parts}) == 1:
    back += 1
  return ["/".join(p[front : len(p) - back]) for p in parts]


def _sidecar(path: str, name: str) -> dict[str, Any]:
  """Reads JSON in a checkpoint's directory, if it is one and has it.

  A directory `params` is inside that of its run, which may have it too.
  """
  if byte_ranges.is_remote(path):
    return {}
  file = pathlib.Path(path, name)
  if file.parent.name == "params" and not file.exists():
    file = file.parent.with_name(name)
  value = files.read_json(file) if file.exists() else {}
  if not isinstance(value, dict):
    raise ValueError(f"{file} must hold a JSON object, got {value!r:.80}.")
  return value
