# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Preprocessing on the host: from encoded bytes to a model's input array."""

import dataclasses
import inspect
import io
import re
import struct

import numpy as np
from PIL import Image

from soupjax.data import image_ops, op_strings


class CorruptImage(ValueError):
  """The bytes of an image cannot be decoded."""


@dataclasses.dataclass(frozen=True)
class PixelValues:
  """The values of black and white after preprocessing, by channel.

  Attributes:
    dtype: dtype of the preprocessed image, "uint8" or "float32".
    black: the values that 0 becomes, one per channel.
    white: the values that 255 becomes, one per channel.
  """

  dtype: str
  black: tuple[float, ...]
  white: tuple[float, ...]

  def close_to(self, other: "PixelValues", tolerance: float = 1e-3) -> bool:
    """Whether both are equal, up to a fraction of the range.

    Args:
      other: values to compare with.
      tolerance: largest difference, as a fraction of the range of `other` from
        black to white.
    """
    if len(self.black) != len(other.black):
      return False
    values = np.array((self.black, self.white))
    other_values = np.array((other.black, other.white))
    span = np.abs(other_values[1] - other_values[0]).max()
    return bool(np.abs(values - other_values).max() <= tolerance * span)

  def __str__(self) -> str:
    def text(values):
      rounded = [f"{value:.4g}" for value in values]
      same = len(set(rounded)) == 1
      return rounded[0] if same else f"({', '.join(rounded)})"

    return f"{text(self.black)}..{text(self.white)}"


class Preprocess:
  """Decodes an image and applies operations that are given as text.

  Attributes:
    text: operations joined by "|", such as
      "inception_crop(224)|flip_lr|randaug(2, 10)|value_range(-1, 1)":
      registered ones (`image_ops.OPS`) or import paths. An operation is a
      function with a parameter `image`, and `rng` if it draws random numbers.
      Images are first decoded to RGB. Without `value_range` the result is
      uint8, a quarter of the size; `batch_ops.value_range` converts it on the
      device.
    random_ops: names of the operations that draw random numbers.
  """

  def __init__(self, text: str):
    """Checks the text by running it on a blank image.

    Args:
      text: the operations.

    Raises:
      ValueError: for an unknown operation, arguments that it does not take, or
        an order that does not work.
    """
    self.text = text
    self._ops = [
      (name, op, "rng" in inspect.signature(op.func).parameters)
      for name, op in op_strings.parse(text, image_ops.OPS, ("image", "rng"))
    ]
    self.random_ops = tuple(name for name, _, draws in self._ops if draws)
    self._opencv = any(
      op.keywords.get("method") == "linear" for _, op, _ in self._ops
    )
    try:
      self(np.zeros((640, 512, 3), np.uint8), np.random.default_rng(0))
    except TypeError as e:
      raise ValueError(f"Preprocessing {text!r} does not work: {e}") from e

  @property
  def values(self) -> PixelValues:
    """The values of black and white pixels, set by the last operation.

    All operations before the last return uint8.
    """
    if not self._ops:
      return PixelValues("uint8", (0.0,) * 3, (255.0,) * 3)
    _, op, draws = self._ops[-1]
    ends = []
    for level in (0, 255):
      image = Image.fromarray(np.full((640, 512, 3), level, np.uint8))
      rng = np.random.default_rng(0)
      x = np.asarray(op(image=image, rng=rng) if draws else op(image=image))
      if x.dtype == np.uint8:  # Its range is fixed, even if colours change.
        x = np.full(x.shape, level, np.uint8)
      ends.append(tuple(x.mean(axis=(0, 1), dtype=float).ravel().tolist()))
    return PixelValues(x.dtype.name, *ends)

  def __call__(
    self, image: bytes | np.ndarray, rng: np.random.Generator | None = None
  ) -> np.ndarray:
    """Preprocesses one image.

    Args:
      image: encoded bytes, or (height, width, 3) uint8.
      rng: generator for random operations; may be None if there are none.

    Returns:
      (height, width, 3), uint8, or float32 after `value_range` or
      `standardize`.

    Raises:
      CorruptImage: if the bytes cannot be decoded.
      ValueError: if an operation cannot be applied to the image.
    """
    x = decode(image, opencv=self._opencv)
    for name, op, draws in self._ops:
      if isinstance(x, np.ndarray) and x.dtype != np.uint8:
        raise ValueError(
          f"{self.text!r}: {name} comes after value_range or standardize, "
          "which must be last."
        )
      x = op(image=x, rng=rng) if draws else op(image=x)
    return np.asarray(x)


def decode(
  image: bytes | np.ndarray, *, opencv: bool = False
) -> image_ops.Picture:
  """Returns an RGB image.

  Args:
    image: encoded bytes of any format that Pillow reads, or (height, width, 3)
      uint8.
    opencv: whether an array may be returned, so that OpenCV can decode JPEGs.
      The pixels are the same, since both libraries use libjpeg-turbo.

  Returns:
    A PIL image; or, with `opencv` and where Pillow is not needed, an array
    (height, width, 3) uint8.

  Raises:
    CorruptImage: if the bytes cannot be decoded.
  """
  if not isinstance(image, bytes):
    pixels = np.asarray(image, np.uint8)
    return pixels if opencv else Image.fromarray(pixels)
  try:
    file = io.BytesIO(image)
    decoded = Image.open(file)
    if opencv and decoded.format == "JPEG" and decoded.mode == "RGB":
      # Pillow has read the file up to the start of the pixels.
      pixels = _decode_jpeg(image, file.tell())
      if pixels is not None:
        return pixels
    decoded.load()  # Until now, Pillow has only read the header.
    # `convert` would copy an image that is already RGB.
    return decoded if decoded.mode == "RGB" else _eight_bits(decoded)
  except _UNREADABLE as e:
    raise CorruptImage(f"{type(e).__name__}: {e}") from e


def _eight_bits(image: Image.Image) -> Image.Image:
  """Converts an image to RGB. Pillow would clip 16-bit pixels, to all white."""
  if image.mode.startswith("I;16") or (image.mode, image.format) == (
    "I",
    "PNG",
  ):
    upper = np.asarray(image).astype(np.uint16) >> 8  # As in 16-bit RGB.
    image = Image.fromarray(upper.astype(np.uint8))
  elif image.mode in ("I", "F"):
    raise ValueError(
      f"pixels of Pillow's mode {image.mode} have no range; save it with 8 or "
      "16 bits"
    )
  return image.convert("RGB")


def _decode_jpeg(image: bytes, start: int) -> np.ndarray | None:
  """Decodes a JPEG with pixels from `start` on; None leaves it to Pillow."""
  # OpenCV decodes broken files without an error, and before 4.11 truncated ones
  # too. So it only gets files whose pixels are one scan, with no marker but the
  # one that ends the file. No truncated file is like this, and broken files
  # that are like this are decoded by Pillow as well.
  marker = _MARKER.search(image, start)
  if marker is None or image[marker.start() :] != b"\xff\xd9":
    return None
  cv2 = image_ops.opencv()
  # Pillow does not rotate images by their EXIF orientation.
  flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
  return cv2.imdecode(np.frombuffer(image, np.uint8), flags)


# Any marker but a restart; among pixels, 0xff is followed by 0.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")

# Errors that Pillow raises for damaged files, depending on the format.
_UNREADABLE = (
  OSError,
  SyntaxError,
  ValueError,
  EOFError,
  struct.error,
  IndexError,
  Image.DecompressionBombError,
)
