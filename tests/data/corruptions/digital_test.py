# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np

from soupjax.data.corruptions import digital

NOISE = np.random.default_rng(0).random((40, 60, 3))


def rng():
  return np.random.default_rng(0)


def test_contrast_scales_deviations_from_the_mean():
  out = digital.contrast(NOISE, rng(), 0.2)
  np.testing.assert_allclose(out.mean((0, 1)), NOISE.mean((0, 1)))
  np.testing.assert_allclose(out.std((0, 1)), 0.2 * NOISE.std((0, 1)))


def test_elastic_distortions_move_pixels_by_their_distance():
  ramp = np.broadcast_to(np.arange(200.0)[None, :, None], (200, 200, 3))
  moved = (digital.elastic_transform(ramp, rng(), 2, 6) - ramp)[20:-20, 20:-20]
  # The field has a deviation of 2 over both components together.
  assert 1.6 < moved.std() < 2.4
  assert np.abs(np.diff(moved, axis=0)).max() < 2


def test_pixelate_makes_blocks():
  out = digital.pixelate(NOISE, rng(), 0.25)
  blocks = out.reshape(10, 4, 15, 4, 3)
  assert (blocks == blocks[:, :1, :, :1]).all()
  mean = NOISE.reshape(10, 4, 15, 4, 3).mean((1, 3))
  np.testing.assert_allclose(blocks[:, 0, :, 0], mean, atol=4 / 255)


def test_jpeg_loses_more_with_less_quality():
  lost = [
    np.abs(digital.jpeg_compression(NOISE, rng(), q) - NOISE).mean()
    for q in (95, 25, 7)
  ]
  assert lost == sorted(lost)
