# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Noise, independent for each pixel.

Corruption functions take an image (height, width, 3) of float64 in [0, 1], a
generator, and strengths; results may leave [0, 1]. Except for shot noise, the
random draws do not depend on the strengths, so severities differ only in
strength.
"""

import numpy as np


def gaussian_noise(x, rng, deviation: float) -> np.ndarray:
  """Adds Gaussian noise, as from a sensor in low light."""
  return x + deviation * rng.standard_normal(x.shape)


def shot_noise(x, rng, photons: float) -> np.ndarray:
  """Adds Poisson noise, where the value 1 is `photons` photons."""
  return rng.poisson(x * photons) / photons


def impulse_noise(x, rng, share: float) -> np.ndarray:
  """Sets a random share of all values to 0 or 1, with equal probability."""
  replaced = rng.random(x.shape) < share
  return np.where(replaced, rng.integers(2, size=x.shape), x)
