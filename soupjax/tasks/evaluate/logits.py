# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Logits on disk: written for each model and set, or read instead of models."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import os
import pathlib
import re
from typing import Any
import zipfile

import jax
import ml_collections
import numpy as np

from soupjax import buckets, data, files
from soupjax import config as config_lib
from soupjax.evaluators import by_command
from soupjax.evaluators.label_spaces import LabelSpace
from soupjax.progress import Progress
from soupjax.tasks import records
from soupjax.tasks.cook import config as cook_config
from soupjax.tasks.cook import evaluate, inputs
from soupjax.tasks.evaluate.transfer import Transfer
from soupjax.version import __version__

PyTree = Any
_NEEDED = ("logits", "labels")
# All entries of the files that `Evaluations` writes.
_KNOWN = {*_NEEDED, "images", "model", "weights", "set", "data", "test"}
_KNOWN |= {"soupjax", "classes", "space"}
_DAMAGED = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile)


# --- Writing ------------------------------------------------------------------


class Evaluations(evaluate.Evaluations):
  """Evaluations that can write a file of logits for each model and set."""

  def __init__(
    self,
    opened: inputs.CookInputs,
    workdir: pathlib.Path,
    transfer: Transfer,
  ):
    """Sets up one evaluator for each set; decodes nothing yet.

    Args:
      opened: the models and sets.
      workdir: directory of the run.
      transfer: probes on other datasets.
    """
    super().__init__(opened, workdir)
    self._transfer = transfer
    self._digests: dict[str, str] = {}

  def evaluate(
    self,
    name: str,
    load: Callable[[], PyTree],
    *,
    keep_logits: bool = False,
    progress: Progress | None = None,
  ) -> dict[str, dict[str, float]]:
    """Evaluates as the base class does, but writes a file of logits per set."""

    def loaded():
      params = load()
      if keep_logits:
        self._digests[name] = _digest(params)
      return params

    return super().evaluate(
      name, loaded, keep_logits=keep_logits, progress=progress
    )

  def _more(self, params: PyTree) -> tuple[dict[str, Any], dict[str, Any]]:
    return self._transfer(params)

  def means(self) -> dict[str, tuple[str, ...]]:
    """Returns mean -> its sets, and probe -> its results."""
    return {**super().means(), **self._transfer.means()}

  def _kept(self, name: str) -> bool:
    return all(self._path(name, s).exists() for s in self._evaluators)

  def _path(self, name: str, dataset: str) -> pathlib.Path:
    return self._workdir / "logits" / f"{name}@{dataset}.npz"

  def _write_logits(self, name: str, outputs: Mapping[str, Any]) -> None:
    for dataset, values in outputs.items():
      files.write_arrays(
        self._path(name, dataset),
        {
          "logits": values["logits"],
          "labels": values["labels"],
          **self._described(name, dataset, values["position"]),
        },
      )

  def _described(self, name, dataset, position) -> dict[str, Any]:
    """Returns the entries of a file besides logits and labels."""
    opened = self._inputs
    source, config = opened.sets[dataset], opened.config
    tests = config_lib.to_dict(config.tests)
    entries = {
      "images": np.array([source.describe(k) for k in position.tolist()]),
      "model": name,
      "weights": self._digests[name],
      "set": dataset,
      "data": pathlib.PurePath(config.data.name).name,
      "test": json.dumps(tests.get(dataset, dataset)),
      "soupjax": __version__,
    }
    head, space = opened.heads.get(dataset), opened.spaces.get(dataset)
    if names := head.names if head else source.class_names:
      entries["classes"] = np.array(names)
    if space is not None:
      entries["space"] = json.dumps(dataclasses.asdict(space))
    return entries


def _digest(params: PyTree) -> str:
  """Returns a hash of the weights; "" if they are spread over processes."""
  if all(
    getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(params)
  ):
    return by_command.weights_digest(params)
  return ""


# --- Reading ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LogitFile:
  """The content of a file of logits, except the logits.

  Attributes:
    path: path of the file.
    model: name of the model.
    dataset: name of the test set.
    data: name of the dataset, used as the title of the results.
    test: entry of `config.tests`.
    labels: (n,) class indices, or indices into `space.answers`.
    num_classes: number of outputs of the model.
    images: (n,) names of the images, or None.
    classes: names of the outputs, or None.
    space: the outputs that are classes of the set, or None for all.
    sum_to_one: whether the logits look like probabilities.
  """

  path: str
  model: str
  dataset: str
  data: str
  test: Any
  labels: np.ndarray
  num_classes: int
  images: np.ndarray | None
  classes: tuple[str, ...] | None
  space: LabelSpace | None
  sum_to_one: bool = False
  base: None = None

  @property
  def name(self) -> str:
    """The model and the set, for error messages."""
    return f"{self.model}@{self.dataset}"


