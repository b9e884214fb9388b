# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Operations on single images."""

import sys

import numpy as np
from PIL import Image
import pytest

from soupjax.data import image_ops
from soupjax.data.preprocess import Preprocess


def rng(seed=0):
  return np.random.default_rng(seed)


# The y coordinate in red, x in green: shows where each pixel came from.
Y, X = np.mgrid[:200, :250].astype(np.uint8)
MAP = np.stack([Y, X, np.zeros_like(X)], axis=-1)


def test_a_border_is_cut_off():
  for image in (MAP, Image.fromarray(MAP)):
    out = np.asarray(image_ops.crop_border(image, 2))
    np.testing.assert_array_equal(out, MAP[2:-2, 2:-2])
  for pixels in (-1, 1.5, 200):
    with pytest.raises(ValueError, match=f"crop_border.{pixels}"):
      image_ops.crop_border(MAP, pixels)


def test_inception_crop_takes_boxes_within_its_ranges():
  areas, ratios = [], []
  for seed in range(300):
    out = np.asarray(
      image_ops.inception_crop(
        Image.fromarray(MAP), rng(seed), 64, 20, 80, (0.5, 2.0)
      )
    ).astype(float)
    assert out.shape == (64, 64, 3)
    # From the first to the last pixel centre are 63 / 64 of the box.
    height = (out[-1, :, 0].mean() - out[0, :, 0].mean()) * 64 / 63
    width = (out[:, -1, 1].mean() - out[:, 0, 1].mean()) * 64 / 63
    areas.append(height * width / (200 * 250))
    ratios.append(width / height)
  assert 0.18 < min(areas) < 0.25 and 0.7 < max(areas) < 0.85
  assert 0.45 < min(ratios) < 0.6 and 1.6 < max(ratios) < 2.1


def test_inception_crop_of_all_is_a_resize():
  image = Image.fromarray(MAP)
  out = image_ops.inception_crop(image, rng(), (20, 30), 100, 100, (1.25, 1.25))
  np.testing.assert_array_equal(out, image_ops.resize(image, (20, 30)))
  # A box that never fits: the whole image.
  thin = Image.fromarray(MAP[:2])
  out = image_ops.inception_crop(thin, rng(), 8, 100, 100)
  np.testing.assert_array_equal(out, image_ops.resize(thin, 8))


def test_linear_takes_its_box_and_does_not_smooth():
  pytest.importorskip("cv2", reason="OpenCV is an extra")
  image = Image.fromarray(MAP)
  out = np.asarray(
    image_ops._resized(image, (10, 20), "linear", (50, 100, 70, 110))
  )
  np.testing.assert_array_equal(out, MAP[100:110, 50:70])
  # Every second column: a smoothing method would give grey.
  stripes = Image.fromarray(
    np.tile(np.array([[[0] * 3, [255] * 3]], np.uint8), (8, 6, 1))
  )
  third = np.asarray(image_ops.resize(stripes, (8, 4), "linear"))
  np.testing.assert_array_equal(third[0, :, 0], [255, 0, 255, 0])


def test_linear_without_opencv_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "cv2", None)
  image_ops.opencv.cache_clear()
  with pytest.raises(ValueError, match=r"soupjax\[opencv\]"):
    Preprocess("resize(8, 'linear')")


def test_resize_small_keeps_the_aspect():
  image = Image.fromarray(MAP)
  assert image_ops.resize_small(image, 100).size == (125, 100)
  assert image_ops.resize_small(image.transpose(2), 100).size == (100, 125)
  wide = Image.fromarray(MAP[:3])
  assert image_ops.resize_small(wide, 1).size == (83, 1)


def test_central_crop_is_central_and_pads_with_black():
  out = np.asarray(image_ops.central_crop(Image.fromarray(MAP), (100, 50)))
  np.testing.assert_array_equal(out, MAP[50:150, 100:150])
  out = np.asarray(image_ops.central_crop(Image.fromarray(MAP), (220, 250)))
  np.testing.assert_array_equal(out[10:210], MAP)
  assert not out[:10].any() and not out[210:].any()


