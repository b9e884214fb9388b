# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Gram matrices and exact thresholds of large leaves, from a first pass."""

from collections.abc import Iterable
from typing import Any

import numpy as np

# Ingredients whose histograms are in memory together.
_WIDTH = 32


def gram(stack: np.ndarray, base: np.ndarray | None) -> np.ndarray:
  """Returns the dot products (K, K) of differences from a base, in float64.

  Args:
    stack: (K, n) float32.
    base: (n,), or None for products of the rows themselves.
  """
  total = np.zeros((len(stack), len(stack)))
  # Fits in the cache. Depends only on K, so that the bits are always the same.
  step = min(1 << 15, max(1, (1 << 22) // len(stack)))
  for start in range(0, stack.shape[1], step):
    part = stack[:, start : start + step].astype(np.float64)
    if base is not None:
      part -= base[start : start + step]
    total += part @ part.T
  return total


def largest(
  reader: Any, leaves: Iterable[str], ranks: Iterable[int]
) -> np.ndarray:
  """Finds magnitudes of given ranks in every task vector, exactly.

  Magnitudes of float32 order like their bits, so that two histograms suffice:
  one of the upper 16 bits, and one of the lower 15 bits within a bin.
  Magnitudes below the smallest normal number count as zero. Memory holds the
  histograms of 32 ingredients; the base is read once more for each 32.

  Args:
    reader: a `LeafReader` with a base.
    leaves: leaves that are ranked together.
    ranks: 1 is the largest.

  Returns:
    (K, number of ranks) uint32, the bits of the magnitudes.
  """
  leaves, ranks = list(leaves), list(ranks)
  return np.concatenate(
    [
      _largest(reader, leaves, ranks, range(k, min(k + _WIDTH, reader.count)))
      for k in range(0, reader.count, _WIDTH)
    ]
  )


def _largest(reader, leaves, ranks, models):
  """Finds the magnitudes of some models; see `largest`."""
  coarse = reader.total(_coarse, leaves, models)
  shape = (len(models), len(ranks))
  bins, rests = np.empty(shape, np.int64), np.empty(shape, np.int64)
  for k, j in np.ndindex(shape):
    bins[k, j], rests[k, j] = _locate(coarse[k], ranks[j])

  def fine(stack, base):
    counts = np.empty((*shape, 1 << 15), np.int64)
    for k, row in enumerate(stack):
      bits = magnitudes(row, base)
      for j, number in enumerate(bins[k]):
        low = bits[bits >> np.uint32(15) == number] & np.uint32(0x7FFF)
        counts[k, j] = np.bincount(low, minlength=1 << 15)
    return counts

  counts = reader.total(fine, leaves, models)
  low = np.empty(shape, np.int64)
  for k, j in np.ndindex(shape):
    low[k, j], _ = _locate(counts[k, j], rests[k, j])
  return (bins << 15 | low).astype(np.uint32)


def magnitudes(stack: np.ndarray, base: np.ndarray | None) -> np.ndarray:
  """Returns the bits of |t - base| as uint32, which order like the numbers."""
  delta = stack if base is None else stack - base
  bits = delta.view(np.uint32) & np.uint32(0x7FFFFFFF)
  bits[bits < 0x00800000] = 0
  return bits


def _coarse(stack, base):
  # Row by row, to save memory.
  return np.stack(
    [
      np.bincount(magnitudes(row, base) >> np.uint32(15), minlength=1 << 16)
      for row in stack
    ]
  )


def _locate(counts, rank):
  """Returns the bin of the rank-th largest number, and its rank in the bin."""
  above = np.cumsum(counts[::-1])
  i = int(np.searchsorted(above, rank))
  return len(counts) - 1 - i, rank - (int(above[i - 1]) if i else 0)
