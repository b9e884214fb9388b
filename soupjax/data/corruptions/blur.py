# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Blurs. Lengths are in pixels and may be fractions; see `noise`."""

import numpy as np
from PIL import Image
from scipy import ndimage, signal


def convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
  """Convolves (height, width, channels) with a (2r + 1, 2r + 1) kernel.

  The kernel is divided by its sum, and the image is mirrored at its borders.
  """
  radius = len(kernel) // 2
  padded = np.pad(x, ((radius, radius), (radius, radius), (0, 0)), "symmetric")
  kernel = (kernel / kernel.sum())[..., None]
  return signal.oaconvolve(padded, kernel, "valid", axes=(0, 1))


def smooth(x: np.ndarray, deviation: float) -> np.ndarray:
  """Blurs the first two axes with a Gaussian."""
  sigma = (deviation, deviation, *(0,) * (x.ndim - 2))
  return ndimage.gaussian_filter(x, sigma)


def _kernel(rows, columns, weights) -> np.ndarray:
  """Spreads weights at (n,) points around 0 bilinearly over pixels."""
  size = int(np.ceil(np.abs([rows, columns]).max())) + 1
  kernel = np.zeros((2 * size + 1,) * 2)
  rows, columns = rows + size, columns + size
  top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
  down, right = rows - top, columns - left
  for row, part in ((top, 1 - down), (top + 1, down)):
    np.add.at(kernel, (row, left), weights * part * (1 - right))
    np.add.at(kernel, (row, left + 1), weights * part * right)
  return kernel


def defocus_blur(x, rng, radius: float) -> np.ndarray:
  """Averages over a disc."""
  del rng
  rows, columns = np.mgrid[-16:17, -16:17].reshape(2, -1) / 16 * radius
  inside = np.hypot(rows, columns) <= radius
  return convolve(x, _kernel(rows, columns, inside))


def glass_blur(
  x, rng, deviation: float, distance: float, rounds: int
) -> np.ndarray:
  """Takes each pixel from a random nearby position, between two blurs.

  The displacement of a pixel is a sum of `rounds` steps, each uniform up to
  `distance` in either direction.
  """
  steps = rng.uniform(-1, 1, (3, 2, *x.shape[:2]))
  places = np.indices(x.shape[:2]) + distance * steps[:rounds].sum(axis=0)
  return smooth(sampled(smooth(x, deviation), places), deviation)


def sampled(x: np.ndarray, places: np.ndarray) -> np.ndarray:
  """Samples (height, width, 3) bilinearly at (2, height, width) positions."""
  return np.stack(
    [
      ndimage.map_coordinates(x[..., k], places, order=1, mode="reflect")
      for k in range(x.shape[-1])
    ],
    axis=-1,
  )


def motion_blur(x, rng, length: float, deviation: float) -> np.ndarray:
  """Averages along a random line, within 45 degrees of horizontal.

  Weights decay from one end of the line like a Gaussian.
  """
  return along_line(x, rng.uniform(-np.pi / 4, np.pi / 4), length, deviation)


def along_line(x, angle: float, length: float, deviation: float) -> np.ndarray:
  """Averages (height, width, channels) along a line; see `motion_blur`."""
  along = np.linspace(0, length, 8 * int(np.ceil(length)) + 1)
  weights = np.exp(-0.5 * (along / deviation) ** 2)
  kernel = _kernel(along * np.sin(angle), along * np.cos(angle), weights)
  return convolve(x, kernel)


def zoom_blur(x, rng, largest: float) -> np.ndarray:
  """Averages the image with copies enlarged by factors up to `largest`."""
  del rng
  height, width = x.shape[:2]
  image = Image.fromarray(np.round(x * 255).astype(np.uint8))
  copies = [x]
  for factor in np.linspace(1, largest, 16)[1:]:
    left, top = (1 - 1 / factor) * width / 2, (1 - 1 / factor) * height / 2
    enlarged = image.resize(
      (width, height),
      Image.Resampling.BILINEAR,
      box=(left, top, width - left, height - top),
    )
    copies.append(np.asarray(enlarged) / 255)
  return np.mean(copies, axis=0)
