# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Images whose classes and captions are listed."""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

from soupjax.data.source import Source


@dataclasses.dataclass(frozen=True)
class Lists:
  """Classes and captions of the images of one split.

  Attributes:
    labels: text of each image's class, None if the images have captions only.
    captions: of each image, None if there are only classes.
    where: index -> the file and row of an image, for errors.
  """

  labels: Sequence[str] | None
  captions: Sequence[str] | None
  where: Callable[[int], str]


class Paired(Source):
  """Images with a class, a caption, or both; subclasses read them.

  Reading a label of images that have captions only is an error.
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
        f"{self.describe(index)} has a caption and no class, which is needed "
        "here: give the images of this split a label. Captions alone serve "
        "data.train of recipe='flyp' and 'lit'."
      )
    return self._labels[index]

  def _caption(self, index):
    return self._captions[index]


def classes_of(lists: Sequence[Lists]) -> tuple[list[str] | None, int]:
  """Numbers the classes of all splits together.

  Labels that are all whole numbers are the numbers of the classes. Others are
  names, numbered in their order.

  Returns:
    The names, None for numbers; and the number of classes, 0 without labels.

  Raises:
    ValueError: naming the row of a number that is not a class.
  """
  given = [own for own in lists if own.labels is not None]
  texts = set().union(*(own.labels for own in given))
  if not texts or not all(map(_is_number, texts)):
    return sorted(texts), len(texts)
  for own in given:
    for k, text in enumerate(own.labels):
      if not text.isdecimal():
        raise ValueError(
          f"{own.where(k)} has the label {text!r}: where all labels are "
          "numbers, they are those of the classes, 0 and above. Write whole "
          "numbers, or names."
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
    source: with captions.
  """
  return _ByCaption(source)
