# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Checks that overwriting deletes one checkpoint and none of the sources."""

from collections.abc import Iterable
import os
import pathlib

from soupjax.checkpoints import companions
from soupjax.checkpoints.formats import byte_ranges, safetensors
from soupjax.checkpoints.formats.recognise import recognise
from soupjax.soups.core.ingredient import Ingredient


def check_replaceable(path: str, is_directory: bool) -> None:
  """Checks that a path is nothing but a checkpoint or an empty directory.

  Args:
    path: of an existing file or directory.
    is_directory: whether a directory will replace it.

  Raises:
    ValueError: if a file would replace a directory or the other way round, or
      if the directory has other content than a checkpoint.
  """
  if os.path.isdir(path) != is_directory:
    kinds = ("file", "directory") if is_directory else ("directory", "file")
    raise ValueError(
      f"{path} is a {kinds[0]} and would be replaced by a {kinds[1]}: delete "
      "it yourself or choose another out=."
    )
  if not is_directory or not os.listdir(path):
    return
  try:
    inner, file_format = recognise(path)
    if inner != path:
      raise ValueError(f"the checkpoint is {inner}, next to other files")
    file_format.open_checkpoint(inner, "")
    if file_format is safetensors:
      _check_alone(path)
  except ValueError as e:
    raise ValueError(
      "overwrite=True only replaces a checkpoint or an empty directory, and "
      f"{path} is neither ({e}). Delete it yourself or choose another out=."
    ) from e


def _check_alone(folder):
  """Checks that a directory of safetensors has no other content."""
  others = sorted(
    entry.name
    for entry in os.scandir(folder)
    if entry.is_dir()
    or not entry.name.endswith((".safetensors", ".json"))
    and entry.name not in companions.NAMES
  )
  if others:
    raise ValueError(f"it also holds {others[:10]}")


def check_sources(path: str, sources: Iterable[Ingredient]) -> None:
  """Checks that a soup does not replace any of its sources.

  Args:
    path: of the soup.
    sources: that are read.

  Raises:
    ValueError: naming a source that is at the path, in it or around it.
  """
  for source in sources:
    if not source.path or byte_ranges.is_remote(source.path):
      continue
    files = _files(source.path)
    if os.path.realpath(source.path) == os.path.realpath(path):
      relation = "is"
    elif any(_is_inside(file, path) for file in files):
      relation = "is or contains part of"
    elif (
      # In an Orbax directory, every file is needed.
      os.path.exists(path)
      and os.path.isdir(source.path)
      and _is_inside(path, source.path)
      and files == [source.path]
    ):
      relation = "is part of"
    else:
      continue
    raise ValueError(
      f"{path} {relation} the ingredient {source.name!r}: a soup cannot "
      "replace what it is made of. Choose another out=."
    )


def _is_inside(path, folder) -> bool:
  """Whether a path is a folder or in it, with links resolved or not."""
  return any(
    pathlib.PurePath(name).is_relative_to(outer)
    for name in _names(path)
    for outer in _names(folder)
  )


def _names(path) -> set[str]:
  """Returns a path without links, and with a link as its last part only."""
  folder, name = os.path.split(os.path.abspath(path))
  return {os.path.realpath(path), os.path.join(os.path.realpath(folder), name)}


def _files(path) -> list[str]:
  """Returns the path of a checkpoint and those of its shards."""
  if not path.endswith(".index.json") and not os.path.isdir(path):
    return [path]
  try:
    inner, file_format = recognise(path)
    files_of = getattr(file_format, "files_of", lambda inner: ())
    return [path, *files_of(inner)]
  except ValueError:  # It is gone, or the user's own reader opened it.
    return [path]
