# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np

from soupjax.data.corruptions import weather

COLORS = np.random.default_rng(0).random((24, 32, 3)) * 0.5


def rng():
  return np.random.default_rng(0)


def test_a_fractal_fills_its_range_and_is_smoother_with_more_decay():
  rough, smooth = (weather.fractal(rng(), (40, 60), d) for d in (0.5, 2))
  for texture in (rough, smooth):
    assert texture.shape == (40, 60)
    assert (texture.min(), texture.max()) == (0, 1)
  steps = [np.abs(np.diff(t)).mean() for t in (rough, smooth)]
  assert steps[1] < steps[0] / 3


def test_fog_lowers_contrast_and_keeps_the_brightest_value():
  out = weather.fog(COLORS, rng(), 1e-9)
  np.testing.assert_allclose(out, COLORS, atol=1e-8)
  assert weather.fog(COLORS, rng(), 3).max() <= COLORS.max()


def test_snow_and_frost_only_whiten():
  assert (weather.snow(COLORS, rng(), 3, 8, 0.1, 0.6) >= COLORS).all()
  np.testing.assert_allclose(weather.frost(COLORS, rng(), 0), COLORS)


def test_brightness_keeps_hue_and_saturation():
  out = weather.brightness(COLORS, rng(), 0.3)
  value = COLORS.max(axis=-1)
  np.testing.assert_allclose(out.max(axis=-1), np.minimum(value + 0.3, 1))
  ratio = out / out.max(axis=-1, keepdims=True)
  np.testing.assert_allclose(ratio, COLORS / value[..., None])
  black = weather.brightness(np.zeros((1, 1, 3)), rng(), 0.3)
  np.testing.assert_allclose(black, 0.3)
