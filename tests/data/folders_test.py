# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Images in class folders and tar files."""

import pickle

import helpers
import pytest

from soupjax import data
from soupjax.data import folders


def contents(source):
  return [(source[i]["image"], source[i]["label"]) for i in range(len(source))]


# Folders and tar files


def test_folder_has_classes_in_order_and_every_image_once(folder):
  source = data.open_source(f"folder:{folder}", "train")
  assert source.class_names == ("ant", "bee", "cat")
  labels = [0] * 6 + [1] * 5 + [2] * 4
  expected = {(helpers.encoded_image(i), k) for i, k in enumerate(labels)}
  assert set(contents(source)) == expected and len(source) == 15
  assert source.name == f"{folder.name}/train"
  assert source.describe(0).endswith(".jpg")


def test_missing_class_does_not_shift_the_others(folder):
  source = data.open_source(f"folder:{folder}", "val")
  assert source.num_classes == 3
  assert sorted(source.label(i) for i in range(4)) == [0, 0, 2, 2]


def test_tar_holds_the_same_in_the_same_order(folder):
  assert contents(data.open_source(f"folder:{folder}", "more")) == contents(
    data.open_source(f"folder:{folder}", "train")
  )
  tar = data.open_source(f"folder:{folder}/more.tar", "all[:7]")
  tar[0]  # So that the file is open.
  again = pickle.loads(pickle.dumps(tar))
  assert contents(again) == contents(tar)
  assert len(tar) == 7 and tar.describe(0).startswith(f"{folder}/more.tar/")


def test_folder_of_classes_has_the_split_all(folder):
  source = data.open_source(f"folder:{folder}/train", "all")
  assert len(source) == 15
  # Not sorted by class: a part has images of each.
  part = data.open_source(f"folder:{folder}/train", "all[:60%]")
  assert {part.label(i) for i in range(9)} == {0, 1, 2}


def test_other_files_are_left_alone(tmp_path):
  helpers.write_image_folder(tmp_path, {"ant": 1, "bee": 1})
  (tmp_path / "ant" / "notes.txt").write_text("no image")
  (tmp_path / "ant" / "._00.jpg").write_text("of a Mac")
  (tmp_path / ".git").mkdir()
  (tmp_path / "empty").mkdir()
  source = data.open_source(f"folder:{tmp_path}", "all")
  assert len(source) == 2 and source.class_names == ("ant", "bee")


@pytest.mark.parametrize(
  "split,message",
  [
    ("vall", "'vall'.*'val'"),
    ("train[3:3]", r"train\[3:3\].*15"),
    ("train[:1%]", "is empty"),
    ("train[", "Cannot read the split"),
    ("train[:98percent]", "Cannot read the split"),
    ("", "Cannot read the split"),
  ],
)
def test_folder_refuses_splits(folder, split, message):
  with pytest.raises(ValueError, match=message):
    data.open_source(f"folder:{folder}", split)


def test_bad_folders_and_tar_files(folder, tmp_path):
  with pytest.raises(ValueError, match="not_there"):
    data.open_source(f"folder:{tmp_path / 'not_there'}", "all")
  with pytest.raises(ValueError, match="no images"):
    data.open_source(f"folder:{tmp_path}", "all")
  helpers.write_tar(tmp_path / "small.tar", folder / "train", "w:gz")
  with pytest.raises(ValueError, match="small.tar"):
    data.open_source(f"folder:{tmp_path}", "small")


def test_order_of_folders_is_that_of_a_hash(folder):
  # Fixed for good: parts of a folder must not change between versions.
  source = folders.open_split(folders.splits_of(folder)["val"])
  names = ["/".join(source.describe(i).rsplit("/", 2)[1:]) for i in range(4)]
  assert names == ["ant/00.jpg", "cat/01.jpg", "cat/00.jpg", "ant/01.jpg"]
