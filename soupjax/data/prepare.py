# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes labelled images as a TFDS dataset, without TensorFlow."""

from collections.abc import Mapping
import os

from PIL import Image

from soupjax.data.source import Source


def write_tfds(
  name: str,
  splits: Mapping[str, Source],
  data_dir: str | os.PathLike,
  *,
  version: str = "1.0.0",
) -> None:
  """Writes a dataset that `open_source(name, split, data_dir=...)` reads.

  A folder of many small files becomes a few array_record files, which any
  program that uses TFDS can read. TFDS writes to a temporary directory and
  renames it; an existing dataset is left unchanged.

  Args:
    name: name of the dataset, in snake_case.
    splits: sources to write by split name, all with the same classes. Encoded
      images are kept byte for byte, arrays are stored as PNG.
    data_dir: directory of TFDS datasets.
    version: version of the dataset.

  Raises:
    ValueError: if `splits` is empty, or their classes differ.
  """
  import tensorflow_datasets as tfds

  classes = {(s.class_names, s.num_classes) for s in splits.values()}
  if len(classes) != 1:
    raise ValueError(
      f"The splits {sorted(splits)} of {name} must have the same classes, not "
      f"{len(classes)} different lists of them."
    )
  ((class_names, num_classes),) = classes
  labels = (
    tfds.features.ClassLabel(names=list(class_names))
    if class_names
    else tfds.features.ClassLabel(num_classes=num_classes)
  )
  features = tfds.features.FeaturesDict(
    {"image": tfds.features.Image(shape=(None, None, 3)), "label": labels}
  )

  class Dataset(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version(version)
    # TFDS would look for it with importlib_resources, which it does not
    # declare as a dependency.
    code_path = None

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      del dl_manager
      return {key: _examples(source) for key, source in splits.items()}

    def _generate_examples(self):
      raise NotImplementedError  # Abstract in the base class.

  Dataset.name = name
  builder = Dataset(data_dir=os.fspath(data_dir), file_format="array_record")
  builder.download_and_prepare(file_format="array_record")


def _examples(source: Source):
  for i in range(len(source)):
    example = source[i]
    # TFDS encodes PIL images itself, but arrays only with TensorFlow.
    if not isinstance(example["image"], bytes):
      example["image"] = Image.fromarray(example["image"])
    yield i, example
