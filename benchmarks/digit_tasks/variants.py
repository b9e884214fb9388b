# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Other tasks made from a set of digits: turned, inverted, labelled anew."""

import dataclasses

import numpy as np

from soupjax.data.dataset import Dataset

# Task -> what happens to images (n, height, width, channels) in [-1, 1].
# "parity" keeps the images and asks whether the digit is odd.
VARIANTS = {
  "upright": lambda images: images,
  "inverted": lambda images: -images,
  "rotated": lambda images: np.rot90(images, axes=(1, 2)),
  "mirrored": lambda images: images[:, :, ::-1],
  "rotated_inverted": lambda images: -np.rot90(images, axes=(1, 2)),
  "parity": lambda images: images,
}


def variant(dataset: Dataset, task: str) -> Dataset:
  """Turns digits into another task on the same digits.

  Args:
    dataset: of digits, labels 0 to 9.
    task: one of `VARIANTS`: "upright" (as they are), "inverted" (black and
      white), "rotated" (by 90 degrees), "mirrored", "rotated_inverted", or
      "parity" (label 1 for odd digits).

  Returns:
    A dataset called `NAME/TASK`; the images are in the same order.

  Raises:
    ValueError: if there is no such task.
  """
  if task not in VARIANTS:
    raise ValueError(f"task must be one of {sorted(VARIANTS)}, got {task!r}.")
  labels = dataset.labels % 2 if task == "parity" else dataset.labels
  return dataclasses.replace(
    dataset,
    name=f"{dataset.name}/{task}",
    images=np.ascontiguousarray(VARIANTS[task](dataset.images)),
    labels=labels,
  )


def joined(name: str, *datasets: Dataset) -> Dataset:
  """Puts datasets one after another."""
  return Dataset(
    name,
    np.concatenate([d.images for d in datasets]),
    np.concatenate([d.labels for d in datasets]),
  )
