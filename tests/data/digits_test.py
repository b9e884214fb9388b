# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from soupjax import data
from soupjax.data import digits as digits_lib
from soupjax.data import load_digits


@pytest.fixture(scope="module")
def digits():
  return load_digits(seed=3)


def rows(dataset):
  return {image.tobytes() for image in dataset.images}


def test_sizes_range_and_names(digits):
  assert [len(d) for d in (digits.pretrain, digits.train)] == [646, 100]
  assert [d.name for d in digits.evaluations][:3] == [
    "digits/minival",
    "digits/test",
    "digits/rotate",
  ]
  assert {len(d) for d in digits.shifts} == {499, 252}
  for d in (digits.pretrain, digits.train, *digits.evaluations):
    assert d.images.shape[1:] == (16, 16, 1)
    assert d.images.dtype == np.float32 and d.labels.dtype == np.int32
    assert d.images.min() >= -1 and d.images.max() <= 1


def test_no_image_is_in_two_splits(digits):
  new = next(d for d in digits.shifts if d.name == "digits/new_writers")
  parts = [digits.pretrain, digits.train, digits.minival, digits.test, new]
  assert sum(len(rows(d)) for d in parts) == 1797
  assert len(set.union(*(rows(d) for d in parts))) == 1797


def test_shifts_change_every_test_image_and_no_label(digits):
  for shift in digits.shifts[:-1]:
    np.testing.assert_array_equal(shift.labels, digits.test.labels)
    changed = np.abs(shift.images - digits.test.images).max(axis=(1, 2, 3))
    assert (changed > 0.02).mean() > 0.95, shift.name
    assert rows(shift).isdisjoint(rows(digits.minival))
  assert {d.name.removeprefix("digits/") for d in digits.shifts} == {
    *digits_lib.SHIFTS,
    "new_writers",
  }


def test_the_seed_shuffles_the_target_only(digits):
  other, same = load_digits(seed=4), load_digits(seed=3)
  assert rows(other.pretrain) == rows(digits.pretrain)
  assert rows(other.test) != rows(digits.test)
  for a, b in zip(same.evaluations, digits.evaluations):
    np.testing.assert_array_equal(a.images, b.images)


def test_doubling_keeps_the_mean_and_the_corner():
  image = np.random.default_rng(0).random((8, 8))
  double = digits_lib._double(image)
  assert double.shape == (16, 16)
  assert double[0, 0] == pytest.approx(image[0, 0])
  assert double[1, 1] == pytest.approx(
    np.array([0.75, 0.25]) @ image[:2, :2] @ np.array([0.75, 0.25])
  )


def test_too_small_a_test_set_is_refused():
  with pytest.raises(ValueError, match="49.*899 images"):
    load_digits(num_train=50, num_minival=800)
  with pytest.raises(ValueError, match="num_train=0"):
    load_digits(num_train=0)


# Digits in a row


def row(split, name="digits_row"):
  source = data.open_source(name, split)
  examples = [source[i] for i in range(len(source))]
  images = np.stack([e["image"][..., 0] for e in examples])
  return source, images, np.array([e["label"] for e in examples])


def test_row_splits():
  sizes = {"pretrain": 12 * 646, "train": 150, "minival": 300}
  sizes |= {"test": 2 * 449, "new_writers": 2 * 252}
  sizes |= dict.fromkeys(digits_lib.SHIFTS, 2 * 449)
  assert len(sizes) == 12 and sizes.keys() == set(digits_lib.ROW_SPLITS)
  for split, size in sizes.items():
    source = data.open_source("digits_row:1000", split)
    assert len(source) == size and source.num_classes == 10
    assert source.class_names == tuple("0123456789")
    assert source.name == f"digits_row:1000/{split}"
    assert source[0]["image"].shape == (16, 16, 3)
  assert data.open_source("digits_row", "train").name == "digits_row/train"


