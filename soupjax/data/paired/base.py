# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Sources of images with listed classes and captions."""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

from soupjax.data.source import Source


@dataclasses.dataclass(frozen=True)
class Lists:
  """Classes and captions of the images of one split.

  Attributes:
    labels: the class of each image, as text; None if there are only captions.
    captions: the caption of each image; None if there are only classes.
    where: maps an index to the file and row of the image, for errors.
  """

  labels: Sequence[str] | None
  captions: Sequence[str] | None
  where: Callable[[int], str]


class Paired(Source):
  """Images with a class, a caption, or both; subclasses read the images.

  Reading a label raises a ValueError if the images have only captions. Classes
  are numbered over `all_lists`, those of all splits; `own` is one of them.
  """

  def __init__(self, name: str, size: int, own: Lists, all_lists):
    names, count = classes_of(all_lists)
    super().__init__(name, size, count, names)
    self._labels = self._captions = None
    if own.labels is not None:
      number = {name: k for k, name in enumerate(names or ())}
      self._labels = np.array(
        [number[text] if names else int(text) for text in own.labels], np.int32
      )
    if own.captions is not None:
      ids: dict[str, int] = {}
      self._captions = np.array(
        [ids.setdefault(text, len(ids)) for text in own.captions], np.int32
      )
      self.captions = tuple(ids)

  def _read(self, index):
    label = self._label(index)
    return self._image(index), label

  def _label(self, index):
    if self._labels is None:
      raise ValueError(
        f"{self.describe(index)} has a caption but no class, which is needed "
        "here: label the images of this split. Captions alone are enough only "
        "for data.train of recipe='flyp' and 'lit'."
      )
    return self._labels[index]

  def _caption(self, index):
    return self._captions[index]


def classes_of(lists: Sequence[Lists]) -> tuple[list[str] | None, int]:
  """Numbers the classes over all splits.

  If all labels are whole numbers, they are class indices. Otherwise they are
  class names, numbered in alphabetical order.

  Returns:
    The class names, or None if labels are indices; and the number of classes, 0
    without labels.

  Raises:
    ValueError: naming the row of a number that is not a class index.
  """
  given = [own for own in lists if own.labels is not None]
  texts = set().union(*(own.labels for own in given))
  if not texts or not all(map(_is_number, texts)):
    return sorted(texts), len(texts)
  for own in given:
    for k, text in enumerate(own.labels):
      if not text.isdecimal():
        raise ValueError(
          f"{own.where(k)} has the label {text!r}: if all labels are numbers, "
          "they are class indices, from 0. Use whole numbers, or names."
        )
  return None, max(map(int, texts)) + 1


def _is_number(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return True


class _ByCaption(Source):
  """A source whose classes are the distinct captions."""

  def __init__(self, parent: Source):
    captions = parent.captions
    super().__init__(parent.name, len(parent), len(captions), captions)
    self.notes, self.captions = parent.notes, captions
    self.ranges = parent.ranges
    self._parent = parent

  def _read(self, index):
    return self._parent._image(index), self._label(index)

  def _label(self, index):
    return self._parent._caption(index)

  def describe(self, index: int) -> str:
    return self._parent.describe(index)


def by_caption(source: Source) -> Source:
  """Makes a source whose labels are the indices of `source.captions`.

  Args:
    source: a source with captions.
  """
  return _ByCaption(source)
