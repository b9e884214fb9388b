# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from soupjax.data.corruptions import blur

POINT = np.zeros((41, 41, 3))
POINT[20, 20] = 1
Y, X = np.mgrid[-20:21, -20:21]


def rng():
  return np.random.default_rng(0)


@pytest.mark.parametrize("radius", [0.2, 1.0, 5.5])
def test_a_disc_keeps_the_light_and_has_its_size(radius):
  out = blur.defocus_blur(POINT, rng(), radius)[..., 0]
  assert out.sum() == pytest.approx(1)
  # Second moment of a disc, and at most that of linear interpolation.
  moment = (out * X**2).sum()
  assert radius**2 / 4 * 0.9 < moment < radius**2 / 4 + 0.26


def test_a_line_lies_along_its_angle():
  out = blur.along_line(POINT, np.pi / 6, 12, 1e9)[..., 0]
  assert out.sum() == pytest.approx(1)
  center = [(out * axis).sum() for axis in (Y, X)]
  expected = [6 * np.sin(np.pi / 6), 6 * np.cos(np.pi / 6)]
  np.testing.assert_allclose(center, expected, atol=1e-6)


def test_a_constant_image_stays_constant():
  grey = np.full((20, 30, 3), 0.4)
  for function, *strengths in (
    (blur.defocus_blur, 4.5),
    (blur.glass_blur, 1, 3, 2),
    (blur.motion_blur, 9, 3),
    (blur.zoom_blur, 1.3),
  ):
    np.testing.assert_allclose(function(grey, rng(), *strengths), grey)


def test_zoom_keeps_the_centre():
  out = blur.zoom_blur(POINT, rng(), 1.31)[..., 0]
  assert out[20, 20] == out.max()
  np.testing.assert_allclose(out, out[::-1, ::-1], atol=1e-12)
