# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Probes of frozen features on other datasets: few-shot and linear."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
import re
from typing import Any

from absl import logging
import jax
import ml_collections
import numpy as np

from soupjax import data
from soupjax.evaluators import statistics
from soupjax.evaluators.batches import CachedBatches
from soupjax.soups.core import arguments
from soupjax.tasks import heads
from soupjax.tasks.cook import config as cook_config
from soupjax.tasks.cook import inputs
from soupjax.tasks.finetune import config as finetune_config
from soupjax.train import probe

PyTree = Any
_KEYS = ("train", "minival", "test", "ops")


# --- Settings -----------------------------------------------------------------


def default_options() -> dict[str, Any]:
  """Returns the defaults of `config.fewshot` and `config.probe`."""
  return {
    # Images per class for ridge regression with penalty l2; () for none.
    "fewshot": {"shots": (5, 10), "l2": 1024.0, "seed": 0},
    # Penalties of linear probes, of which minival selects one; () for none.
    "probe": {"l2": tuple(10.0**k for k in range(-6, 2)), "steps": 200},
  }


@dataclasses.dataclass(frozen=True)
class Spec:
  """An entry of `config.transfer`.

  Attributes:
    dataset: name or path of the dataset, as for `data.open_source`.
    train: split on which probes are fitted.
    test: split on which accuracies are measured.
    minival: split on which the penalty of linear probes is chosen; "" for none.
    ops: image operations before `data.eval_ops`.
  """

  dataset: str
  train: str = "train"
  test: str = "test"
  minival: str = ""
  ops: str = ""


def specs(config: ml_collections.ConfigDict) -> dict[str, Spec]:
  """Returns name -> entry of `config.transfer`.

  Raises:
    ValueError: if an entry cannot be parsed or an option is out of range.
  """
  shots = list(config.fewshot.shots)
  if shots != sorted({arguments.count("fewshot.shots", k) for k in shots}):
    raise ValueError(
      f"fewshot.shots={tuple(shots)} must be ascending, such as (5, 10)"
    )
  penalties = list(config.probe.l2)
  for key, values in (
    ("fewshot.l2", [config.fewshot.l2]),
    ("probe.l2", penalties),
  ):
    if not all(0 < value < np.inf for value in values):
      raise ValueError(f"{key}={values} must be positive and finite")
  arguments.count("probe.steps", config.probe.steps)
  if config.transfer and not (shots or penalties):
    raise ValueError(
      "transfer has datasets, but fewshot.shots and probe.l2 are empty: give "
      "one of them"
    )
  found = {}
  for name, value in config.transfer.items():
    found[name] = _parse(name, value)
    if not shots and not found[name].minival:
      raise ValueError(
        f"transfer.{name}: without fewshot.shots there is only a linear "
        "probe, whose penalty is chosen on held-out images: add "
        ":minival=SPLIT, such as :train=train[:80%]:minival=train[80%:]"
      )
  return found


def _parse(name: str, value: Any) -> Spec:
  if isinstance(value, Mapping | ml_collections.ConfigDict):
    options = {k: str(v) for k, v in dict(value).items()}
    dataset = options.pop("data", "")
  else:
    text, _, ops = str(value).partition("|")
    dataset, *given = re.split(f":(?=(?:{'|'.join(_KEYS)})=)", text)
    options = dict(part.split("=", 1) for part in given)
    options["ops"] = "|".join(filter(None, [options.get("ops"), ops]))
  if (
    not dataset
    or set(options) - set(_KEYS)
    or not re.fullmatch(r"[\w-]+", name)
  ):
    raise ValueError(
      f"transfer.{name}={value!r:.80}: give NAME=DATASET and any of "
      f"{', '.join(_KEYS)}, such as "
      "'pets=oxford_iiit_pet:train=train:test=test'"
    )
  spec = Spec(dataset, **options)
  try:
    prepared = data.Preprocess(spec.ops)
  except ValueError as e:
    raise ValueError(f"transfer.{name}: {e}") from e
  if prepared.random_ops or prepared.values.dtype != "uint8":
    raise ValueError(
      f"transfer.{name}: {spec.ops!r} runs before data.eval_ops, so it must "
      "neither draw random numbers nor set a value range"
    )
  return spec


