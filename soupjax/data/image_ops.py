# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Operations on one image on the host, with Pillow or OpenCV.

Each takes and returns an RGB image: a PIL image, or a (height, width, 3) uint8
array. OpenCV's "linear" returns arrays, since converting to Pillow and back
costs more than resizing. Random operations have a parameter `rng`, a NumPy
generator. `value_range` or `standardize` ends a chain with floats.
"""

import functools
import math

import numpy as np
from PIL import Image

from soupjax import registry
from soupjax.data.corruptions import corrupt, typographic
from soupjax.data.randaug import randaug, randaug_linear

OPS = registry.Registry("image op")
OPS.register(randaug)
OPS.register(randaug_linear)
OPS.register(corrupt)
OPS.register(typographic)

_FILTERS = {
  "nearest": Image.Resampling.NEAREST,
  "box": Image.Resampling.BOX,
  "bilinear": Image.Resampling.BILINEAR,
  "bicubic": Image.Resampling.BICUBIC,
  "hamming": Image.Resampling.HAMMING,
  "lanczos": Image.Resampling.LANCZOS,
}


Picture = Image.Image | np.ndarray


@functools.cache
def opencv():
  """Imports cv2; if it is missing, a ValueError says what to install."""
  try:
    import cv2
  except ImportError as e:
    raise ValueError(
      "The method 'linear' needs OpenCV: pip install 'soupjax[opencv]', or use "
      "'bilinear'."
    ) from e
  # Batches are already made in parallel; more threads would only cost time.
  cv2.setNumThreads(0)
  return cv2


def _height_width(image: Picture) -> tuple[int, int]:
  if isinstance(image, np.ndarray):
    return image.shape[:2]
  return image.height, image.width


def _cropped(image: Picture, box: tuple[int, int, int, int]) -> Picture:
  """Crops to (left, top, right, bottom); pixels outside the image are black."""
  if isinstance(image, np.ndarray):
    left, top, right, bottom = box
    height, width = image.shape[:2]
    if 0 <= left and 0 <= top and right <= width and bottom <= height:
      return image[top:bottom, left:right]
    image = Image.fromarray(image)
  return image.crop(box)


def _resized(image: Picture, size, method, box=None) -> Picture:
  """Resizes a box (left, top, right, bottom) of an image to (height, width)."""
  height, width = size
  if method == "linear":
    pixels = np.asarray(image if box is None else _cropped(image, box))
    return opencv().resize(pixels, (width, height))
  if method not in _FILTERS:
    known = ", ".join((*_FILTERS, "linear"))
    raise ValueError(f"Unknown method {method!r}: one of {known}.")
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  return image.resize((width, height), _FILTERS[method], box=box)


def _size(size: int | tuple[int, int]) -> tuple[int, int]:
  """Returns (height, width)."""
  pair = (size, size) if isinstance(size, int) else tuple(size)
  if len(pair) != 2 or any(not isinstance(s, int) or s < 1 for s in pair):
    raise ValueError(f"A size must be a positive int or two, not {size!r}.")
  return pair


@OPS.register
def inception_crop(
  image: Picture,
  rng: np.random.Generator,
  size: int | tuple[int, int],
  area_min: float = 5.0,
  area_max: float = 100.0,
  aspect: tuple[float, float] = (3 / 4, 4 / 3),
  method: str = "bilinear",
) -> Picture:
  """Crops a random box and resizes it (arXiv 1409.4842, section 6).

  Args:
    image: image of any size.
    rng: generator that draws the box.
    size: size of the result, an int or (height, width), in pixels.
    area_min: smallest area of the box, in percent of the image.
    area_max: largest area of the box, in percent of the image.
    aspect: range of width / height of the box, drawn log-uniformly.
    method: "nearest"; or "box", "bilinear", "bicubic", "hamming" or "lanczos",
      which antialias when shrinking; or OpenCV's "linear", which does not, as
      in big_vision, and is about eight times faster.

  Returns:
    An image of the given size, made from the whole image if none of ten drawn
    boxes fits.

  Raises:
    ValueError: if an argument is out of its range.
  """
  height, width = _size(size)
  if not 0 < area_min <= area_max <= 100:
    raise ValueError(
      f"inception_crop takes areas in percent, 0 < area_min <= area_max <= "
      f"100, not {area_min} and {area_max}."
    )
  if not 0 < aspect[0] <= aspect[1]:
    raise ValueError(f"aspect must be (low, high) above 0, not {aspect}.")
  rows, columns = _height_width(image)
  box = (0, 0, columns, rows)
  for _ in range(10):
    area = rng.uniform(area_min, area_max) / 100 * columns * rows
    ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
    w = round(math.sqrt(area * ratio))
    h = round(math.sqrt(area / ratio))
    if 0 < w <= columns and 0 < h <= rows:
      left = int(rng.integers(columns - w + 1))
      top = int(rng.integers(rows - h + 1))
      box = (left, top, left + w, top + h)
      break
  return _resized(image, (height, width), method, box)


@OPS.register
def resize(
  image: Picture, size: int | tuple[int, int], method: str = "bilinear"
) -> Picture:
  """Resizes to an int or (height, width), ignoring the aspect ratio."""
  return _resized(image, _size(size), method)


@OPS.register
def resize_small(
  image: Picture,
  size: int,
  method: str = "bilinear",
  like: str = "torchvision",
) -> Picture:
  """Resizes so that the shorter side has `size` pixels; keeps the aspect.

  Args:
    image: image of any size.
    size: length of the shorter side, in pixels.
    method: see `inception_crop`.
    like: the library whose rounding of the longer side is used: "torchvision"
      rounds down, as do timm, OpenCLIP and "transformers"; "big_vision" rounds
      to the nearest pixel.

  Returns:
    The resized image.

  Raises:
    ValueError: if `size`, `method` or `like` is invalid.
  """
  size, _ = _size(size)
  _check_like(like)
  sides = _height_width(image)
  if like == "big_vision":
    longer = round(max(sides) * (size / min(sides)))
  else:
    longer = int(size * max(sides) / min(sides))
  shape = tuple(size if side == min(sides) else longer for side in sides)
  return _resized(image, shape, method)


@OPS.register
def resize_ratio(
  image: Picture,
  size: int | tuple[int, int],
  method: str = "bilinear",
  longest: bool = False,
) -> Picture:
  """Resizes to just cover (height, width), or to just fit into it.

  Keeps the aspect ratio, as timm does for images that are not square and for
  `crop_mode="border"`, and OpenCLIP for `resize_mode="longest"`.

  Args:
    image: image of any size.
    size: an int or (height, width), in pixels.
    method: see `inception_crop`.
    longest: whether the result fits into `size`; otherwise it covers `size`.

  Returns:
    The resized image, with at least one side as in `size`.

  Raises:
    ValueError: if `size` or `method` is invalid.
  """
  sides = _height_width(image)
  ratios = [side / target for side, target in zip(sides, _size(size))]
  ratio = max(ratios) if longest else min(ratios)
  shape = tuple(max(round(side / ratio), 1) for side in sides)
  return _resized(image, shape, method)


_LIKE = ("torchvision", "transformers", "big_vision")


def _check_like(like: str) -> None:
  if like not in _LIKE:
    raise ValueError(f"like={like!r} must be one of {', '.join(_LIKE)}.")


@OPS.register
def central_crop(
  image: Picture,
  size: int | tuple[int, int],
  like: str = "torchvision",
  fill: int | tuple[int, int, int] = 0,
) -> Picture:
  """Crops to the central (height, width).

  Args:
    image: image of any size.
    size: an int or (height, width), in pixels.
    like: the library whose rounding of half an odd margin is used:
      "torchvision", like timm and OpenCLIP, rounds it to an even number;
      "transformers" and "big_vision" round it down.
    fill: the colour outside the image, one number for all channels or one per
      channel, in 0..255.

  Returns:
    An image of exactly the given size.

  Raises:
    ValueError: if `size`, `like` or `fill` is invalid.
  """
  _check_like(like)
  box = []
  for target, side in zip(_size(size)[::-1], _height_width(image)[::-1]):
    if like != "torchvision":
      start = (side - target) // 2
    elif target > side:
      start = -((target - side) // 2)
    else:
      start = round((side - target) / 2)
    box.append(start)
  height, width = _size(size)
  left, top = box
  box = (left, top, left + width, top + height)
  if not np.any(fill):
    return _cropped(image, box)
  color = (fill,) * 3 if isinstance(fill, int) else tuple(fill)
  if len(color) != 3 or not all(0 <= value <= 255 for value in color):
    raise ValueError(
      f"central_crop takes a fill of three channels in 0..255, not {fill!r}."
    )
  canvas = Image.new("RGB", (width, height), color)
  whole = image if isinstance(image, Image.Image) else Image.fromarray(image)
  canvas.paste(whole, (-left, -top))
  return canvas


@OPS.register
def crop_border(image: Picture, pixels: int) -> Picture:
  """Cuts `pixels` off every side, such as 2 for ObjectNet's red border."""
  height, width = _height_width(image)
  if (
    not isinstance(pixels, int)
    or pixels < 0
    or 2 * pixels >= min(height, width)
  ):
    raise ValueError(
      f"crop_border({pixels!r}) leaves nothing of an image of {height} x "
      f"{width} pixels."
    )
  return _cropped(image, (pixels, pixels, width - pixels, height - pixels))


