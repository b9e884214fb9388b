# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest

from soupjax import data
from soupjax.data import source as source_lib


def contents(source):
  return [(source[i]["image"], source[i]["label"]) for i in range(len(source))]


def small(size=12, num_classes=3, labels=None):
  """Images in memory whose pixels are all their index."""
  images = np.broadcast_to(
    np.arange(size, dtype=np.uint8)[:, None, None, None], (size, 4, 4, 3)
  )
  if labels is None:
    labels = np.arange(size) % num_classes
  return data.from_dataset(
    data.Dataset("small/train", images, np.asarray(labels)), num_classes
  )


# Memory, digits


def test_digits_are_a_source():
  source = data.open_source("digits", "minival[:10]")
  digits = data.load_digits().minival
  assert len(source) == 10 and source.num_classes == 10
  for i in range(10):
    image = source[i]["image"]
    assert image.shape == (16, 16, 3) and image.dtype == np.uint8
    scaled = image.astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(scaled[..., 1:2], digits.images[i], atol=4e-3)
    assert source[i]["label"] == digits.labels[i]
  with pytest.raises(ValueError, match="'minival'"):
    data.open_source("digits", "minivall")


def test_bad_labels_and_shapes_are_refused():
  with pytest.raises(ValueError, match="example 2.*3.*3 class"):
    small(4, 3, [0, 1, 3, 2])
  with pytest.raises(ValueError, match="label -1"):
    small(4, 3, [0, 1, 2, -1])
  for labels in ([0, 1, np.nan, 2], [0.0, 1, 2, 1], [True, False] * 2):
    with pytest.raises(ValueError, match="small/train.*integer class index"):
      small(4, 3, labels)
  with pytest.raises(ValueError, match="start at 1"):
    small(4, 3, [1, 2, 3, 1])
  flat = data.Dataset("flat", np.zeros((2, 4, 4), "f"), np.zeros(2))
  with pytest.raises(ValueError, match=r"shape \(2, 4, 4\)"):
    data.from_dataset(flat, 3)


def test_labels_of_sources_of_ones_own_are_checked():
  class Own(data.Source):
    def _read(self, index):
      return np.zeros((2, 2, 3), np.uint8), [0, np.nan, 1.5, 3, -1][index]

  source = Own("own", 5, 3)
  assert source[0]["label"] == 0
  for index in range(1, 5):
    with pytest.raises(ValueError, match=f"example {index} of own has label"):
      source[index]


def test_index_out_of_range():
  source = small(4)
  for index in (4, -1):
    with pytest.raises(IndexError, match=f"{index}"):
      source[index]


def test_subset_of_a_subset():
  source = data.subset(data.subset(small(), [8, 5, 2], "a"), [2, 0], "b")
  assert [int(source[i]["image"][0, 0, 0]) for i in range(2)] == [2, 8]
  assert source.name == "b" and source.describe(0) == "example 2 of small/train"
  with pytest.raises(ValueError, match="nothing"):
    data.subset(source, [], "nothing")


# Minival


def test_minival_has_so_many_of_each_class_and_no_image_is_in_both():
  labels = np.random.default_rng(0).permutation([0] * 9 + [1] * 20 + [2] * 5)
  source = small(34, 3, labels)
  train, minival = data.split_minival(source, per_class=4, seed=1)
  pixels = [
    [int(s[i]["image"][0, 0, 0]) for i in range(len(s))]
    for s in (train, minival)
  ]
  assert np.bincount([minival.label(i) for i in range(12)]).tolist() == [4] * 3
  assert sorted(pixels[0] + pixels[1]) == list(range(34))
  assert pixels[0] == sorted(pixels[0]) and pixels[1] == sorted(pixels[1])
  # The rule, in other words.
  order = np.random.default_rng(1).permutation(34)
  first = [i for k in range(3) for i in order[labels[order] == k][:4]]
  assert sorted(first) == pixels[1]
  assert train.name == "small/train-train"
  _, other = data.split_minival(source, per_class=4, seed=2)
  assert contents(other)[0][0].tolist() != contents(minival)[0][0].tolist() or (
    len({int(other[i]["image"][0, 0, 0]) for i in range(12)} & set(pixels[1]))
    < 12
  )


def test_minival_does_not_read_all_labels():
  class Counting(source_lib.Source):
    reads = 0

    def _label(self, index):
      self.reads += 1
      return index % 2

  source = Counting("many", 10_000, 2)
  data.split_minival(source, per_class=5)
  assert source.reads < 100


def test_minival_needs_more_images_than_it_takes():
  with pytest.raises(ValueError, match="4 images.*0"):
    data.split_minival(small(12), per_class=4)
  with pytest.raises(ValueError, match="positive"):
    data.split_minival(small(12), per_class=0)


@pytest.mark.parametrize("kind", ["tfds", "tar"])
def test_worker_processes_read_the_same(kind, tfds_dir, folder):
  source = (
    data.open_source("fake_bugs", "train", data_dir=tfds_dir)
    if kind == "tfds"
    else data.open_source(f"folder:{folder}", "more")
  )
  source[0]  # So that files are open here.
  here, there = (
    data.train_loader(
      source, batch_size=5, seed=1, preprocess="resize(8)", num_workers=n
    )
    for n in (0, 1)
  )
  for _ in range(3):
    a, b = next(here), next(there)
    np.testing.assert_array_equal(a["images"], b["images"])
    np.testing.assert_array_equal(a["labels"], b["labels"])
  there.close()
