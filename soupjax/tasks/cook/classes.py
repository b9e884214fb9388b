# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Class order of models and datasets; maps labels to outputs of the model."""

from collections.abc import Sequence
import pathlib
import re
from typing import Any

import ml_collections
import numpy as np

from soupjax import data, registry
from soupjax.data.folders import displaced, spelling
from soupjax.evaluators import label_spaces
from soupjax.models import pretrained


class _Relabelled(data.Source):
  """A source whose labels are indices of a model's outputs.

  Attributes:
    outputs: the output index of each class of the parent.
  """

  def __init__(
    self,
    parent: data.Source,
    classes: Sequence[str],
    numbers: Sequence[int],
  ):
    super().__init__(parent.name, len(parent), len(classes), classes)
    self.notes, self.ranges = parent.notes, parent.ranges
    self.several = parent.several
    self.outputs = tuple(numbers)
    self._parent = parent
    self._numbers = np.array(numbers)

  def _read(self, index):
    if self.several:  # `right_labels` maps them.
      return self._parent._read(index)
    example = self._parent[index]
    return example["image"], self._numbers[example["label"]]

  def _label(self, index):
    return self._numbers[self._parent.label(index)]

  def right_labels(self, index: int) -> tuple[int, ...]:
    labels = self._parent.right_labels(index)
    return tuple(sorted(int(self._numbers[k]) for k in labels))

  def describe(self, index: int) -> str:
    return self._parent.describe(index)


def _natural_key(name: str) -> list[Any]:
  """Returns timm's sort key for folders: 2 before 10, a before B."""
  parts = re.split(r"(\d+)", name.lower())
  return [int(part) if part.isdigit() else part for part in parts]


def classes_of(
  config: ml_collections.ConfigDict,
  detected: pretrained.Detected,
  source: data.Source,
) -> tuple[str, ...] | None:
  """Returns the names of the models' outputs in order, or None if unknown.

  Args:
    config: as in configs/cook.py.
    detected: the detected model.
    source: a set with the classes of the models, such as minival.

  Raises:
    ValueError: if `data.classes` cannot be read, contradicts the config.json
      beside the checkpoints, or is empty but needed.
  """
  order, names = config.data.classes, source.class_names
  if order:
    given = _given(order, names)
    if given is not None:
      _check_order(order, given, detected.classes)
      return given
  if names is None:
    return detected.classes
  if _comparable(detected.classes, names):
    return detected.classes
  natural = sorted(names, key=_natural_key)
  if detected.family == "timm" and list(names) != natural:
    a, b = next((a, b) for a, b in zip(names, natural) if a != b)
    raise ValueError(
      f"The order of the classes of {source.name} is unknown: timm puts {b!r} "
      f"before {a!r}, torchvision {a!r} before {b!r}. Give "
      "--config.data.classes=natural (timm), =text (torchvision), or a file "
      "with one class per line."
    )
  return names


def _given(order: str, names: Sequence[str] | None) -> tuple[str, ...] | None:
  """Returns the classes in the order of `data.classes`, or None if unknown.

  Args:
    order: the value of `data.classes`.
    names: class names of the dataset; None if unknown.

  Raises:
    ValueError: if `order` is neither the name of an order nor a file.
  """
  if order in ("text", "natural"):
    key = _natural_key if order == "natural" else None
    return None if names is None else tuple(sorted(names, key=key))
  path = pathlib.Path(order).expanduser()
  if not path.is_file():
    raise ValueError(
      f"data.classes={order!r} is neither 'text' nor 'natural' nor a file "
      "with one class per line."
    )
  lines = path.read_text(encoding="utf-8").splitlines()
  return tuple(line.strip() for line in lines if line.strip())


def _check_order(
  order: str, given: Sequence[str], recorded: Sequence[str] | None
) -> None:
  """Raises a ValueError if `data.classes` contradicts the config.json."""
  if places := displaced(given, recorded):
    k, at = places
    raise ValueError(
      f"data.classes={order!r} makes {given[k]!r} output {k}, but according to "
      f"the config.json beside the checkpoints it is output {at}: leave "
      "--config.data.classes out, or correct or remove the names in that file."
    )