def are_given(config: ml_collections.ConfigDict) -> bool:
  """Whether `config.ingredients` are files of logits.

  Raises:
    ValueError: if only some of them are.
  """
  paths = records.matches(inputs.patterns(config))
  kinds = [_has_logits(path) for path in paths]
  others = [p for p, kind in zip(paths, kinds) if not kind]
  others += [path for path in [config.initial] if path]
  if any(kinds) and others:
    raise ValueError(
      f"{paths[kinds.index(True)]} has logits, but {others[0]} is a "
      "checkpoint: evaluate the checkpoints with --config.save_logits=True "
      "first, and then give only files of logits."
    )
  return any(kinds)


def _has_logits(path: str) -> bool:
  if not path.endswith(".npz"):
    return False
  try:
    if buckets.is_remote(path):
      names = set(files.read_arrays(path))
    else:
      with zipfile.ZipFile(path) as archive:
        names = {n.removesuffix(".npy") for n in archive.namelist()}
  except _DAMAGED:
    return False  # Opening it as a checkpoint reports the error.
  # A file with only one of the two entries is not a checkpoint, either.
  incomplete = bool(names & {*_NEEDED}) and names <= _KNOWN
  return incomplete or {*_NEEDED} <= names


def open_inputs(
  config: ml_collections.ConfigDict,
) -> tuple[inputs.CookInputs, dict[str, dict[str, LogitFile]]]:
  """Opens files of logits and compares their labels, images and classes.

  Args:
    config: as in configs/evaluate.py.

  Returns:
    The inputs, with one ingredient for each file; and model -> set -> file.

  Raises:
    ValueError: naming a file that is damaged or does not match the others.
  """
  opened = [_open(path) for path in records.matches(inputs.patterns(config))]
  models = _by_model(opened)
  sets = sorted({f.dataset for f in opened}, key=lambda s: (s != "minival", s))
  for model, by_set in models.items():
    if missing := [name for name in sets if name not in by_set]:
      other = next(f.path for f in opened if f.dataset == missing[0])
      raise ValueError(
        f"{other} has logits on {missing[0]!r}, but {model!r} has none: save "
        f"them, or leave the files of {missing[0]!r} out."
      )
  first = next(iter(models.values()))
  for by_set in models.values():
    for name in sets:
      _check_alike(first[name], by_set[name])
  full = ml_collections.ConfigDict(config.to_dict())
  full.data.name = config.data.name or first[sets[0]].data
  full.data.num_classes = max(f.num_classes for f in opened)
  full.tests = config_lib.NamedTexts(
    {name: first[name].test for name in sets if name != "minival"}
  )
  sources = {
    name: data.Source(
      f"logits on {name}",
      len(first[name].labels),
      first[name].num_classes,
      first[name].classes,
    )
    for name in sets
  }
  spaces = {s: f.space for s, f in first.items() if f.space is not None}
  tests = cook_config.tests(full)
  cook_config.means(full)
  cook_config.metrics(full)
  result = inputs.CookInputs(
    config=full.lock(),
    model=None,
    mesh=None,
    place=None,
    minival=sources.pop("minival", None),
    tests=sources,
    spaces=spaces,
    ops={name: test.ops for name, test in tests.items() if test.ops},
    heads={},
    unseen={
      name: f"zero-shot on {first[name].num_classes:,} classes of its own"
      for name, test in tests.items()
      if test.names
    },
    ingredients=opened,
    initial=None,
    original=None,
    notes=[
      f"WARNING: every row of {f.path} sums to 1, as probabilities do: losses "
      "and calibration need logits, such as the logarithms of probabilities"
      for f in opened
      if f.sum_to_one
    ],
  )
  return result, models


