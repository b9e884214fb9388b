# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Properties of the 15 corruptions, on a picture with edges and texture."""

import numpy as np
from PIL import Image
import pytest

from soupjax import data
from soupjax.data import corruptions


def picture(height=96, width=120):
  """A soft gradient with a disc, stripes and grain."""
  y, x = np.mgrid[:height, :width] / 96
  rng = np.random.default_rng(0)
  image = np.stack([0.3 + 0.4 * y, 0.6 - 0.3 * x, 0.4 + 0.1 * (x + y)], -1)
  image[np.hypot(y - 0.5, x - 0.6) < 0.3] = (0.9, 0.5, 0.1)
  image += 0.15 * (np.sin(40 * x) > 0)[..., None] * (y > 0.7)[..., None]
  image += rng.normal(0, 0.02, image.shape)
  return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


PICTURE = picture()


def distance(a, b):
  return np.sqrt(np.mean((a.astype(float) - b) ** 2))


def test_the_names_are_the_15_of_the_paper():
  assert len(corruptions.CORRUPTIONS) == 15
  assert {"fog", "glass_blur", "jpeg_compression"} < {*corruptions.CORRUPTIONS}


@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
def test_a_higher_severity_is_farther_from_the_image(name):
  results = [corruptions.corrupt(PICTURE, name, s) for s in range(1, 6)]
  assert {r.shape for r in results} == {PICTURE.shape}
  assert {r.dtype for r in results} == {np.dtype(np.uint8)}
  distances = [distance(r, PICTURE) for r in results]
  assert distances[0] > 1 and (np.diff(distances) > 0).all(), distances


@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
def test_an_image_is_always_corrupted_in_the_same_way(name):
  first = corruptions.corrupt(PICTURE, name, 3)
  again = corruptions.corrupt(Image.fromarray(PICTURE.copy()), name, 3)
  np.testing.assert_array_equal(first, again)
  other = corruptions.corrupt(PICTURE, name, 3, seed=1)
  drawn = name not in {
    *("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate"),
    "jpeg_compression",
  }
  assert drawn != np.array_equal(first, other)


def test_other_images_get_other_noise():
  grey = np.full((40, 40, 3), 128, np.uint8)
  changed = grey.copy()
  changed[0, 0] = 127
  a, b = (
    corruptions.corrupt(image, "gaussian_noise", 1).astype(float) - 128
    for image in (grey, changed)
  )
  assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (16, 16)])
def test_tiny_black_and_white_images(name, level, shape):
  image = np.full((*shape, 3), level, np.uint8)
  assert corruptions.corrupt(image, name, 5).shape == image.shape


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "glass_blur"])
def test_lengths_scale_with_the_image(name):
  large = Image.fromarray(picture(384, 480)).resize((240, 192))
  small = large.resize((120, 96), Image.Resampling.BOX)
  corrupted = [corruptions.corrupt(i, name, 5) for i in (large, small)]
  shrunk = Image.fromarray(corrupted[0]).resize((120, 96), Image.Resampling.BOX)
  change = distance(corrupted[1], np.asarray(small))
  if name == "defocus_blur":  # Draws nothing.
    assert distance(np.asarray(shrunk), corrupted[1]) < 0.2 * change
  ratio = distance(np.asarray(shrunk), np.asarray(small)) / change
  assert 0.7 < ratio < 1.4


@pytest.mark.parametrize(
  "arguments, message",
  [
    (("fogg", 3), "'fogg'.*'fog'"),
    (("fog", 0), "'fog', 0.*1, 2, 3, 4 or 5"),
    (("fog", 6), "'fog', 6"),
    (("fog", 2.5), "'fog', 2.5"),
    (("fog", True), "'fog', True"),
    (("fog", "3"), "'fog', '3'"),
    (("fog", 3, -1), "-1.*integer >= 0"),
    (("fog", 3, "a"), "'a'.*integer >= 0"),
  ],
)
def test_bad_names_severities_and_seeds(arguments, message):
  with pytest.raises(ValueError, match=message):
    corruptions.corrupt(PICTURE, *arguments)
  # Preprocessing checks its text before anything is read.
  text = ", ".join(map(repr, arguments))
  with pytest.raises(ValueError, match=message):
    data.Preprocess(f"resize(32)|corrupt({text})")


def test_corrupt_is_an_operation_of_preprocessing():
  ops = data.Preprocess('corrupt("snow", 2)|resize(32)|value_range(-1, 1)')
  assert not ops.random_ops
  assert ops(PICTURE).shape == (32, 32, 3)
