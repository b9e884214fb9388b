# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Small statistics of big leaves, read by `engine.first_pass.LeafReader`."""

from collections.abc import Iterable
from typing import Any

import numpy as np


def gram(stack: np.ndarray, base: np.ndarray | None) -> np.ndarray:
  """Dot products of all pairs, (K, K) float64, of differences from a base.

  Args:
    stack: (K, n) float32.
    base: (n,), or None for the rows themselves.
  """
  total = np.zeros((len(stack), len(stack)))
  step = 1 << 15  # Cache-sized, and always the same.
  for start in range(0, stack.shape[1], step):
    part = stack[:, start : start + step].astype(np.float64)
    if base is not None:
      part -= base[start : start + step]
    total += part @ part.T
  return total


def largest(
  reader: Any, leaves: Iterable[str], ranks: Iterable[int]
) -> np.ndarray:
  """Finds the r-th largest magnitude of every task vector, exactly.

  Magnitudes of float32 order like their bits, so that two histograms, of the
  upper 16 bits and of the lower 15 of those in one bin, find any of them.
  Magnitudes below the smallest normal number count as zero.

  Args:
    reader: with a base.
    leaves: which are taken together.
    ranks: 1 is the largest.

  Returns:
    (K, number of ranks) uint32, the bits of the magnitudes.
  """
  leaves, ranks = list(leaves), list(ranks)
  coarse = reader.total(_coarse, leaves)
  bins = np.empty((reader.count, len(ranks)), np.int64)
  left, low = bins.copy(), bins.copy()
  for k in range(reader.count):
    for j, rank in enumerate(ranks):
      bins[k, j], left[k, j] = _locate(coarse[k], rank)

  def fine(stack, base):
    counts = np.empty((*bins.shape, 1 << 15), np.int64)
    for k, row in enumerate(stack):
      bits = magnitudes(row, base)
      for j, one in enumerate(bins[k]):
        low = bits[bits >> np.uint32(15) == one] & np.uint32(0x7FFF)
        counts[k, j] = np.bincount(low, minlength=1 << 15)
    return counts

  fine_counts = reader.total(fine, leaves)
  for k in range(reader.count):
    for j in range(len(ranks)):
      low[k, j], _ = _locate(fine_counts[k, j], left[k, j])
  return (bins << 15 | low).astype(np.uint32)


def magnitudes(stack: np.ndarray, base: np.ndarray | None) -> np.ndarray:
  """The bits of |t - base|, as uint32, that order like the numbers."""
  delta = stack if base is None else stack - base
  bits = delta.view(np.uint32) & np.uint32(0x7FFFFFFF)
  bits[bits < 0x00800000] = 0
  return bits


def _coarse(stack, base):
  # One after the other, for memory.
  return np.stack(
    [
      np.bincount(magnitudes(row, base) >> np.uint32(15), minlength=1 << 16)
      for row in stack
    ]
  )


def _locate(counts, rank):
  """The bin of the rank-th largest, and its rank within the bin."""
  above = np.cumsum(counts[::-1])
  at = int(np.searchsorted(above, rank))
  return len(counts) - 1 - at, rank - (int(above[at - 1]) if at else 0)