# --- Datasets -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """The opened images of one dataset.

  Attributes:
    name: key of `config.transfer`.
    train: all images of train.
    test: images on which accuracies are measured.
    minival: images on which penalties are chosen, or None.
    shots: images per class -> indices of the few-shot images in train. The sets
      are nested.
    ops: all image operations.
    penalties: penalties of linear probes to try.
  """

  name: str
  train: data.Source
  test: data.Source
  minival: data.Source | None
  shots: Mapping[int, np.ndarray]
  ops: str
  penalties: Sequence[float]

  @property
  def kinds(self) -> list[str]:
    """Names of the probes, such as "5shot"."""
    return [f"{k}shot" for k in self.shots] + ["probe"] * self.has_linear

  @property
  def has_linear(self) -> bool:
    """Whether a linear probe is fitted."""
    return bool(self.minival and len(self.penalties))

  @property
  def few(self) -> np.ndarray:
    """Sorted indices of all few-shot images."""
    return self.shots[max(self.shots)]

  def record(self) -> list[Any]:
    """Returns the sets and operations that results depend on, as JSON."""
    parts = [self.train, self.test, *filter(None, [self.minival])]
    return [[s.name, len(s), s.num_classes] for s in parts] + [self.ops]

  def describe(self) -> str:
    """Describes the dataset in one line, for the plan."""
    linear = ""
    if not self.has_linear:
      linear = "; no linear probe (it needs :minival=SPLIT and probe.l2)"
    return (
      f"{self.name}: {', '.join(self.kinds)} on {len(self.train):,} images of "
      f"{self.train.num_classes:,} classes, tested on {len(self.test):,} of "
      f"{self.test.name}{linear}"
    )


def open_datasets(config: ml_collections.ConfigDict) -> list[Dataset]:
  """Opens all datasets and selects the few-shot images of each class.

  Args:
    config: the resolved config.

  Raises:
    ValueError: if a split cannot be opened, splits share images or differ in
      classes, a class of train has too few images, a name is taken, or there
      are several processes.
  """
  if config.transfer and jax.process_count() > 1:
    raise ValueError(
      "transfer= works only in a single process: leave --distributed out."
    )
  opened = []
  for name, spec in specs(config).items():
    parts = {}
    for key in ("train", "test", "minival"):
      if split := getattr(spec, key):
        try:
          parts[key] = data.open_source(
            spec.dataset, split, data_dir=config.data.data_dir or None
          )
        except ValueError as e:
          raise ValueError(f"transfer.{name}, {key}: {e}") from e
    _check_parts(name, parts)
    train = parts["train"]
    opened.append(
      Dataset(
        name,
        train,
        parts["test"],
        parts.get("minival"),
        few_shot_images(
          train, config.fewshot.shots, config.fewshot.seed, f"transfer.{name}"
        ),
        cook_config.eval_ops(config, spec.ops),
        tuple(config.probe.l2),
      )
    )
  _check_names(config, opened)
  return opened


def _check_names(config, datasets: Sequence[Dataset]) -> None:
  """Raises a ValueError if a probe has the name of a test set or a mean."""
  taken = {"minival", *config.tests, *cook_config.means(config)}
  names = {f"{d.name}_{kind}": d.name for d in datasets for kind in d.kinds}
  for probe_name in (*names, *means_of(datasets)):
    if probe_name in taken:
      what = ".".join(filter(None, ["transfer", names.get(probe_name)]))
      raise ValueError(
        f"{what}: results of probes are called {probe_name!r}, but a test set "
        "or a mean has this name: rename that one."
      )


def means_of(datasets: Sequence[Dataset]) -> dict[str, tuple[str, ...]]:
  """Returns probe -> its results, for probes on several datasets."""
  found: dict[str, tuple[str, ...]] = {}
  for dataset in datasets:
    for kind in dataset.kinds:
      found[kind] = (*found.get(kind, ()), f"{dataset.name}_{kind}")
  return {kind: names for kind, names in found.items() if len(names) > 1}


def _check_parts(name: str, parts: Mapping[str, data.Source]) -> None:
  train = parts["train"]
  for key, source in parts.items():
    if source.several:
      raise ValueError(
        f"transfer.{name}: {source.name} has several right labels per image, "
        "but probes need exactly one."
      )
    same = source.num_classes == train.num_classes
    if not same or source.class_names != train.class_names:
      raise ValueError(
        f"transfer.{name}: {source.name} and {train.name} have different "
        "classes: use splits of one dataset."
      )
    for other, second in parts.items():
      if key < other and (shared := data.shared_examples(source, second)):
        raise ValueError(
          f"transfer.{name}: {key} and {other} share {shared} images of "
          f"{source.name}: use other splits."
        )


def few_shot_images(
  source: data.Source, shots: Sequence[int], seed: int, what: str
) -> dict[int, np.ndarray]:
  """Selects random images of each class; larger sets contain smaller ones.

  Takes the first images of each class in the order of
  `numpy.random.default_rng(seed).permutation(n)`, like `data.split_minival`.

  Args:
    source: the train split.
    shots: numbers of images per class.
    seed: seed of the order.
    what: name of the dataset, for errors.

  Returns:
    Images per class -> sorted indices.

  Raises:
    ValueError: naming a class with too few images.
  """
  if not shots:
    return {}
  labels = np.array([source.label(k) for k in range(len(source))])
  counts = np.bincount(labels, minlength=source.num_classes)
  if counts.min() < max(shots):
    k = int(counts.argmin())
    named = repr(source.class_names[k]) if source.class_names else k
    raise ValueError(
      f"{what}: the class {named} has {counts[k]} images in {source.name}, but "
      f"fewshot.shots needs {max(shots)}: lower --config.fewshot.shots."
    )
  order = np.random.default_rng(seed).permutation(len(labels))
  by_class = [order[labels[order] == k] for k in range(source.num_classes)]
  return {
    n: np.sort(np.concatenate([rows[:n] for rows in by_class])) for n in shots
  }


# --- Features and probes ------------------------------------------------------


class Transfer:
  """Probes of many models on the same datasets."""

  def __init__(self, opened: inputs.CookInputs, datasets: Sequence[Dataset]):
    """Prepares batches; no image is decoded yet.

    Args:
      opened: the models.
      datasets: from `open_datasets`.
    """
    self._opened, self.datasets = opened, datasets
    self._room = opened.config.data.cache_gb
    self._program = heads.features_program(opened.model)
    self._batches = {d.name: self._parts(d) for d in datasets}

  def means(self) -> dict[str, tuple[str, ...]]:
    """Returns probe -> its results, for probes on several datasets."""
    return means_of(self.datasets)

  def rows(
    self, results: Mapping[str, tuple[str, Any]]
  ) -> list[dict[str, Any]]:
    """Returns lines of `results.jsonl` with mean logits and mean ranks.

    Args:
      results: model -> (kind, set -> values), including the results of calls.
    """
    title = pathlib.PurePath(self._opened.config.data.name).name
    rows = []
    for mean, members in self.means().items():
      values = [[v[m] for m in members] for _, v in results.values()]
      sizes = [value["n"] for value in values[0]]
      logits, ranks = statistics.over_datasets(
        np.array([[value["prec@1"] for value in row] for row in values]), sizes
      )
      for k, (model, (kind, _)) in enumerate(results.items()):
        for metric, value in (("mean_logit", logits), ("mean_rank", ranks)):
          rows.append(
            {
              "model": model,
              "kind": kind,
              "dataset": f"{title}/{mean}",
              "metric": metric,
              "value": float(value[k]),
              "n": sum(sizes),
            }
          )
    return rows

  def __call__(
    self, params: PyTree
  ) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
    """Fits and tests all probes of a model.

    Returns:
      "DATASET_PROBE" -> "prec@1" and "n"; and "DATASET_PROBE" -> (n,) whether
      each test image is classified correctly.
    """
    results, correct = {}, {}
    for dataset in self.datasets:
      for kind, (right, more) in self._probes(params, dataset).items():
        name = f"{dataset.name}_{kind}"
        results[name] = {"prec@1": float(right.mean()), **more, "n": len(right)}
        correct[name] = right
    return results, correct

  def _probes(
    self, params: PyTree, dataset: Dataset
  ) -> dict[str, tuple[np.ndarray, dict[str, float]]]:
    """Returns probe -> (n,) whether test images are right, and more values."""
    c, parts = self._opened.config, {}
    for key, batches in self._batches[dataset.name].items():
      parts[key], position = self._features(params, batches)
      if key == "train":
        rows = position
    features, labels = parts["train"]
    if not dataset.has_linear:  # Only the few-shot images of train are read.
      rows = dataset.few[rows]
    options = {"num_classes": dataset.train.num_classes}
    found = {}
    for n, indices in dataset.shots.items():
      if missing := sorted(set(indices.tolist()) - set(rows.tolist())):
        raise ValueError(
          f"transfer.{dataset.name}: {dataset.train.describe(missing[0])} is "
          f"one of the images of {n}shot, but it cannot be decoded: repair or "
          "remove it."
        )
      some = np.isin(rows, indices)
      head = probe.ridge_probe(
        features[some], labels[some], l2=c.fewshot.l2, **options
      )
      found[f"{n}shot"] = _right(head, *parts["test"]), {}
    if dataset.has_linear:
      head, l2 = best_linear_probe(
        parts["train"], parts["minival"], c.probe.l2, c.probe.steps, **options
      )
      found["probe"] = _right(head, *parts["test"]), {"l2": l2}
    return found

  def _parts(self, dataset: Dataset) -> dict[str, CachedBatches]:
    """Returns the batches of the images that probes need."""
    c, mesh = self._opened.config.data, self._opened.mesh
    parts = {"train": dataset.train, "test": dataset.test}
    if dataset.has_linear:
      parts["minival"] = dataset.minival
    else:
      parts["train"] = data.subset(
        dataset.train, dataset.few, dataset.train.name
      )
    batches = {}
    for key, source in parts.items():
      needed = 12e-9 * c.image_size**2 * len(source)
      fits = needed <= self._room
      batches[key] = CachedBatches(
        data.eval_batches(
          source,
          batch_size=finetune_config.rounded_up(
            c.batch_size, mesh.shape["data"]
          ),
          preprocess=dataset.ops,
        ),
        name=f"{key} of {dataset.name}",
        mesh=mesh,
        cache_gb=2 * needed if fits else 0.0,
      )
      self._room -= needed if fits else 0.0
    return batches

  def _features(
    self, params: PyTree, batches: CachedBatches
  ) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Returns ((n, width) float32 features, (n,) labels), (n,) positions."""
    positions = []

    def masked():
      for batch in batches:
        mask = np.asarray(batch["position"]) >= 0
        positions.append(np.asarray(batch["position"])[mask])
        yield {**batch, "mask": mask}

    features, labels = heads.features(self._program, params, masked())
    features = features.astype(np.float32)
    if not np.isfinite(features).all():
      raise ValueError("the features are not finite: the weights diverged.")
    return (features, labels), np.concatenate(positions)


