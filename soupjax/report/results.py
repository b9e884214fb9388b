# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Results of a run: `results.jsonl`, checked and looked up by model."""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
import json
import math
import os
import re
from typing import Any

from soupjax import files

# "model" is a model of a comparison whose kind is not known.
KINDS = (
  *("pretrained", "ingredient", "soup", "ensemble", "interpolation", "model"),
)
SHIFTS = "shifts"  # The name of the mean over all shifts.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
  """Choices of a run and descriptions of its sets, from `choices.json`.

  Attributes:
    metrics: metrics on minival by which the run chose; the first ranked the
      ingredients.
    best: metric -> the best ingredient by it.
    greedy: name of a greedy soup -> its metric.
    initial_head: the head of the initial model, such as "linear probe", or ""
      if it is unknown.
    means: name -> the splits of a mean; the figures show the mean "shifts".
    protocols: split -> how its labels or images are changed, if they are.
    outputs: split -> (number of outputs that its metrics are over, number of
      outputs of the models), for splits with only some of the classes.
    unseen: split -> description of its classes, for splits with classes of
      their own.
    window: description of the checkpoints in the soup "window", such as "Last 2
      of 6 checkpoints"; "" if it is unknown.
    reference: the model that a comparison compares all others with, in place
      of the best ingredient; "" if the run made choices.
  """

  metrics: tuple[str, ...] = ("prec@1",)
  best: Mapping[str, str] = dataclasses.field(default_factory=dict)
  greedy: Mapping[str, str] = dataclasses.field(
    default_factory=lambda: {"greedy": "prec@1"}
  )
  initial_head: str = ""
  outputs: Mapping[str, tuple[int, int]] = dataclasses.field(
    default_factory=dict
  )
  protocols: Mapping[str, str] = dataclasses.field(default_factory=dict)
  means: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  unseen: Mapping[str, str] = dataclasses.field(default_factory=dict)
  window: str = ""
  reference: str = ""

  @property
  def about_outputs(self) -> str:
    """Describes unusual outputs and protocols of splits; "" without any."""
    parts = [
      f"{split} over the {some:,} of {total:,} outputs that are its classes"
      for split, (some, total) in self.outputs.items()
    ]
    parts += [f"{split}: {text}" for split, text in self.protocols.items()]
    return f"Metrics: {', '.join(parts)}." if parts else ""

  def by(self, metric: str) -> str:
    """Returns " by METRIC" in words; "" if the run chose by accuracy alone."""
    return "" if self.metrics == ("prec@1",) else f" by {in_words(metric)}"


def in_words(metric: str) -> str:
  """Returns the name of a metric in running text."""
  return "accuracy" if metric == "prec@1" else metric


@dataclasses.dataclass(frozen=True)
class Gain:
  """Difference of accuracies of two models on the same images, in points.

  Attributes:
    value: accuracy minus that of the best ingredient, reference or start.
    low: lower end of its 95 % interval: paired bootstrap over images or, over
      runs, Student's t (NaN if undefined).
    high: upper end.
    p: p-value of McNemar's exact test or, over runs, of Student's t; None for
      the mean over shifts, or if undefined.
  """

  value: float
  low: float
  high: float
  p: float | None

  @property
  def is_shown(self) -> bool:
    """Whether zero is outside the interval."""
    return not self.low <= 0 <= self.high


