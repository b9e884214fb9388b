# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Computes the weights of an adapted leaf, slice by slice.

All arithmetic is in float64 and is rounded once, to the dtype of the leaf. The
product of factors is computed on a fixed grid of rows, so that the bits do not
depend on how a leaf is sliced.
"""

from collections.abc import Callable, Mapping
import dataclasses

import numpy as np

from soupjax.soups.core import slices

# Approximate number of elements in a tile.
_TILE = 1 << 17

Arrays = Mapping[str, np.ndarray]
ReadBase = Callable[[slices.Slices], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Update:
  """The computation of one leaf from the base and the adapter.

  Attributes:
    shape: shape of the leaf.
    names: leaves of the adapter that are needed.
  """

  shape: tuple[int, ...]
  names: tuple[str, ...]

  @property
  def tile(self) -> int:
    """Rows that are computed together."""
    return max(1, self.shape[0]) if self.shape else 1

  def compute(
    self, arrays: Arrays, base: ReadBase, box: slices.Slices
  ) -> np.ndarray:
    """Computes a part of the leaf.

    Args:
      arrays: name -> array of the adapter.
      base: reads a part of the leaf of the base.
      box: the part, which lies in one tile of rows.

    Returns:
      An array of float64, or of the adapter's dtype for a leaf that replaces
      that of the base.
    """
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Product(Update):
  """Adds the product of two factors: LoRA (arXiv 2106.09685) and DoRA.

  Attributes:
    scale: multiplies the product.
    transposed: whether the transpose of B A is added, for embeddings and for
      weights whose first axis is the inputs.
    has_magnitude: whether the third name holds DoRA's magnitudes (arXiv
      2402.09353, eq. 5), the norms to which the weights of each output are
      scaled.
  """

  scale: float
  transposed: bool = False
  has_magnitude: bool = False

  @property
  def tile(self) -> int:
    """Rows that are computed together."""
    if self.has_magnitude and self.transposed:
      return self.shape[0]  # The norm of a column needs all rows.
    return max(1, _TILE // max(1, int(np.prod(self.shape[1:]))))

  def compute(self, arrays, base, box):
    """Returns base + scale * B A, rescaled to the trained norms for DoRA."""
    start = box[0].start // self.tile * self.tile
    rows = slice(start, min(start + self.tile, self.shape[0]))
    left, right = self._matrices(arrays)
    delta = self.scale * (left[rows] @ right)
    delta = delta.reshape(-1, *self.shape[1:])[slices.inside(box[:1], (rows,))]
    if not self.has_magnitude:
      return base(box) + delta[(slice(None), *box[1:])]
    full = base((box[0], *slices.whole(self.shape[1:]))) + delta
    lengths = arrays[self.names[2]].reshape(-1)
    if self.transposed:
      full *= lengths / np.linalg.norm(full, axis=0)
    else:
      axes = tuple(range(1, full.ndim))
      norms = np.sqrt(np.square(full).sum(axis=axes, keepdims=True))
      full *= lengths[box[0]].reshape(norms.shape) / norms
    return full[(slice(None), *box[1:])]

  def _matrices(self, arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    a, b = (arrays[name] for name in self.names[:2])
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    return (a.T, b.T) if self.transposed else (b, a)


@dataclasses.dataclass(frozen=True)
class Scaled(Update):
  """Multiplies by a vector along one axis: IA3 (arXiv 2205.05638).

  Attributes:
    axis: axis of the leaf that the vector belongs to.
  """

  axis: int

  def compute(self, arrays, base, box):
    """Returns base * l."""
    vector = arrays[self.names[0]].reshape(-1)[box[self.axis]]
    shape = [1] * len(box)
    shape[self.axis] = -1
    return base(box) * vector.reshape(shape)


@dataclasses.dataclass(frozen=True)
class Shifted(Update):
  """Adds a scaled vector: the bias of lora_B.

  Attributes:
    scale: multiplies the vector.
  """

  scale: float

  def compute(self, arrays, base, box):
    """Returns base + scale * b."""
    return base(box) + self.scale * arrays[self.names[0]][box]


@dataclasses.dataclass(frozen=True)
class Replaced(Update):
  """Takes the leaf of the adapter: biases and modules that are saved whole."""

  def compute(self, arrays, base, box):
    """Returns the part of the adapter's leaf."""
    return arrays[self.names[0]][box]


def parts(update: Update, box: slices.Slices) -> list[slices.Slices]:
  """Cuts a box into parts that lie in one tile of rows each."""
  if not box:
    return [box]
  tile, first = update.tile, box[0]
  edges = range(first.start // tile * tile, first.stop, tile)
  return [
    (slice(max(first.start, e), min(first.stop, e + tile)), *box[1:])
    for e in edges
  ]
