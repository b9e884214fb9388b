# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Results of a run that a command evaluated, with any metrics."""

from collections.abc import Mapping
import dataclasses
import html
import json
import math
import os
import pathlib
from typing import Any

from soupjax import files
from soupjax.report import tables
from soupjax.report.results import KINDS

_WIDTH = 100
_NAME = 34


@dataclasses.dataclass(frozen=True)
class Scores:
  """Metrics of every model on every set.

  Attributes:
    kinds: model -> one of `KINDS`, in the order of the file.
    cells: (model, "SET/METRIC") -> value.
    columns: all "SET/METRIC": first those that made the choices, then the
      others on minival, then the rest.
    choices: the content of `choices.json`.
  """

  kinds: Mapping[str, str]
  cells: Mapping[tuple[str, str], float]
  columns: tuple[str, ...]
  choices: Mapping[str, Any]

  def rows(self, *, all_ingredients: bool) -> list[tuple[str, str]]:
    """Returns the (label, model) of each row; "" is the mean ingredient.

    Without `all_ingredients`, only the mean and the best of them have rows.
    """
    best = self.choices["best"][self.choices["metrics"][0]]
    rows = []
    for kind in KINDS:
      names = [m for m, k in self.kinds.items() if k == kind]
      if kind == "ingredient":
        rows += [("Mean ingredient", ""), (f"Best ingredient ({best})", best)]
        names = [m for m in names if all_ingredients and m != best]
      rows += [(self.label(name), name) for name in names]
    return rows

  def label(self, model: str) -> str:
    """Describes a model in words."""
    chosen, greedy = self.choices.get("chosen", {}), self.choices["greedy"]
    if model in chosen:
      return chosen[model]
    if model in greedy:
      return f"Greedy soup by {greedy[model]}"
    if model == "window" and "window" in self.choices:
      return self.choices["window"]
    return tables.LABELS.get(model, model)

  def value(self, model: str, column: str) -> float | None:
    """Returns a value; None if it is missing. "" is the mean ingredient."""
    if model:
      return self.cells.get((model, column))
    values = [
      self.cells[name, column]
      for name, kind in self.kinds.items()
      if kind == "ingredient" and (name, column) in self.cells
    ]
    return math.fsum(values) / len(values) if values else None


def read_scores(workdir: str | os.PathLike) -> Scores:
  """Reads `results.jsonl` and `choices.json` of a run that a command evaluated.

  Raises:
    ValueError: if a file is missing or damaged.
  """
  workdir = files.path_of(workdir)
  path = workdir / "results.jsonl"
  kinds: dict[str, str] = {}
  cells: dict[tuple[str, str], float] = {}
  try:
    for line in path.read_text("utf-8").splitlines():
      row = json.loads(line)
      kinds[row["model"]] = row["kind"]
      dataset = row["dataset"].partition("/")[2]
      cells[row["model"], f"{dataset}/{row['metric']}"] = row["value"]
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise ValueError(
      f"{path} is missing or damaged ({e}). Delete it, and run again."
    ) from e
  choices = files.read_json(workdir / "choices.json")
  first = [f"minival/{metric}" for metric in choices["metrics"]]
  columns = dict.fromkeys([*first, *(column for _, column in cells)])
  order = sorted(
    columns,
    key=lambda c: (c not in first, not c.startswith("minival/"), c),
  )
  return Scores(kinds, cells, tuple(order), choices)


def _text(value: float | None) -> str:
  return "-" if value is None else f"{value:.4g}"


def scores_table(scores: Scores) -> str:
  """Formats the metrics as plain text of at most 100 columns.

  Returns:
    One line per model; of the ingredients, only their mean and the best one.
    Metrics that do not fit are left out, and the last line gives their number.
  """
  widths = {column: max(8, len(column)) + 2 for column in scores.columns}
  shown, room = [], _WIDTH - _NAME
  for column, width in widths.items():
    if width > room and shown:
      break
    shown.append(column)
    room -= width

  def line(name, cells):
    name = name if len(name) <= _NAME else name[: _NAME - 3] + "..."
    return f"{name:<{_NAME}}" + "".join(
      f"{cell:>{widths[column]}}" for cell, column in zip(cells, shown)
    )

  lines = [line("", shown)]
  lines.append("-" * len(lines[0]))
  for label, model in scores.rows(all_ingredients=False):
    lines.append(line(label, [_text(scores.value(model, c)) for c in shown]))
  decides = ", ".join(scores.columns[: len(scores.choices["metrics"])])
  lines += [lines[1], f"All choices were made by {decides} alone."]
  lines.append(
    "There are no intervals: a command gives no results for single images."
  )
  if hidden := len(scores.columns) - len(shown):
    lines.append(f"Further metrics in report.html: {hidden}.")
  return "\n".join(line.rstrip() for line in lines)


def write_scores(workdir: str | os.PathLike) -> pathlib.Path:
  """Writes `report.html` and `figures/` of a run that a command evaluated.

  The page has all metrics and the decisions of greedy soups.

  Returns:
    Path of the page.

  Raises:
    ValueError: as `read_scores`.
  """
  # These import matplotlib.
  from soupjax.report import figures, searches, sections
  from soupjax.report.web import document

  workdir = files.path_of(workdir)
  scores = read_scores(workdir)
  body = [
    f'<tr><th scope="row">{html.escape(label)}</th>'
    + "".join(
      f"<td>{_text(scores.value(model, column))}</td>"
      for column in scores.columns
    )
    + "</tr>"
    for label, model in scores.rows(all_ingredients=True)
  ]
  parts = [
    "<h1>Model soups, evaluated by a command</h1>",
    tables.as_html(["model", *map(html.escape, scores.columns)], body),
  ]
  names = [name for name, kind in scores.kinds.items() if kind == "ingredient"]
  models = document.models_of(
    workdir / "results.jsonl",
    document.hyperparameters_of(workdir / "ingredients", names),
  )
  for name, metric in scores.choices["greedy"].items():
    record = workdir / "soups" / name / "greedy.json"
    if record.is_file():
      trace = files.read_json(record)
      heading = f"The decisions of the greedy soup by {html.escape(metric)}"
      saved = document.save(
        figures.greedy_trajectory(trace),
        workdir / "figures" / f"{name}_trajectory.png",
        [model["name"] for model in models],
      )
      if saved:
        caption = sections.greedy_caption(trace)
        parts.append(document.figure(saved, heading, caption))
  record = workdir / "soups" / "window" / "window.json"
  if record.is_file():
    parts.append(
      document.picture(
        searches.window_figure(files.read_json(record)),
        workdir / "figures" / "window_curve.png",
        "The last checkpoints of a run",
      )
    )
  config = workdir / "config.json"
  if config.is_file():
    parts.append(document.configuration(files.read_json(config)))
  files.write_text(
    workdir / "report.html",
    document.document("Model soups, evaluated by a command", parts, models),
  )
  return workdir / "report.html"
