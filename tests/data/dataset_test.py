# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import grain
import numpy as np
import pytest

from soupjax.data import Dataset, dataset


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
  "size,seed",
  # Blocks of the cipher have an even number of bits, at least 16.
  [
    (1, 0),
    (2, 1),
    (150, 2),
    (2**16 - 1, 3),
    (2**16, 2**32 - 1),
    (2**16 + 1, 5),
    (2**16 + 2, 6),
    (300_000, 7),
  ],
)
def test_the_order_is_that_of_grain(size, seed, large, monkeypatch):
  if large:
    monkeypatch.setattr(dataset, "_LARGEST_EPOCH", 0)
  order = grain.MapDataset.range(size).seed(seed).shuffle().repeat()
  places = [*np.random.default_rng(0).integers(0, 3 * size, 200), size - 1]
  for place in map(int, places):
    epoch, index = divmod(place, size)
    assert dataset.shuffled_index(index, size, seed, epoch) == order[place]


@pytest.mark.parametrize("size", [2, 150, 7752, 2**16, 2**16 + 2])
def test_every_epoch_has_every_example(size):
  for epoch in range(2):
    indices = [dataset.shuffled_index(i, size, 3, epoch) for i in range(size)]
    assert sorted(indices) == list(range(size))


def test_datasets_check_themselves():
  with pytest.raises(ValueError, match="a/b "):
    Dataset("a/b", np.zeros((0, 2, 2, 1)), np.zeros(0))
  with pytest.raises(ValueError, match="a/b .*2.*3"):
    Dataset("a/b", np.zeros((2, 2, 2, 1)), np.zeros(3))
