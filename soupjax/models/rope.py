# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Rotary position embeddings of patches (arXiv 2104.09864, 2403.13298).

Pairs of channels of queries and keys are rotated by angles that grow with the
row or the column of the patch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Rope(NamedTuple):
  """A kind of rotary embeddings.

  Attributes:
    temperature: the lowest frequency is nearly 1 / temperature.
    centered: whether coordinates are the centers of patches, scaled to [-1, 1]
      and multiplied by 2 pi, instead of row and column indices.
    offset: added to row and column indices.
    columns_first: whether the first half of the pairs (if `learned`, the first
      frequencies) goes with the column and the second with the row, instead of
      the reverse.
    halves: whether channels i and i + size / 2 form a pair, instead of adjacent
      channels.
    learned: whether each head of each block learns frequencies along both axes,
      instead of fixed frequencies along one axis per pair.
  """

  temperature: float = 10_000.0
  centered: bool = False
  offset: float = 0.0
  columns_first: bool = False
  halves: bool = False
  learned: bool = False


# eva02: EVA-02 (arXiv 2303.11331). dinov3: 2508.10104. pe: Perception Encoder
# (2504.13181), whose model without a class token does not have the offset.
# axial and mixed: 2403.13298.
ROPES = {
  "eva02": Rope(),
  "dinov3": Rope(temperature=100.0, centered=True, halves=True),
  "pe": Rope(offset=1.0, columns_first=True),
  "pe_without_class": Rope(columns_first=True),
  "axial": Rope(temperature=100.0, columns_first=True),
  "mixed": Rope(temperature=10.0, columns_first=True, learned=True),
}


def _coordinates(kind: Rope, rows: int, columns: int, grid: int) -> np.ndarray:
  """Returns the coordinates of patches along both axes, (2, patches)."""
  axes = []
  for count in (rows, columns):
    axis = np.arange(count, dtype=np.float32)
    if kind.centered:
      axis = 2 * np.pi * ((axis + 0.5) / count * 2 - 1)
    else:
      axis = axis + kind.offset
      axis = axis / count * grid if grid else axis
    axes.append(axis)
  both = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(2, -1)
  return both[::-1] if kind.columns_first else both


def angles(
  name: str, rows: int, columns: int, size: int, grid: int = 0
) -> np.ndarray:
  """Returns the angles of patches, for fixed frequencies.

  Args:
    name: a key of `ROPES` whose frequencies are fixed.
    rows: number of rows of patches.
    columns: number of columns of patches.
    size: channels of a head, a multiple of 4.
    grid: side of the grid that coordinates are scaled to; 0 for no scaling.

  Returns:
    (patches, 1, size / 2) float32, in radians.

  Raises:
    ValueError: if size is not a multiple of 4.
  """
  check_size(size)
  kind = ROPES[name]
  exponents = np.arange(size // 4, dtype=np.float32) / (size // 4)
  bands = 1 / np.float32(kind.temperature) ** exponents
  both = _coordinates(kind, rows, columns, grid)
  turns = both.T[:, :, None] * bands
  return turns.reshape(rows * columns, 1, -1).astype(np.float32)


def learned_angles(
  name: str, frequencies: jax.Array, rows: int, columns: int
) -> jax.Array:
  """Returns the angles of patches, for learned frequencies.

  Args:
    name: a key of `ROPES` whose frequencies are learned.
    frequencies: (2, depth, heads, size / 2).
    rows: number of rows of patches.
    columns: number of columns of patches.

  Returns:
    (depth, patches, heads, size / 2), in radians.
  """
  both = jnp.asarray(_coordinates(ROPES[name], rows, columns, 0))
  first, second = frequencies[:, :, None]
  patches = both[:, None, :, None, None]
  return patches[0] * first + patches[1] * second


def initial_frequencies(
  key: jax.Array, shape: tuple[int, ...], temperature: float
) -> jax.Array:
  """Draws frequencies (2, depth, heads, size / 2) along random directions."""
  _, depth, heads, half = shape
  bands = 1 / temperature ** (jnp.arange(half // 2) / (half // 2))
  turn = jax.random.uniform(key, (depth, heads, 1, 1)) * 2 * jnp.pi
  # The second half of the bands is at right angles to the first.
  turn = jnp.concatenate([turn, turn + jnp.pi / 2], axis=2)
  bands = bands[None, None, None]
  both = jnp.stack([jnp.cos(turn) * bands, jnp.sin(turn) * bands])
  return both.reshape(shape)


def rotate(x: jax.Array, turns: jax.Array, name: str) -> jax.Array:
  """Rotates pairs of channels; keeps shape and dtype.

  Args:
    x: (batch, tokens, heads, size) queries or keys.
    turns: (tokens, heads or 1, size / 2) angles in radians.
    name: a key of `ROPES`.
  """
  cos, sin = jnp.cos(turns)[None], jnp.sin(turns)[None]
  if ROPES[name].halves:
    first, second = jnp.split(x, 2, axis=-1)
  else:
    first, second = x[..., ::2], x[..., 1::2]
  pair = first * cos - second * sin, second * cos + first * sin
  if ROPES[name].halves:
    return jnp.concatenate(pair, axis=-1).astype(x.dtype)
  return jnp.stack(pair, axis=-1).reshape(x.shape).astype(x.dtype)


def check_size(size: int) -> None:
  """Raises ValueError if a head cannot be rotated along two axes."""
  if size % 4:
    raise ValueError(
      f"Rotary positions need heads with a multiple of 4 channels, got {size}: "
      "change width or num_heads."
    )
