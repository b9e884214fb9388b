# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Resamples position embeddings, with or without a class token."""

import math

import numpy as np


def before_patches(
  tokens: int, patches: int | None, count: int, expected: int
) -> int:
  """Tells how many position embeddings precede those of the patches.

  Args:
    tokens: number of position embeddings.
    patches: number of patches of the model, None if any.
    count: number of tokens before the patches; either all have a position or
      none.
    expected: the answer where the numbers leave it open.
  """
  if patches is not None and tokens - patches in (0, count):
    return tokens - patches
  if _is_square(tokens):
    return 0
  return count if _is_square(tokens - count) else expected


def _is_square(n: int) -> bool:
  return n >= 0 and math.isqrt(n) ** 2 == n


def resample(table: np.ndarray, grid: tuple[int, int] | None) -> np.ndarray:
  """Resamples position embeddings bilinearly, corners on corners.

  This is what big_vision does (arXiv 2010.11929, section 3.2).

  Args:
    table: (1, patches, width), of a square grid or of `grid` itself.
    grid: rows and columns of the result; None changes nothing.

  Returns:
    (1, rows * columns, width) of the same dtype.

  Raises:
    ValueError: if the patches do not form a square grid.
  """
  _, tokens, width = table.shape
  if grid is None or tokens == math.prod(grid):
    return table
  if not _is_square(tokens):
    raise ValueError(
      f"{tokens} position embeddings do not form a square grid, so they cannot "
      f"be resampled to {grid}: load them without image_size=."
    )
  from scipy import ndimage

  side = math.isqrt(tokens)
  image = table.astype(np.float32).reshape(side, side, width)
  image = ndimage.zoom(image, (grid[0] / side, grid[1] / side, 1), order=1)
  return image.reshape(1, -1, width).astype(table.dtype)
