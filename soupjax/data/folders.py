# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Image folders with one subfolder per class, or uncompressed tars of them."""

import collections
from collections.abc import Iterator, Sequence
import dataclasses
import functools
import hashlib
import os
import pathlib
import tarfile
from typing import Any
import unicodedata

import numpy as np

from soupjax.data.source import Source

# Those of torchvision's ImageFolder, and others that Pillow decodes.
SUFFIXES = frozenset(
  (
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff"),
    *(".webp", ".gif", ".jfif", ".jpe", ".avif", ".jp2", ".j2k", ".jpx"),
    *(".jpf", ".jpc", ".j2c", ".pbm", ".pnm", ".dib", ".tga", ".qoi"),
  )
)
_MOST_LOOKED_AT = 100_000  # At most this many sizes and times are compared.


@dataclasses.dataclass(frozen=True)
class Split:
  """Location of the images of one split.

  Attributes:
    path: a folder of class folders, or a tar file.
    siblings: all splits with the same numbering of classes, including this one.
  """

  path: pathlib.Path
  siblings: tuple[pathlib.Path, ...]


def splits_of(path: str | os.PathLike) -> dict[str, Split]:
  """Finds the splits of an image folder.

  Args:
    path: a folder with PATH/SPLIT/CLASS/*.jpg or PATH/SPLIT.tar, or with
      PATH/CLASS/*.jpg, or a tar file of CLASS/*.jpg; the latter two have one
      split, "all". Images may also be in folders below CLASS.

  Returns:
    Splits by name. A child of PATH with both images and folders of images may
    be a class or a split, and both are offered.

  Raises:
    ValueError: if `path` does not exist or has no images.
  """
  path = pathlib.Path(path).expanduser()
  if path.is_file():
    return {"all": Split(path, (path,))}
  if not path.is_dir():
    raise ValueError(f"The image folder {path} does not exist.")
  children = _folders(path)
  nested = {
    child: names for child in children if (names := _class_names(child))
  }
  classes = sum(map(list, nested.values()), [])
  paths = {child.name: child for child in nested}
  for child in sorted(path.glob("*.tar")):
    paths.setdefault(child.stem, child)
  siblings = tuple(paths[name] for name in sorted(paths))
  splits = {name: Split(child, siblings) for name, child in paths.items()}
  direct = {child for child in children if _has_images(child)}
  # Folders of the same names in all children are the classes of splits.
  if direct - set(nested) or (direct and len(set(classes)) == len(classes)):
    splits["all"] = Split(path, (path,))
  if not splits:
    raise ValueError(
      f"{path} has no images in it: put them in SPLIT/CLASS/NAME.jpg, or "
      "CLASS/NAME.jpg."
    )
  return splits


def open_split(split: Split) -> Source:
  """Opens a split from `splits_of`.

  Classes are numbered in the order of their names over all splits, so that a
  class that is missing from one split does not renumber the others. `notes` of
  the source counts the files that are not read.

  Args:
    split: the split to open.

  Returns:
    The source, in the order of a hash of "CLASS/NAME".

  Raises:
    ValueError: if the split has no images, a class folder has none in any
      split, a class has two spellings, or a tar file is damaged or compressed.
  """
  names = [_class_names(path) for path in split.siblings]
  known = set().union(*names)
  for path, own in zip(split.siblings, names):
    if empty := _empty_classes(path, own) - known:
      raise ValueError(
        f"The class folder {path}/{min(empty)} has no images "
        f"({', '.join(sorted(SUFFIXES))}): remove it or add images. The "
        "numbers of the classes depend on it."
      )
  check_spelling(split.siblings, names)
  kind = _Tar if split.path.is_file() else _Folder
  return kind(split.path, sorted(known))


def spelling(name: str) -> str:
  """Normalizes the case, Unicode form, whitespace, "_" and "-" of a name."""
  name = unicodedata.normalize("NFC", name).casefold()
  return " ".join(name.replace("_", " ").replace("-", " ").split())


def displaced(
  names: Sequence[str], others: Sequence[str] | None
) -> tuple[int, int] | None:
  """Finds a name that is at another position in another list.

  Args:
    names: names of classes, in order.
    others: names of the same classes, or None if unknown. A name that occurs
      several times in it is not compared.

  Returns:
    The index of the first such name in `names`, and that in `others`; or None.

  Examples:
    >>> displaced(["cat", "dog"], ["Dog", "Cat"])
    (0, 1)
  """
  spelled = list(map(spelling, others or ()))
  counts = collections.Counter(spelled)
  for k, name in enumerate(map(spelling, names)):
    if counts[name] == 1 and (at := spelled.index(name)) != k:
      return k, at
  return None


