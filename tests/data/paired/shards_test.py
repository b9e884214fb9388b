# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Images in the tar files of WebDataset."""

import io
import itertools
import pickle
import tarfile

import helpers
import numpy as np
import pytest

from soupjax import data
from soupjax.data import paired


def write(path, members, mode="w"):
  with tarfile.open(path, mode) as archive:
    for name, content in members.items():
      info = tarfile.TarInfo(name)
      content = content if isinstance(content, bytes) else content.encode()
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))


def samples(first, labels, suffix="cls"):
  members = {}
  for k, label in enumerate(labels, first):
    members[f"./a.b/{k:04d}.jpg"] = helpers.encoded_image(k)
    members[f"./a.b/{k:04d}.{suffix}"] = label
    members[f"./a.b/{k:04d}.json"] = "{}"
  return members


@pytest.fixture
def place(tmp_path):
  write(tmp_path / "train-000000.tar", samples(0, ["2", "0", "1\n"]))
  write(tmp_path / "train-000001.tar", samples(3, ["1", "1"]))
  write(tmp_path / "val-000000.tar", samples(5, ["0", "3"]))
  write(tmp_path / "texts.tar", samples(0, ["a cat", "an ant", "a cat"], "txt"))
  return tmp_path


def contents(source):
  return [tuple(source[k].values()) for k in range(len(source))]


def test_shards_of_a_split_are_read_in_order(place):
  train = data.open_source(f"wds:{place}", "train")
  labels = [2, 0, 1, 1, 1]
  expected = [(helpers.encoded_image(k), n) for k, n in enumerate(labels)]
  assert contents(train) == expected
  # Of all splits together.
  assert train.num_classes == 4 and train.class_names is None
  assert train.name == f"{place.name}/train"
  assert train.describe(3) == f"{place}/train-000001.tar, ./a.b/0003"
  assert contents(pickle.loads(pickle.dumps(train))) == expected
  for pattern in (
    "train-*.tar",
    "train-00000{0..1}.tar",
    "train-{000000,000001}.tar",
  ):
    source = data.open_source(f"wds:{place}/{pattern}", "all")
    assert contents(source) == expected and source.name == train.name
  part = data.open_source(f"wds:{place}", "train[4:]")
  assert contents(part) == expected[4:]
  assert data.shared_examples(train, part) == 1


def test_captions(place):
  source = data.open_source(f"wds:{place}", "texts")
  assert source.captions == ("a cat", "an ant")
  assert [x[1] for x in contents(paired.by_caption(source))] == [0, 1, 0]
  with pytest.raises(
    ValueError, match="texts.tar, ./a.b/0001 has a caption but"
  ):
    source.label(1)


def test_two_hosts_read_the_batches_of_one(place):
  """Over several epochs of 5 images."""
  source = data.open_source(f"wds:{place}", "train")

  def batches(index, count):
    loader = data.train_loader(
      source,
      batch_size=4,
      seed=0,
      preprocess="resize(4)|flip_lr",
      process_index=index,
      process_count=count,
    )
    return list(itertools.islice(loader, 6))

  whole, first, second = batches(0, 1), batches(0, 2), batches(1, 2)
  for batch, *parts in zip(whole, first, second, strict=True):
    for key, value in batch.items():
      joint = np.concatenate([part[key] for part in parts])
      np.testing.assert_array_equal(joint, value, key)


@pytest.mark.parametrize(
  "members, message",
  [
    ({"1.cls": "0"}, "x-0.tar, 1 has no image"),
    ({"1.jpg": b"?"}, "x-0.tar, 1 has no class"),
    ({"1.jpg": b"?", "1.cls": " "}, "1 has no text in .cls"),
    ({"1.jpg": b"?", "1.txt": ""}, "1 has no text in .txt"),
    ({"1.jpg": b"?", "1.png": b"?", "1.cls": "0"}, "two members for the image"),
    (
      {"1.jpg": b"?", "1.cls": "0", "1.txt": "a", "2.jpg": b"?", "2.cls": "0"},
      "2 has no .txt, which other images",
    ),
    ({"1.jpg": b"?", "1.cls": "-1"}, "1 has the label '-1'"),
    ({"1.jpg": b"?", "1.txt": b"\xff"}, "Cannot read .*x-0.tar"),
    ({}, "x is empty"),
  ],
)
def test_members_that_cannot_be_read_are_named(members, message, tmp_path):
  write(tmp_path / "x-0.tar", members)
  with pytest.raises(ValueError, match=message):
    data.open_source(f"wds:{tmp_path}", "x")


def test_shards_that_are_missing_or_damaged_are_named(place):
  with pytest.raises(ValueError, match="no .*train-000002.tar"):
    data.open_source(f"wds:{place}/train-{{000000..000002}}.tar", "all")
  with pytest.raises(ValueError, match=r"no .*test-\*.tar"):
    data.open_source(f"wds:{place}/test-*.tar", "all")
  write(place / "val-000000.tar", samples(5, ["0"]), "w:gz")
  with pytest.raises(
    ValueError, match="val-000000.tar as a tar file.*compressed"
  ):
    data.open_source(f"wds:{place}", "val")


def test_numbers_in_braces_that_fall(tmp_path):
  with pytest.raises(ValueError, match=r"There is no .*x-\{3..0\}.tar"):
    data.open_source(f"wds:{tmp_path}/x-{{3..0}}.tar", "all")
