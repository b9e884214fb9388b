# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Images listed in CSV files."""

import csv
import dataclasses
import functools
import os
import pathlib

import numpy as np

from soupjax.data import folders
from soupjax.data.paired import base

_COLUMNS = ("path", "label", "caption")


def splits_of(path: str | os.PathLike) -> dict[str, folders.Split]:
  """Finds the splits of CSV files.

  Args:
    path: a file, whose split is "all", or a folder of SPLIT.csv files.

  Returns:
    Splits by name.

  Raises:
    ValueError: if there is no CSV file.
  """
  path = pathlib.Path(path).expanduser()
  if path.is_file():
    return {"all": folders.Split(path, (path,))}
  files = tuple(sorted(path.glob("*.csv"))) if path.is_dir() else ()
  if not files:
    raise ValueError(
      f"{path} does not exist, or is a folder without .csv files: give the "
      "path of a CSV file, or of a folder with SPLIT.csv."
    )
  return {file.stem: folders.Split(file, files) for file in files}


def open_split(split: folders.Split) -> base.Paired:
  """Opens a split from `splits_of`.

  The first line of a file names its columns: "path", relative to the file, and
  "label", "caption" or both. Other columns are ignored. Classes are numbered
  over all splits; see `base.classes_of`.

  Args:
    split: the split to open.

  Returns:
    The source, in the order of the rows.

  Raises:
    ValueError: naming a row without image, label or caption, or two splits that
      spell a class differently.
  """
  tables = [_read_table(path) for path in split.siblings]
  folders.check_spelling(
    split.siblings, [set(table.lists.labels or ()) for table in tables]
  )
  return _Table(tables[split.siblings.index(split.path)], tables)


@dataclasses.dataclass(frozen=True)
class _Content:
  """Content of a CSV file.

  Attributes:
    path: of the file.
    images: (n,) paths of the images, as bytes.
    lines: (n,) line numbers of the images in the file.
    lists: classes and captions.
  """

  path: pathlib.Path
  images: np.ndarray
  lines: np.ndarray
  lists: base.Lists


def _read_table(path: pathlib.Path) -> _Content:
  status = path.stat()
  return _cached_table(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _cached_table(path, size, mtime) -> _Content:
  del size, mtime  # Only part of the key.
  values: dict[str, list[str]] = {}
  lines = []
  try:
    with open(path, encoding="utf-8-sig", newline="") as file:
      reader = csv.DictReader(file, strict=True)
      columns = reader.fieldnames or ()
      _check_columns(path, columns)
      values = {name: [] for name in _COLUMNS if name in columns}
      for row in reader:
        where = f"{path}, line {reader.line_num}"
        if None in row or None in row.values():
          count = len(columns)
          raise ValueError(
            f"{where} does not have {count} columns like the first line: put "
            "texts with commas in double quotes."
          )
        for name, texts in values.items():
          text = row[name].strip()
          if not text:
            raise ValueError(
              f"{where} has no {name}: fill it in, or remove the line."
            )
          texts.append(text)
        lines.append(reader.line_num)
  except (UnicodeDecodeError, csv.Error) as e:
    raise ValueError(f"Cannot read {path} as CSV in UTF-8: {e}.") from e
  _check_images(path, values["path"], lines)
  images = np.array([os.fsencode(name) for name in values["path"]])
  lists = base.Lists(
    values.get("label"),
    values.get("caption"),
    lambda index: f"{path}, line {lines[index]}",
  )
  return _Content(path, images, np.array(lines), lists)


def _check_columns(path, columns) -> None:
  for name in _COLUMNS:
    if columns.count(name) > 1:
      raise ValueError(
        f"The first line of {path} has {name!r} twice: rename one column."
      )
  if "path" in columns and ("label" in columns or "caption" in columns):
    return
  raise ValueError(
    f"The first line of {path} is {', '.join(map(repr, columns))!s:.200}: it "
    "must name the columns: 'path', and 'label' or 'caption' or both."
  )


def _check_images(path, names, lines) -> None:
  """Checks that all images exist, listing every folder only once."""
  known: dict[str, set[str]] = {}
  for name, line in zip(names, lines):
    folder, file = os.path.split(os.path.join(path.parent, name))
    if folder not in known:
      known[folder] = (
        set(os.listdir(folder)) if os.path.isdir(folder) else set()
      )
    if file not in known[folder]:
      raise ValueError(
        f"{path}, line {line}: there is no image {folder}/{file}. Paths are "
        "relative to the CSV file."
      )


class _Table(base.Paired):
  """Images of the rows of a CSV file."""

  def __init__(self, content: _Content, tables):
    path = content.path
    # Without parent folders, so that results and states do not depend on them.
    super().__init__(
      f"{path.parent.name}/{path.stem}",
      len(content.images),
      content.lists,
      [table.lists for table in tables],
    )
    self._path, self._images, self._lines = path, content.images, content.lines

  def identity(self):
    """See `Source`; covers the table and its images."""
    folder = os.fspath(self._path.parent)
    table = folders.identity_of("", [os.fspath(self._path)])
    return [*table, *folders.identity_of(folder, self._images)]

  def _image(self, index):
    name = os.fsdecode(self._images[index])
    return (self._path.parent / name).read_bytes()

  def describe(self, index: int) -> str:
    name = os.fsdecode(self._images[index])
    return f"{self._path}, line {self._lines[index]} ({name})"
