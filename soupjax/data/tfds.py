# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""TFDS datasets in array_record files, read without TensorFlow."""

import os
import pathlib
from typing import Any

from soupjax import registry
from soupjax.data.source import Source, shared_examples

# Features that hold all right labels of an image, in imagenet2012_real (arXiv
# 2006.07159) and imagenet2012_multilabel.
_SEVERAL = ("real_label", "correct_multi_labels")


class _Tfds(Source):
  """A split of a TFDS dataset, or part of one; images stay encoded."""

  def __init__(self, name: str, records, labels):
    super().__init__(name, len(records), labels.num_classes, labels.names)
    self._records = records

  def _read(self, index: int) -> tuple[Any, Any]:
    record = self._records[index]
    return record["image"], record["label"]


class _Several(_Tfds):
  """A TFDS dataset whose images have several right labels, or none."""

  several = True

  def __init__(self, name: str, records, labels, key: str):
    super().__init__(name, records, labels)
    self._key = key

  def _read(self, index: int) -> tuple[Any, Any]:
    record = self._records[index]
    return record["image"], tuple(int(k) for k in record[self._key])

  def right_labels(self, index: int) -> tuple[int, ...]:
    return tuple(sorted(set(self._read(index)[1])))


def open_tfds(
  name: str, split: str, data_dir: str | os.PathLike | None = None
) -> Source:
  """Opens a prepared TFDS dataset; see `open.open_source`.

  Args:
    name: a TFDS name, such as "cifar10" or "dataset/config:1.0.0".
    split: a split in TFDS syntax, including slices such as "train[:10%]".
    data_dir: directory of datasets; default ~/tensorflow_datasets.

  Raises:
    ValueError: if the dataset is unknown, unprepared, empty or not stored as
      array_record, if it lacks an "image" or a class "label", or if the slices
      of `split` overlap.
  """
  import tensorflow_datasets as tfds

  where = None if data_dir is None else os.fspath(data_dir)
  try:
    builder = tfds.core.read_only_builder.builder_from_files(
      name, data_dir=where
    )
  except (tfds.core.registered.DatasetNotFoundError, ValueError) as e:
    raise ValueError(_not_found(name, where, tfds)) from e
  info = builder.info
  label = f"{name}/{split}"
  if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
    raise ValueError(
      f"{builder.data_dir} holds {info.file_format.value} files; only "
      f"array_record supports random access: {_how_to(name)}"
    )
  features = dict(info.features or {})
  several = next(
    (
      key
      for key in _SEVERAL
      if hasattr(getattr(features.get(key), "feature", None), "num_classes")
    ),
    None,
  )
  if "image" not in features or not (
    several or hasattr(features.get("label"), "num_classes")
  ):
    raise ValueError(
      f"{name} has the features {sorted(features)}, but an 'image' and a class "
      "'label' are needed."
    )
  base = split.partition("[")[0]
  if "+" not in split and base not in info.splits:
    raise ValueError(
      f"{name} has no split {base!r}{registry.suggestion(base, info.splits)}"
    )
  try:
    size = info.splits[split].num_examples
  except (ValueError, AssertionError) as e:
    raise ValueError(f"Cannot read the split {split!r} of {name}: {e}") from e
  if size <= 0:
    raise ValueError(
      f"{label} is empty: {base} has {info.splits[base].num_examples} images."
    )
  records = builder.as_data_source(
    split, decoders={"image": tfds.decode.SkipDecoding()}
  )
  if several:
    source = _Several(label, records, features[several].feature, several)
  else:
    source = _Tfds(label, records, features["label"])
  parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(info.splits)
  source.ranges = tuple(
    (
      f"{builder.data_dir}/{p.splitname}",
      p.from_ or 0,
      info.splits[p.splitname].num_examples if p.to is None else p.to,
    )
    for p in parts
  )
  if shared := shared_examples(source, source) - size:
    raise ValueError(
      f"{label} has {shared // 2} images twice: join slices without overlap."
    )
  return source


def _not_found(name: str, data_dir: str | None, tfds) -> str:
  """Returns the error message for a dataset without files."""
  base = name.partition(":")[0].partition("/")[0]
  directory = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR)
  known = set(tfds.list_builders(with_community_datasets=False))
  if base in known:
    return f"{name} is not prepared in {directory}: {_how_to(name)}"
  known |= {"digits", "digits_row"}
  if directory.expanduser().is_dir():
    known |= {p.name for p in directory.expanduser().iterdir() if p.is_dir()}
  return f"Unknown dataset {name!r}{registry.suggestion(base, known)}"


def _how_to(name: str) -> str:
  return (
    "run `pip install 'soupjax[prepare]'`, then `tfds build "
    f"{name} --file_format=array_record --data_dir=...`."
  )
