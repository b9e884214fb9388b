# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Noise: every pixel changes by itself.

Functions of corruptions take an image (height, width, 3) of float64 in [0, 1],
a generator, and strengths; results may leave [0, 1]. The random draws do not
depend on the strengths, so a stronger corruption is more of the same.
"""

import numpy as np


def gaussian_noise(x, rng, deviation: float) -> np.ndarray:
  """Adds normal noise, as of a sensor in low light."""
  return x + deviation * rng.standard_normal(x.shape)


def shot_noise(x, rng, photons: float) -> np.ndarray:
  """Counts photons (Poisson); white is `photons` of them."""
  return rng.poisson(x * photons) / photons


def impulse_noise(x, rng, share: float) -> np.ndarray:
  """Sets a share of all values to 0 or 1, each as often."""
  replaced = rng.random(x.shape) < share
  return np.where(replaced, rng.integers(2, size=x.shape), x)
