# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Protocols of test sets: the outputs that count, and the right labels.

Lists and maps are read from the packages and downloads that publish them.
"""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import importlib.util
import itertools
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class LabelSpace:
  """Maps the outputs of a model to the classes of a test set.

  Attributes:
    groups: the outputs of each class; the logit of a class is the highest of
      its group, and outputs outside all groups are ignored. None if every
      output is a class. Labels name a class by the first output of its group.
    answers: label -> the outputs that are right answers; the one with the
      highest logit is used as the label. None if labels are outputs.

  Examples:
    >>> import numpy as np
    >>> # Outputs 0 and 2 are one class, output 3 is another.
    >>> space = LabelSpace(groups=((0, 2), (3,)))
    >>> space.reduced(np.array([[1.0, 9, 5, 2]]), np.array([0]))
    (array([[5., 2.]]), array([0]))
  """

  groups: tuple[tuple[int, ...], ...] | None = None
  answers: tuple[tuple[int, ...], ...] | None = None

  def __post_init__(self):
    for name in ("groups", "answers"):
      parts = getattr(self, name)
      if parts is not None and (not parts or not all(parts)):
        raise ValueError(
          f"{name} of a label space must not be empty, nor have empty entries."
        )
    for k in self._outputs():
      if not isinstance(k, (int, np.integer)) or k < 0:
        raise ValueError(
          f"Output {k} is in the label space, but outputs are whole numbers "
          "from 0."
        )
    outputs = list(itertools.chain.from_iterable(self.groups or ()))
    if len(set(outputs)) < len(outputs):
      twice = next(k for k in outputs if outputs.count(k) > 1)
      raise ValueError(f"Output {twice} is in the label space twice.")
    if self.groups is not None and self.answers is not None:
      unknown = {*itertools.chain(*self.answers)} - {g[0] for g in self.groups}
      if unknown:
        raise ValueError(
          f"Output {min(unknown)} is a right answer, but not the first output "
          "of a group."
        )

  @classmethod
  def of_outputs(cls, outputs: Iterable[int]) -> "LabelSpace":
    """Returns a space in which only these outputs count, each as a class."""
    plain = (k.item() if isinstance(k, np.generic) else k for k in outputs)
    return cls(groups=tuple((k,) for k in plain))

  def _outputs(self) -> Iterator[int]:
    """Yields all outputs in groups and answers."""
    for part in (*(self.groups or ()), *(self.answers or ())):
      yield from part

  def _check_outputs(self, count: int) -> None:
    """Raises a ValueError if a model with this many outputs lacks one."""
    largest = max(self._outputs(), default=0)
    if largest >= count:
      raise ValueError(
        f"Output {largest} is in the label space, but the model has {count} "
        "outputs."
      )

  @property
  def num_outputs(self) -> int | None:
    """The number of outputs that count; None for all."""
    return None if self.groups is None else sum(map(len, self.groups))

  def record(self) -> list[Any]:
    """Returns the space as JSON.

    This is [groups, answers] if there are answers or no groups, else the list
    of groups, or of outputs if every group has one.
    """
    if self.answers is None and self.groups is not None:
      flat = [k for group in self.groups for k in group]
      return flat if len(flat) == len(self.groups) else _lists(self.groups)
    return [_lists(self.groups or ()), _lists(self.answers or ())]

  def scored(
    self, logits: jax.Array, labels: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Returns logits and labels for metrics; can be traced by `jax.jit`.

    Args:
      logits: (n, outputs).
      labels: (n,) labels of the test set.

    Returns:
      (n, outputs) logits: the maximum of each group at its first output, and
      very low values elsewhere; and the (n,) right outputs. A label that is no
      index of `answers` becomes one past the last output.

    Raises:
      ValueError: if the model lacks an output of the space.
    """
    self._check_outputs(logits.shape[-1])
    if self.groups is not None:
      firsts = np.array([group[0] for group in self.groups])
      if self.num_outputs > len(firsts):
        best = logits[:, _padded(self.groups)].max(axis=-1)
        logits = logits.at[:, firsts].set(best)
      keep = np.zeros(logits.shape[-1], bool)
      keep[firsts] = True
      # Half the lowest float, so that subtracting a maximum cannot overflow.
      logits = jnp.where(keep, logits, jnp.finfo(logits.dtype).min / 2)
    if self.answers is not None:
      right = (
        jnp.asarray(_padded(self.answers))
        .at[labels]
        .get(mode="fill", fill_value=logits.shape[-1])
      )
      best = jnp.take_along_axis(logits, right, axis=-1).argmax(axis=-1)
      labels = jnp.take_along_axis(right, best[:, None], axis=-1)[:, 0]
    return logits, labels

  def reduced(
    self, logits: np.ndarray, labels: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits of the classes only, and labels among them, in NumPy.

    Args:
      logits: (n, outputs).
      labels: (n,) labels of the test set.

    Returns:
      (n, classes) logits, sorted by the first output of each class; and the
      (n,) indices of the right classes, from 0.

    Raises:
      ValueError: if a label is not a class of the space, or the model lacks an
        output.
    """
    logits = np.asarray(logits)
    self._check_outputs(logits.shape[-1])
    if self.groups is not None:
      best = logits[:, _padded(self.groups)].max(axis=-1)
      logits = np.full(logits.shape, -np.inf, best.dtype)
      firsts = np.array([group[0] for group in self.groups])
      logits[:, firsts] = best
    if self.answers is not None:
      right = _padded(self.answers)[labels]
      best = np.take_along_axis(logits, right, axis=-1).argmax(axis=-1)
      labels = np.take_along_axis(right, best[:, None], axis=-1)[:, 0]
    if self.groups is None:
      return logits, labels
    firsts = np.sort(firsts)
    outside = ~np.isin(labels, firsts)
    if outside.any():
      raise ValueError(
        f"Label {labels[outside][0]} is not among the {len(firsts)} classes of "
        "the set."
      )
    return logits[:, firsts], np.searchsorted(firsts, labels)


def _lists(parts: Iterable[Iterable[int]]) -> list[list[int]]:
  return [list(part) for part in parts]


def _padded(parts: Sequence[Sequence[int]]) -> np.ndarray:
  """Returns (n, longest) integers; shorter rows repeat their first entry."""
  longest = max(map(len, parts))
  return np.array([[*p, *[p[0]] * (longest - len(p))] for p in parts])


# --- ImageNet-C ---------------------------------------------------------------

# AlexNet's error rates on ImageNet-C, averaged over five severities (arXiv
# 1903.12261, table 1, with all digits of the published evaluation).
ALEXNET = {
  "gaussian_noise": 0.886428,
  "shot_noise": 0.894468,
  "impulse_noise": 0.922640,
  "defocus_blur": 0.819880,
  "glass_blur": 0.826268,
  "motion_blur": 0.785948,
  "zoom_blur": 0.798360,
  "snow": 0.866816,
  "frost": 0.826572,
  "fog": 0.819324,
  "brightness": 0.564592,
  "contrast": 0.853204,
  "elastic_transform": 0.646056,
  "pixelate": 0.717840,
  "jpeg_compression": 0.606500,
}


def mce(accuracies: Mapping[tuple[str, int], float]) -> float:
  """Computes the mean corruption error (arXiv 1903.12261, section 4).

  The errors of a corruption, summed over five severities, are divided by
  AlexNet's; the result is the mean over 15 corruptions, which is 1 for AlexNet.

  Args:
    accuracies: (corruption, severity) -> accuracy as a fraction.

  Raises:
    ValueError: if one of the 75 pairs is missing, or there are others.
  """
  needed = {(name, s) for name in ALEXNET for s in range(1, 6)}
  if needed != set(accuracies):
    missing = sorted(needed - set(accuracies)) or sorted(
      set(accuracies) - needed
    )
    raise ValueError(
      f"mCE needs {len(needed)} sets, 15 corruptions at severities 1 to 5; got "
      f"{len(accuracies)}, and {missing[0]} is missing or unknown."
    )
  ratios = [
    sum(1 - accuracies[name, s] for s in range(1, 6)) / (5 * error)
    for name, error in ALEXNET.items()
  ]
  return sum(ratios) / len(ratios)


# --- Published lists and maps -------------------------------------------------

# Test set, as in the names of timm's files -> its number of classes.
MASKS = {"imagenet_a": 200, "imagenet_r": 200}


def read_mask(name: str) -> tuple[list[str], list[int]]:
  """Reads the classes of ImageNet-A or -R from an installed timm.

  Args:
    name: one of `MASKS`.

  Returns:
    WordNet ids, and their indices among ImageNet's 1,000 classes.

  Raises:
    ValueError: if timm is not installed or its lists are not as expected.
  """
  synsets = _timm_file(f"{name}_synsets.txt").read_text("utf-8").split()
  indices = [
    int(k) for k in _timm_file(f"{name}_indices.txt").read_text("utf-8").split()
  ]
  if not len(synsets) == len(set(indices)) == MASKS[name]:
    raise ValueError(
      f"timm lists {len(synsets)} names and {len(set(indices))} indices of "
      f"{name}, not {MASKS[name]}: set classes to a file with one class per "
      "line."
    )
  return synsets, indices


def read_real() -> list[list[int]]:
  """Reads ReaL's labels (arXiv 2006.07159) from an installed timm.

  Returns:
    The right classes of each of the 50,000 validation images, in the order of
    the numbers in their file names; an empty list where there is none.

  Raises:
    ValueError: if timm is not installed.
  """
  return json.loads(_timm_file("imagenet_real_labels.json").read_text("utf-8"))


def _timm_file(name: str) -> pathlib.Path:
  spec = importlib.util.find_spec("timm")
  folder = pathlib.Path(spec.origin).parent if spec and spec.origin else None
  path = folder / "data" / "_info" / name if folder else None
  if path is None or not path.is_file():
    raise ValueError(
      f"The list {name} comes with timm, which is not installed or too old: "
      "`pip install timm`, or give a file instead."
    )
  return path


_OBJECTNET = (
  "folder_to_objectnet_label.json",
  "objectnet_to_imagenet_1k.json",
  "pytorch_to_imagenet_2012_id.json",
  "imagenet_to_label_2012_v2",
)


def read_map(path: str | os.PathLike) -> dict[str, list[str | int]]:
  """Reads the outputs of each class of a test set.

  Args:
    path: a JSON file {"class of the set": outputs}, where outputs are the index
      or class name of a model output, or a list of these; or the folder
      `mappings` of ObjectNet's download, with its four files.

  Returns:
    Class of the set -> names or indices of outputs.

  Raises:
    ValueError: if a file is missing or malformed.
  """
  path = pathlib.Path(path).expanduser()
  if path.is_dir():
    return _read_objectnet(path)
  if not path.is_file():
    raise ValueError(
      f"The map {path} does not exist: give a JSON file with the outputs of "
      "each class, or the folder mappings/ of ObjectNet."
    )
  values = _read_json(path)
  if not isinstance(values, dict) or not values:
    raise ValueError(f"{path} must be a JSON object with a key for each class.")
  result = {}
  for name, outputs in values.items():
    outputs = outputs if isinstance(outputs, list) else [outputs]
    if not outputs or not all(type(k) in (int, str) for k in outputs):
      raise ValueError(
        f"{path}: the outputs of {name!r} must be class indices or names, got "
        f"{outputs!r:.100}."
      )
    result[name] = outputs
  return result


def _read_json(path: pathlib.Path, unique: bool = True):
  """Reads JSON; with `unique`, an object with a key twice is an error."""
  twice: list[str] = []

  def as_dict(pairs):
    counts = collections.Counter(key for key, _ in pairs)
    twice.extend(key for key, count in counts.items() if count > 1)
    return dict(pairs)  # `json` alone would silently take the last value.

  try:
    values = json.loads(
      path.read_text("utf-8"), object_pairs_hook=as_dict if unique else None
    )
  except (UnicodeDecodeError, json.JSONDecodeError) as e:
    raise ValueError(f"{path} is not JSON: {e}.") from e
  if twice:
    raise ValueError(
      f"{path} has {twice[0]!r} twice: join both, or remove one."
    )
  return values


def _read_objectnet(folder: pathlib.Path) -> dict[str, list[str | int]]:
  """Joins the four files of ObjectNet (Barbu et al., NeurIPS 2019)."""
  for name in _OBJECTNET:
    if not (folder / name).is_file():
      raise ValueError(
        f"{folder} has no {name}: give the folder mappings/ of ObjectNet's "
        "download."
      )
  folders, classes, numbers = (
    _read_json(folder / n, unique=False) for n in _OBJECTNET[:3]
  )
  lines = (folder / _OBJECTNET[3]).read_text("utf-8").splitlines()
  # Keys are class indices in PyTorch, values are lines of the last file.
  by_line = {int(line): int(number) for number, line in numbers.items()}
  by_label = {text.strip(): by_line.get(k) for k, text in enumerate(lines)}
  folder_of = {label: name for name, label in folders.items()}
  result: dict[str, list[str | int]] = {}
  for label, joined in classes.items():
    outputs = [by_label.get(text.strip()) for text in joined.split(";")]
    if label not in folder_of or None in outputs:
      raise ValueError(
        f"{folder}: the class {label!r} ({joined!r}) has no folder, or has an "
        "ImageNet label without a number."
      )
    result[folder_of[label]] = [int(k) for k in outputs if k is not None]
  return result


def read_answers(path: str | os.PathLike) -> dict[str, list[int]] | list:
  """Reads the right labels of images.

  Args:
    path: "real" for ReaL's, from an installed timm; or a JSON file: an object
      {"FILE NAME": [labels]}, or a list whose entry k belongs to the image with
      the number k + 1 at the end of its name, as in ILSVRC2012_val_00000001.

  Returns:
    The content of the file: right labels by file name, or in order.

  Raises:
    ValueError: if the file is missing or malformed.
  """
  if path == "real":
    return read_real()
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise ValueError(
      f"labels={str(path)!r} is neither 'real' nor a JSON file with the right "
      "labels of each image."
    )
  values = _read_json(path)
  parts = values.values() if isinstance(values, dict) else values
  if not isinstance(values, (dict, list)) or not all(
    isinstance(part, list) and all(type(k) is int for k in part)
    for part in parts
  ):
    raise ValueError(
      f"{path} must hold a list of class numbers for each image, by file name "
      "or in order."
    )
  return values