def incomparable(
  source: data.Source, classes: Sequence[str] | None, name: str
) -> list[str]:
  """Returns a warning for the plan if a set and models share no class name."""
  names = source.class_names
  if not classes or not names or _comparable(classes, names):
    return []
  return [
    f"WARNING: the models' classes are called {', '.join(classes[:2])}, ... "
    f"and those of {name} {', '.join(names[:2])}, ...: assumed to be in the "
    "same order"
  ]


def labelled(
  source: data.Source, classes: Sequence[str] | None, num: int, what: str
) -> data.Source:
  """Maps the labels of a source to the models' outputs.

  Args:
    source: a set with all or some of the models' classes.
    classes: names of the outputs, or None if unknown.
    num: number of outputs.
    what: the name of the source in errors.

  Raises:
    ValueError: if the source has other classes, or `classes` does not have one
      name per output.
  """
  if classes is not None and len(classes) != num:
    raise ValueError(
      f"{what}: {len(classes)} class names, but the models have {num} outputs."
    )
  names = source.class_names
  if names and classes and tuple(names) == tuple(classes):
    return source
  if _comparable(classes, names):
    return _Relabelled(source, classes, _numbers(source, classes, what))
  if names and set(names) == set(map(str, range(num))):
    # Folders may be named by output index, as in ImageNet-V2.
    called = classes or tuple(map(str, range(num)))
    return _Relabelled(source, called, [int(name) for name in names])
  if source.num_classes != num:
    raise ValueError(
      f"{what}: {source.name} has {source.num_classes} classes, but the models "
      f"have data.num_classes={num}. A set with only some of the classes needs "
      "class names on both sides, or labels that index all classes."
    )
  return source


def _comparable(a: Sequence[str] | None, b: Sequence[str] | None) -> bool:
  """Whether two lists of classes have a name in common, however spelled."""
  return bool(set(map(spelling, a or ())) & set(map(spelling, b or ())))


def _numbers(
  source: data.Source, classes: Sequence[str], what: str
) -> list[int]:
  """Returns the model's output of each class of a source.

  Names that differ only in case, spaces, "_", "-" and Unicode form match,
  unless another name matches exactly.

  Raises:
    ValueError: if a name matches no output or several, or two names match the
      same output.
  """
  exact: dict[str, list[int]] = {}
  alike: dict[str, list[int]] = {}
  for k, name in enumerate(classes):
    exact.setdefault(name, []).append(k)
    alike.setdefault(spelling(name), []).append(k)
  names = source.class_names or ()
  fits = [exact.get(n) or alike.get(spelling(n)) or [] for n in names]
  unknown = [name for name, numbers in zip(names, fits) if not numbers]
  if unknown:
    taken = {k for numbers in fits for k in numbers}
    unused = [n for k, n in enumerate(classes) if k not in taken] or classes
    raise ValueError(
      f"{what}: {source.name} has classes that the models do not have: "
      f"{', '.join(unknown[:3])}{', ...' * (len(unknown) > 3)}. The models "
      f"have classes such as {', '.join(unused[:3])}."
    )
  first: dict[int, str] = {}
  for name, numbers in zip(names, fits):
    if len(numbers) > 1:
      raise ValueError(
        f"{what}: the class {name!r} of {source.name} could be any of the "
        f"models' outputs {', '.join(map(str, numbers))}, which are called "
        f"{', '.join(repr(classes[k]) for k in numbers)}. Set data.classes to "
        "a file with one class folder name per line, each of them unique."
      )
    other = first.setdefault(numbers[0], name)
    if other != name or list(names).count(name) > 1:
      raise ValueError(
        f"{what}: the classes {other!r} and {name!r} of {source.name} are both "
        f"the models' output {numbers[0]}, {classes[numbers[0]]!r}: rename one."
      )
  return [numbers[0] for numbers in fits]


# --- Metrics over some of the classes -----------------------------------------

# TFDS declares all ImageNet classes for these sets, but only 200 occur. Their
# papers (1907.07174, 2006.16241) predict the highest of these 200 outputs.
_OF_200 = tuple(label_spaces.MASKS)
# The plan reads the labels of sets with at most this many images.
_FEW = 10_000