def check_spelling(paths, names: Sequence[set[str]]) -> None:
  """Raises a ValueError if two splits spell a class differently."""
  by_spelling: dict[str, set[str]] = {}
  for name in set().union(*names):
    by_spelling.setdefault(spelling(name), set()).add(name)
  for alike in by_spelling.values():
    if len(alike) > 1 and not any(len(alike & has) > 1 for has in names):
      a, b = sorted(alike)[:2]
      places = [
        next(p for p, has in zip(paths, names) if name in has)
        for name in (a, b)
      ]
      raise ValueError(
        f"{places[0]} has a class {a!r} and {places[1]} a class {b!r}: rename "
        "one, since they would be two classes."
      )


def _folders(path: pathlib.Path) -> list[pathlib.Path]:
  with os.scandir(path) as entries:  # Needs no stat of every file.
    names = [e.name for e in entries if e.is_dir() and not _hidden(e.name)]
  return [path / name for name in sorted(names)]


def _hidden(folder: str) -> bool:
  # macOS adds the latter to archives.
  return folder.startswith(".") or folder == "__MACOSX"


def is_image(name: str) -> bool:
  """Whether a file name has the suffix of an image and is not hidden."""
  base = name.rpartition("/")[2]
  _, dot, suffix = base.rpartition(".")
  return dot + suffix.lower() in SUFFIXES and base[0] != "."


def _has_images(path: pathlib.Path) -> bool:
  """Whether a folder has images directly in it."""
  with os.scandir(path) as entries:
    return any(is_image(e.name) and e.is_file() for e in entries)


def _files_in(path: str, prefix: str, above: tuple = ()) -> Iterator[str]:
  """Yields "PREFIX/NAME" of all files in a folder and below it.

  Follows links, except those to a folder that contains them. A hidden folder is
  yielded as one name that ends in "/".
  """
  status = os.stat(path)
  identity = (status.st_dev, status.st_ino)
  if identity in above:
    return
  folders = []
  with os.scandir(path) as entries:
    for entry in entries:
      name = f"{prefix}{entry.name}"
      if not entry.is_dir():
        yield name
      elif _hidden(entry.name):
        yield f"{name}/"
      else:
        folders.append((entry.path, f"{name}/"))
  for folder, name in folders:
    yield from _files_in(folder, name, (*above, identity))


def _class_names(path: pathlib.Path) -> set[str]:
  """Returns the classes of a folder or tar file that have images."""
  if path.is_file():
    return {name.split("/")[0] for name, _, _ in _members(path).images}
  return {
    p.name
    for p in _folders(path)
    if _has_images(p) or any(map(is_image, _files_in(os.fspath(p), "")))
  }


def _empty_classes(path: pathlib.Path, names: set[str]) -> set[str]:
  """Returns the class folders without images; `names` are those with images."""
  if path.is_file():
    return set(_members(path).empty)
  return {p.name for p in _folders(path)} - names


def _note(path: pathlib.Path, ignored: Sequence[str]) -> tuple[str, ...]:
  """Describes the files that are not read."""
  if not ignored:
    return ()
  names = ", ".join(sorted(ignored)[:3]) + ", ..." * (len(ignored) > 3)
  count = f"{len(ignored):,} file" + "s" * (len(ignored) > 1)
  return (f"{count} of {path} not read as images: {names}",)


def _hashed(name: str) -> bytes:
  return hashlib.sha1(name.encode("utf-8", "surrogateescape")).digest()


class _Files(Source):
  """Images in files named "CLASS/NAME"."""

  def __init__(
    self, path: pathlib.Path, class_names: list[str], files: list[str]
  ):
    # Without parent folders, so that results and states do not depend on them.
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


