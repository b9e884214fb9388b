# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from soupjax.data.variants import VARIANTS, joined, variant

from soupjax.data import Dataset

IMAGES = np.array([[[-1, 1], [0, 0.5]]], np.float32)[..., None]
DIGITS = Dataset("digits/few", IMAGES, np.array([7], np.int32))


@pytest.mark.parametrize(
  "task,pixels,label",
  [
    ("upright", [[-1, 1], [0, 0.5]], 7),
    ("inverted", [[1, -1], [0, -0.5]], 7),
    ("rotated", [[1, 0.5], [-1, 0]], 7),
    ("rotated_inverted", [[-1, -0.5], [1, 0]], 7),
    ("mirrored", [[1, -1], [0.5, 0]], 7),
    ("parity", [[-1, 1], [0, 0.5]], 1),
  ],
)
def test_by_hand(task, pixels, label):
  found = variant(DIGITS, task)
  np.testing.assert_array_equal(found.images[0, :, :, 0], pixels)
  assert found.labels.tolist() == [label]
  assert found.name == f"digits/few/{task}"
  assert found.images.dtype == np.float32


def test_all_are_tested_above():
  assert len(VARIANTS) == 6


def test_joined():
  both = joined("both", DIGITS, variant(DIGITS, "parity"))
  assert len(both) == 2 and both.labels.tolist() == [7, 1]


def test_unknown():
  with pytest.raises(ValueError, match="task must be one of .*'flipped'"):
    variant(DIGITS, "flipped")
