# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Contrast, elastic distortions, coarse pixels and JPEG; see `noise`."""

import io

import numpy as np
from PIL import Image

from soupjax.data.corruptions import blur


def contrast(x, rng, factor: float) -> np.ndarray:
  """Scales the distance from the mean of each channel."""
  del rng
  mean = x.mean(axis=(0, 1))
  return (x - mean) * factor + mean


def elastic_transform(x, rng, distance: float, width: float) -> np.ndarray:
  """Moves pixels along a smooth random field.

  Args:
    x: the image.
    rng: generator that draws the field.
    distance: root mean square of either component of the field, in pixels.
    width: standard deviation of the Gaussian that smooths the field, in pixels.
  """
  field = rng.standard_normal((2, *x.shape[:2]))
  field = np.stack([blur.smooth(part, width) for part in field])
  field *= distance / max(field.std(), 1e-12)
  return blur.sampled(x, np.indices(x.shape[:2]) + field)


def _as_image(x: np.ndarray) -> Image.Image:
  return Image.fromarray(np.round(x * 255).astype(np.uint8))


def pixelate(x, rng, factor: float) -> np.ndarray:
  """Shrinks the image by a factor, then enlarges it without smoothing."""
  del rng
  height, width = x.shape[:2]
  small = max(round(width * factor), 1), max(round(height * factor), 1)
  image = _as_image(x).resize(small, Image.Resampling.BOX)
  return (
    np.asarray(image.resize((width, height), Image.Resampling.NEAREST)) / 255
  )


def jpeg_compression(x, rng, quality: int) -> np.ndarray:
  """Compresses as JPEG, with a quality on Pillow's scale."""
  del rng
  file = io.BytesIO()
  _as_image(x).save(file, "JPEG", quality=quality)
  return np.asarray(Image.open(file)) / 255
