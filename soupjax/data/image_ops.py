# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Operations on one image on the host, with Pillow.

Each takes a PIL image (RGB) and gives one back; those that draw random numbers
take a NumPy generator after it. `value_range` ends a chain with floats.
"""

import functools
import math

import numpy as np
from PIL import Image

from soupjax.data.randaug import randaug

_FILTERS = {
  "nearest": Image.Resampling.NEAREST,
  "box": Image.Resampling.BOX,
  "bilinear": Image.Resampling.BILINEAR,
  "bicubic": Image.Resampling.BICUBIC,
  "lanczos": Image.Resampling.LANCZOS,
}


@functools.cache
def _opencv():
  try:
    import cv2
  except ImportError as e:
    raise ValueError(
      "The method 'linear' needs OpenCV: pip install 'soupjax[opencv]', or use "
      "'bilinear'."
    ) from e
  # Batches are made in parallel already; waking threads costs more than this.
  cv2.setNumThreads(0)
  return cv2


def _resized(image, size, method, box=None) -> Image.Image:
  """Resizes (left, top, right, bottom) of an image to (height, width)."""
  height, width = size
  if method == "linear":
    pixels = np.asarray(image if box is None else image.crop(box))
    return Image.fromarray(_opencv().resize(pixels, (width, height)))
  if method not in _FILTERS:
    known = ", ".join((*_FILTERS, "linear"))
    raise ValueError(f"Unknown method {method!r}: one of {known}.")
  return image.resize((width, height), _FILTERS[method], box=box)


def _size(size: int | tuple[int, int]) -> tuple[int, int]:
  """Returns (height, width)."""
  pair = (size, size) if isinstance(size, int) else tuple(size)
  if len(pair) != 2 or any(not isinstance(s, int) or s < 1 for s in pair):
    raise ValueError(f"A size is a positive int or two of them, not {size!r}.")
  return pair


def inception_crop(
  image: Image.Image,
  rng: np.random.Generator,
  size: int | tuple[int, int],
  area_min: float = 5.0,
  area_max: float = 100.0,
  aspect: tuple[float, float] = (3 / 4, 4 / 3),
  method: str = "bilinear",
) -> Image.Image:
  """Crops a random box and resizes it (arXiv 1409.4842, section 6).

  Args:
    image: any size.
    rng: for the box.
    size: of the result, an int or (height, width), in pixels.
    area_min: least area of the box, in percent of the image.
    area_max: largest area of the box, in percent of the image.
    aspect: range of width / height of the box, drawn in its logarithm.
    method: "nearest", or "box", "bilinear", "bicubic" or "lanczos", which
      smooth as they shrink; or "linear", which does not, as big_vision's: some
      six times faster, with OpenCV.

  Returns:
    An image of the given size. Where ten draws do not fit, the whole image.
  """
  height, width = _size(size)
  if not 0 < area_min <= area_max <= 100:
    raise ValueError(
      f"inception_crop takes areas in percent, 0 < area_min <= area_max <= "
      f"100, not {area_min} and {area_max}."
    )
  if not 0 < aspect[0] <= aspect[1]:
    raise ValueError(f"aspect is (low, high) above 0, not {aspect}.")
  box = (0, 0, image.width, image.height)
  for _ in range(10):
    area = rng.uniform(area_min, area_max) / 100 * image.width * image.height
    ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
    w = round(math.sqrt(area * ratio))
    h = round(math.sqrt(area / ratio))
    if 0 < w <= image.width and 0 < h <= image.height:
      left = int(rng.integers(image.width - w + 1))
      top = int(rng.integers(image.height - h + 1))
      box = (left, top, left + w, top + h)
      break
  return _resized(image, (height, width), method, box)


def resize(
  image: Image.Image, size: int | tuple[int, int], method: str = "bilinear"
) -> Image.Image:
  """Resizes to an int or (height, width), whatever the aspect ratio."""
  return _resized(image, _size(size), method)


def resize_small(
  image: Image.Image, size: int, method: str = "bilinear"
) -> Image.Image:
  """Resizes so that the shorter side has `size` pixels; keeps the aspect."""
  size, _ = _size(size)
  scale = size / min(image.size)
  width, height = (max(size, round(side * scale)) for side in image.size)
  return _resized(image, (height, width), method)


def central_crop(
  image: Image.Image, size: int | tuple[int, int]
) -> Image.Image:
  """Cuts (height, width) from the middle; what is missing becomes black."""
  height, width = _size(size)
  left, top = (image.width - width) // 2, (image.height - height) // 2
  return image.crop((left, top, left + width, top + height))


def random_crop(
  image: Image.Image,
  rng: np.random.Generator,
  size: int | tuple[int, int],
  padding: int = 0,
) -> Image.Image:
  """Cuts (height, width) from a random place, after a black border."""
  height, width = _size(size)
  free = (
    image.width + 2 * padding - width,
    image.height + 2 * padding - height,
  )
  if min(free) < 0:
    raise ValueError(
      f"random_crop({size}, padding={padding}) does not fit an image of "
      f"{image.height} x {image.width} pixels: resize it first."
    )
  left, top = (int(rng.integers(f + 1)) - padding for f in free)
  return image.crop((left, top, left + width, top + height))


def flip_lr(
  image: Image.Image, rng: np.random.Generator, probability: float = 0.5
) -> Image.Image:
  """Mirrors left to right, with some probability."""
  if not 0 <= probability <= 1:
    raise ValueError(f"flip_lr takes a probability, not {probability}.")
  if rng.random() < probability:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  return image


def value_range(
  image: Image.Image, low: float = -1.0, high: float = 1.0
) -> np.ndarray:
  """Returns (height, width, 3) float32, 0 to 255 mapped to [low, high]."""
  x = np.asarray(image, np.float32)
  x *= np.float32((high - low) / 255)
  x += np.float32(low)
  return x


OPS = {
  f.__name__: f
  for f in (
    inception_crop,
    resize,
    resize_small,
    central_crop,
    random_crop,
    flip_lr,
    randaug,
    value_range,
  )
}