def test_only_the_middle_digit_is_whole(monkeypatch):
  monkeypatch.setattr(digits_lib, "_SENSOR_NOISE", 0.0)
  plain = data.load_digits()
  _, images, labels = row("pretrain")
  middle = np.round(plain.pretrain.images[..., 0] * 127.5 + 127.5)
  middle = np.tile(middle.astype(np.uint8), (12, 1, 1))
  np.testing.assert_array_equal(labels, np.tile(plain.pretrain.labels, 12))
  # Neighbours only add ink, and none in the columns that they do not reach.
  assert (images >= middle).all()
  np.testing.assert_array_equal(images[..., 7:9], middle[..., 7:9])
  for side in (slice(0, 7), slice(9, 16)):
    changed = (images != middle)[..., side].any(axis=(1, 2))
    assert 0.6 < changed.mean() < 0.8  # Some are too far away to be seen.
  # The target has both neighbours, nearer.
  _, images, _ = row("test")
  middle = digits_lib._images_and_labels()[0]
  middle = np.round(middle[digits_lib.row_digits("test", 0)] * 255)
  np.testing.assert_array_equal(images[..., 7:9], middle[..., 7:9])
  changed = images != middle
  assert changed[..., :7].any(axis=(1, 2)).mean() > 0.99
  assert changed[..., 9:].any(axis=(1, 2)).mean() > 0.99


def test_the_noise_is_that_of_a_sensor(monkeypatch):
  _, noisy, labels = row("test")
  monkeypatch.setattr(digits_lib, "_SENSOR_NOISE", 0.0)
  _, clean, _ = row("test")
  # Away from the ends of the range, where it is clipped.
  inside = (clean > 120) & (clean < 135)
  noise = (noisy.astype(float) - clean)[inside] / 255
  assert abs(noise.std() - 0.15) < 0.005 and abs(noise.mean()) < 0.01
  # Two draws of each digit, with other neighbours.
  np.testing.assert_array_equal(labels[:449], labels[449:])
  assert not (clean[:449] == clean[449:]).all(axis=(1, 2)).any()


def test_shifts_change_the_whole_picture(monkeypatch):
  monkeypatch.setattr(digits_lib, "_SENSOR_NOISE", 0.0)
  _, test, labels = row("test")
  for shift in digits_lib.SHIFTS:
    _, images, same = row(shift)
    np.testing.assert_array_equal(labels, same)
    assert (images != test).any(axis=(1, 2)).mean() > 0.95, shift
  _, contrast, _ = row("contrast")
  before, after = (np.ptp(x.astype(int), axis=(1, 2)) for x in (test, contrast))
  assert (after <= 0.5 * before + 1).all()


def test_everything_follows_from_the_seed():
  for split in digits_lib.ROW_SPLITS:
    _, images, labels = row(split)
    _, again, _ = row(split)
    _, other, others = row(split, "digits_row:7")
    np.testing.assert_array_equal(images, again)
    same = (images == other).all(axis=(1, 2))
    assert same.mean() < 0.02, split
    if split not in ("pretrain", "new_writers"):
      assert (labels != others).any()


def test_splits_share_no_digit():
  train, minival, test, rotate = (
    data.open_source("digits_row", split)
    for split in ("train", "minival", "test", "rotate")
  )
  for a, b in ((train, minival), (train, test), (minival, rotate)):
    assert data.shared_examples(a, b) == 0
  assert data.shared_examples(test, rotate) == 449
  half = data.open_source("digits_row", "minival[:50%]")
  assert len(half) == 150 and data.shared_examples(half, minival) == 150
  # Another seed has another minival.
  other = data.open_source("digits_row:1", "test")
  assert 100 < data.shared_examples(minival, other) < 200


def test_only_what_is_asked_for_is_made(monkeypatch):
  def fail(rng, image):
    raise AssertionError

  monkeypatch.setitem(digits_lib.SHIFTS, "rotate", fail)
  data.open_source("digits_row", "minival")
  data.open_source("digits_row", "blur")


@pytest.mark.parametrize(
  "name,split,culprit",
  [
    ("digits_row:x", "test", "'digits_row:x'"),
    ("digits_row:-1", "test", "'digits_row:-1'"),
    ("digits_row", "tests", "'tests'.*'test'"),
    ("digit_row", "test", "'digit_row'.*'digits_row'"),
  ],
)
def test_rows_that_are_not_there(name, split, culprit):
  with pytest.raises(ValueError, match=culprit):
    data.open_source(name, split)
