# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The image op `corrupt`: 15 corruptions at five severities."""

from collections.abc import Callable
import dataclasses
from typing import Any
import zlib

import numpy as np
from PIL import Image

from soupjax import registry
from soupjax.data.corruptions import blur, digital, noise, weather

# Lengths below are in pixels of an image whose shorter side has this many.
_SIDE = 224


@dataclasses.dataclass(frozen=True)
class _Corruption:
  """A corruption function and its strengths.

  Attributes:
    function: the corruption; `noise` describes its arguments.
    strengths: the arguments of severities 1 to 5.
    lengths: the number of leading arguments that are lengths in pixels.
  """

  function: Callable[..., np.ndarray]
  strengths: tuple[Any, ...]
  lengths: int = 0


def _table(*rows) -> dict[str, _Corruption]:
  return {row[0].__name__: _Corruption(*row) for row in rows}


# In the order of the paper's table 1. Strengths are those of the published
# ImageNet-C where the operation is the same.
_CORRUPTIONS = _table(
  (noise.gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
  (noise.shot_noise, (60, 25, 12, 5, 3)),
  (noise.impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
  (blur.defocus_blur, (3, 4, 6, 8, 10), 1),
  (
    blur.glass_blur,
    ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    2,
  ),
  (blur.motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), 2),
  (blur.zoom_blur, (1.11, 1.16, 1.21, 1.26, 1.31)),
  (
    weather.snow,
    (
      *((3, 10, 0.01, 0.85), (3, 12, 0.03, 0.75), (4, 12, 0.05, 0.65)),
      *((4, 14, 0.08, 0.55), (4, 16, 0.12, 0.45)),
    ),
    2,
  ),
  (weather.frost, (0.4, 0.55, 0.7, 0.8, 0.9)),
  (weather.fog, (1.5, 2, 2.5, 3, 4)),
  (weather.brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
  (digital.contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
  (
    digital.elastic_transform,
    ((1.5, 9), (2, 9), (2.7, 9), (3.5, 9), (4.5, 9)),
    2,
  ),
  (digital.pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
  (digital.jpeg_compression, (25, 18, 15, 10, 7)),
)
# The names, as in ImageNet-C and TFDS.
CORRUPTIONS = tuple(_CORRUPTIONS)


def corrupt(
  image: Image.Image | np.ndarray, name: str, severity: int, seed: int = 0
) -> np.ndarray:
  """Corrupts an image as ImageNet-C does (arXiv 1903.12261).

  The 15 corruptions at five severities are written from the paper's
  description, so the pixels differ from those of the published images. Lengths,
  such as the radius of a blur, are for a shorter side of 224 pixels and scale
  with it. Random numbers follow from the pixels, the name and the seed, so that
  an image is always corrupted in the same way.

  Args:
    image: image with values 0 to 255.
    name: one of `CORRUPTIONS`.
    severity: from 1 to 5.
    seed: selects the random draws.

  Returns:
    (height, width, 3) uint8.

  Raises:
    ValueError: if the name is unknown, or the severity or seed is invalid.

  Examples:
    >>> import numpy as np
    >>> from soupjax.data import corruptions
    >>> grey = np.full((32, 32, 3), 100, np.uint8)
    >>> corruptions.corrupt(grey, "brightness", 3)[0, 0].tolist()
    [176, 176, 176]
  """
  corruption = _CORRUPTIONS.get(name)
  if corruption is None:
    raise ValueError(
      f"Unknown corruption {name!r}{registry.suggestion(name, CORRUPTIONS)}"
    )
  if isinstance(severity, bool) or severity not in (1, 2, 3, 4, 5):
    raise ValueError(
      f"corrupt({name!r}, {severity!r}): severity must be 1, 2, 3, 4 or 5."
    )
  if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
    raise ValueError(
      f"corrupt({name!r}, {severity}, {seed!r}): seed must be an integer >= 0."
    )
  pixels = np.ascontiguousarray(image)
  strengths = corruption.strengths[int(severity) - 1]
  if not isinstance(strengths, tuple):
    strengths = (strengths,)
  scale = min(pixels.shape[:2]) / _SIDE
  strengths = [
    s * scale if k < corruption.lengths else s for k, s in enumerate(strengths)
  ]
  source = (seed, zlib.crc32(name.encode()), zlib.crc32(pixels))
  x = corruption.function(
    pixels / 255, np.random.default_rng(source), *strengths
  )
  return np.round(np.clip(x, 0, 1) * 255).astype(np.uint8)
