# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The image op `typographic`: a word drawn on the image."""

from collections.abc import Sequence
import functools
import pathlib
import zlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# The colours of the text and of its outline.
_COLOURS = ("white", "black", "red", "green", "blue", "yellow", "magenta")
# The range of font sizes, as a fraction of the shorter side of the image.
_SIZES = (0.1, 0.2)


@functools.cache
def _words(text: str) -> tuple[str, ...]:
  path = pathlib.Path(text).expanduser()
  parts = text.split("+")
  if path.is_file():
    parts = path.read_text(encoding="utf-8").splitlines()
  return tuple(part.strip() for part in parts if part.strip())


@functools.lru_cache(maxsize=64)
def _font(size: int):
  return ImageFont.load_default(size)


def typographic(
  image: Image.Image | np.ndarray, words: str | Sequence[str], seed: int = 0
) -> np.ndarray:
  """Writes a word on an image, as a typographic attack (arXiv 2208.05592).

  Models that match images with text tend to read the word instead of looking at
  the object. Word, position, size and colours follow from the pixels and the
  seed, so that an image always gets the same word. The font is Pillow's
  default; other versions of Pillow may draw other pixels. The word may be the
  name of the right class, if that is among the words.

  Args:
    image: image with values 0 to 255.
    words: a list; words joined by "+"; or the path of a file with one per line.
    seed: selects the random draws.

  Returns:
    (height, width, 3) uint8.

  Raises:
    ValueError: if there are no words, or the seed is invalid.

  Examples:
    >>> import numpy as np
    >>> from soupjax.data import corruptions
    >>> grey = np.full((64, 64, 3), 100, np.uint8)
    >>> attacked = corruptions.typographic(grey, "iPod+cat")
    >>> bool(0 < (attacked != grey).any(-1).mean() < 0.5)
    True
  """
  if isinstance(words, str):
    listed = _words(words)
  else:
    listed = tuple(map(str, words))
  if not any(listed):
    raise ValueError(
      f"typographic({words!r:.80}): give words as a list, joined by +, or in a "
      "file."
    )
  if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
    raise ValueError(
      f"typographic(..., seed={seed!r}): seed must be an integer >= 0."
    )
  pixels = np.ascontiguousarray(image)
  rng = np.random.default_rng((seed, zlib.crc32(pixels)))
  word = listed[rng.integers(len(listed))]
  height, width = pixels.shape[:2]
  size = max(6, round(rng.uniform(*_SIZES) * min(height, width)))
  fill, outline = rng.choice(len(_COLOURS), 2, replace=False)
  picture = Image.fromarray(pixels)
  draw = ImageDraw.Draw(picture)
  font, stroke = _font(size), max(1, size // 12)
  left, top, right, bottom = draw.textbbox(
    (0, 0), word, font=font, stroke_width=stroke
  )
  x = rng.uniform(0, max(0, width - (right - left)))
  y = rng.uniform(0, max(0, height - (bottom - top)))
  draw.text(
    (round(x - left), round(y - top)),
    word,
    fill=_COLOURS[fill],
    font=font,
    stroke_width=stroke,
    stroke_fill=_COLOURS[outline],
  )
  return np.asarray(picture)
