# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Finds, opens and reads checkpoints of any format."""

from collections.abc import Sequence
import dataclasses
import functools
import glob
import os
import pathlib
import re
from typing import Any
import warnings

from absl import logging

from soupjax.checkpoints import companions
from soupjax.checkpoints.adapters import peft_config
from soupjax.checkpoints.adapters.opened import BASE_HASH, open_adapter
from soupjax.checkpoints.formats import byte_ranges
from soupjax.checkpoints.formats.foreign import dcp
from soupjax.checkpoints.formats.params_of_state import NotAModel
from soupjax.checkpoints.formats.recognise import absolute, recognise
from soupjax.soups.core import records, tree
from soupjax.soups.core.ingredient import Ingredient, as_ingredient

PyTree = Any

# Names of files whose directory is one checkpoint.
_SHARDS = (
  *("*.safetensors.index.json", "*.bin.index.json"),
  *("*-00001-of-*.safetensors", "*-00001-of-*.bin"),
)
# Suffixes of the files that `**` finds.
_SUFFIXES = tuple(
  ".safetensors .npz .pt .pth .pth.tar .bin .ckpt .msgpack .onnx".split()
)


def find_ingredients(
  pattern: str | os.PathLike | Sequence[str | os.PathLike],
  *,
  base: Any = None,
) -> list[Ingredient]:
  """Opens all checkpoints that a pattern matches; reads metadata only.

  Args:
    pattern: a path or several, which may contain `*`, `?`, `[...]` or `**`. A
      path that exists is taken literally. Wildcards do not match names that
      start with a dot. `**` skips files and directories without a model, such
      as optimizer states, and logs their names. `#ENTRY` at the end reads one
      entry of train states, see `open_ingredient`.
    base: the base model of all PEFT adapters that match, in any form; see
      `open_adapter`. Full checkpoints do not need it.

  Returns:
    Ingredients in natural order of their paths (2 before 10), without
    duplicates, named after the parts of the paths that differ. `metrics.json`
    and `hyperparameters.json` are read from the directory of each checkpoint,
    or from the parent of a directory called `params`.

  Raises:
    ValueError: if nothing matches, or a match is not a checkpoint or contains
      several models.

  Examples:
    >>> for name in ("a", "b"):
    ...   sj.save_params(f"sweep/{name}.npz", {"w": jnp.zeros(2)})
    >>> [model.name for model in sj.find_ingredients("sweep/*.npz")]
    ['a.npz', 'b.npz']
  """
  patterns = [pattern] if isinstance(pattern, (str, os.PathLike)) else pattern
  places = _places([os.fspath(p) for p in patterns])
  opened: dict[tuple[str, str | None], tuple[str, Ingredient]] = {}
  passed: list[str] = []
  opened_base = functools.cache(lambda: as_ingredient(base, "base"))
  for path, entry, by_search in places:
    path = path if byte_ranges.is_remote(path) else os.path.abspath(path)
    if base is not None and peft_config.is_adapter(path):
      key = os.path.realpath(path), None
      opened.setdefault(key, (path, open_adapter(path, opened_base())))
      continue
    inner, file_format = recognise(path)
    real = inner if byte_ranges.is_remote(inner) else os.path.realpath(inner)
    if (real, entry) in opened:
      continue
    try:
      opened[real, entry] = path, _open(path, inner, file_format, entry)
    except NotAModel:
      if not by_search:
        raise
      passed.append(path)
  if passed:
    files_passed = f"{len(passed)} files without a model: {passed[:10]}"
    if not opened:
      raise ValueError(f"No ingredients: {patterns} match {files_passed}.")
    logging.warning("%s: passed over %s", patterns, files_passed)
  names = short_names([path for path, _ in opened.values()])
  ingredients = [
    dataclasses.replace(ingredient, name=_with_entry(name, entry))
    for (_, entry), (_, ingredient), name in zip(opened, opened.values(), names)
  ]
  _warn_of_ignored(ingredients)
  _warn_of_bases(ingredients)
  return ingredients


def paths_of(patterns: Sequence[str]) -> list[str]:
  """Returns the paths that patterns match, in the order of `find_ingredients`.

  Raises:
    ValueError: if a pattern matches nothing.
  """
  return list(dict.fromkeys(path for path, _, _ in _places(patterns)))


