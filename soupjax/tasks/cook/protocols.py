# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Protocols of test sets: classes with several outputs, or several labels."""

from collections.abc import Mapping, Sequence
import pathlib
import re

import numpy as np

from soupjax import data, registry
from soupjax.evaluators import label_spaces
from soupjax.evaluators.label_spaces import LabelSpace


class _Chosen(data.Source):
  """A part of a source's images, with other labels."""

  def __init__(
    self,
    parent: data.Source,
    indices: Sequence[int],
    labels: Sequence[int],
    num_classes: int,
    note: str,
  ):
    super().__init__(parent.name, len(indices), num_classes)
    self.notes, self.ranges = (*parent.notes, note), parent.ranges
    self._parent = parent
    self._indices, self._labels = np.array(indices), np.array(labels)

  def _read(self, index):
    image, _ = self._parent._read(int(self._indices[index]))
    return image, self._labels[index]

  def _label(self, index):
    return self._labels[index]

  def describe(self, index: int) -> str:
    return self._parent.describe(int(self._indices[index]))


def mapped(
  source: data.Source,
  path: str,
  classes: Sequence[str] | None,
  num: int,
  what: str,
) -> tuple[data.Source, LabelSpace]:
  """Keeps the images whose class is in a map from classes to outputs.

  Args:
    source: a set with class names.
    path: the path of the map; see `label_spaces.read_map`.
    classes: names of the models' outputs, or None if unknown.
    num: number of outputs.
    what: the name of the set in errors.

  Returns:
    The images, labelled by the first output of their class, and the classes
    among the outputs.

  Raises:
    ValueError: if names are missing, unknown or those of several outputs, an
      output is in two classes, or no image is left.
  """
  if not source.class_names:
    raise ValueError(
      f"{what}: {source.name} has no names for its classes, so map={path} "
      "cannot be used: give a folder with one sub-folder per class."
    )
  try:
    table = label_spaces.read_map(path)
    names = source.class_names
    for name in table:
      if name not in names:
        raise ValueError(
          f"{path} maps {name!r}, which is not a class of {source.name}"
          f"{registry.suggestion(name, names)}"
        )
    groups = {
      name: tuple(sorted(_output(k, classes, num, path) for k in outputs))
      for name, outputs in table.items()
    }
    space = LabelSpace(groups=tuple(sorted(groups.values())))
  except ValueError as e:
    raise ValueError(f"{what}: {e}") from e
  labels = [source.label(k) for k in range(len(source))]
  indices = [k for k, label in enumerate(labels) if names[label] in groups]
  if not indices:
    raise ValueError(f"{what}: no image of {source.name} has a class in {path}")
  note = f"{len(indices):,} of {len(labels):,} images have a class in {path}"
  chosen = _Chosen(
    source, indices, [groups[names[labels[k]]][0] for k in indices], num, note
  )
  return chosen, space


def _output(
  given: str | int, classes: Sequence[str] | None, num: int, path: str
) -> int:
  """Returns the index of an output that is given by name or index."""
  if isinstance(given, str):
    if not classes or given not in classes:
      why = registry.suggestion(given, classes) if classes else (
        ": the models' classes have no names; give numbers, or data.classes"
      )  # fmt: skip
      raise ValueError(f"{path}: {given!r} is not a class of the models{why}")
    numbers = [k for k, name in enumerate(classes) if name == given]
    if len(numbers) > 1:
      raise ValueError(
        f"{path}: {given!r} is the name of the models' outputs "
        f"{', '.join(map(str, numbers))}: give the number."
      )
    return numbers[0]
  if not 0 <= given < num:
    raise ValueError(
      f"{path} has output {given}, but the models have {num} outputs, 0 to "
      f"{num - 1}."
    )
  return given


def answered(
  source: data.Source, path: str, num: int, what: str
) -> tuple[data.Source, LabelSpace]:
  """Gives images several right labels, and leaves out those without any.

  Args:
    source: a set of image files, or one with several labels per image.
    path: the labels, see `label_spaces.read_answers`; "" for those of `source`.
    num: number of outputs.
    what: the name of the set in errors.

  Returns:
    The images, whose labels index `answers` of the label space, and this space.

  Raises:
    ValueError: if an image is not in the file, two images have one entry, a
      label is out of range, or no image is left.
  """
  try:
    answers = _of_files(source, path) if path else _own(source)
  except ValueError as e:
    raise ValueError(f"{what}: {e}") from e
  for k, right in enumerate(answers):
    if right and not 0 <= min(right) <= max(right) < num:
      raise ValueError(
        f"{what}: {source.describe(k)} has the labels {list(right)}, but the "
        f"models have {num} outputs, 0 to {num - 1}."
      )
  indices = [k for k, right in enumerate(answers) if right]
  if not indices:
    raise ValueError(f"{what}: no image of {source.name} has a right label.")
  sets = sorted({answers[k] for k in indices})
  number = {right: k for k, right in enumerate(sets)}
  note = (
    f"{len(answers) - len(indices):,} of {len(answers):,} images have no right "
    "label and are left out"
  )
  labels = [number[answers[k]] for k in indices]
  chosen = _Chosen(source, indices, labels, len(sets), note)
  return chosen, LabelSpace(answers=tuple(sets))


def _own(source: data.Source) -> list[tuple[int, ...]]:
  return [source.right_labels(k) for k in range(len(source))]


def _of_files(source: data.Source, path: str) -> list[tuple[int, ...]]:
  """Returns the right labels of every image, by the names of their files."""
  table = label_spaces.read_answers(path)
  result = []
  images: dict[str | int, int] = {}
  for k in range(len(source)):
    name = pathlib.PurePath(source.describe(k)).name
    key: str | int = name
    if isinstance(table, Mapping):
      right = table.get(name)
    else:
      digits = re.search(r"(\d+)\.\w+$", name)
      key = number = int(digits[1]) if digits else 0
      right = table[number - 1] if 0 < number <= len(table) else None
    if right is None:
      raise ValueError(
        f"labels={path} has nothing for {source.describe(k)}: labels are found "
        "by file name, or by the number at its end."
      )
    if (other := images.setdefault(key, k)) != k:
      raise ValueError(
        f"labels={path} has one entry for both {source.describe(other)} and "
        f"{source.describe(k)}: rename one, and give each its own labels."
      )
    result.append(tuple(sorted(set(right))))
  return result


def described(
  spaces: Mapping[str, LabelSpace], ops: Mapping[str, str]
) -> dict[str, str]:
  """Describes the protocols of test sets with changed labels or images.

  Args:
    spaces: test set -> its label space; classes of one output are left out.
    ops: test set -> image operations that change it.
  """
  texts: dict[str, list[str]] = {}
  for name, space in spaces.items():
    parts = texts.setdefault(name, [])
    groups, count = space.groups or (), space.num_outputs or 0
    if len(groups) < count:
      parts.append(
        f"{count:,} outputs joined to {len(groups):,} classes by the highest "
        "logit"
      )
    if space.answers:
      parts.append("any of several right labels counts")
  for name, text in ops.items():
    texts.setdefault(name, []).append(f"images changed by {text}")
  return {name: "; ".join(parts) for name, parts in texts.items() if parts}
