# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Classes of models and datasets: their order, and labels mapped to outputs."""

from collections.abc import Sequence
import pathlib
import re
from typing import Any

import ml_collections
import numpy as np

from soupjax import data
from soupjax.models import pretrained


class _Relabelled(data.Source):
  """A source whose labels are the numbers of a model's outputs."""

  def __init__(self, parent: data.Source, classes: Sequence[str]):
    super().__init__(parent.name, len(parent), len(classes), classes)
    numbers = {name: k for k, name in enumerate(classes)}
    self._parent = parent
    self._numbers = np.array([numbers[name] for name in parent.class_names])

  def _read(self, index):
    example = self._parent[index]
    return example["image"], self._numbers[example["label"]]

  def _label(self, index):
    return self._numbers[self._parent.label(index)]

  def describe(self, index: int) -> str:
    return self._parent.describe(index)


def _natural_key(name: str) -> list[Any]:
  """Returns the sort key of timm for folders: 2 before 10, a before B."""
  parts = re.split(r"(\d+)", name.lower())
  return [int(part) if part.isdigit() else part for part in parts]


def classes_of(
  config: ml_collections.ConfigDict,
  detected: pretrained.Detected,
  source: data.Source,
) -> tuple[str, ...] | None:
  """Returns the names of the models' outputs in order, or None if unknown.

  Args:
    config: with `data.classes`.
    detected: the model.
    source: of `data.name`, on which the models were trained.

  Raises:
    ValueError: if `data.classes` cannot be read, or is missing but needed.
  """
  order, names = config.data.classes, source.class_names
  if order not in ("", "text", "natural"):
    path = pathlib.Path(order).expanduser()
    if not path.is_file():
      raise ValueError(
        f"data.classes={order!r} is neither 'text' nor 'natural' nor a file "
        "with one class per line."
      )
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip())
  if names is None:
    return detected.classes
  if order:
    return tuple(
      sorted(names, key=_natural_key if order == "natural" else None)
    )
  if detected.classes and set(detected.classes) & set(names):
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


def incomparable(
  source: data.Source, classes: Sequence[str] | None, name: str
) -> list[str]:
  """Warns in a line for the plan if a set and models share no class name."""
  names = source.class_names
  if not classes or not names or set(classes) & set(names):
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
    source: with the models' classes, or some of them.
    classes: names of the outputs, or None if unknown.
    num: number of outputs.
    what: the name of the source in errors.

  Raises:
    ValueError: if the source has other classes.
  """
  if classes is not None and len(classes) != num:
    raise ValueError(
      f"{what}: {len(classes)} names of classes, but the models have {num} "
      "outputs."
    )
  names = source.class_names
  common = set(names or ()) & set(classes or ())
  if common:
    unknown = sorted(set(names) - common)
    if unknown:
      unused = sorted(set(classes) - common) or list(classes)
      raise ValueError(
        f"{what}: {source.name} has classes that the models do not have: "
        f"{', '.join(unknown[:3])}{', ...' * (len(unknown) > 3)}. Those of the "
        f"models are called, for instance, {', '.join(unused[:3])}."
      )
    same_order = tuple(names) == tuple(classes)
    return source if same_order else _Relabelled(source, classes)
  if source.num_classes != num:
    raise ValueError(
      f"{what}: {source.name} has {source.num_classes} classes, but the models "
      f"data.num_classes={num}. A set of some of the classes needs the names "
      "of all, or labels of the whole set."
    )
  return source
