# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""RandAugment as timm has it, and the linear one with fourteen operations."""

import importlib.metadata
import importlib.util
import random
import types

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
  assert randaug.randaug_linear(image, rng(), 0, 30) is image


def test_every_operation_is_drawn_and_keeps_the_size(monkeypatch):
  drawn = []

  def spy(k):
    return lambda image, level, sign: drawn.append((k, level, sign)) or image

  monkeypatch.setattr(randaug, "_OPS", tuple(map(spy, range(14))))
  image = Image.fromarray(helpers.fake_image(0))
  for seed in range(200):
    randaug.randaug_linear(image, rng(seed), 3, 15)
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


# --- timm's -------------------------------------------------------------------


@pytest.fixture(scope="module")
def timm():
  """timm's module, which itself needs no torch."""
  try:
    package = importlib.metadata.distribution("timm")
  except importlib.metadata.PackageNotFoundError:
    pytest.skip("needs pip install soupjax[torch-tests]")
  path = package.locate_file("timm/data/auto_augment.py")
  spec = importlib.util.spec_from_file_location("timm_auto_augment", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  kept, posterize = (
    module.ImageOps.posterize,
    lambda x, bits: x.point([i & (0xFF << (8 - bits)) for i in range(256)] * 3),
  )
  # Pillow 13 has no posterize to 0 bits, which was black before.
  module.ImageOps = types.SimpleNamespace(**vars(module.ImageOps))
  module.ImageOps.posterize = lambda x, n: kept(x, n) if n else posterize(x, n)
  return module


def photo(size=32):
  y, x = np.mgrid[:size, :size]
  waves = 127 + 100 * np.sin(x / 5) * np.cos(y / 3)
  squares = 255 * ((x // 6 + y // 4) % 2)
  return np.stack([waves, squares, 4 * y + 64], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("increasing", [False, True])
def test_every_operation_has_the_pixels_of_timm(timm, increasing, monkeypatch):
  names = timm.rand_augment_choices("", increasing=increasing)
  assert len(names) == len(randaug._TIMM_OPS)
  image = Image.fromarray(photo())
  for name, op in zip(names, randaug._TIMM_OPS):
    for magnitude in (0, 1, 5, 9.3, 10, 15, 20):
      for sign in (1, -1):
        monkeypatch.setattr(timm, "_randomly_negate", float(sign).__mul__)
        foreign = timm.AugmentOp(
          name, prob=1.0, magnitude=magnitude,
          hparams={"interpolation": Image.Resampling.BICUBIC},
        )  # fmt: skip
        place = {
          "resample": Image.Resampling.BICUBIC,
          "fillcolor": (128, 128, 128),
        }
        level = min(magnitude, 10) / 10
        np.testing.assert_array_equal(
          np.asarray(op(image, level, sign, increasing, place)),
          np.asarray(foreign(image)),
          err_msg=f"{name} at {magnitude}",
        )


@pytest.mark.parametrize(
  "text",
  [
    "rand-m20-n2",
    "rand-m9-n3-mstd0.5-inc1",
    "rand-m10-mstd101",
    "rand-m15-n2-p0.9-mmax20-mstd3",
    "rand",
  ],
)
def test_texts_of_timm_have_its_distribution(timm, text):
  pixels = photo(24)
  image = Image.fromarray(pixels)
  random.seed(0)
  np.random.seed(0)  # noqa: NPY002 timm draws from it.
  foreign, generator = timm.rand_augment_transform(text), rng()

  def changes(transform):
    images = (np.asarray(transform(image)) for _ in range(700))
    return np.array([np.abs(x - pixels.astype(float)).mean() for x in images])

  ours = changes(lambda x: randaug.randaug(x, generator, text))
  theirs = changes(foreign)
  # Unchanged images, and the distribution of the change (Kolmogorov-Smirnov:
  # 0.1 is passed by chance in one of a thousand runs).
  assert abs((ours == 0).mean() - (theirs == 0).mean()) < 0.08
  grid = np.sort(theirs)
  at = [np.searchsorted(np.sort(x), grid, "right") / 700 for x in (ours, grid)]
  assert np.abs(at[0] - at[1]).max() < 0.1


def test_no_image_is_wiped_out_above_10():
  image = Image.fromarray(photo(64))

  def share_wiped_out(op):
    generator, count = rng(), 0
    for _ in range(250):
      flat = np.asarray(op(image, generator, 2, 20)).astype(float)
      flat = flat.reshape(-1, 3)
      count += (np.abs(flat - np.median(flat, 0)).max(1) < 3).mean() > 0.85
    return count / 250

  assert share_wiped_out(randaug.randaug) < 0.03
  assert share_wiped_out(randaug.randaug_linear) > 0.2


def test_arguments_and_text_are_the_same():
  image = Image.fromarray(photo())
  for seed in range(20):
    by_text = randaug.randaug(image, rng(seed), "rand-m7-n3-mstd1-inc1-p0.8")
    by_argument = randaug.randaug(
      image, rng(seed), 3, 7,
      magnitude_std=1, increasing=True, probability=0.8,
    )  # fmt: skip
    np.testing.assert_array_equal(by_text, by_argument)


@pytest.mark.parametrize(
  "text, message",
  [
    ("rand-m9-tweights", "rand-m9-tweights"),
    ("rand-m9-x2", "rand-m9-x2"),
    ("augmix-m5", "augmix-m5"),
    ("rand-m9.5", "rand-m9.5"),
    ("rand-mstdinf", "rand-mstdinf"),
    ("rand-p3", "probability.*3"),
    ("", "''"),
  ],
)
def test_texts_that_say_something_else_are_refused(text, message):
  with pytest.raises(ValueError, match=message):
    randaug.randaug(Image.fromarray(photo()), rng(), text)
