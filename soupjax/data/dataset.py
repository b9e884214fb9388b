# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Labelled images in memory, and the order in which training sees them."""

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """Labelled images.

  Attributes:
    name: as in reports, "digits/test".
    images: (n, height, width, channels) float32 in [-1, 1].
    labels: (n,) int32 class indices.
  """

  name: str
  images: np.ndarray
  labels: np.ndarray

  def __post_init__(self):
    if len(self.images) != len(self.labels):
      raise ValueError(
        f"{self.name} has {len(self.images)} images and {len(self.labels)} "
        "labels."
      )
    if not len(self.images):
      raise ValueError(f"{self.name} is empty.")

  def __len__(self) -> int:
    return len(self.images)


def batch_indices(size: int, batch_size: int, step: int, seed: int):
  """Returns which examples make up one training batch.

  Epochs are shuffled one by one and joined without a gap, so every example is
  seen once an epoch even where the batch size does not divide it. The answer
  depends on the arguments alone: a run that is resumed needs no iterator state.

  Args:
    size: examples in the dataset.
    batch_size: examples in a batch.
    step: from 0.
    seed: of the shuffling.

  Returns:
    (batch_size,) int64 indices.

  Raises:
    ValueError: if size or batch_size is not positive.
  """
  if size < 1 or batch_size < 1:
    raise ValueError(f"Cannot draw {batch_size} of {size} examples.")
  positions = np.arange(step * batch_size, (step + 1) * batch_size)
  epochs = positions // size
  return np.concatenate(
    [
      _shuffled(size, int(epoch), seed)[positions[epochs == epoch] % size]
      for epoch in np.unique(epochs)
    ]
  )


@functools.lru_cache(maxsize=8)
def _shuffled(size: int, epoch: int, seed: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(size)
