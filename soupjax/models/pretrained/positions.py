# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Resamples position embeddings, with or without a class token."""

import math

import numpy as np


def before_patches(
  tokens: int, patches: int | None, count: int, expected: int
) -> int:
  """Returns how many position embeddings precede those of the patches.

  Args:
    tokens: number of position embeddings.
    patches: number of patches of the model, None if it may be any.
    count: number of tokens before the patches; either all or none of them have
      a position.
    expected: the result if the numbers do not determine it.
  """
  if patches is not None and tokens - patches in (0, count):
    return tokens - patches
  if _is_square(tokens):
    return 0
  return count if _is_square(tokens - count) else expected


def _is_square(n: int) -> bool:
  return n >= 0 and math.isqrt(n) ** 2 == n


# Name -> half the width of the filter, the parameter of cubic filters, and
# whether the filter widens when the table shrinks. "corners" is big_vision's:
# bilinear, with aligned corners (arXiv 2010.11929, section 3.2).
METHODS: dict[str, tuple[int, float, bool] | None] = {
  "corners": None,
  "bilinear_antialias": (1, 0.0, True),
  "bicubic": (2, -0.75, False),
  "bicubic_antialias": (2, -0.5, True),
}


def resample(
  table: np.ndarray,
  grid: tuple[int, int] | None,
  method: str = "corners",
  old_grid: tuple[int, int] | None = None,
) -> np.ndarray:
  """Resamples position embeddings, as the library they come from does.

  Args:
    table: (1, patches, width), on `old_grid`.
    grid: rows and columns of the result; None changes nothing.
    method: a key of `METHODS`.
    old_grid: rows and columns of the table; None means `grid` if that has as
      many patches, or else a square.

  Returns:
    (1, rows * columns, width), of the same dtype.

  Raises:
    ValueError: if the patches do not form `old_grid`, or a square without it.
  """
  _, tokens, width = table.shape
  if grid is None:
    return table
  if old_grid is None:
    side = math.isqrt(tokens)
    old_grid = grid if tokens == math.prod(grid) else (side, side)
  if math.prod(old_grid) != tokens:
    raise ValueError(
      f"{tokens} position embeddings do not form a grid of {old_grid[0]} x "
      f"{old_grid[1]}, so they cannot be resampled to {grid[0]} x {grid[1]}: "
      "load them without image_size=."
    )
  if old_grid == grid:
    return table
  image = table.astype(np.float32).reshape(*old_grid, width)
  if METHODS[method] is None:
    from scipy import ndimage

    zoom = (grid[0] / old_grid[0], grid[1] / old_grid[1], 1)
    image = ndimage.zoom(image, zoom, order=1)
  else:
    rows, columns = (
      _weights(old, new, *METHODS[method]) for old, new in zip(old_grid, grid)
    )
    image = np.einsum("rh,cw,hwd->rcd", rows, columns, image, optimize=True)
  return image.reshape(1, -1, width).astype(table.dtype)


def _weights(
  old: int, new: int, radius: int, cubic: float, antialias: bool
) -> np.ndarray:
  """Returns the weights (new, old) of the old points for each new point.

  They are those of torch.nn.functional.interpolate with align_corners=False.
  """
  scale = old / new
  centers = (np.arange(new) + 0.5) * scale - 0.5
  widening = max(scale, 1.0) if antialias else 1.0
  reach = math.ceil(radius * widening) + 1
  near = np.floor(centers)[:, None] + np.arange(-reach, reach + 1)
  values = _kernel(np.abs(near - centers[:, None]) / widening, radius, cubic)
  if antialias:  # Ignores points outside; without it, edges are repeated.
    values = np.where((near >= 0) & (near < old), values, 0)
    values /= values.sum(axis=1, keepdims=True)
  weights = np.zeros((new, old))
  columns = np.clip(near, 0, old - 1).astype(int)
  np.add.at(weights, (np.arange(new)[:, None], columns), values)
  return weights.astype(np.float32)


def _kernel(x: np.ndarray, radius: int, a: float) -> np.ndarray:
  """Evaluates a triangle filter, or Keys's cubic one with parameter a."""
  if radius == 1:
    return np.maximum(1 - x, 0)
  inner = ((a + 2) * x - (a + 3)) * x**2 + 1
  outer = a * (((x - 5) * x + 8) * x - 4)
  return np.where(x < 1, inner, np.where(x < 2, outer, 0))
