# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""From encoded bytes to the array that a model sees, on the host."""

import inspect
import io
import struct

import numpy as np
from PIL import Image

from soupjax.data import image_ops, spec


class CorruptImage(ValueError):
  """The bytes of an image cannot be decoded."""


class Preprocess:
  """Decodes an image and applies the operations of a short text.

  Attributes:
    text: as "inception_crop(224)|flip_lr|randaug(2, 10)|value_range(-1, 1)";
      see `image_ops` for the operations. Decoding, to RGB, comes by itself.
      Without `value_range` the result is uint8, a quarter of the bytes; see
      `ops.value_range` for the device.
    random: whether any operation draws random numbers.
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
      for name, op in spec.parse(text, image_ops.OPS, ("image", "rng"))
    ]
    self.random = any(draws for _, _, draws in self._ops)
    try:
      self(np.zeros((640, 512, 3), np.uint8), np.random.default_rng(0))
    except TypeError as e:
      raise ValueError(f"Preprocessing {text!r} does not work: {e}") from e

  def __call__(
    self, image: bytes | np.ndarray, rng: np.random.Generator | None = None
  ) -> np.ndarray:
    """Preprocesses one image.

    Args:
      image: encoded bytes, or (height, width, 3) uint8.
      rng: for the random operations; may be None where there are none.

    Returns:
      (height, width, 3), uint8, or float32 after `value_range`.

    Raises:
      CorruptImage: if the bytes cannot be decoded.
      ValueError: if an operation does not fit the image.
    """
    x = decode(image)
    for name, op, draws in self._ops:
      if not isinstance(x, Image.Image):
        raise ValueError(
          f"{self.text!r}: {name} comes after value_range, which must be last."
        )
      x = op(x, rng=rng) if draws else op(x)
    return np.asarray(x)


def decode(image: bytes | np.ndarray) -> Image.Image:
  """Returns an RGB image.

  Args:
    image: encoded bytes of any format that Pillow reads, or (height, width, 3)
      uint8.

  Raises:
    CorruptImage: if the bytes cannot be decoded.
  """
  if not isinstance(image, bytes):
    return Image.fromarray(np.asarray(image, np.uint8))
  try:
    decoded = Image.open(io.BytesIO(image))
    decoded.load()  # All of it: so far Pillow has only read the header.
    # Of what is RGB already, convert would make a copy.
    return decoded if decoded.mode == "RGB" else decoded.convert("RGB")
  except _UNREADABLE as e:
    raise CorruptImage(f"{type(e).__name__}: {e}") from e


# What Pillow raises on damaged files, depending on the format.
_UNREADABLE = (
  OSError,
  SyntaxError,
  ValueError,
  EOFError,
  struct.error,
  IndexError,
  Image.DecompressionBombError,
)
