# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from soupjax.data import batch_indices, load_digits
from soupjax.data import digits as digits_lib


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
  with pytest.raises(ValueError, match="leave 49 of 899 images for test"):
    load_digits(num_train=50, num_minival=800)
  with pytest.raises(ValueError, match="num_train=0"):
    load_digits(num_train=0)


def test_every_epoch_sees_every_example_once():
  drawn = np.concatenate([batch_indices(10, 4, i, seed=1) for i in range(10)])
  epochs = drawn.reshape(4, 10)
  for epoch in epochs:
    assert sorted(epoch) == list(range(10))
  assert len({tuple(e) for e in epochs}) == 4
  assert tuple(batch_indices(10, 4, 2, seed=2)) != tuple(drawn[8:12])


def test_a_batch_larger_than_the_data_spans_epochs():
  batch = batch_indices(3, 8, 0, seed=0)
  assert sorted(batch[:3]) == sorted(batch[3:6]) == [0, 1, 2]
  with pytest.raises(ValueError, match="Cannot draw 0 of 3"):
    batch_indices(3, 0, 0, seed=0)
