# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Checks that an output replaces nothing but a checkpoint, and no source."""

from collections.abc import Iterable, Iterator
import contextlib
import os
import pathlib
import stat

from soupjax import buckets
from soupjax.checkpoints import companions, model_card
from soupjax.checkpoints.formats import safetensors
from soupjax.checkpoints.formats.recognise import TORCH_FILE, recognise
from soupjax.soups.core.ingredient import Ingredient


def check_replaceable(path: str, is_directory: bool) -> None:
  """Checks that a path is nothing but a checkpoint or an empty directory.

  Args:
    path: path of an existing file or directory.
    is_directory: whether a directory will replace it.

  Raises:
    ValueError: if a file would replace a directory or the other way round, if
      it is a link, a device or a pipe, or if it is not a checkpoint or has
      other content.
  """
  mode = os.lstat(path).st_mode
  if stat.S_ISLNK(mode):
    raise ValueError(
      f"{path} is a link to {os.readlink(path)}, and links are not replaced: "
      "write to what it points to, delete it or choose another out=."
    )
  if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
    raise ValueError(
      f"{path} is neither a file nor a directory but a device, pipe or socket, "
      "which is never replaced: choose another out=."
    )
  if stat.S_ISDIR(mode) != is_directory:
    kinds = ("file", "directory") if is_directory else ("directory", "file")
    raise ValueError(
      f"{path} is a {kinds[0]} and would be replaced by a {kinds[1]}: delete "
      "it yourself or choose another out=."
    )
  if is_directory and not os.listdir(path):
    return
  try:
    inner, file_format = recognise(path)
    if inner != path:
      raise ValueError(f"the checkpoint is {inner}, next to other files")
    file_format.open_checkpoint(inner, "")
    if file_format is safetensors and is_directory:
      _check_alone(path)
  except (ValueError, OSError) as e:
    raise ValueError(
      "overwrite=True only replaces a checkpoint or an empty directory, and "
      f"{path} is neither ({e}). Delete it yourself or choose another out=."
    ) from e


def check_object(path: str, is_directory: bool) -> None:
  """Checks that an output in a bucket replaces nothing but a checkpoint.

  Args:
    path: the address of an existing object, or a prefix of several.
    is_directory: whether the output has several objects.

  Raises:
    ValueError: if it is not a checkpoint, or not a single object.
  """
  if is_directory or buckets.is_directory(path):
    raise ValueError(
      f"{path} has objects below it, which cannot be replaced in one step: "
      "delete them yourself or choose another out=."
    )
  try:
    inner, file_format = recognise(path)
    file_format.open_checkpoint(inner, "")
  except ValueError as e:
    raise ValueError(
      f"overwrite=True only replaces a checkpoint, and {path} is not one: {e} "
      "Delete it yourself or choose another out=."
    ) from e


def is_interrupted(path: str) -> bool:
  """Whether an upload of several objects to an address was interrupted.

  File names do not show this: another program may have written them.
  """
  return buckets.exists(f"{path}/{buckets.UNFINISHED}") and not (
    buckets.exists(f"{path}/commit_success.txt")
  )


def check_leftover(path: str, is_directory: bool) -> None:
  """Checks that a temporary file or directory was left by a killed run.

  Args:
    path: path of an existing file or directory.
    is_directory: whether the run writes a directory.

  Raises:
    ValueError: if it holds anything that soupjax does not write.
  """
  mode = os.lstat(path).st_mode
  if is_directory and stat.S_ISDIR(mode):
    others = sorted(name for name in os.listdir(path) if not _is_part(name))
  elif not is_directory and stat.S_ISREG(mode):
    # Headers are written last: until then, a file begins with zeros.
    with open(path, "rb") as f:
      head = f.read(8)
    ours = head[:4] in (b"", bytes(len(head[:4])), b"PK\x03\x04")
    others = [] if ours or safetensors.is_safetensors(path) else [path]
  else:
    others = [path]
  if others:
    raise ValueError(
      f"{path} is needed while the soup is written, but it was not left by a "
      f"run of soupjax (see {others[0]}): move it away or choose another out=."
    )