@OPS.register
def random_crop(
  image: Picture,
  rng: np.random.Generator,
  size: int | tuple[int, int],
  padding: int = 0,
) -> Picture:
  """Adds a black border of `padding`, then crops a random (height, width)."""
  height, width = _size(size)
  rows, columns = _height_width(image)
  free = (columns + 2 * padding - width, rows + 2 * padding - height)
  if min(free) < 0:
    raise ValueError(
      f"random_crop({size}, padding={padding}) does not fit an image of "
      f"{rows} x {columns} pixels: resize it first."
    )
  left, top = (int(rng.integers(f + 1)) - padding for f in free)
  return _cropped(image, (left, top, left + width, top + height))


@OPS.register
def flip_lr(
  image: Picture, rng: np.random.Generator, probability: float = 0.5
) -> Picture:
  """Mirrors left to right with the given probability."""
  if not 0 <= probability <= 1:
    raise ValueError(
      f"flip_lr takes a probability from 0 to 1, not {probability}."
    )
  if rng.random() >= probability:
    return image
  if isinstance(image, np.ndarray):
    # Copying a view with a negative stride would take 30 times as long.
    return opencv().flip(image, 1)
  return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


@OPS.register
def value_range(
  image: Picture, low: float = -1.0, high: float = 1.0
) -> np.ndarray:
  """Maps 0 to 255 to [low, high]; returns (height, width, 3) float32."""
  x = np.asarray(image, np.float32)
  x *= np.float32((high - low) / 255)
  x += np.float32(low)
  return x


