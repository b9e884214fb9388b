# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Finds, opens and reads checkpoints of any format."""

from collections.abc import Sequence
import dataclasses
import glob
import os
import pathlib
import re
from typing import Any

from soupjax import files
from soupjax.checkpoints import companions
from soupjax.checkpoints.formats import byte_ranges
from soupjax.checkpoints.formats.recognise import absolute, recognise
from soupjax.soups.core.ingredient import Ingredient, as_ingredient

PyTree = Any

# Suffixes of the files that `**` finds.
_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth", ".bin", ".ckpt")


def find_ingredients(
  pattern: str | os.PathLike | Sequence[str | os.PathLike],
) -> list[Ingredient]:
  """Opens all checkpoints that a pattern matches; reads metadata only.

  Args:
    pattern: a path or several, which may contain `*`, `?`, `[...]` or `**`. A
      path that exists is taken literally. Wildcards do not match names that
      start with a dot. `**` skips files and directories that are not
      checkpoints.

  Returns:
    Ingredients in natural order of their paths (2 before 10), without
    duplicates, named by the parts of the paths that differ. `metrics.json` and
    `hyperparameters.json` are read from the directory of each checkpoint, or
    from the parent of a directory called `params`.

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
    raise ValueError("No ingredients: the list of patterns is empty.")
  for pattern in [os.fspath(p) for p in patterns]:
    matches = _matches(pattern)
    if not matches:
      raise ValueError(
        f"No ingredients: nothing matches {pattern!r} (searched from "
        f"{os.getcwd()})."
      )
    paths += sorted(matches, key=_natural)
  opened: dict[str, tuple[str, Ingredient]] = {}
  for path in paths:
    path = path if byte_ranges.is_remote(path) else os.path.abspath(path)
    inner, file_format = recognise(path)
    key = inner if byte_ranges.is_remote(inner) else os.path.realpath(inner)
    if key not in opened:
      opened[key] = path, _open(path, inner, file_format)
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
    paths = glob.glob(pattern, recursive=True)
    return _checkpoints(paths) if "**" in pattern else paths
  if not re.search(r"[*?\[]", pattern):
    return [pattern]
  # The directory before the first wildcard.
  folder = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0]
  matches = byte_ranges.remote_path(folder).glob(pattern[len(folder) + 1 :])
  return [os.fspath(path) for path in matches]


def _checkpoints(paths: Sequence[str]) -> list[str]:
  """Returns the paths of checkpoints, without those of their parts."""
  checkpoints: list[str] = []
  # Directories sort before their content.
  for path in sorted(os.path.abspath(path) for path in paths):
    inside = any(
      pathlib.PurePath(path).is_relative_to(folder) for folder in checkpoints
    )
    if not inside and _may_be_checkpoint(path):
      checkpoints.append(path)
  return checkpoints


def _may_be_checkpoint(path: str) -> bool:
  """Whether to open a path, which may be a damaged checkpoint."""
  place = pathlib.Path(path)
  if not place.is_dir():
    return place.name.endswith(_SUFFIXES)
  from soupjax.checkpoints.formats import orbax

  # Without an index, each file in a directory of safetensors is a checkpoint.
  return (
    orbax.is_orbax(place)
    or orbax.is_orbax(place / "params")
    or any(place.glob("*.safetensors.index.json"))
  )


def open_ingredient(path: str | os.PathLike) -> Ingredient:
  """Opens one checkpoint of any format lazily; reads metadata only.

  The format is recognised by content: Orbax directories of either layout (or
  with one in `params/`), safetensors files, directories and indices, `.npz`
  files, and torch zip files.

  Args:
    path: of the checkpoint.

  Returns:
    The ingredient, named by the last part of its path that is not `params`.

  Raises:
    ValueError: if the path does not exist, is damaged or has an unknown format.

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


def _open(path: str, inner: str, file_format) -> Ingredient:
  """Opens the checkpoint at a path together with its JSON files."""
  with byte_ranges.naming(inner):
    ingredient = file_format.open_checkpoint(inner, _short_names([path])[0])
  return dataclasses.replace(
    ingredient,
    metrics=_sidecar(path, "metrics.json"),
    hyperparameters=_sidecar(path, "hyperparameters.json"),
    configs=companions.read(path),
  )


def load_params(model: Any, *, sharding: Any = None) -> PyTree:
  """Reads the parameters of one model.

  Args:
    model: a path, as for `open_ingredient`; or an Ingredient, or a tree.
    sharding: as in `Ingredient.load`; None reads into host memory.

  Returns:
    The tree, in nested dicts and lists.

  Raises:
    ValueError: if the checkpoint is incomplete or damaged.
  """
  return as_ingredient(model, "params").load(sharding=sharding)


def _natural(path: str) -> list[Any]:
  return [
    (1, int(part), "") if part.isdecimal() else (0, 0, part)
    for part in re.split(r"(\d+)", path)
  ]


def _short_names(paths: Sequence[str]) -> list[str]:
  """Drops the leading and trailing path components that all paths share."""
  parts = [pathlib.PurePath(path).parts for path in paths]
  # A last component "params" is dropped unless two names would be equal.
  shorter = [p[:-1] if p[-1] == "params" and p[1:] else p for p in parts]
  if len(set(shorter)) == len(set(parts)):
    parts = shorter
  if len(parts) == 1:
    return [parts[0][-1]]
  # The shortest path keeps at least one component.
  spare = min(map(len, parts)) - 1
  front = back = 0
  while front < spare and len({p[front] for p in parts}) == 1:
    front += 1
  while back < spare - front and len({p[-1 - back] for p in parts}) == 1:
    back += 1
  return ["/".join(p[front : len(p) - back]) for p in parts]


def _sidecar(path: str, name: str) -> dict[str, Any]:
  """Returns the JSON object in a file beside a checkpoint, {} if none exists.

  For a directory called `params`, the file may also be in its parent.
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