def identity_of(folder: str, names: Sequence[bytes | str]) -> list[int]:
  """Returns the total bytes of files, and their newest mtime in nanoseconds.

  Of more than 100,000 files, only 100,000 evenly spaced ones are examined.

  Args:
    folder: the folder that the names are relative to.
    names: names of the files.
  """
  count = min(len(names), _MOST_LOOKED_AT)
  chosen = np.linspace(0, len(names) - 1, count).astype(int)
  paths = (os.path.join(folder, os.fsdecode(names[k])) for k in chosen)
  stats = [os.stat(path) for path in paths]
  newest = max(stat.st_mtime_ns for stat in stats)
  return [sum(stat.st_size for stat in stats), newest]


class _Folder(_Files):
  def __init__(self, path: pathlib.Path, class_names: list[str]):
    files, ignored = [], []
    for name in _files_in(os.fspath(path), ""):
      in_class = "/" in name and is_image(name)
      (files if in_class else ignored).append(name)
    super().__init__(path, class_names, sorted(files, key=_hashed))
    self.notes = _note(path, ignored)

  def identity(self) -> list[Any]:
    """See `Source`; includes a hash of the file names."""
    names = hashlib.sha256(self._files.tobytes()).hexdigest()
    return [names, *identity_of(os.fspath(self._path), self._files)]

  def _read(self, index):
    name = os.fsdecode(self._files[index])
    return (self._path / name).read_bytes(), self._labels[index]


class _Tar(_Files):
  def __init__(self, path: pathlib.Path, class_names: list[str]):
    content = _members(path)
    members = sorted(content.images, key=lambda member: _hashed(member[0]))
    super().__init__(path, class_names, [name for name, _, _ in members])
    self.notes = _note(path, content.ignored)
    self._ranges = np.array([m[1:] for m in members], np.int64)
    self._file = None

  def identity(self) -> list[Any]:
    """See `Source`."""
    return identity_of("", [os.fspath(self._path)])

  def _read(self, index):
    if self._file is None:
      self._file = open(self._path, "rb")
    offset, size = map(int, self._ranges[index])
    # pread does not move the file position, so threads can read at once.
    data = os.pread(self._file.fileno(), size, offset)
    return data, self._labels[index]

  def __getstate__(self):
    return {**self.__dict__, "_file": None}


@dataclasses.dataclass(frozen=True)
class _Members:
  """Content of a tar file.

  Attributes:
    images: ("CLASS/NAME", offset, bytes) of each image.
    ignored: names of the other files.
    empty: names of class folders without images.
  """

  images: tuple[tuple[str, int, int], ...]
  ignored: tuple[str, ...]
  empty: tuple[str, ...]


def _members(path: pathlib.Path) -> _Members:
  status = path.stat()
  return _cached_members(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _cached_members(path, size, mtime) -> _Members:
  del size, mtime  # Only part of the key.
  images: dict[tuple[str, ...], tuple[int, int]] = {}
  ignored, folders = [], []
  try:
    with tarfile.open(path, "r:") as archive:
      for member in archive:
        parts = tuple(p for p in member.name.split("/") if p not in ("", "."))
        hidden = any(map(_hidden, parts))
        if member.isdir():
          folders += [] if hidden else [parts]
        elif member.isreg() and is_image(parts[-1]) and not hidden:
          # Of several members with the same name, the last counts.
          images[parts] = member.offset_data, member.size
        else:
          ignored.append(member.name)
  except tarfile.TarError as e:
    raise ValueError(
      f"Cannot read {path} as a tar file: {e}. It must be complete and not "
      "compressed."
    ) from e
  # Images beside class folders are not read.
  ignored += [parts[0] for parts in images if len(parts) == 1]
  images = {parts: at for parts, at in images.items() if len(parts) > 1}
  depth = _depth_of_classes(path, {parts[:-1] for parts in images})
  classes = {parts[depth] for parts in images}
  roots = {parts[:depth] for parts in images}
  empty = {
    parts[depth]
    for parts in folders
    if len(parts) > depth and parts[:depth] in roots
  }
  return _Members(
    tuple(("/".join(parts[depth:]), *at) for parts, at in images.items()),
    tuple(ignored),
    tuple(empty - classes),
  )


def _depth_of_classes(path, folders: set[tuple[str, ...]]) -> int:
  """Returns the number of folders above the class folders in a tar file."""
  common = os.path.commonprefix(sorted(folders))
  if common not in folders:
    return len(common)
  if len(folders) > 1 or not common:
    raise ValueError(
      f"{path} has images both in {'/'.join(common)} and in folders below it: "
      "pack class folders, CLASS/NAME.jpg."
    )
  return len(common) - 1
