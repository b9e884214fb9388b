# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""RandAugment (arXiv 1909.13719) with Pillow.

The fourteen operations of the paper's Figure 2. Magnitudes are on the usual
scale where 10 is the full range of AutoAugment (arXiv 1805.09501, Table 6);
above 10 they go on linearly.
"""

import functools

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_GREY = (128, 128, 128)


def randaug(
  image: Image.Image | np.ndarray,
  rng: np.random.Generator,
  num_layers: int = 2,
  magnitude: float = 10,
) -> Image.Image:
  """Applies `num_layers` random operations, one after another.

  Args:
    image: a PIL image (RGB), or (height, width, 3) uint8.
    rng: for the operations and their signs.
    num_layers: how many; 0 changes nothing.
    magnitude: their strength, 0 to 30.

  Returns:
    A PIL image of the same size; grey outside the original image.

  Raises:
    ValueError: if an argument is out of its range.
  """
  if not isinstance(num_layers, int) or num_layers < 0:
    raise ValueError(f"randaug takes num_layers >= 0, not {num_layers!r}.")
  if not 0 <= magnitude <= 30:
    raise ValueError(f"randaug takes a magnitude in 0..30, not {magnitude!r}.")
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  for _ in range(num_layers):
    op = _OPS[rng.integers(len(_OPS))]
    sign = 1 if rng.random() < 0.5 else -1
    image = op(image, magnitude / 10, sign)
  return image


def _identity(image, level, sign):
  del level, sign
  return image


def _auto_contrast(image, level, sign):
  del level, sign
  return ImageOps.autocontrast(image)


def _equalize(image, level, sign):
  del level, sign
  return ImageOps.equalize(image)


def _posterize(image, level, sign):
  del sign
  return ImageOps.posterize(image, max(8 - round(4 * level), 1))


def _solarize(image, level, sign):
  del sign
  return ImageOps.solarize(image, max(256 - round(256 * level), 0))


def _enhance(enhancer, image, level, sign):
  return enhancer(image).enhance(max(1 + sign * 0.9 * level, 0))


def _affine(image, a, b, c, d, e, f):
  """Output pixel (x, y) comes from (ax + by + c, dx + ey + f)."""
  return image.transform(
    image.size,
    Image.Transform.AFFINE,
    (a, b, c, d, e, f),
    resample=Image.Resampling.BILINEAR,
    fillcolor=_GREY,
  )


def _rotate(image, level, sign):
  return image.rotate(
    sign * 30 * level, resample=Image.Resampling.BILINEAR, fillcolor=_GREY
  )


def _shear_x(image, level, sign):
  return _affine(image, 1, sign * 0.3 * level, 0, 0, 1, 0)


def _shear_y(image, level, sign):
  return _affine(image, 1, 0, 0, sign * 0.3 * level, 1, 0)


def _translate_x(image, level, sign):
  # 150 of 331 pixels in AutoAugment: a share of the width here.
  return _affine(image, 1, 0, sign * 0.45 * level * image.width, 0, 1, 0)


def _translate_y(image, level, sign):
  return _affine(image, 1, 0, 0, 0, 1, sign * 0.45 * level * image.height)


_OPS = (
  _identity,
  _auto_contrast,
  _equalize,
  _rotate,
  _solarize,
  functools.partial(_enhance, ImageEnhance.Color),
  _posterize,
  functools.partial(_enhance, ImageEnhance.Contrast),
  functools.partial(_enhance, ImageEnhance.Brightness),
  functools.partial(_enhance, ImageEnhance.Sharpness),
  _shear_x,
  _shear_y,
  _translate_x,
  _translate_y,
)