def _right(head, features, labels) -> np.ndarray:
  """Returns whether each image is classified correctly, as float64."""
  logits = features.astype(np.float64) @ head["kernel"] + head["bias"]
  return (logits.argmax(axis=1) == labels).astype(float)


def best_linear_probe(
  train: tuple[np.ndarray, np.ndarray],
  minival: tuple[np.ndarray, np.ndarray],
  penalties: Sequence[float],
  steps: int,
  *,
  num_classes: int,
) -> tuple[dict[str, np.ndarray], float]:
  """Fits linear probes on standardised features; picks the best on minival.

  Args:
    train: (n, width) features and (n,) labels.
    minival: the same for held-out images.
    penalties: see `l2` of `probe.linear_probe`. Since features are
      standardised, good values depend little on the model.
    steps: L-BFGS steps per penalty, starting from the probe of the next larger
      penalty.
    num_classes: number of classes.

  Returns:
    The head for unstandardised features, in float64, and its penalty. Ties go
    to the largest penalty.

  Raises:
    ValueError: if a feature of `train` is not finite.
  """
  mean, scale = probe.standardisation(train[0])
  scaled = ((train[0] - mean) / scale).astype(np.float32)
  best, init = (-1.0, None, 0.0), None
  for l2 in sorted(penalties, reverse=True):
    init = probe.linear_probe(
      scaled, train[1], num_classes=num_classes, l2=l2, steps=steps, init=init
    )
    kernel = np.asarray(init["kernel"], np.float64) / scale[:, None]
    bias = np.asarray(init["bias"], np.float64) - mean @ kernel
    head = {"kernel": kernel, "bias": bias}
    accuracy = _right(head, *minival).mean()
    if accuracy > best[0]:
      best = accuracy, head, float(l2)
  _, head, l2 = best
  if len(penalties) > 2 and l2 in (min(penalties), max(penalties)):
    logging.warning(
      "The best penalty of a linear probe, %g, is the smallest or the largest "
      "of probe.l2: extend the list.",
      l2,
    )
  return head, l2