@dataclasses.dataclass(frozen=True)
class Results:
  """Accuracies and losses of every model on every split.

  A split is the part of a dataset's name after the first slash: "minival", on
  which every choice was made, "test", or another test set, such as a shift.
  "shifts" is the unweighted mean over the shifts; other means in
  `Choices.means` count as splits.

  Attributes:
    dataset: the part of the name before the slash.
    kinds: model -> one of `KINDS`, in the order of the file.
    splits: all splits, in the order of the file.
    cells: (model, split, metric) -> (value, number of images).
    choices: the content of `choices.json`.
    gains: (model, split) -> its difference from `best`, if recorded.
    above_start: the same from the initial model, on splits in `unseen`.
  """

  dataset: str
  kinds: dict[str, str]
  splits: tuple[str, ...]
  cells: dict[tuple[str, str, str], tuple[float, int]]
  choices: Choices = Choices()
  gains: Mapping[tuple[str, str], Gain] = dataclasses.field(
    default_factory=dict
  )
  above_start: Mapping[tuple[str, str], Gain] = dataclasses.field(
    default_factory=dict
  )

  @classmethod
  def from_records(
    cls, records: Iterable[Mapping[str, Any]], choices: Choices = Choices()
  ) -> "Results":
    """Builds results from the objects in `results.jsonl`.

    Args:
      records: objects with "model", "kind", "dataset", "metric", "value" and
        "n". The metric "prec@1" is a fraction, "loss" a mean in nats.
        Accuracies may have "difference", "low", "high" and "p" (see `Gain`),
        as fractions; "start" may have the same fields for the difference from
        the initial model.
      choices: the content of `choices.json`.

    Raises:
      ValueError: if a record is malformed or repeated (the message has its
        number, from 1), several datasets are mixed, or no ingredient has a
        "prec@1" on minival.
    """
    dataset, kinds, splits, cells, gains = "", {}, {}, {}, {}
    above_start = {}
    for line, record in enumerate(records, 1):
      model, kind, path, metric, value, n = _checked(record, line)
      prefix, split = path.split("/", 1)
      dataset = dataset or prefix
      if prefix != dataset:
        raise ValueError(
          f"line {line}: dataset {path!r} differs from {dataset!r} above. "
          "Write one results.jsonl for each dataset."
        )
      if (model, split, metric) in cells or kinds.get(model, kind) != kind:
        raise ValueError(
          f"line {line}: {metric} of {model!r} ({kind}) on {path!r} occurs "
          "twice, or the model has another kind above. Delete one line."
        )
      kinds[model] = kind
      cells[model, split, metric] = value, n
      if split != SHIFTS:  # A mean over splits.
        splits[split] = None
      if metric == "prec@1" and "difference" in record:
        gains[model, split] = _gain(record, line)
      if metric == "prec@1" and isinstance(record.get("start"), Mapping):
        above_start[model, split] = _gain(record["start"], line)
    results = cls(
      dataset, kinds, tuple(splits), cells, choices, gains, above_start
    )
    if results.best is None:
      raise ValueError(
        "no ingredient has prec@1 on minival. Evaluate the ingredients first."
      )
    return results

  @property
  def shifts(self) -> tuple[str, ...]:
    """The splits of the mean over shifts, in the order of the file."""
    means = self.choices.means
    if means:
      return tuple(s for s in self.splits if s in means.get(SHIFTS, ()))
    others = {"minival", "test", *self.choices.unseen}
    return tuple(s for s in self.splits if s not in others)

  @property
  def others(self) -> tuple[str, ...]:
    """Other splits and means; members of these means are left out."""
    means = {k: v for k, v in self.choices.means.items() if k != SHIFTS}
    hidden = {"minival", "test", *self.shifts}.union(*means.values())
    hidden |= set(self.choices.unseen)
    return tuple(s for s in self.splits if s not in hidden)

  @property
  def unseen(self) -> dict[str, str]:
    """The splits with their own classes, each with its description."""
    return {k: v for k, v in self.choices.unseen.items() if k in self.splits}

  @property
  def about_mce(self) -> str:
    """Lists the mCE of soups, compared models and `best`, as a sentence."""
    parts = []
    for mean in self.choices.means:
      models = [m for m in self.kinds if (m, mean, "mce") in self.cells]
      shown = [
        f"{m} {100 * self.cells[m, mean, 'mce'][0]:.1f}"
        for m in models
        if self.kinds[m] in ("soup", "model") or m == self.best
      ]
      if shown:
        parts.append(f"mCE on {mean} (AlexNet: 100): {', '.join(shown)}.")
    return " ".join(parts)

  def models(self, kind: str) -> list[str]:
    """Names of all models of a kind, in the order of the file."""
    return [m for m, k in self.kinds.items() if k == kind]

  def accuracy(self, model: str, split: str) -> float | None:
    """Accuracy in percent; None if it, or a part of a mean, is missing."""
    if split == SHIFTS:
      parts = [self.accuracy(model, s) for s in self.shifts]
      if not parts or None in parts:
        return None
      return math.fsum(parts) / len(parts)
    cell = self.cells.get((model, split, "prec@1"))
    return None if cell is None else 100 * cell[0]

  def images(self, model: str, split: str) -> int | None:
    """Number of images of an accuracy; None if it is missing."""
    cell = self.cells.get((model, split, "prec@1"))
    return None if cell is None else cell[1]

  @functools.cached_property
  def best(self) -> str | None:
    """The reference, or the recorded best ingredient by the first metric.

    If none is recorded, the ingredient with the highest accuracy on minival;
    ties go to the lower loss. None without such an accuracy.
    """
    recorded = self.choices.reference
    recorded = recorded or self.choices.best.get(self.choices.metrics[0])
    if recorded in self.kinds:
      return recorded

    def rank(model):
      loss, _ = self.cells.get((model, "minival", "loss"), (math.inf, 0))
      loss = math.inf if math.isnan(loss) else loss
      return -self.accuracy(model, "minival"), loss

    ingredients = self.models("ingredient")
    known = [m for m in ingredients if self.images(m, "minival") is not None]
    return min(known, key=rank, default=None)

  @functools.cached_property
  def wise_ft(self) -> dict[float, str]:
    """Coefficient -> model, ascending; 0 is the initial model."""
    matches = (
      re.fullmatch(r"wise_ft_(\d+(?:\.\d+)?)", model)
      for model in self.models("interpolation")
    )
    return dict(sorted((float(m[1]), m[0]) for m in matches if m))

  @functools.cached_property
  def best_wise_ft(self) -> float | None:
    """The coefficient with the highest accuracy on minival.

    Ties go to the one closest to 0.5. None if there are no interpolations or
    any has no accuracy on minival.
    """
    accuracies = {
      alpha: self.accuracy(model, "minival")
      for alpha, model in self.wise_ft.items()
    }
    if not accuracies or None in accuracies.values():
      return None
    return max(accuracies, key=lambda a: (accuracies[a], -abs(a - 0.5)))