def _open(path: str) -> LogitFile:
  """Reads a single file of logits and checks it."""
  try:
    stored = files.read_arrays(path)
    if missing := [key for key in _NEEDED if key not in stored]:
      raise ValueError(f"it has no {missing[0]!r}")
    logits, labels = (stored[key] for key in _NEEDED)
    space = json.loads(str(stored["space"])) if "space" in stored else None
    test = json.loads(str(stored["test"])) if "test" in stored else None
  except _DAMAGED as e:
    raise ValueError(
      f"{path} is not a file of logits ({e}): it needs 'logits' (n, classes) "
      "and 'labels' (n,). Complete it, or leave it out."
    ) from e
  stem, _, named = os.path.basename(path).removesuffix(".npz").rpartition("@")
  name = str(stored.get("model", stem or named)).replace("/", ".").lstrip(".")
  dataset = str(stored.get("set", named if stem else "test"))
  if not name:
    raise ValueError(
      f"{path} has the model {str(stored.get('model', stem))!r}: give a name "
      "that a file can have."
    )
  if logits.ndim != 2 or labels.shape != logits.shape[:1] or not labels.size:
    raise ValueError(
      f"{path}: logits {logits.shape} and labels {labels.shape} do not match: "
      "they must be (n, classes) and (n,)."
    )
  if logits.dtype.kind not in "fiu":
    raise ValueError(
      f"{path}: logits must be real numbers, got {logits.dtype}: save them as "
      "float32."
    )
  if not (logits < np.inf).all():
    row = int((~(logits < np.inf)).any(axis=1).argmax())
    raise ValueError(
      f"{path}: the logits of image {row} are NaN or infinite: the model "
      "diverged, or the file is damaged. Leave it out."
    )
  try:
    if dataset != "minival":
      _check_test(dataset, dataset if test is None else test)
    read = None if space is None else _space(space, logits.shape[1])
    _check_labels(labels, logits.shape[1], read)
    _check_finite(logits, labels, read)
  except ValueError as e:
    raise ValueError(f"{path}: {e}") from e
  classes, images = stored.get("classes"), stored.get("images")
  for key, values, size in (
    ("classes", classes, logits.shape[1]),
    ("images", images, len(labels)),
  ):
    if values is not None and values.shape != (size,):
      raise ValueError(
        f"{path}: {key} has the shape {values.shape}, but logits "
        f"{logits.shape}: give {size} names, or none."
      )
  return LogitFile(
    path=path,
    model=name,
    dataset=dataset,
    data=str(stored.get("data", "logits")),
    test=dataset if test is None else test,
    labels=labels,
    num_classes=logits.shape[1],
    images=images,
    classes=None if classes is None else tuple(map(str, classes)),
    space=read,
    sum_to_one=bool(
      logits.shape[1] > 1
      and (logits >= 0).all()
      and np.allclose(logits.sum(axis=1, dtype=np.float64), 1, atol=1e-3)
    ),
  )


def _check_test(dataset: str, test: Any) -> None:
  """Raises a ValueError if an entry of `config.tests` cannot be read."""
  if not re.fullmatch(r"[\w-]+", dataset):
    raise ValueError(
      f"the set is called {dataset!r}: use only letters, digits, _ and -."
    )
  if not isinstance(test, str | dict):
    raise ValueError(
      f"test={test!r:.80} must be a string or an object, as in config.tests."
    )
  cook_config.tests(
    ml_collections.ConfigDict(
      {
        "tests": config_lib.NamedTexts({dataset: test}),
        "data": {"name": "logits"},
      }
    )
  )


def _space(values: Any, num: int) -> LabelSpace:
  """Returns the space of a file; checks it against the number of outputs."""
  try:
    parts = {
      key: None if values.get(key) is None else tuple(map(tuple, values[key]))
      for key in ("groups", "answers")
    }
  except (AttributeError, TypeError) as e:
    raise ValueError(
      f"space={values!r:.80} must be an object with lists of outputs, such as "
      '{"groups": [[0, 2], [1]]}.'
    ) from e
  if unknown := sorted({*values} - {*parts}):
    raise ValueError(
      f"space has the key {unknown[0]!r}, which is neither groups nor answers: "
      "correct it, or leave it out."
    )
  for key, lists in parts.items():
    for k in [k for one in lists or () for k in one]:
      if type(k) is not int or not 0 <= k < num:
        raise ValueError(
          f"{key} of space has {k!r}, but outputs are from 0 to {num - 1}."
        )
  return LabelSpace(**parts)


def _check_labels(labels, num: int, space: LabelSpace | None) -> None:
  """Raises a ValueError if a label is out of range or not in the space."""
  if labels.dtype.kind not in "iu":
    raise ValueError(f"labels must be integers, got {labels.dtype}.")
  count = len(space.answers) if space and space.answers else num
  if labels.min() < 0 or labels.max() >= count:
    raise ValueError(
      f"labels range from {labels.min()} to {labels.max()}, but must be from 0 "
      f"to {count - 1}."
    )
  if space and space.groups is not None and space.answers is None:
    firsts = [group[0] for group in space.groups]
    outside = ~np.isin(labels, firsts)
    if outside.any():
      raise ValueError(
        f"image {int(outside.argmax())} has the label {labels[outside][0]}, "
        f"which is not among the {len(firsts)} outputs of space: add it there, "
        "or leave the image out."
      )


def _check_finite(logits, labels, space: LabelSpace | None) -> None:
  """Raises a ValueError if the logit of a label is -inf: its loss is inf."""
  if space is not None:
    logits, labels = space.reduced(logits, labels)
  without = logits[np.arange(len(labels)), labels] == -np.inf
  if without.any():
    raise ValueError(
      f"the logit of image {int(without.argmax())} for its label is -inf, so "
      "that its loss is infinite. Outputs may be -inf only if they are not "
      "classes of the set; better, write them all and list classes in 'space'."
    )


