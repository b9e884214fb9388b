# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Opens labelled images by name: TFDS, folders, tar and CSV files, digits.

TFDS datasets are read as array_record, by random access, without TensorFlow.
"""

import os
import re

import numpy as np

from soupjax import registry
from soupjax.data import digits, folders, tfds
from soupjax.data import source as source_lib
from soupjax.data.paired import shards, tables


def open_source(
  name: str, split: str, *, data_dir: str | os.PathLike | None = None
) -> source_lib.Source:
  """Opens labelled images.

  Args:
    name: "digits"; "digits_row", noisy digits in a row, or "digits_row:1000",
      drawn with another seed; "folder:PATH" for PATH/SPLIT/CLASS/*.jpg or
      PATH/SPLIT.tar with CLASS/*.jpg in it; "csv:PATH" for PATH/SPLIT.csv, see
      `paired.tables.open_split`; "wds:PATH" for the shards of WebDataset, see
      `paired.shards.open_split`; else a TFDS name such as "imagenet2012" or
      "cifar10:3.0.2", prepared as array_record.
    split: the name of a split, or a part of one such as "train[:98%]",
      "train[98%:]" or "train[:5000]"; for TFDS datasets, anything that TFDS
      accepts. A folder without splits has one, "all". Folders are in the order
      of a hash of the file names, so that a part has images of all classes. CSV
      files and shards keep their order.
    data_dir: directory of TFDS datasets; default ~/tensorflow_datasets.

  Returns:
    The source.

  Raises:
    ValueError: for an unknown dataset or split, with suggestions, an empty
      split, or a dataset that is not prepared.
  """
  if name == "digits":
    splits = digits.load_digits()
    named = [splits.pretrain, splits.train, *splits.evaluations]
    return _part_of(
      "digits",
      split,
      {d.name.removeprefix("digits/"): d for d in named},
      lambda d: source_lib.from_dataset(d, splits.num_classes),
      lambda d: d.name,
    )
  if name.partition(":")[0] == "digits_row":
    return _open_row(name, split)
  if name.startswith("folder:"):
    path = name.removeprefix("folder:")
    return _part_of(
      name,
      split,
      folders.splits_of(path),
      folders.open_split,
      lambda part: os.path.realpath(part.path),
    )
  if name.startswith("csv:"):
    path = name.removeprefix("csv:")
    return _part_of(
      name,
      split,
      tables.splits_of(path),
      tables.open_split,
      lambda part: os.path.realpath(part.path),
    )
  if name.startswith("wds:"):
    path = name.removeprefix("wds:")
    return _part_of(
      name,
      split,
      shards.splits_of(path),
      shards.open_split,
      lambda part: ",".join(map(os.path.realpath, part.shards)),
    )
  return tfds.open_tfds(name, split, data_dir)


def _open_row(name: str, split: str) -> source_lib.Source:
  seed = name.partition(":")[2] or "0"
  if not seed.isdecimal():
    raise ValueError(
      f"{name!r}: the seed must be a number, as in digits_row:1000."
    )
  seed = int(seed)
  source = _part_of(
    name,
    split,
    {key: key for key in digits.ROW_SPLITS},
    lambda key: digits.open_row(key, seed=seed),
    str,
  )
  # One range per digit: shifts reuse test images, and seeds split differently.
  ((base, start, stop),) = source.ranges
  source.ranges = tuple(
    ("digits", int(i), int(i) + 1)
    for i in np.unique(digits.row_digits(base, seed)[start:stop])
  )
  return source


def _part_of(name, split, splits, open_split, identity) -> source_lib.Source:
  """Opens a split, or a part of one such as "train[:10%]".

  Args:
    name: name of the dataset.
    split: the split or part to open.
    splits: maps the name of a split to its location.
    open_split: maps a location to a source.
    identity: maps a location to text that no split of other datasets has.
  """
  match = re.fullmatch(r"([^\[\]]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
  if match is None:
    raise ValueError(
      f"Cannot read the split {split!r}: write it as 'train', 'train[:98%]', "
      "'train[98%:]' or 'train[100:200]'."
    )
  base, *bounds = match.groups()
  if base not in splits:
    raise ValueError(
      f"{name} has no split {base!r}{registry.suggestion(base, splits)}"
    )
  source = open_split(splits[base])
  size = len(source)
  if bounds == [None, None]:
    source.ranges = ((identity(splits[base]), 0, size),)
    return source
  start, stop = (_bound(b, size) for b in bounds)
  start, stop = start or 0, size if stop is None else stop
  if start >= stop:
    raise ValueError(
      f"{name}/{split} is empty: its range is {start} to {stop} of {size}."
    )
  part = split.removeprefix(base)
  source = source_lib.subset(source, np.arange(start, stop), source.name + part)
  source.ranges = ((identity(splits[base]), start, stop),)
  return source


def _bound(text: str | None, size: int) -> int | None:
  """Converts "98%", "-3" or "100" to an index, rounded as in TFDS."""
  if text is None:
    return None
  number = int(text.removesuffix("%"))
  index = round(number / 100 * size) if text.endswith("%") else number
  return min(max(index + size if number < 0 else index, 0), size)
