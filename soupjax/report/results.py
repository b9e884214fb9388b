# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Results of a run: `results.jsonl`, checked and looked up by model."""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
import json
import math
import os
import pathlib
import re
from typing import Any

KINDS = ("pretrained", "ingredient", "soup", "ensemble", "interpolation")
SHIFTS = "shifts"  # The column that is the mean over all shifts.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
  """The metrics on minival by which a run chose; `choices.json`.

  Attributes:
    metrics: the first one ranked the ingredients.
    best: metric -> the best ingredient by it.
    greedy: name of a greedy soup -> its metric.
    initial_head: the head of the initial model, such as "linear probe"; "" if
      that is unknown.
  """

  metrics: tuple[str, ...] = ("prec@1",)
  best: Mapping[str, str] = dataclasses.field(default_factory=dict)
  greedy: Mapping[str, str] = dataclasses.field(
    default_factory=lambda: {"greedy": "prec@1"}
  )
  initial_head: str = ""


def in_words(metric: str) -> str:
  """Returns what texts call a metric."""
  return "accuracy" if metric == "prec@1" else metric


@dataclasses.dataclass(frozen=True)
class Results:
  """Accuracies and losses of every model on every split.

  A split is what follows the first slash of a dataset's name: "minival" (where
  every choice was made), "test", and any other, which is a shift. "shifts" is
  the unweighted mean over the shifts.

  Attributes:
    dataset: what comes before the slash.
    kinds: model -> one of `KINDS`, in the order of the file.
    splits: all splits, in the order of the file.
    cells: (model, split, metric) -> (value, number of images).
    choices: the metrics by which the run chose.
  """

  dataset: str
  kinds: dict[str, str]
  splits: tuple[str, ...]
  cells: dict[tuple[str, str, str], tuple[float, int]]
  choices: Choices = Choices()

  @classmethod
  def from_records(
    cls, records: Iterable[Mapping[str, Any]], choices: Choices = Choices()
  ) -> "Results":
    """Builds results from objects like the lines of `results.jsonl`.

    Args:
      records: objects with "model", "kind", "dataset", "metric", "value" and
        "n". The metric "prec@1" is a fraction, "loss" a mean in nats.
      choices: the metrics by which the run chose.

    Raises:
      ValueError: if there are none, one is malformed or given twice (the
        message counts from line 1), several datasets are mixed, or no
        ingredient has a "prec@1" on minival.
    """
    dataset, kinds, splits, cells = None, {}, {}, {}
    for line, record in enumerate(records, 1):
      model, kind, place, metric, value, n = _checked(record, line)
      prefix, split = place.split("/", 1)
      dataset = prefix if dataset is None else dataset
      if prefix != dataset:
        raise ValueError(
          f"line {line}: dataset {place!r} is not one of {dataset!r}. A report "
          "is about one dataset; write one results.jsonl for each."
        )
      if (model, split, metric) in cells or kinds.get(model, kind) != kind:
        raise ValueError(
          f"line {line}: {metric} of {model!r} ({kind}) on {place!r} is given "
          "twice, or under another kind before. Delete one line."
        )
      kinds[model] = kind
      splits[split] = None
      cells[model, split, metric] = value, n
    results = cls(dataset or "", kinds, tuple(splits), cells, choices)
    if results.best is None:
      raise ValueError(
        "no ingredient with prec@1 on minival. Run the sweep and its "
        "evaluation first."
      )
    return results

  @property
  def shifts(self) -> tuple[str, ...]:
    """The splits that are shifts, in the order of the file."""
    return tuple(s for s in self.splits if s not in ("minival", "test"))

  def models(self, kind: str) -> list[str]:
    """Names of all models of a kind, in the order of the file."""
    return [m for m, k in self.kinds.items() if k == kind]

  def accuracy(self, model: str, split: str) -> float | None:
    """Accuracy in percent; None if it, or a part of the mean, is missing."""
    if split == SHIFTS:
      parts = [self.accuracy(model, s) for s in self.shifts]
      return (
        None if not parts or None in parts else math.fsum(parts) / len(parts)
      )
    cell = self.cells.get((model, split, "prec@1"))
    return None if cell is None else 100 * cell[0]

  def images(self, model: str, split: str) -> int | None:
    """Number of images an accuracy was measured on."""
    cell = self.cells.get((model, split, "prec@1"))
    return None if cell is None else cell[1]

  @functools.cached_property
  def best(self) -> str | None:
    """The best ingredient on minival by the first metric.

    Where it is not recorded: the most accurate one, ties by lower loss.
    """
    recorded = self.choices.best.get(self.choices.metrics[0])
    if recorded in self.kinds:
      return recorded

    def rank(model):
      loss, _ = self.cells.get((model, "minival", "loss"), (math.inf, 0))
      loss = math.inf if math.isnan(loss) else loss
      return -self.accuracy(model, "minival"), loss

    ingredients = [
      m
      for m in self.models("ingredient")
      if self.accuracy(m, "minival") is not None
    ]
    return min(ingredients, key=rank, default=None)

  @functools.cached_property
  def wise_ft(self) -> dict[float, str]:
    """Interpolation coefficient -> model, ascending; 0 is the pretrained."""
    found = {}
    for model in self.models("interpolation"):
      if match := re.fullmatch(r"wise_ft_(\d+(?:\.\d+)?)", model):
        found[float(match[1])] = model
    return dict(sorted(found.items()))


