# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a run measured: `results.jsonl`, checked and looked up by model."""

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
SHIFTS = "shifts"  # the column that is the mean over all shifts


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
  """

  dataset: str
  kinds: dict[str, str]
  splits: tuple[str, ...]
  cells: dict[tuple[str, str, str], tuple[float, int]]

  @classmethod
  def from_records(cls, records: Iterable[Mapping[str, Any]]) -> "Results":
    """Builds results from objects like the lines of `results.jsonl`.

    Args:
      records: objects with "model", "kind", "dataset", "metric", "value" and
        "n". The metric "prec@1" is a fraction, "loss" a mean in nats.

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
    results = cls(dataset or "", kinds, tuple(splits), cells)
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
    """The ingredient most accurate on minival, ties by lower minival loss."""

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
  """Takes a record apart, or says what is wrong with it."""
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


def read_results(path: str | os.PathLike) -> Results:
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
    return Results.from_records(records)
  except ValueError as e:
    raise ValueError(f"{path}, {e}") from e
