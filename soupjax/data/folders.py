# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Image folders, one sub-folder a class, also as uncompressed tar files."""

from collections.abc import Iterator
import dataclasses
import functools
import hashlib
import os
import pathlib
import tarfile

import numpy as np

from soupjax.data.source import Source

_SUFFIXES = frozenset(
  (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp")
)


@dataclasses.dataclass(frozen=True)
class Split:
  """Location of the images of one split.

  Attributes:
    path: a folder of class folders, or a tar file.
    siblings: all splits that share the numbering of classes, this one too.
  """

  path: pathlib.Path
  siblings: tuple[pathlib.Path, ...]


def splits_of(path: str | os.PathLike) -> dict[str, Split]:
  """Finds the splits of an image folder.

  Args:
    path: a folder with PATH/SPLIT/CLASS/*.jpg or PATH/SPLIT.tar, or with
      PATH/CLASS/*.jpg, or a tar file of CLASS/*.jpg; the latter two have one
      split, "all".

  Returns:
    Splits by name.

  Raises:
    ValueError: if it does not exist or has no images.
  """
  path = pathlib.Path(path).expanduser()
  if path.is_file():
    return {"all": Split(path, (path,))}
  if not path.is_dir():
    raise ValueError(f"The image folder {path} does not exist.")
  if any(_has_images(child) for child in _folders(path)):
    return {"all": Split(path, (path,))}
  paths = {
    child.name: child
    for child in _folders(path)
    if any(_has_images(grandchild) for grandchild in _folders(child))
  }
  for child in sorted(path.glob("*.tar")):
    paths.setdefault(child.stem, child)
  if not paths:
    raise ValueError(
      f"{path} has no images in it: put them in SPLIT/CLASS/NAME.jpg, or "
      "CLASS/NAME.jpg."
    )
  siblings = tuple(paths[name] for name in sorted(paths))
  return {name: Split(child, siblings) for name, child in paths.items()}


def open_split(split: Split) -> Source:
  """Opens a split of `splits_of`.

  Classes are numbered in the order of their names over all splits, so that a
  class that is missing from one of them does not shift the others.

  Args:
    split: the split to open.

  Returns:
    The source, in the order of a hash of "CLASS/NAME".

  Raises:
    ValueError: if it has no images, or a tar file is damaged or compressed.
  """
  names = set()
  for path in split.siblings:
    names.update(_class_names(path))
  kind = _Tar if split.path.is_file() else _Folder
  return kind(split.path, sorted(names))


def _folders(path: pathlib.Path) -> list[pathlib.Path]:
  return sorted(
    p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")
  )


def _is_image(name: str) -> bool:
  base = os.path.basename(name)
  suffix = os.path.splitext(base)[1].lower()
  return suffix in _SUFFIXES and not base.startswith(".")


def _has_images(path: pathlib.Path) -> bool:
  with os.scandir(path) as entries:
    return any(e.is_file() and _is_image(e.name) for e in entries)


def _class_names(path: pathlib.Path) -> set[str]:
  if path.is_file():
    return {name.split("/")[0] for name, _, _ in _members(path)}
  return {p.name for p in _folders(path) if _has_images(p)}


def _hashed(name: str) -> bytes:
  return hashlib.sha1(name.encode("utf-8", "surrogateescape")).digest()


class _Files(Source):
  """Images that are files, by "CLASS/NAME"."""

  def __init__(
    self, path: pathlib.Path, class_names: list[str], files: list[str]
  ):
    # Without parent folders: results and states do not depend on them.
    name = f"{path.parent.name}/{path.name.removesuffix('.tar')}"
    super().__init__(name, len(files), len(class_names), class_names)
    number = {name: i for i, name in enumerate(class_names)}
    self._path = path
    # One array, not a million strings: it is sent to worker processes.
    self._files = np.array([os.fsencode(f) for f in files])
    self._labels = np.array([number[f.split("/")[0]] for f in files], np.int32)

  def _label(self, index):
    return self._labels[index]

  def describe(self, index: int) -> str:
    return f"{self._path}/{os.fsdecode(self._files[index])}"


class _Folder(_Files):
  def __init__(self, path: pathlib.Path, class_names: list[str]):
    files = [
      f"{folder.name}/{entry}"
      for folder in _folders(path)
      for entry in os.listdir(folder)
      if _is_image(entry)
    ]
    super().__init__(path, class_names, sorted(files, key=_hashed))

  def _read(self, index):
    name = os.fsdecode(self._files[index])
    return (self._path / name).read_bytes(), self._labels[index]


class _Tar(_Files):
  def __init__(self, path: pathlib.Path, class_names: list[str]):
    members = sorted(_members(path), key=lambda member: _hashed(member[0]))
    super().__init__(path, class_names, [name for name, _, _ in members])
    self._ranges = np.array([m[1:] for m in members], np.int64)
    self._file = None

  def _read(self, index):
    if self._file is None:
      self._file = open(self._path, "rb")
    offset, size = map(int, self._ranges[index])
    # pread has no shared position: threads may read at once.
    data = os.pread(self._file.fileno(), size, offset)
    return data, self._labels[index]

  def __getstate__(self):
    return {**self.__dict__, "_file": None}


def _members(path: pathlib.Path) -> tuple[tuple[str, int, int], ...]:
  status = path.stat()
  return _cached_members(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _cached_members(path, size, mtime) -> tuple[tuple[str, int, int], ...]:
  """Lists ("CLASS/NAME", offset, size) of the images in a tar file."""
  del size, mtime  # Only part of the key.

  def images() -> Iterator[tuple[str, int, int]]:
    with tarfile.open(path, "r:") as archive:
      for member in archive:
        *_, folder, base = ("", *member.name.split("/"))
        if member.isreg() and folder not in ("", ".") and _is_image(base):
          yield f"{folder}/{base}", member.offset_data, member.size

  try:
    return tuple(images())
  except tarfile.TarError as e:
    raise ValueError(
      f"Cannot read {path} as a tar file: {e}. It must be complete and not "
      "compressed."
    ) from e
