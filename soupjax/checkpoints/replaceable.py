# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Checks what a soup may replace: a checkpoint that it is not made of."""

from collections.abc import Iterable
import os
import pathlib

from soupjax.checkpoints.formats import byte_ranges, safetensors
from soupjax.checkpoints.formats.recognise import recognise
from soupjax.soups.core.ingredient import Ingredient


def check_replaceable(path: str, is_directory: bool) -> None:
  """Checks that no more than a checkpoint is lost if a path is replaced.

  Args:
    path: what is there.
    is_directory: whether a directory will take its place.

  Raises:
    ValueError: if it is of the other kind, or a directory that is neither empty
      nor a checkpoint and nothing else.
  """
  if os.path.isdir(path) != is_directory:
    kinds = ("file", "directory") if is_directory else ("directory", "file")
    raise ValueError(
      f"{path} is a {kinds[0]}, and would be replaced by a {kinds[1]}: delete "
      "it yourself, or choose another out=."
    )
  if not is_directory or not os.listdir(path):
    return
  try:
    inner, opener = recognise(path)
    if inner != path:
      raise ValueError(f"the checkpoint is {inner}, with more beside it")
    opener(inner, "")
    if opener is safetensors.open_checkpoint:
      _check_alone(path)
  except ValueError as e:
    raise ValueError(
      f"{path} holds more than a checkpoint, or none that can be opened: "
      "overwrite=True replaces nothing else. Delete it yourself, or choose "
      f"another out=. ({e})"
    ) from e


def _check_alone(folder):
  """Any directory with one safetensors file in it can be opened."""
  others = sorted(
    entry.name
    for entry in os.scandir(folder)
    if entry.is_dir() or not entry.name.endswith((".safetensors", ".json"))
  )
  if others:
    raise ValueError(f"it holds {others[:10]} as well")


def check_sources(path: str, sources: Iterable[Ingredient]) -> None:
  """Checks that no source is lost if a path is replaced.

  Args:
    path: where a soup will be.
    sources: what is read.

  Raises:
    ValueError: naming a source that is at the path or below it, or that the
      path is part of.
  """
  for source in sources:
    if not source.path or byte_ranges.is_remote(source.path):
      continue
    lost = ""
    if os.path.realpath(source.path) == os.path.realpath(path):
      lost = "is"
    elif any(_below(file, path) for file in _files(source.path)):
      lost = "is, or has in it, part of"
    elif os.path.exists(path) and _inside_orbax(path, source.path):
      lost = "is part of"
    if lost:
      raise ValueError(
        f"{path} {lost} the ingredient {source.name!r}: a soup cannot replace "
        "what it is made of. Choose another out=."
      )


def _below(path, folder) -> bool:
  """Whether a path is another, or in it."""
  return any(
    pathlib.PurePath(one).is_relative_to(other)
    for one in _names(path)
    for other in _names(folder)
  )


def _names(path) -> set[str]:
  """A path without links, and the same with a link as its last part."""
  folder, name = os.path.split(os.path.abspath(path))
  return {os.path.realpath(path), os.path.join(os.path.realpath(folder), name)}


def _files(path) -> list[str]:
  """A checkpoint, and the files of one that is in shards."""
  if not path.endswith(".index.json") and not os.path.isdir(path):
    return [path]
  try:
    opener = recognise(path)[1]
    sharded = opener is safetensors.open_checkpoint
    return [path, *(safetensors.files_of(path) if sharded else ())]
  except ValueError:  # Gone, or read by other means than ours.
    return [path]


def _inside_orbax(path, source) -> bool:
  """Whether a path is in a directory of which every file is needed."""
  if not os.path.isdir(source):
    return False
  return _below(path, source) and _files(source) == [source]