def _places(patterns: Sequence[str]) -> list[tuple[str, str | None, bool]]:
  """Returns path, entry and whether it was found by `**`, for every match."""
  if not patterns:
    raise ValueError("No ingredients: the list of patterns is empty.")
  places: list[tuple[str, str | None, bool]] = []
  for pattern in patterns:
    paths, entry = _matches(pattern)
    if not paths:
      raise ValueError(
        f"No ingredients: nothing matches {pattern!r} (searched from "
        f"{os.getcwd()})."
      )
    by_search = "**" in pattern and pattern not in paths
    places += [(p, entry, by_search) for p in sorted(paths, key=_natural)]
  return places


def split_patterns(text: str) -> list[str]:
  """Splits a list of paths and patterns at commas.

  Args:
    text: paths and patterns, joined by commas. A comma belongs to a path or
      pattern if the text with it matches a file.

  Returns:
    The parts, as few as possible.

  Examples:
    >>> sj.save_params("lr=0.1,wd=0.npz", {"w": jnp.zeros(2)})
    >>> sj.save_params("base.npz", {"w": jnp.zeros(2)})
    >>> split_patterns("lr=0.1,wd=0.npz, base.npz")
    ['lr=0.1,wd=0.npz', 'base.npz']
    >>> split_patterns("lr=*, base.npz")
    ['lr=*', 'base.npz']
  """
  words = text.split(",")
  # best[n] is the split of the first n words into the fewest parts.
  best: list[list[str]] = [[]]
  for end in range(1, len(words) + 1):
    options = []
    for start in range(end):
      part = ",".join(words[start:end]).strip()
      if end - start == 1 or _is_joined(part):
        options.append(best[start] + ([part] if part else []))
    best.append(min(options, key=len))
  return best[-1]


def _is_joined(part: str) -> bool:
  """Whether a text with a comma is one path or pattern."""
  # Remote addresses are never joined, since looking them up takes time.
  if byte_ranges.is_remote(part):
    return False
  paths, entry = _matches(part)
  # In "a.pt#model,b.pt" the comma ends the name of the entry.
  return bool(paths) and "," not in (entry or "")


def matches(pattern: str) -> list[str]:
  """Returns the paths that a pattern matches, without opening them."""
  return _matches(pattern)[0]


def _matches(pattern: str) -> tuple[list[str], str | None]:
  """Returns the paths that match, and the entry after '#', if any."""
  paths = _glob(pattern) if not byte_ranges.is_remote(pattern) else []
  if paths:
    return paths, None
  path, entry = _split_entry(pattern)
  return _glob(path), entry


def _split_entry(path: str) -> tuple[str, str | None]:
  """Splits off the entry after '#', unless '#' is part of an existing path."""
  if "#" not in path:
    return path, None
  if byte_ranges.is_remote(path):
    exists = byte_ranges.remote_path(path).exists()
  else:
    exists = os.path.exists(os.path.expanduser(path))
  if exists:
    return path, None
  path, _, entry = path.rpartition("#")
  return path, entry


def _glob(pattern: str) -> list[str]:
  if not byte_ranges.is_remote(pattern):
    pattern = os.path.expanduser(pattern)
    if os.path.exists(pattern):
      return [pattern]
    paths = glob.glob(_literal_parents(pattern), recursive=True)
    return _checkpoints(paths) if "**" in pattern else paths
  if not re.search(r"[*?\[]", pattern):
    return [pattern]
  # The directory before the first wildcard.
  folder = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0]
  matches = byte_ranges.remote_path(folder).glob(pattern[len(folder) + 1 :])
  return [os.fspath(path) for path in matches]


def _literal_parents(pattern: str) -> str:
  """Escapes wildcards in the leading directories that exist by that name."""
  parts = pattern.split("/")
  for count in range(len(parts) - 1, 0, -1):
    folder = "/".join(parts[:count])
    if folder and os.path.isdir(folder):
      return "/".join([glob.escape(folder), *parts[count:]])
  return pattern


def _checkpoints(paths: Sequence[str]) -> list[str]:
  """Returns the paths of checkpoints, without those of their parts."""
  checkpoints: dict[str, None] = {}
  # Directories sort before their content.
  for path in sorted(os.path.abspath(path) for path in paths):
    parents = map(str, pathlib.PurePath(path).parents)
    if checkpoints.keys().isdisjoint(parents) and _may_be_checkpoint(path):
      checkpoints[path] = None
  return list(checkpoints)