# Mean and standard deviation of each channel, for pixels in [0, 1]: those of
# CLIP (released code of arXiv 2103.00020) and of most PyTorch ImageNet models.
STATISTICS = {
  "clip": (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
  ),
  "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@OPS.register
def standardize(
  image: Picture,
  statistics: str | tuple[float, float, float] = "clip",
  deviation: tuple[float, float, float] | None = None,
) -> np.ndarray:
  """Subtracts a mean and divides by a standard deviation, per channel.

  Args:
    image: image with values 0 to 255.
    statistics: a key of `STATISTICS`, or the mean of each channel, for pixels
      in [0, 1].
    deviation: the standard deviation of each channel, if `statistics` is a
      mean.

  Returns:
    (height, width, 3) float32.

  Raises:
    ValueError: for an unknown key, or if the mean or deviation is invalid.
  """
  if deviation is None:
    if statistics not in STATISTICS:
      raise ValueError(
        f"statistics={statistics!r} must be one of {', '.join(STATISTICS)}, or "
        "a mean and a deviation of three channels."
      )
    statistics, deviation = STATISTICS[statistics]
  values = np.asarray((statistics, deviation), np.float32)
  if values.shape != (2, 3) or not (values[1] > 0).all():
    raise ValueError(
      f"standardize takes a mean and a positive deviation of three channels, "
      f"not {statistics!r} and {deviation!r}."
    )
  mean, deviation = values * 255
  return (np.asarray(image, np.float32) - mean) / deviation
