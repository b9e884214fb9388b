# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""RandAugment (arXiv 1909.13719) with Pillow, in two versions.

`randaug` is timm's version, with which the models of the soups paper (arXiv
2203.05482) were fine-tuned, and takes timm's notation, such as
"rand-m9-n2-mstd0.5". By default, an operation is applied with probability 0.5,
and magnitudes are clipped at 10. `randaug_linear` applies every operation that
it draws, and magnitudes above 10 continue linearly.
"""

from collections.abc import Callable
import functools
import math
import re
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_GREY = (128, 128, 128)
_FILTERS = {
  "bilinear": Image.Resampling.BILINEAR,
  "bicubic": Image.Resampling.BICUBIC,
}


def randaug(
  image: Image.Image | np.ndarray,
  rng: np.random.Generator,
  num_layers: int | str = 2,
  magnitude: float = 10,
  *,
  probability: float = 0.5,
  magnitude_std: float = 0.0,
  magnitude_max: float = 10,
  increasing: bool = False,
  fill: tuple[int, int, int] = _GREY,
  method: str = "random",
) -> Image.Image:
  """Applies random operations one after another, as timm's RandAugment does.

  Args:
    image: a PIL image (RGB), or (height, width, 3) uint8.
    rng: generator for the operations, their strengths and signs.
    num_layers: number of operations drawn, with replacement; 0 changes nothing.
      Or text in timm's notation that sets all numbers here, such as
      "rand-m9-n2-mstd0.5-inc1".
    magnitude: strength of the operations, where 10 is the full range.
    probability: probability that a drawn operation is applied.
    magnitude_std: standard deviation of normal noise on the magnitude of each
      operation; above 100, magnitudes are uniform in [0, magnitude].
    magnitude_max: magnitudes are clipped to [0, magnitude_max].
    increasing: whether every operation grows stronger with the magnitude. By
      timm's default it does not: posterize and solarize grow weaker, and
      colour, contrast, brightness and sharpness go from 0.1 to 1.9 times the
      original.
    fill: the colour outside the original image.
    method: interpolation of rotated, sheared and shifted images: "bilinear",
      "bicubic", or "random" for a random choice between the two.

  Returns:
    A PIL image of the same size.

  Raises:
    ValueError: if an argument is out of its range.
  """
  settings = {
    "num_layers": num_layers,
    "magnitude": magnitude,
    "probability": probability,
    "magnitude_std": magnitude_std,
    "magnitude_max": magnitude_max,
    "increasing": increasing,
  }
  if isinstance(num_layers, str):
    settings |= _parsed(num_layers)
  _check(settings, method)
  filters = [_FILTERS[method]] if method in _FILTERS else [*_FILTERS.values()]
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  for _ in range(settings["num_layers"]):
    op = _TIMM_OPS[rng.integers(len(_TIMM_OPS))]
    if rng.random() > settings["probability"]:
      continue
    level = settings["magnitude"]
    if settings["magnitude_std"] > 100:
      level = rng.uniform(0, level)
    elif settings["magnitude_std"] > 0:
      level = rng.normal(level, settings["magnitude_std"])
    level = min(max(level, 0.0), settings["magnitude_max"]) / 10
    sign = 1 if rng.random() <= 0.5 else -1
    resample = filters[rng.integers(len(filters))]
    place = {"resample": resample, "fillcolor": tuple(fill)}
    image = op(image, level, sign, bool(settings["increasing"]), place)
  return image


# Maps the keys of timm's notation to arguments here and their types.
_KEYS: dict[str, tuple[str, Callable[[str], Any]]] = {
  "m": ("magnitude", int),
  "n": ("num_layers", int),
  "p": ("probability", float),
  "mstd": ("magnitude_std", float),
  "mmax": ("magnitude_max", int),
  "inc": ("increasing", int),
}


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> dict[str, Any]:
  """Parses timm's notation; n and m have timm's defaults if left out."""
  name, *parts = text.split("-")
  settings: dict[str, Any] = {"num_layers": 2, "magnitude": 10}
  for part in parts:
    match = re.fullmatch(r"([a-z]+)(\d[\d.]*)", part)
    if name != "rand" or match is None or match[1] not in _KEYS:
      break
    argument, kind = _KEYS[match[1]]
    try:
      settings[argument] = kind(match[2])
    except ValueError:
      break
  else:
    if name == "rand":
      return settings
  raise ValueError(
    f"randaug cannot read {text!r}: write it as timm does, such as "
    f"'rand-m9-n2-mstd0.5-inc1', with some of {', '.join(_KEYS)}. Other sets "
    "of operations (-tweights, -t3a) are not supported."
  )


def _check(settings: dict[str, Any], method: str) -> None:
  """Raises ValueError if an argument of `randaug` is out of its range."""
  layers = settings["num_layers"]
  if not isinstance(layers, int) or layers < 0:
    raise ValueError(f"randaug takes num_layers >= 0, not {layers!r}.")
  for name, low, high in (
    ("magnitude", 0, 30),
    ("probability", 0, 1),
    ("magnitude_std", 0, math.inf),
    ("magnitude_max", 0, 30),
  ):
    if not low <= settings[name] <= high:
      raise ValueError(
        f"randaug takes {name} in {low}..{high}, not {settings[name]!r}."
      )
  if method not in ("random", *_FILTERS):
    raise ValueError(
      "randaug takes the methods 'random', "
      f"{', '.join(map(repr, _FILTERS))}, not {method!r}."
    )


# --- timm's fifteen operations ------------------------------------------------
# Each takes an image, a level (1 is the full range), a sign, whether strengths
# increase with the level, and Pillow's arguments for resampling and filling.


def _timm_auto_contrast(image, level, sign, increasing, place):
  del level, sign, increasing, place
  return ImageOps.autocontrast(image)


def _timm_equalize(image, level, sign, increasing, place):
  del level, sign, increasing, place
  return ImageOps.equalize(image)


def _timm_invert(image, level, sign, increasing, place):
  del level, sign, increasing, place
  return ImageOps.invert(image)


def _timm_rotate(image, level, sign, increasing, place):
  del increasing
  return image.rotate(sign * 30 * level, **place)


def _timm_posterize(image, level, sign, increasing, place):
  del sign, place
  bits = 4 - int(4 * level) if increasing else int(4 * level)
  # 0 bits give black; Pillow's own posterize rejects 0 from version 13 on.
  mask = 0xFF << (8 - bits) if bits < 8 else 0xFF
  return image.point([i & mask for i in range(256)] * 3)


def _timm_solarize(image, level, sign, increasing, place):
  del sign, place
  threshold = min(256, int(256 * level))
  return ImageOps.solarize(image, 256 - threshold if increasing else threshold)


def _timm_solarize_add(image, level, sign, increasing, place):
  del sign, increasing, place
  more = min(128, int(110 * level))
  return image.point([min(255, i + more * (i < 128)) for i in range(256)] * 3)


def _timm_enhance(enhancer, image, level, sign, increasing, place):
  del place
  factor = max(0.1, 1 + sign * 0.9 * level) if increasing else 1.8 * level + 0.1
  return enhancer(image).enhance(factor)


def _timm_affine(image, matrix, place):
  return image.transform(image.size, Image.Transform.AFFINE, matrix, **place)


def _timm_shear_x(image, level, sign, increasing, place):
  del increasing
  return _timm_affine(image, (1, sign * 0.3 * level, 0, 0, 1, 0), place)


def _timm_shear_y(image, level, sign, increasing, place):
  del increasing
  return _timm_affine(image, (1, 0, 0, sign * 0.3 * level, 1, 0), place)


def _timm_translate_x(image, level, sign, increasing, place):
  del increasing
  pixels = sign * 0.45 * level * image.width
  return _timm_affine(image, (1, 0, pixels, 0, 1, 0), place)


def _timm_translate_y(image, level, sign, increasing, place):
  del increasing
  pixels = sign * 0.45 * level * image.height
  return _timm_affine(image, (1, 0, 0, 0, 1, pixels), place)


_TIMM_OPS = (
  _timm_auto_contrast,
  _timm_equalize,
  _timm_invert,
  _timm_rotate,
  _timm_posterize,
  _timm_solarize,
  _timm_solarize_add,
  functools.partial(_timm_enhance, ImageEnhance.Color),
  functools.partial(_timm_enhance, ImageEnhance.Contrast),
  functools.partial(_timm_enhance, ImageEnhance.Brightness),
  functools.partial(_timm_enhance, ImageEnhance.Sharpness),
  _timm_shear_x,
  _timm_shear_y,
  _timm_translate_x,
  _timm_translate_y,
)


# --- Linear above 10 ----------------------------------------------------------


def randaug_linear(
  image: Image.Image | np.ndarray,
  rng: np.random.Generator,
  num_layers: int = 2,
  magnitude: float = 10,
) -> Image.Image:
  """Applies `num_layers` random operations, one after another.

  They are the fourteen operations of the paper's Figure 2. Magnitudes are on
  the usual scale, where 10 is the full range of AutoAugment (arXiv 1805.09501,
  Table 6); above 10 they continue linearly, and at 20 a third of the images no
  longer show anything.

  Args:
    image: a PIL image (RGB), or (height, width, 3) uint8.
    rng: generator for the operations and their signs.
    num_layers: number of operations; 0 changes nothing.
    magnitude: strength of the operations, 0 to 30.

  Returns:
    A PIL image of the same size; grey outside the original image.

  Raises:
    ValueError: if an argument is out of its range.
  """
  if not isinstance(num_layers, int) or num_layers < 0:
    raise ValueError(
      f"randaug_linear takes num_layers >= 0, not {num_layers!r}."
    )
  if not 0 <= magnitude <= 30:
    raise ValueError(
      f"randaug_linear takes a magnitude in 0..30, not {magnitude!r}."
    )
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
  """Fills output pixel (x, y) from (ax + by + c, dx + ey + f)."""
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
  # AutoAugment shifts by up to 150 of 331 pixels, a fraction of 0.45.
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
