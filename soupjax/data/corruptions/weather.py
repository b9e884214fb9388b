# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Weather: fog, frost, snow and brightness; see `noise`.

ImageNet-C blends in photos of frost. Here frost is generated.
"""

import numpy as np

from soupjax.data.corruptions import blur


def fractal(
  rng: np.random.Generator, shape: tuple[int, int], decay: float
) -> np.ndarray:
  """Draws a random cloud texture, (height, width), in [0, 1].

  Args:
    rng: generator that draws the texture.
    shape: height and width.
    decay: amplitudes fall as frequency to the power -decay; higher is smoother.
  """
  size = 2 * max(shape)  # Opposite edges match, so only a part is used.
  frequencies = np.hypot(
    np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
  )
  frequencies[0, 0] = np.inf
  spectrum = np.fft.rfft2(rng.standard_normal((size, size)))
  texture = np.fft.irfft2(spectrum * frequencies**-decay, (size, size))
  texture = texture[: shape[0], : shape[1]]
  low, high = texture.min(), texture.max()
  return (texture - low) / max(high - low, 1e-12)


def fog(x, rng, amount: float) -> np.ndarray:
  """Adds clouds of fog, then scales the brightest value back."""
  brightest = x.max()
  clouds = fractal(rng, x.shape[:2], 1.7)[..., None]
  return (x + amount * clouds) * brightest / (brightest + amount)


def frost(x, rng, ice: float) -> np.ndarray:
  """Covers the image with white needles on a bluish film.

  Args:
    x: the image.
    rng: generator that draws the crystals.
    ice: weight of the ice where it is thickest.
  """
  crystals = [fractal(rng, x.shape[:2], decay) for decay in (1.2, 1.5)]
  needles = np.max([1 - np.abs(2 * c - 1) for c in crystals], axis=0) ** 4
  film = fractal(rng, x.shape[:2], 1.6)
  cover = ice * np.clip(0.2 + 0.5 * film + 0.5 * needles, 0, 1)[..., None]
  return x + cover * (np.array((0.85, 0.95, 1.0)) - x)


def snow(
  x, rng, size: float, length: float, share: float, keep: float
) -> np.ndarray:
  """Whitens the scene and adds falling flakes.

  Args:
    x: the image.
    rng: generator that draws the positions and direction of the flakes.
    size: size of a flake, in pixels.
    length: length of its streak, in pixels.
    share: fraction of the pixels under flakes, before they are streaked.
    keep: weight of the original scene; the rest is a paler, greyer version.
  """
  field = blur.smooth(rng.standard_normal(x.shape[:2]), size / 2)
  spread = max(field.std(), 1e-12)
  angle = rng.uniform(np.pi / 4, 3 * np.pi / 4)
  start = np.quantile(field, 1 - share)
  flakes = np.clip((field - start) / spread * 4, 0, 1)[..., None]
  flakes = np.clip(3 * blur.along_line(flakes, angle, length, length), 0, 1)
  grey = x.mean(axis=-1, keepdims=True)
  pale = np.maximum(x, 0.5 + 0.5 * grey)
  scene = keep * x + (1 - keep) * pale
  return scene + flakes * (1 - scene)


def brightness(x, rng, amount: float) -> np.ndarray:
  """Adds to V of HSV; hue and saturation do not change."""
  del rng
  value = x.max(axis=-1, keepdims=True)
  brighter = np.minimum(value + amount, 1)
  return np.where(value > 0, x / np.maximum(value, 1e-12), 1) * brighter