def evaluated(
  source: data.Source,
  dataset: str,
  option: str | Sequence[str],
  own_classes: int,
  classes: Sequence[str] | None,
  what: str,
) -> tuple[int, ...] | None:
  """Returns the outputs over which a test set is evaluated; None for all.

  Args:
    source: the set, with labels that index the models' outputs.
    dataset: its name for `data.open_source`.
    option: "all"; "present" for the classes that occur; "imagenet_a" or
      "imagenet_r" for timm's lists; a file with one name per line; or names. ""
      stands for the set's own classes if it has only some of the models', for
      the 200 classes of ImageNet-A and -R, and for all classes otherwise.
    own_classes: the number of classes that the set itself has.
    classes: names of the models' outputs; None if unknown.
    what: the name of the set in errors.

  Raises:
    ValueError: if a name is unknown or ambiguous, or an image has a class that
      is not among the outputs.
  """
  total = source.num_classes
  if option == "all":
    return None
  base = dataset.partition(":")[0].partition("/")[0]
  if option == "" and own_classes < total:
    chosen = set(getattr(source, "outputs", ()))
  elif option == "present" or (option == "" and base in _OF_200):
    chosen = {source.label(k) for k in range(len(source))}
    if option == "" and total == 1000 and len(chosen) != 200:
      # Not the whole set.
      chosen = _chosen(source, base, classes or source.class_names, what)
  elif option == "":
    return None
  else:
    chosen = _chosen(source, option, classes or source.class_names, what)
  return tuple(sorted(chosen)) if len(chosen) < total else None


def about_outputs(
  source: data.Source, outputs: Sequence[int] | None, name: str
) -> list[str]:
  """Returns lines for the plan about the outputs over which metrics are taken.

  Args:
    source: the test set.
    outputs: the result of `evaluated`.
    name: the name of the set.
  """
  total = source.num_classes
  if outputs is not None:
    return [
      f"{name}: metrics are over {len(outputs):,} of {total:,} outputs, its "
      f"own classes (tests.{name}=...:classes=all takes every output)"
    ]
  if len(source) > _FEW:
    return []
  present = len({source.label(k) for k in range(len(source))})
  if present == total or len(source) < 2 * total:
    return []
  return [
    f"{name}: only {present:,} of {total:,} classes occur, and metrics are "
    f"over all (tests.{name}=...:classes=present takes those that occur)"
  ]


def _mask(source, option, classes, what) -> list[str]:
  """Returns the classes of ImageNet-A or -R as WordNet ids, or as indices."""
  try:
    synsets, indices = label_spaces.read_mask(option)
  except ValueError as e:
    raise ValueError(f"{what}: {e}") from e
  if set(synsets) <= set(classes or ()):
    return synsets
  if source.num_classes != 1000:
    raise ValueError(
      f"{what}: classes={option} needs models with ImageNet's 1,000 classes or "
      "with WordNet ids as class names; these have "
      f"{source.num_classes} outputs."
    )
  return list(map(str, indices))


def _chosen(source, option, classes, what) -> set[int]:
  """Returns the outputs that `option` names; they must include all labels."""
  names = [option] if isinstance(option, str) else list(option)
  if isinstance(option, str) and pathlib.Path(option).expanduser().is_file():
    text = pathlib.Path(option).expanduser().read_text(encoding="utf-8")
    names = [line.strip() for line in text.splitlines() if line.strip()]
  elif isinstance(option, str) and option in label_spaces.MASKS:
    names = _mask(source, option, classes, what)
    classes = classes if set(names) <= set(classes or ()) else list(
      map(str, range(source.num_classes))
    )  # fmt: skip
  if not classes:
    raise ValueError(
      f"{what}: the classes have no names, so classes={option!r:.100} cannot "
      "be resolved: use 'present' or 'all', or set data.classes."
    )
  numbers: dict[str, list[int]] = {}
  for k, name in enumerate(classes):
    numbers.setdefault(name, []).append(k)
  for name in names:
    if len(numbers.get(name, ())) != 1:
      problem = "is the name of several classes"
      if name not in numbers:
        problem = f"is not a class{registry.suggestion(name, numbers)}"
      raise ValueError(f"{what}: {name!r} in classes= {problem}")
  chosen = {numbers[name][0] for name in names}
  for k in range(len(source)):
    if source.label(k) not in chosen:
      raise ValueError(
        f"{what}: {source.describe(k)} is of class "
        f"{classes[source.label(k)]!r}, which classes= omits: add it, or use "
        "classes=present."
      )
  return chosen