def _by_model(opened: Sequence[LogitFile]) -> dict[str, dict[str, LogitFile]]:
  """Groups files by model; equal names in two folders are two models."""
  folders: dict[str, set[str]] = {}
  for file in opened:
    folders.setdefault(file.model, set()).add(os.path.dirname(file.path))
  root = os.path.commonpath({os.path.dirname(f.path) for f in opened})
  models: dict[str, dict[str, LogitFile]] = {}
  for file in opened:
    name = file.model
    if len(folders[name]) > 1:
      inner = os.path.relpath(os.path.dirname(file.path), root)
      inner = inner.removesuffix("/logits")
      name = f"{inner}.{name}".replace("/", ".").lstrip(".")
    other = models.setdefault(name, {}).setdefault(file.dataset, file)
    if other is not file:
      raise ValueError(
        f"{other.path} and {file.path} are both the logits of {name!r} on "
        f"{file.dataset!r}: leave one out."
      )
  return models


def _check_alike(first: LogitFile, other: LogitFile) -> None:
  """Raises a ValueError if images or classes differ between two files."""
  problem, fix = "", "save both with the same software and settings"
  if first.num_classes != other.num_classes:
    problem = f"{first.num_classes} and {other.num_classes} classes"
  elif first.classes and other.classes and first.classes != other.classes:
    k = next(
      k for k, (a, b) in enumerate(zip(first.classes, other.classes)) if a != b
    )
    problem = (
      f"different classes or class orders: output {k} is {first.classes[k]!r} "
      f"and {other.classes[k]!r}"
    )
  elif len(first.labels) != len(other.labels):
    problem = f"{len(first.labels)} and {len(other.labels)} images"
  elif (
    first.images is not None
    and other.images is not None
    and (wrong := first.images != other.images).any()
  ):
    k = int(wrong.argmax())
    problem = (
      f"different images or orders: image {k} is {str(first.images[k])!r} "
      f"and {str(other.images[k])!r}"
    )
  elif (wrong := first.labels != other.labels).any():
    k = int(wrong.argmax())
    problem = (
      f"different labels or orders of images: image {k} has label "
      f"{first.labels[k]} and {other.labels[k]}"
    )
  elif first.space != other.space:
    problem = "metrics over different outputs"
    fix = "evaluate both with the same tests="
  if problem:
    raise ValueError(
      f"{first.path} and {other.path} have {problem}. Paired statistics need "
      f"the same images in the same order: {fix}."
    )


class FromFiles(evaluate.Evaluations):
  """Evaluates logits from files; `load` returns set -> (n, classes) logits."""

  def __init__(
    self,
    opened: inputs.CookInputs,
    workdir: pathlib.Path,
    models: Mapping[str, Mapping[str, LogitFile]],
  ):
    """Sets up evaluations without a model.

    Args:
      opened: from `open_inputs`.
      workdir: directory of the run.
      models: model -> set -> file, from `open_inputs`.
    """
    self._inputs, self._workdir = opened, workdir
    first = next(iter(models.values()))
    self._of_sets = {name: first[name].labels for name in opened.sets}

  def evaluate(
    self,
    name: str,
    load: Callable[[], PyTree],
    *,
    keep_logits: bool = False,
    progress: Progress | None = None,
  ) -> dict[str, dict[str, float]]:
    """Returns set -> metric -> value, and writes them to `metrics/`."""
    del keep_logits
    logits, record = load(), self._workdir / "metrics" / f"{name}.json"
    ordered = {dataset: logits[dataset] for dataset in self._of_sets}
    try:
      results = self.evaluate_logits(name, ordered)
    except ValueError as e:
      raise ValueError(f"{name}: {e}") from e
    if progress:
      progress.add_images(sum(map(len, ordered.values())), name)
    if jax.process_index() == 0:
      files.make_directory(record.parent)
      files.write_json(record, results)
    return results

  def _labels(self) -> Mapping[str, np.ndarray]:
    return self._of_sets


def read(by_set: Mapping[str, LogitFile]) -> dict[str, np.ndarray]:
  """Returns set -> (n, classes) float32 logits of one model."""
  return {
    name: _narrowed(files.read_arrays(file.path)["logits"])
    for name, file in by_set.items()
  }


def _narrowed(logits: np.ndarray) -> np.ndarray:
  """Returns float32 logits, without losing digits to large common offsets."""
  if logits.dtype.itemsize > 4:  # Metrics do not depend on the offset.
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
  return logits.astype(np.float32)