def _may_be_checkpoint(path: str) -> bool:
  """Whether to open a path, which may be a damaged checkpoint."""
  place = pathlib.Path(path)
  if not place.is_dir():
    return place.name.endswith(_SUFFIXES) and not _is_copy(place)
  from soupjax.checkpoints.formats import orbax

  # Without shards, each file in a directory of safetensors is a checkpoint.
  return (
    orbax.is_orbax(place)
    or orbax.is_orbax(place / "params")
    or (place / dcp.METADATA).exists()
    or any(any(place.glob(pattern)) for pattern in _SHARDS)
  )


def _is_copy(file: pathlib.Path) -> bool:
  """Whether a file repeats the model that transformers saved beside it.

  DeepSpeed keeps its own copy in a directory such as global_step500.
  """
  parent = file.parent
  if re.fullmatch(r"global_step\d+", parent.name):
    names = ("model*.safetensors*", "pytorch_model*.bin*")
    return any(any(parent.parent.glob(name)) for name in names)
  better = {
    "pytorch_model": ("model*.safetensors",),
    "flax_model": ("model*.safetensors", "pytorch_model*.bin"),
  }
  return any(
    file.name.startswith(stem) and any(any(parent.glob(p)) for p in patterns)
    for stem, patterns in better.items()
  )


def open_ingredient(path: str | os.PathLike) -> Ingredient:
  """Opens one checkpoint of any format lazily; reads metadata only.

  The format is recognised by content: Orbax directories of either layout (or
  with one in `params/`), safetensors files, directories and indices, `.npz`
  files, torch zip files, directories of torch.distributed.checkpoint,
  MessagePack files of Flax, and ONNX files.

  Args:
    path: path of the checkpoint. `FILE#ENTRY` reads one entry of a train state,
      such as "last.pth#teacher"; `FILE#` reads all of it.

  Returns:
    The ingredient, named after the last part of its path that is not `params`.

  Raises:
    ValueError: if the path does not exist, is damaged or has an unknown format,
      or if it contains several models.

  Examples:
    >>> sj.save_params("a.npz", {"head": {"bias": jnp.arange(3.0)}})
    >>> model = sj.open_ingredient("a.npz")
    >>> model.specs["head/bias"]
    ShapeDtypeStruct(shape=(3,), dtype=float32)
    >>> model.read("head/bias")
    array([0., 1., 2.], dtype=float32)
  """
  text, entry = _split_entry(os.fspath(path))
  path = absolute(text)
  ingredient = _open(path, *recognise(path), entry)
  _warn_of_ignored([ingredient])
  return ingredient


def _open(path: str, inner: str, file_format, entry: str | None) -> Ingredient:
  """Opens the checkpoint at a path together with its JSON files."""
  if os.path.isdir(path):
    peft_config.refuse_without_base(path)
  name = _with_entry(short_names([path])[0], entry)
  with byte_ranges.naming(inner), tree.without_collection():
    ingredient = file_format.open_checkpoint(inner, name, entry)
  return dataclasses.replace(
    ingredient,
    metrics=companions.sidecar(path, "metrics.json"),
    hyperparameters=companions.sidecar(path, "hyperparameters.json"),
    configs=companions.read(path),
  )


def _with_entry(name: str, entry: str | None) -> str:
  return f"{name}#{entry}" if entry else name


def _warn_of_ignored(ingredients: Sequence[Ingredient]) -> None:
  for sentence in records.ignored(ingredients):
    warnings.warn(sentence, stacklevel=3)


def _warn_of_bases(ingredients: Sequence[Ingredient]) -> None:
  """Warns if adapters record different bases but no hashes to compare."""
  recorded: dict[str, str] = {}
  for ingredient in ingredients:
    if ingredient.base and BASE_HASH not in ingredient.hyperparameters:
      folder = pathlib.Path(str(ingredient.path))
      name = peft_config.read(folder).base_name
      recorded.setdefault(name, ingredient.name)
  recorded.pop("", None)
  if len(recorded) > 1:
    listed = ", ".join(f"{name!r} ({i})" for name, i in recorded.items())
    warnings.warn(
      f"The adapters record several bases, {listed}, and all are merged into "
      "the one that was given. Unless these are copies of one model, average "
      "the adapters of each base separately.",
      stacklevel=3,
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


def short_names(paths: Sequence[str]) -> list[str]:
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