def test_random_crop_reaches_every_place():
  image = Image.fromarray(MAP[:6, :6])
  places = set()
  for seed in range(400):
    out = np.asarray(image_ops.random_crop(image, rng(seed), 4, padding=1))
    padded = np.pad(MAP[:6, :6], ((1, 1), (1, 1), (0, 0)))
    result = [
      (y, x)
      for y in range(5)
      for x in range(5)
      if np.array_equal(padded[y : y + 4, x : x + 4], out)
    ]
    assert len(result) == 1
    places.update(result)
  assert len(places) == 25


def test_flip():
  image = Image.fromarray(MAP)
  flipped = [
    np.array_equal(image_ops.flip_lr(image, rng(s)), MAP[:, ::-1])
    for s in range(200)
  ]
  assert 70 < sum(flipped) < 130
  np.testing.assert_array_equal(image_ops.flip_lr(image, rng(), 0.0), MAP)


def test_value_range():
  out = image_ops.value_range(Image.fromarray(MAP), -1, 1)
  np.testing.assert_allclose(out, MAP / 127.5 - 1, atol=1e-6)
  assert out.dtype == np.float32


def test_standardize_takes_mean_and_deviation():
  image = np.full((2, 2, 3), 255, np.uint8)
  image[0, 0] = 0
  result = Preprocess('standardize("clip")')(image)
  assert result.dtype == np.float32
  mean, deviation = map(np.array, image_ops.STATISTICS["clip"])
  np.testing.assert_allclose(result[0, 0], -mean / deviation, rtol=1e-6)
  np.testing.assert_allclose(result[1, 1], (1 - mean) / deviation, rtol=1e-6)
  with pytest.raises(ValueError, match="'jft'"):
    Preprocess('standardize("jft")')
  with pytest.raises(ValueError, match="must be last"):
    Preprocess("standardize|flip_lr")


def test_standardize_takes_statistics_of_ones_own():
  image = np.full((4, 4, 3), (51, 102, 255), np.uint8)
  result = Preprocess("standardize((0.1, 0.2, 0.5), (0.1, 0.2, 0.25))")(image)
  np.testing.assert_allclose(result[0, 0], [1, 1, 2], rtol=1e-5)
  for text in ("(0.1, 0.2), (1, 1)", "(1, 1, 1), (0, 1, 1)", "(1, 1, 1)"):
    with pytest.raises(ValueError, match="mean and a (positive )?deviation"):
      Preprocess(f"standardize({text})")


def test_sizes_and_margins_are_rounded_as_a_library_rounds_them():
  image = Image.fromarray(MAP)  # 200 x 250.
  for like, side in {"torchvision": 66, "big_vision": 66}.items():
    assert image_ops.resize_small(image, 53, like=like).size == (side, 53)
  assert image_ops.resize_small(image, 51).size == (63, 51)
  assert image_ops.resize_small(image, 51, like="big_vision").size == (64, 51)
  # Margins of 1, 3 and 5 pixels: half to even, or down.
  for side, even, down in ((249, 0, 0), (247, 2, 1), (245, 2, 2)):
    for like, left in (("torchvision", even), ("big_vision", down)):
      out = np.asarray(image_ops.central_crop(image, (200, side), like))
      np.testing.assert_array_equal(out, MAP[:, left : left + side])
  # Three columns more than there are.
  for like, left in (("torchvision", 1), ("transformers", 2)):
    out = np.asarray(image_ops.central_crop(image, (200, 253), like, fill=7))
    np.testing.assert_array_equal(out[:, left : left + 250], MAP)
    assert (out[:, :left] == 7).all() and (out[:, left + 250 :] == 7).all()
  for text in ("resize_small(8, like='jax')", "central_crop(8, 'jax')"):
    with pytest.raises(ValueError, match="like='jax'"):
      Preprocess(text)
  with pytest.raises(ValueError, match="300"):
    Preprocess("central_crop(8, fill=300)")


def test_resize_ratio_covers_or_fits():
  image = Image.fromarray(MAP)  # 200 x 250.
  assert image_ops.resize_ratio(image, (100, 100)).size == (125, 100)
  assert image_ops.resize_ratio(image, 100, longest=True).size == (100, 80)
  assert image_ops.resize_ratio(image, (100, 200)).size == (200, 160)
