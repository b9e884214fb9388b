# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np

from soupjax.data.corruptions import noise

GREY = np.full((100, 100, 3), 0.25)


def rng():
  return np.random.default_rng(0)


def test_gaussian_noise_has_its_deviation():
  change = noise.gaussian_noise(GREY, rng(), 0.18) - GREY
  np.testing.assert_allclose(
    [change.mean(), change.std()], [0, 0.18], atol=4e-3
  )


def test_the_variance_of_shot_noise_is_that_of_counts():
  out = noise.shot_noise(GREY, rng(), 12)
  np.testing.assert_allclose(
    [out.mean(), out.var()], [0.25, 0.25 / 12], rtol=0.05
  )
  assert np.allclose(out * 12, np.round(out * 12))


def test_impulse_noise_sets_its_share_to_0_and_1():
  out = noise.impulse_noise(GREY, rng(), 0.2)
  shares = [(out == v).mean() for v in (0, 0.25, 1)]
  np.testing.assert_allclose(shares, [0.1, 0.8, 0.1], atol=0.01)
  # A smaller share replaces some of the same values.
  less = noise.impulse_noise(GREY, rng(), 0.1)
  assert (out[less != 0.25] == less[less != 0.25]).all()
