# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Resamples position embeddings, with or without a class token."""

from collections.abc import Mapping
import math
from typing import Any

import numpy as np


def has_class(tokens: int, wanted: int | None, expected: bool) -> bool:
  """Whether the first of some position embeddings is for a class token.

  Args:
    tokens: how many there are.
    wanted: how many patches there will be, None if any.
    expected: whether it should be so, where the numbers do not tell.
  """
  if tokens in (wanted, (wanted or -2) + 1):
    return tokens != wanted
  if _is_square(tokens):
    return False
  return _is_square(tokens - 1) or expected


def _is_square(n: int) -> bool:
  return math.isqrt(n) ** 2 == n


def grid_of(
  specs: Mapping[str, Any],
  image_size: int | tuple[int, int] | None,
  patch_size: int,
) -> tuple[int, int] | None:
  """Rows and columns of patches, None where the checkpoint's are kept."""
  if image_size is None or "pos_embedding" not in specs:
    return None
  if isinstance(image_size, int):
    image_size = (image_size, image_size)
  return image_size[0] // patch_size, image_size[1] // patch_size


def can_resample(tokens: int, grid: tuple[int, int] | None) -> bool:
  """Whether `resample` knows what to do."""
  return grid is None or tokens == math.prod(grid) or _is_square(tokens)


def resample(table: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
  """Resamples position embeddings bilinearly, corners on corners.

  This is what big_vision does (arXiv 2010.11929, section 3.2).

  Args:
    table: (1, patches, width), of a square grid or of `grid` itself.
    grid: rows and columns wanted.

  Returns:
    (1, rows * columns, width) of the same dtype.
  """
  _, tokens, width = table.shape
  if tokens == math.prod(grid):
    return table
  from scipy import ndimage

  side = math.isqrt(tokens)
  image = table.astype(np.float32).reshape(side, side, width)
  image = ndimage.zoom(image, (grid[0] / side, grid[1] / side, 1), order=1)
  return image.reshape(1, -1, width).astype(table.dtype)