def _checked(record, line: int):
  """Returns the fields of a record, or raises a ValueError with its line."""
  fields = ("model", "kind", "dataset", "metric", "value", "n")
  if not isinstance(record, Mapping):
    raise ValueError(f"line {line}: expected an object, got {record!r}.")
  if missing := [f for f in fields if f not in record]:
    raise ValueError(f"line {line}: {', '.join(missing)} missing.")
  model, kind, dataset, metric, value, n = (record[f] for f in fields)

  def fail(expected, value):
    raise ValueError(f"line {line}: {expected}, got {value!r}.")

  for field in fields[:4]:
    if not isinstance(record[field], str) or not record[field]:
      fail(f"{field} must be a non-empty string", record[field])
  if kind not in KINDS:
    fail(f"kind must be one of {', '.join(KINDS)}", kind)
  if not re.fullmatch(r"[^/]+/.+", dataset):
    fail("dataset must be NAME/minival, NAME/test or NAME/SHIFT", dataset)
  if isinstance(value, bool) or not isinstance(value, int | float):
    fail("value must be a number", value)
  if isinstance(n, bool) or not isinstance(n, int) or n < 1:
    fail("n must be a positive integer", n)
  if metric == "prec@1" and not 0 <= value <= 1:
    fail("prec@1 must be a fraction from 0 to 1", value)
  return model, kind, dataset, metric, value, n


def _gain(record, line: int) -> Gain:
  """Returns the difference of a record, in points."""
  value, low, high = (record.get(k) for k in ("difference", "low", "high"))
  p = record.get("p")
  numbers = [value, low, high, *([] if p is None else [p])]
  if not all(type(x) in (int, float) for x in numbers):
    raise ValueError(
      f"line {line}: difference, low, high and p must be numbers, got "
      f"{numbers}."
    )
  return Gain(100 * value, 100 * low, 100 * high, p)


def read_run(workdir: str | os.PathLike) -> Results:
  """Reads `results.jsonl` and, if present, `choices.json` of a run.

  Raises:
    ValueError: if a file is malformed, or `results.jsonl` is missing or empty.
  """
  workdir = files.path_of(workdir)
  path, choices = workdir / "choices.json", Choices()
  if path.is_file():
    try:
      values = json.loads(path.read_text("utf-8"))
      choices = Choices(
        metrics=tuple(values["metrics"]) or ("prec@1",),
        best=dict(values["best"]),
        greedy=dict(values["greedy"]),
        initial_head=str(values["initial_head"]),
        outputs={
          split: (int(some), int(total))
          for split, (some, total) in values.get("outputs", {}).items()
        },
        means={
          name: tuple(members)
          for name, members in values.get("means", {}).items()
        },
        protocols=dict(values.get("protocols", {})),
        unseen=dict(values.get("unseen", {})),
        window=str(values.get("window", "")),
        reference=str(values.get("reference", "")),
      )
    except (ValueError, TypeError, KeyError) as e:
      raise ValueError(f"{path} is damaged ({e}): delete it.") from e
  return read_results(workdir / "results.jsonl", choices)


def read_results(
  path: str | os.PathLike, choices: Choices = Choices()
) -> Results:
  """Reads `results.jsonl`, with one JSON object per line.

  Raises:
    ValueError: if the file is missing or empty, or a line is not JSON (the
      message has its number), or `Results.from_records` rejects the records.
  """
  path = files.path_of(path)
  run = f"Run `soupjax --config=CONFIG --workdir={path.parent}`"
  if not path.is_file():
    raise ValueError(f"{path} does not exist. {run} first.")
  records = []
  for line, text in enumerate(path.read_text("utf-8").splitlines(), 1):
    try:
      records.append(json.loads(text))
    except json.JSONDecodeError as e:
      raise ValueError(f"{path}, line {line}: not JSON: {e}.") from e
  if not records:
    raise ValueError(f"{path} is empty. {run} until it finishes.")
  try:
    return Results.from_records(records, choices)
  except ValueError as e:
    raise ValueError(f"{path}, {e}") from e
