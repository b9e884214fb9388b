# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Labelled images by index, their subsets, and images in memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from soupjax.data.dataset import Dataset


class Source:
  """Labelled images by index. Subclasses implement `_read`.

  Attributes:
    name: name shown in reports, such as "cifar10/train[:98%]".
    num_classes: number of classes; labels are in [0, num_classes).
    class_names: one per class, or None if they are unknown.
    ranges: (stored split of a dataset, start, stop) of the examples; empty if
      they are unknown.
    notes: lines for the plan, for example about files that are not read.
    several: whether an image may have several right labels, or none.
    captions: the distinct captions; empty if images have none.
  """

  several = False
  captions: tuple[str, ...] = ()
  ranges: tuple[tuple[str, int, int], ...] = ()
  notes: tuple[str, ...] = ()

  def __init__(
    self,
    name: str,
    size: int,
    num_classes: int,
    class_names: Sequence[str] | None = None,
  ):
    if not size:
      raise ValueError(f"{name} is empty: there is nothing to read in it.")
    self.name = name
    self.num_classes = num_classes
    self.class_names = tuple(class_names) if class_names else None
    self._size = size

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Reads one example.

    Args:
      index: index of the example, in [0, len).

    Returns:
      {"image": encoded bytes, or (height, width, 3) uint8; "label": int}.

    Raises:
      IndexError: if the index is out of range.
      ValueError: if the label is not in [0, num_classes).
    """
    if not 0 <= index < self._size:
      raise IndexError(
        f"{self.name} has no example {index}, only 0 to {self._size - 1}."
      )
    image, label = self._read(index)
    return {"image": image, "label": self._checked(index, label)}

  def label(self, index: int) -> int:
    """Returns the label of one example, without reading its image if possible.

    Raises:
      ValueError: if the label is not in [0, num_classes).
    """
    return self._checked(index, self._label(index))

  def right_labels(self, index: int) -> tuple[int, ...]:
    """Returns all right labels; sources with `several` override this."""
    return (self.label(index),)

  def describe(self, index: int) -> str:
    """Returns a description of one example, for messages."""
    return f"example {index} of {self.name}"

  def identity(self) -> list[Any]:
    """Returns sizes and times of the files as JSON; [] if they are unknown."""
    parent = getattr(self, "_parent", None)
    return [] if parent is None else parent.identity()

  def _checked(self, index: int, label: Any) -> int:
    if isinstance(label, tuple):
      raise ValueError(
        f"{self.name} has several right labels for an image: it can only be a "
        "test set, in `tests` of cooking."
      )
    if not 0 <= label < self.num_classes or label != int(label):
      offset = ""
      if label == self.num_classes:
        offset = " (labels that start at 1 need 1 subtracted)"
      raise ValueError(
        f"{self.describe(index)} has label {label}, but there are only "
        f"{self.num_classes} classes, 0 to {self.num_classes - 1}: correct the "
        f"labels{offset}, or the number of classes."
      )
    return int(label)

  def _read(self, index: int) -> tuple[Any, Any]:
    raise NotImplementedError

  def _label(self, index: int) -> Any:
    return self._read(index)[1]

  def _image(self, index: int) -> Any:
    return self._read(index)[0]

  def _caption(self, index: int) -> int:
    """Returns the index of a caption; sources with captions override this."""
    raise NotImplementedError


class _Arrays(Source):
  """A `Dataset` in memory."""

  def __init__(self, dataset: Dataset, num_classes: int, class_names):
    super().__init__(dataset.name, len(dataset), num_classes, class_names)
    images = np.asarray(dataset.images)
    if images.dtype != np.uint8:
      images = np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
      raise ValueError(
        f"{dataset.name} has images of shape {images.shape}: (n, height, "
        "width, 1 or 3) is needed."
      )
    self._images = np.broadcast_to(images, (*images.shape[:3], 3))
    self._labels = np.asarray(dataset.labels)
    if self._labels.shape != (len(dataset),) or not np.issubdtype(
      self._labels.dtype, np.integer
    ):
      raise ValueError(
        f"{dataset.name} has labels {self._labels.dtype}"
        f"{list(self._labels.shape)}: one integer class index per image is "
        "needed."
      )
    wrong = (self._labels < 0) | (self._labels >= num_classes)
    for index in np.flatnonzero(wrong)[:1]:
      self._checked(int(index), self._labels[index])

  def _read(self, index):
    return self._images[index], self._labels[index]

  def _label(self, index):
    return self._labels[index]


class _Subset(Source):
  """Some examples of another source."""

  def __init__(self, parent: Source, indices: np.ndarray, name: str):
    super().__init__(name, len(indices), parent.num_classes, parent.class_names)
    self.notes, self.captions = parent.notes, parent.captions
    self._parent = parent
    self._indices = np.asarray(indices)

  def _read(self, index):
    return self._parent._read(int(self._indices[index]))

  def _label(self, index):
    return self._parent._label(int(self._indices[index]))

  def _image(self, index):
    return self._parent._image(int(self._indices[index]))

  def _caption(self, index):
    return self._parent._caption(int(self._indices[index]))

  def describe(self, index: int) -> str:
    return self._parent.describe(int(self._indices[index]))


def from_dataset(
  dataset: Dataset,
  num_classes: int,
  *,
  class_names: Sequence[str] | None = None,
) -> Source:
  """Makes a source from images in memory.

  Args:
    dataset: images (n, height, width, 1 or 3), uint8, or floats in [-1, 1],
      which are rounded to 256 levels; one channel is repeated.
    num_classes: number of classes.
    class_names: one per class, if they are known.

  Raises:
    ValueError: if a shape is wrong, labels are not integers, or a label is out
      of range.
  """
  return _Arrays(dataset, num_classes, class_names)


def subset(
  source: Source, indices: Sequence[int] | np.ndarray, name: str
) -> Source:
  """Makes a source from some examples of another one.

  Args:
    source: any source.
    indices: (n,) indices of the examples, in order.
    name: name of the new source.

  Raises:
    ValueError: if `indices` is empty.
  """
  return _Subset(source, np.asarray(indices, np.int64), name)


def shared_examples(a: Source, b: Source) -> int:
  """Counts the examples that two sources have in common.

  Args:
    a: a source from `open_source`.
    b: another source from `open_source`.

  Returns:
    The number; 0 for different datasets, and if the ranges of either source are
    unknown.
  """
  return sum(
    max(min(stop, other_stop) - max(start, other_start), 0)
    for split, start, stop in a.ranges
    for other, other_start, other_stop in b.ranges
    if split == other
  )


def split_minival(
  source: Source, *, per_class: int = 26, seed: int = 0
) -> tuple[Source, Source]:
  """Holds out the same number of images of every class.

  The paper's minival is about 2 % of ImageNet's training set, 26 images per
  class (arXiv 2203.05482, section 3.1). In the order of NumPy's
  `default_rng(seed).permutation(n)`, the first `per_class` images of each class
  are minival and all others are train; both keep the order of the source. Only
  as many labels are read as are needed to see `per_class` + 1 of each class.

  Args:
    source: the source to split.
    per_class: number of images of each class in minival.
    seed: seed of the permutation.

  Returns:
    (train, minival), named "NAME-train" and "NAME-minival".

  Raises:
    ValueError: if `per_class` is below 1, or a class has no more than
      `per_class` images.
  """
  if per_class < 1:
    raise ValueError(f"per_class must be positive, not {per_class}.")
  counts = np.zeros(source.num_classes, np.int64)
  beyond = np.zeros(source.num_classes, bool)
  held = []
  for index in np.random.default_rng(seed).permutation(len(source)):
    label = source.label(int(index))
    if counts[label] < per_class:
      counts[label] += 1
      held.append(index)
    else:
      beyond[label] = True
    if beyond.all():
      break
  if not beyond.all():
    few = np.flatnonzero(~beyond)
    raise ValueError(
      f"{source.name} has no more than {counts[few[0]]} images of class "
      f"{few[0]} ({len(few)} such classes): minival would take {per_class} and "
      "leave none to train on. Lower per_class."
    )
  minival = np.zeros(len(source), bool)
  minival[held] = True
  return (
    _Subset(source, np.flatnonzero(~minival), f"{source.name}-train"),
    _Subset(source, np.flatnonzero(minival), f"{source.name}-minival"),
  )