def _checked(record, line: int):
  """Returns the fields of a record; raises a ValueError for a bad one."""
  fields = ("model", "kind", "dataset", "metric", "value", "n")
  if not isinstance(record, Mapping):
    raise ValueError(f"line {line}: expected an object, got {record!r}.")
  if missing := [f for f in fields if f not in record]:
    raise ValueError(f"line {line}: {', '.join(missing)} missing.")
  model, kind, dataset, metric, value, n = (record[f] for f in fields)

  def fail(what, got):
    raise ValueError(f"line {line}: {what}, got {got!r}.")

  for field in fields[:4]:
    if not isinstance(record[field], str) or not record[field]:
      fail(f"{field} must be a string that is not empty", record[field])
  if kind not in KINDS:
    fail(f"kind must be one of {', '.join(KINDS)}", kind)
  if not re.fullmatch(r"[^/]+/.+", dataset) or dataset.endswith("/" + SHIFTS):
    fail("dataset must be NAME/minival, NAME/test or NAME/SHIFT", dataset)
  if isinstance(value, bool) or not isinstance(value, int | float):
    fail("value must be a number", value)
  if isinstance(n, bool) or not isinstance(n, int) or n < 1:
    fail("n must be a positive integer", n)
  if metric == "prec@1" and not 0 <= value <= 1:
    fail("prec@1 must be a fraction from 0 to 1", value)
  return model, kind, dataset, metric, value, n


def read_run(workdir: str | os.PathLike) -> Results:
  """Reads `results.jsonl` and `choices.json` of a directory.

  Raises:
    ValueError: as `read_results`, or if `choices.json` is malformed.
  """
  workdir = pathlib.Path(workdir)
  path, choices = workdir / "choices.json", Choices()
  if path.is_file():
    try:
      choices = _choices(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError, KeyError) as e:
      raise ValueError(f"{path} is damaged ({e}): delete it.") from e
  return read_results(workdir / "results.jsonl", choices)


def _choices(values: Mapping[str, Any]) -> Choices:
  return Choices(
    metrics=tuple(values["metrics"]) or ("prec@1",),
    best=dict(values["best"]),
    greedy=dict(values["greedy"]),
    initial_head=str(values["initial_head"]),
  )


def read_results(
  path: str | os.PathLike, choices: Choices = Choices()
) -> Results:
  """Reads `results.jsonl`, one object a line.

  Raises:
    ValueError: if the file is missing, empty or malformed, naming the line, or
      does not make sense; see `Results.from_records`.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(
      f"{path} does not exist. Run `soupjax --config=CONFIG "
      f"--workdir={path.parent}` first: it writes it."
    )
  records = []
  for line, text in enumerate(path.read_text("utf-8").splitlines(), 1):
    try:
      records.append(json.loads(text))
    except json.JSONDecodeError as e:
      raise ValueError(f"{path}, line {line}: not JSON: {e}.") from e
  if not records:
    raise ValueError(
      f"{path} is empty. Run `soupjax --config=CONFIG "
      f"--workdir={path.parent}` to the end."
    )
  try:
    return Results.from_records(records, choices)
  except ValueError as e:
    raise ValueError(f"{path}, {e}") from e
