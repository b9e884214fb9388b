# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Parts of splits and their overlap."""

import helpers
import pytest

from soupjax import data
from soupjax.data import open as open_lib


@pytest.mark.parametrize(
  "text,size,index",
  [
    ("98%", 1000, 980),
    ("50%", 5, 2),
    ("-2%", 1000, 980),
    ("-3", 10, 7),
    ("70", 50, 50),
    ("-70", 50, 0),
    ("100%", 7, 7),
  ],
)
def test_bounds(text, size, index):
  assert open_lib._bound(text, size) == index


@pytest.mark.parametrize(
  "one,other,count",
  [
    ("train", "train", 20),
    ("train", "train[90%:]", 2),
    ("train[:90%]", "train[90%:]", 0),
    ("train[:-3]", "train[16:]", 1),
    ("train", "test", 0),
    ("train+test", "test[1:]", 4),
  ],
)
def test_examples_that_two_parts_share_are_counted(
  tfds_dir, tmp_path, one, other, count
):
  a, b = (
    data.open_source("fake_bugs", split, data_dir=tfds_dir)
    for split in (one, other)
  )
  assert data.shared_examples(a, b) == data.shared_examples(b, a) == count
  if "+" not in one:
    helpers.write_image_folder(tmp_path / "train", {"ant": 12, "bee": 8})
    helpers.write_image_folder(tmp_path / "test", {"ant": 5})
    a, b = (
      data.open_source(f"folder:{tmp_path}", split) for split in (one, other)
    )
    assert data.shared_examples(a, b) == count


def test_splits_of_different_datasets_share_nothing(tmp_path, tfds_dir):
  for name in ("a", "b"):
    helpers.write_image_folder(tmp_path / name / "train", {"ant": 4})
  (tmp_path / "link").symlink_to(tmp_path / "a")
  whole = data.open_source(f"folder:{tmp_path}/a", "train")
  assert not data.shared_examples(
    whole, data.open_source(f"folder:{tmp_path}/b", "train")
  )
  tfds = data.open_source("fake_bugs", "train", data_dir=tfds_dir)
  assert not data.shared_examples(whole, tfds)
  # Two names of one folder.
  for name, split in (("a/train", "all"), ("link", "train[1:]")):
    other = data.open_source(f"folder:{tmp_path}/{name}", split)
    assert data.shared_examples(whole, other) == len(other)
