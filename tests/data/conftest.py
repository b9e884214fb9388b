# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Images in folders and as a TFDS dataset, written once per test file."""

import helpers
import pytest

from soupjax import data


class Encoded(data.Source):
  """JPEGs in memory, with class names."""

  def __init__(self, size):
    super().__init__("encoded", size, 3, helpers.IMAGE_CLASSES)

  def _read(self, index):
    return helpers.encoded_image(index), index % 3


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp("tfds")
  train = Encoded(20)
  test = data.subset(train, range(5), "test")
  data.write_tfds("fake_bugs", {"train": train, "test": test}, path)
  return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("bugs")
  helpers.write_image_folder(path / "train", {"ant": 6, "bee": 5, "cat": 4})
  helpers.write_image_folder(path / "val", {"ant": 2, "cat": 2})
  helpers.write_tar(path / "more.tar", path / "train")
  return path
