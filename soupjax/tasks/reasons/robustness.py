# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Effective robustness of cooked models, relative to baselines."""

from collections.abc import Mapping, Sequence
import csv
import math
import os
import pathlib
from typing import Any

from soupjax import files
from soupjax.analysis import robustness

SHIFTS = "shifts"


def read_baselines(
  path: str | os.PathLike, shifts: Sequence[str]
) -> dict[str, tuple[float, float]]:
  """Reads the accuracies of baselines.

  Args:
    path: path of a JSON object, model -> set -> accuracy; or of a CSV file with
      model names in the first column and one column per set. Accuracies are
      fractions.
    shifts: names of the shifted sets. A file needs "test" and either all of
      these or their mean, called "shifts".

  Returns:
    Model -> accuracy on test, mean accuracy on the shifted sets.

  Raises:
    ValueError: naming the file and what is wrong or missing.
  """
  path = pathlib.Path(os.path.expanduser(path))
  try:
    if path.suffix.lower() == ".json":
      rows = files.read_json(path)
    else:
      with path.open(newline="", encoding="utf-8-sig") as f:
        rows = _table_of(list(csv.reader(f)), path)
  except (OSError, UnicodeDecodeError, csv.Error) as e:
    raise ValueError(f"The baselines {path} cannot be read: {e}.") from e
  if not isinstance(rows, dict) or not all(
    isinstance(row, dict) for row in rows.values()
  ):
    raise ValueError(
      f"{path} must map models to accuracies, such as "
      '{"resnet50": {"test": 0.76, "shifts": 0.39}}.'
    )
  return {
    name: (
      _accuracy(path, name, row, ["test"]),
      _accuracy(path, name, row, [SHIFTS] if SHIFTS in row else shifts),
    )
    for name, row in rows.items()
  }


def _table_of(lines: Sequence[Sequence[str]], path) -> dict[str, Any]:
  """Returns the rows of a CSV file by the name in their first column."""
  lines = [[c.strip() for c in line] for line in lines if any(line)]
  rows: dict[str, Any] = {}
  for name, *values in lines[1:]:
    if name in rows:
      raise ValueError(f"{path} has {name!r} twice: remove one line.")
    if len(values) != len(lines[0]) - 1:
      raise ValueError(
        f"{path}: the line of {name!r} has {len(values) + 1} columns, the "
        f"header {len(lines[0])}."
      )
    rows[name] = dict(zip(lines[0][1:], values))
  return rows


def _accuracy(path, name: str, row: Mapping[str, Any], sets) -> float:
  """Returns the mean accuracy of a baseline on some sets."""
  values = []
  for dataset in sets:
    if dataset not in row:
      raise ValueError(
        f"{path}: {name!r} has no accuracy on {dataset!r}, only on "
        f"{', '.join(row) or 'no set'}. Give 'test' and either every shifted "
        "set or 'shifts'."
      )
    try:
      value = float(row[dataset])
    except (TypeError, ValueError):
      value = math.nan
    if not 0 < value < 1:
      raise ValueError(
        f"{path}: the accuracy of {name!r} on {dataset!r} must be a fraction "
        f"above 0 and below 1, got {row[dataset]!r}."
      )
    values.append(value)
  return math.fsum(values) / len(values)


def check(path: str, sets: Sequence[str], shifts: Sequence[str]) -> None:
  """Checks that effective robustness can be computed from the baselines.

  Args:
    path: path of the baselines; "" for none.
    sets: names of the test sets.
    shifts: names of the shifted sets.

  Raises:
    ValueError: naming what is wrong or missing.
  """
  if not path:
    return
  if "test" not in sets or not shifts:
    raise ValueError(
      f"cook.baselines={path!r} needs a test set and shifts: give them as "
      "--config.tests=test=SPLIT,NAME=SPLIT."
    )
  try:
    robustness.fit_line(read_baselines(path, shifts))
  except ValueError as e:
    raise ValueError(f"cook.baselines={path!r}: {e}") from e


def record(
  path: str,
  shifts: Sequence[str],
  results: Mapping[str, tuple[str, Mapping[str, Mapping[str, float]]]],
) -> dict[str, Any] | None:
  """Computes the effective robustness of all models.

  Args:
    path: path of the baselines; "" to use the ingredients.
    shifts: names of the shifted sets.
    results: model -> (kind, set -> metric -> value).

  Returns:
    A JSON record; None without test or shifted sets, or if the ingredients do
    not define a line. Models with an accuracy of 0 or 1 on test are left out.
  """
  points = {}
  for name, (_, values) in results.items():
    if not shifts or "test" not in values:
      return None
    shifted = [values[dataset]["prec@1"] for dataset in shifts]
    mean = math.fsum(shifted) / len(shifted)
    points[name] = values["test"]["prec@1"], mean
  if path:
    baselines = read_baselines(path, shifts)
  else:
    baselines = {
      name: points[name]
      for name, (kind, _) in results.items()
      if kind == "ingredient" and all(0 < v < 1 for v in points[name])
    }
  try:
    line = robustness.fit_line(baselines)
  except ValueError:
    if path:
      raise
    return None
  models = {}
  for name, (accuracy, shifted) in points.items():
    if 0 < accuracy < 1:
      rho = line.rho(accuracy, shifted)
      models[name] = {"accuracy": accuracy, "shifted": shifted}
      models[name] |= {"rho": rho.value, "low": rho.low, "high": rho.high}
  return {
    "baselines": os.path.basename(path) if path else "the ingredients",
    "points": {name: list(point) for name, point in baselines.items()},
    "line": {"slope": line.slope, "intercept": line.intercept, "n": line.n},
    "models": models,
  }
