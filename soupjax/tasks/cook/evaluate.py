# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluates each model once on all sets and records the results on disk."""

from collections.abc import Callable, Container, Iterable, Mapping
import dataclasses
import functools
import json
import math
import pathlib
from typing import Any
import zipfile

from absl import logging
import jax
import numpy as np

from soupjax import data, files, processes, report
from soupjax.evaluators import Evaluator, label_spaces, statistics
from soupjax.evaluators.label_spaces import LabelSpace
from soupjax.progress import Progress
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook import config as cook_config
from soupjax.tasks.cook import protocols
from soupjax.tasks.cook.inputs import Inputs
from soupjax.tasks.finetune import config as finetune_config

PyTree = Any
LABELS = ".labels"  # The file with the labels, in `logits/`.
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class Evaluations:
  """Results of models per set, in `metrics/`, `correct/` and `logits/`."""

  def __init__(self, inputs: Inputs, workdir: pathlib.Path):
    """Sets up one evaluator for each set; decodes nothing yet."""
    self._inputs, self._workdir = inputs, workdir
    config, mesh = inputs.config, inputs.mesh
    batch_size = finetune_config.rounded_up(
      config.data.batch_size, mesh.shape["data"]
    )
    room = config.data.cache_gb
    self._evaluators: dict[str, Evaluator] = {}
    for name, source in inputs.sets.items():
      needed = 12e-9 * config.data.image_size**2 * len(source)
      fits = needed <= room
      self._evaluators[name] = Evaluator(
        inputs.heads[name].classifier if name in inputs.heads else inputs.model,
        data.eval_batches(
          source,
          batch_size=batch_size,
          preprocess=cook_config.eval_ops(config, inputs.ops.get(name, "")),
          process_index=jax.process_index(),
          process_count=jax.process_count(),
        ),
        metric=inputs.metrics[0],
        more_metrics=inputs.metrics,
        name=name,
        mesh=mesh,
        # Leaves room for the padding of the last batch.
        cache_gb=2 * room if fits else 0.0,
        outputs=inputs.spaces.get(name),
      )
      room -= needed if fits else 0.0

  def __enter__(self) -> "Evaluations":
    return self

  def __exit__(self, *exception) -> None:
    pass

  def ahead(self, models: Mapping[str, Callable[[], PyTree]]) -> None:
    """Does nothing: all devices evaluate one model after another."""

  def before_turn(self, ranked, selection) -> Callable[[Any], None]:
    """Returns a function that does nothing; see `judge.Evaluations`."""
    del ranked, selection
    return lambda history: None

  def minival(self, metric: str, dataset: str = "minival") -> Evaluator:
    """Returns an evaluator that scores candidates by a metric on minival.

    Args:
      metric: the name of the metric.
      dataset: the name of the set, if it is not "minival".
    """
    evaluator = self._evaluators[dataset].for_metric(metric)
    head = self._inputs.heads.get(dataset)
    return evaluator if head is None else evaluator.preparing(head)

  def evaluate(
    self,
    name: str,
    load: Callable[[], PyTree],
    *,
    keep_logits: bool = False,
    progress: Progress | None = None,
  ) -> dict[str, dict[str, float]]:
    """Evaluates a model on all sets, or reads the results of an earlier run.

    Args:
      name: the name of the model, and of its files.
      load: returns its parameters; called only if they are needed.
      keep_logits: whether to write the logits, for ensembles.
      progress: counts the images as they are evaluated.

    Returns:
      Set -> metric -> value, and "n", the number of images.

    Raises:
      ValueError: if the loss of an image is not finite.
    """
    record = self._record(name)
    if workdir_lib.agreed(self._is_done(name, keep_logits)):
      return workdir_lib.read(record)
    params, results, correct, outputs = load(), {}, {}, {}
    ready: dict[Any, PyTree] = {None: params}  # By head: sets may share one.
    calibration = self._calibration()
    for dataset, evaluator in self._evaluators.items():
      head = self._inputs.heads.get(dataset)
      if head not in ready:
        ready[head] = head(params)
      try:
        values = evaluator.per_example(
          ready[head],
          logits=keep_logits or calibration.wanted,
          on_images=progress
          and functools.partial(
            progress.add_images, note=f"{name} on {dataset}"
          ),
        )
      except ValueError as e:
        raise ValueError(f"{name} on {dataset}: {e}") from e
      results[dataset] = evaluator.means(values) | calibration.of(
        dataset, values.get("logits"), values.get("labels")
      )
      correct[dataset] = values["prec@1"]
      if keep_logits:
        outputs[dataset] = values
    more, right = self._more(params)
    results, correct = {**results, **more}, {**correct, **right}
    if jax.process_index() == 0:
      self._write_correct(name, correct)
      if keep_logits:
        self._write_logits(name, outputs)
      files.make_directory(record.parent)
      files.write_json(record, results)
    processes.barrier(f"evaluated {name}")
    return results

  def evaluate_logits(
    self, name: str, logits: Mapping[str, np.ndarray]
  ) -> dict[str, dict[str, float]]:
    """Evaluates an ensemble from its logits; returns the same as `evaluate`.

    Args:
      name: the name of the ensemble.
      logits: set -> (n, classes).
    """
    labels, calibration = self._labels(), self._calibration()
    results, correct = {}, {}
    for dataset, outputs in logits.items():
      evaluator = Evaluator.from_arrays(
        _unchanged, outputs, labels[dataset], metric=self._inputs.metrics[0],
        more_metrics=self._inputs.metrics, name=dataset,
        outputs=self._inputs.spaces.get(dataset),
      )  # fmt: skip
      values = evaluator.per_example(None)
      results[dataset] = evaluator.means(values) | calibration.of(
        dataset, outputs, labels[dataset]
      )
      correct[dataset] = values["prec@1"]
    if jax.process_index() == 0:
      self._write_correct(name, correct)
    return results

  def _more(self, params: PyTree) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns further results by set, and whether each image was correct."""
    del params
    return {}, {}

  def means(self) -> dict[str, tuple[str, ...]]:
    """Returns name -> the sets whose mean is reported."""
    return cook_config.means(self._inputs.config)

  def _write_logits(self, name: str, outputs: Mapping[str, Any]) -> None:
    """Writes the logits and labels of a model, for ensembles.

    Args:
      name: the name of the model.
      outputs: set -> values from `Evaluator.per_example`.
    """
    for file, key in ((LABELS, "labels"), (name, "logits")):
      arrays = {dataset: values[key] for dataset, values in outputs.items()}
      files.write_arrays(self._file("logits", file), arrays)

  def _calibration(self) -> "_Calibration":
    return _Calibration(self._inputs.calibration, self._inputs.spaces)

  def _record(self, name: str) -> pathlib.Path:
    return self._workdir / "metrics" / f"{name}.json"

  def _is_done(self, name: str, keep_logits: bool) -> bool:
    """Whether all files of an evaluated model exist and can be read."""
    record = self._record(name)
    if not record.exists() or (keep_logits and not self._kept(name)):
      return False
    # Without these values, differences to this model would have no intervals.
    if self._correct(name, files.read_json(record)) is not None:
      return True
    if jax.process_index() == 0:
      logging.warning(
        "%s is missing or damaged: %s is evaluated again.",
        self._file("correct", name),
        name,
      )
    return False

  def _kept(self, name: str) -> bool:
    """Whether the logits of a model exist and can be read."""
    return self.logits(name) is not None

  def logits(self, name: str) -> dict[str, np.ndarray] | None:
    """Returns set -> logits (n, classes); None if missing or damaged."""
    file = self._file("logits", name)
    if not file.exists():
      return None
    try:
      stored = files.read_arrays(file)
      return {dataset: stored[dataset] for dataset in self._evaluators}
    except _DAMAGED:
      return None

  def _labels(self) -> Mapping[str, np.ndarray]:
    """Returns set -> labels (n,) of the saved logits."""
    return self.logits(LABELS)

  def rows(
    self,
    name: str,
    kind: str,
    results,
    differences: Mapping[tuple[str, str], statistics.Difference],
    above_start: Mapping[tuple[str, str], statistics.Difference] | None = None,
  ) -> list[dict[str, Any]]:
    """Returns the lines of `results.jsonl` for one model.

    Args:
      name: the name of the model.
      kind: one of `report.KINDS`.
      results: the values from `evaluate`.
      differences: the result of `differences`. Lines with an accuracy get the
        fields "difference", "low" and "high" (its interval), and "p". The mean
        over shifts is left out if it has no difference.
      above_start: the same against the initial model, for the field "start".
    """
    title = pathlib.PurePath(self._inputs.config.data.name).name
    for mean, members in self.means().items():
      if mean == cook_config.SHIFTS and (name, mean) not in differences:
        continue
      parts = [results[member] for member in members]
      values = {
        "prec@1": math.fsum(v["prec@1"] for v in parts) / len(parts),
        "n": sum(v["n"] for v in parts),
      }
      if corrupted := cook_config.corruptions_of(members):
        values["mce"] = label_spaces.mce(
          {key: results[s]["prec@1"] for key, s in corrupted.items()}
        )
      results = {**results, mean: values}
    rows = []
    for dataset, values in results.items():
      for metric, value in values.items():
        if metric == "n":
          continue
        row = {
          "model": name,
          "kind": kind,
          "dataset": f"{title}/{dataset}",
          "metric": metric,
          "value": value,
          "n": values["n"],
        }
        found = differences.get((name, dataset))
        if metric == "prec@1" and found:
          row |= {"difference": found.value, "low": found.low}
          row |= {"high": found.high, "p": found.p}
        if metric == "prec@1" and (
          start := (above_start or {}).get((name, dataset))
        ):
          row["start"] = {
            "difference": start.value,
            "low": start.low,
            "high": start.high,
            "p": start.p,
          }
        rows.append(row)
    return rows

  def differences(
    self,
    best: str,
    results: Mapping[str, tuple[str, Any]],
    sets: Container[str] | None = None,
  ) -> dict[tuple[str, str], statistics.Difference]:
    """Compares all accuracies with those of one model, image by image.

    Args:
      best: the name of this model, usually the best ingredient.
      results: model -> (kind, values from `evaluate`).
      sets: names of the sets to compare on, without means; None for all sets
        and means.

    Returns:
      (model, set) -> the difference in accuracy as a fraction, with its 95 %
      interval by the paired bootstrap and the p-value of McNemar's exact test.
      Means over sets have no p-value. Sets of one image, and means over them,
      have no difference. Models without readable files in `correct/` are left
      out; {} if `best` is one of them.
    """
    correct = {name: self._correct(name, v) for name, (_, v) in results.items()}
    reference = correct.pop(best)
    others = [name for name, found in correct.items() if found]
    if not others or not reference:
      return {}
    by_set = {
      dataset: np.stack(
        [correct[name][dataset] - right for name in others], axis=-1
      )
      for dataset, right in reference.items()
      if len(right) > 1 and (sets is None or dataset in sets)
    }
    found = {}
    for dataset, values in by_set.items():
      for name, one in zip(others, statistics.paired_bootstrap(values)):
        column = correct[name][dataset] - reference[dataset]
        p = statistics.mcnemar_p(
          *(int((column == sign).sum()) for sign in (1, -1))
        )
        found[name, dataset] = dataclasses.replace(one, p=p)
    means = self.means() if sets is None else {}
    for mean, members in means.items():
      if any(member not in by_set for member in members):
        continue  # A single image has no interval.
      values = [by_set[member] for member in members]
      for name, one in zip(others, statistics.paired_bootstrap(values)):
        found[name, mean] = one
    return found

  def _correct(self, name: str, results) -> dict[str, np.ndarray] | None:
    """Reads whether each image was classified correctly.

    Returns:
      Set -> (n,) float64 of 0 and 1; None if the file is missing, damaged, or
      does not have the accuracies of `results`.
    """
    try:
      stored = files.read_arrays(self._file("correct", name))
      found = {
        dataset: np.unpackbits(stored[dataset])[: values["n"]].astype(float)
        for dataset, values in results.items()
      }
    except (*_DAMAGED, TypeError):  # TypeError: the values are not bytes.
      return None
    for dataset, values in results.items():
      right, n = found[dataset], values["n"]
      if len(right) != n or abs(right.sum() - n * values["prec@1"]) > 0.5:
        return None
    return found

  def _write_correct(self, name: str, correct) -> None:
    """Writes whether each image was classified correctly, as bits."""
    packed = {
      dataset: np.packbits(values.astype(bool))
      for dataset, values in correct.items()
    }
    files.write_arrays(self._file("correct", name), packed)

  def _file(self, folder: str, name: str) -> pathlib.Path:
    path = self._workdir / folder / f"{name}.npz"
    files.make_directory(path.parent)
    return path


def progress(inputs: Inputs, stage: str, count: int) -> Progress:
  """Returns the progress line of `count` models, evaluated on all sets."""
  return Progress(stage, count, unit="models", step_images=inputs.num_images)


def choices(inputs: Inputs) -> dict[str, Any]:
  """Returns the part of `choices.json` about metrics and sets."""
  names = inputs.metrics
  return {
    "metrics": list(names),
    "modes": {name: inputs.mode(name) for name in names},
    "initial_head": inputs.config.initial_head
    or "zero-shot" * ("minival" in inputs.heads),
    "outputs": {
      name: (space.num_outputs, inputs.config.data.num_classes)
      for name, space in inputs.spaces.items()
      if space.num_outputs
    },
    "means": {} if inputs.is_judged else cook_config.means(inputs.config),
    "protocols": protocols.described(inputs.spaces, inputs.ops),
    "unseen": dict(inputs.unseen),
  }


def write_rows(
  workdir: pathlib.Path,
  evaluations: Any,
  results: Mapping[str, tuple[str, Any]],
  differences: Mapping[tuple[str, str], statistics.Difference],
  above_start: Mapping[tuple[str, str], statistics.Difference] | None = None,
  more: Iterable[Mapping[str, Any]] = (),
) -> None:
  """Writes `results.jsonl`, ordered by kind.

  Args:
    workdir: the directory of the run.
    evaluations: `Evaluations`, or `judge.Evaluations`.
    results: model -> (kind, values from `evaluate`).
    differences: as for `Evaluations.rows`.
    above_start: as for `Evaluations.rows`.
    more: further lines, written last.
  """
  rows = [
    row
    for group in report.KINDS
    for name, (kind, values) in results.items()
    if kind == group
    for row in evaluations.rows(name, kind, values, differences, above_start)
  ]
  lines = "".join(json.dumps(row) + "\n" for row in [*rows, *more])
  files.write_text(workdir / "results.jsonl", lines)


class _Calibration:
  """Calibration of one model on its sets, of which minival must come first.

  The temperature is fitted on minival and used on all sets. Without minival,
  there is none.
  """

  def __init__(self, wanted: bool, spaces: Mapping[str, LabelSpace]):
    self.wanted, self._spaces = wanted, spaces
    self._temperature: float | None = None

  def of(self, dataset: str, logits, labels) -> dict[str, float]:
    """Returns "ece" and, given a temperature, "ece_t" and "loss_t".

    On minival, it also fits and returns "temperature".

    Args:
      dataset: the name of the set.
      logits: (n, outputs).
      labels: (n,), as in the set.
    """
    if not self.wanted:
      return {}
    logits = np.asarray(logits, np.float64)
    if (space := self._spaces.get(dataset)) is not None:
      logits, labels = space.reduced(logits, labels)
    found = {}
    if dataset == "minival":
      self._temperature = statistics.temperature(logits, labels)
      found["temperature"] = self._temperature
    found["ece"] = statistics.ece(logits, labels)
    if self._temperature is None:
      return found
    scaled = logits / self._temperature
    return found | {
      "ece_t": statistics.ece(scaled, labels),
      "loss_t": statistics.nll(scaled, labels),
    }


def _unchanged(params, logits):
  """The forward pass of a model whose images are its logits."""
  del params
  return logits