def _is_part(name: str) -> bool:
  """Whether soupjax writes a name at the top level of output directories."""
  return name in (
    *(
      "state",
      "orbax.checkpoint",
      "commit_success.txt",
      "_CHECKPOINT_METADATA",
    ),
    "._CHECKPOINT_METADATA.tmp",
    *(*companions.NAMES, model_card.NAME),
    *(f".{file}.tmp" for file in (*companions.NAMES, model_card.NAME)),
  ) or name.endswith((".safetensors", ".index.json", ".index.json.tmp"))


def _check_alone(folder):
  """Checks that a directory of safetensors has no other content."""
  others = sorted(
    entry.name
    for entry in os.scandir(folder)
    if entry.is_dir()
    or not entry.name.endswith((".safetensors", ".json"))
    and entry.name not in companions.NAMES
    # A card that the user has edited is not lost.
    and not (
      entry.name == model_card.NAME
      and model_card.is_unchanged(pathlib.Path(entry.path))
    )
  )
  if others:
    raise ValueError(f"it also holds {others[:10]}")


def check_sources(path: str, sources: Iterable[Ingredient]) -> None:
  """Checks that a soup does not replace or change any of its sources.

  Args:
    path: path of the soup.
    sources: the ingredients that are read.

  Raises:
    ValueError: naming a source that is at the path, inside it, or a directory
      that contains it.
  """
  for source in _with_bases(sources):
    if not source.path:
      continue
    if buckets.is_remote(source.path) or buckets.is_remote(path):
      if (
        pathlib.PurePath(path)
        in (
          pathlib.PurePath(source.path),
          *pathlib.PurePath(source.path).parents,
        )
        or pathlib.PurePath(source.path) in pathlib.PurePath(path).parents
      ):
        raise ValueError(
          f"{path} is or contains the ingredient {source.name!r}, or is in it: "
          "a soup must not replace or change what it is made of. Choose "
          "another out=."
        )
      continue
    if os.path.realpath(source.path) == os.path.realpath(path):
      relation = "is"
    elif any(_is_inside(file, path) for file in _files(source.path)):
      relation = "is or contains part of"
    elif any(_is_inside(path, folder) for folder in _folders(source.path)):
      relation = "is in the folder of"
    else:
      continue
    raise ValueError(
      f"{path} {relation} the ingredient {source.name!r}: a soup must not "
      "replace or change what it is made of. Choose another out=."
    )


def _with_bases(sources: Iterable[Ingredient]) -> Iterator[Ingredient]:
  """Yields ingredients, and the models below those that are adapters."""
  for source in sources:
    yield source
    if source.base is not None:
      yield from _with_bases([source.base])


def check_outside(path: str | os.PathLike, sources: Iterable[Ingredient]):
  """Checks that a directory of results is not in the folder of an ingredient.

  Args:
    path: path of the directory.
    sources: the ingredients that are read.

  Raises:
    ValueError: naming the ingredient's checkpoint.
  """
  for source in _with_bases(sources):
    if not source.path or buckets.is_remote(source.path):
      continue
    check_folder(path, source.path)


def check_folder(path: str | os.PathLike, checkpoint: str) -> None:
  """Checks that a directory of results is not in the folder of a checkpoint.

  Args:
    path: path of the directory.
    checkpoint: path of the checkpoint.

  Raises:
    ValueError: naming the checkpoint.
  """
  if buckets.is_remote(path) or buckets.is_remote(checkpoint):
    return
  for folder in _folders(checkpoint):
    if _is_inside(os.fspath(path), folder):
      raise ValueError(
        f"{path} is in the folder of the checkpoint {checkpoint}, which would "
        "no longer be alone in it. Choose another --workdir."
      )


def _folders(path: str) -> list[str]:
  """Returns the folders that are opened as the checkpoint at a path."""
  folders = [path] if os.path.isdir(path) else []
  parent, name = os.path.split(path)
  if name == "params" or name.startswith(TORCH_FILE):
    with contextlib.suppress(ValueError, OSError):
      if os.path.samefile(recognise(parent)[0], path):
        folders.append(parent)
  return folders


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
