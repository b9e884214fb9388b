# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""RandAugment: its fourteen operations and their strengths."""

import helpers
import numpy as np
from PIL import Image
import pytest

from soupjax.data import randaug


def rng(seed=0):
  return np.random.default_rng(seed)


# The y coordinate in red, x in green: shows where each pixel came from.
Y, X = np.mgrid[:200, :250].astype(np.uint8)
MAP = np.stack([Y, X, np.zeros_like(X)], axis=-1)


def test_no_layers_change_nothing():
  image = Image.fromarray(helpers.fake_image(0))
  assert randaug.randaug(image, rng(), 0, 30) is image


def test_every_operation_is_drawn_and_keeps_the_size(monkeypatch):
  drawn = []

  def spy(k):
    return lambda image, level, sign: drawn.append((k, level, sign)) or image

  monkeypatch.setattr(randaug, "_OPS", tuple(map(spy, range(14))))
  image = Image.fromarray(helpers.fake_image(0))
  for seed in range(200):
    randaug.randaug(image, rng(seed), 3, 15)
  assert len(drawn) == 600
  assert {k for k, _, _ in drawn} == set(range(14))
  assert {level for _, level, _ in drawn} == {1.5}
  assert {sign for _, _, sign in drawn} == {-1, 1}


def test_there_are_the_fourteen_of_the_paper():
  assert len(randaug._OPS) == 14


@pytest.mark.parametrize("k", range(14))
def test_operations_work_at_every_magnitude(k):
  pixels = helpers.fake_image(5)
  image = Image.fromarray(pixels)
  for level in (0.0, 0.5, 1.0, 3.0):
    for sign in (-1, 1):
      out = randaug._OPS[k](image, level, sign)
      assert out.size == image.size and out.mode == "RGB"
      # Only what has no strength may change an image at magnitude 0.
      if level == 0 and k not in (1, 2):
        np.testing.assert_array_equal(np.asarray(out), pixels)
      # Stretching the contrast need not change an image that has all of it.
      if level == 1 and k not in (0, 1):
        assert not np.array_equal(np.asarray(out), pixels)


def test_strengths_at_magnitude_10():
  image = Image.fromarray(MAP)
  # Posterize keeps 4 bits; all of it is solarized.
  np.testing.assert_array_equal(randaug._posterize(image, 1, 1), MAP & 0xF0)
  np.testing.assert_array_equal(randaug._solarize(image, 1, 1), 255 - MAP)
  moved = np.asarray(randaug._translate_x(image, 1, 1))
  np.testing.assert_allclose(moved[:, :130, 1], MAP[:, 112:242, 1] + 1, atol=1)
  assert (moved[:, 140:] == 128).all()
  rotated = np.asarray(randaug._rotate(image, 1, 1))
  expected = np.asarray(image.rotate(30, Image.BILINEAR, fillcolor=(128,) * 3))
  np.testing.assert_array_equal(rotated, expected)
  sheared = np.asarray(randaug._shear_x(image, 1, 1))
  row = 100
  np.testing.assert_allclose(
    sheared[row, :200, 1].astype(float), np.arange(200) + 0.3 * row, atol=1.5
  )
