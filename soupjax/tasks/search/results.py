# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Tables, records and the saved model of a search."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
from typing import Any

import jax

from soupjax import files, processes, report
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook import export
from soupjax.tasks.search.inputs import MINIVAL, TEST
from soupjax.tasks.search.work import Outcome, Work, mean
from soupjax.version import __version__

CHOSEN = "chosen"
PRETRAINED = "pretrained"


def tables(work: Work, outcome: Outcome) -> list[dict[str, Any]]:
  """Returns tables of all models, for `report.tables_text`.

  There is one for test, if all models have results on test for all tasks, and
  one for minival. Each has the accuracy on each task, the mean, the normalised
  accuracy (arXiv 2212.04089, section 4) if every task has its own ingredient,
  and the combined accuracy of patching (arXiv 2208.05592). With several tasks,
  each is followed by a table of changes from the initial model, which shows
  forgetting. If another metric decides, a table of it comes before each. If a
  command evaluates, its raw metrics replace accuracies.
  """
  tasks = work.inputs.tasks
  splits = {"minival, where the choice was made": MINIVAL}
  if all(
    f"{task}/{TEST}" in sets
    for _, sets in work.results.values()
    for task in tasks
  ):
    splits = {"test": TEST, **splits}
  made = []
  for title, split in splits.items():
    if work.metric != "prec@1" and not work.inputs.is_judged:
      made.append(_deciding(work, title, split))
    made.append(_accuracies(work, outcome, title, split))
    if len(tasks) > 1 and PRETRAINED in work.results:
      made.append(_forgetting(work, title, split))
  return made


def _values(
  work: Work, model: str, split: str, metric: str = "prec@1"
) -> dict[str, float]:
  values, judged = work.results[model][1], work.inputs.is_judged
  return {
    task: values[f"{task}/{split}"][work.metric_of(task) if judged else metric]
    for task in work.inputs.tasks
  }


def _title(work: Work, accuracies: str, scores: str) -> dict[str, Any]:
  """Returns the title of a table and whether its values are in percent."""
  judged = work.inputs.is_judged
  return {"title": scores if judged else accuracies, "percent": not judged}


def _deciding(work: Work, title: str, split: str) -> dict[str, Any]:
  """Returns a table of the metric by which choices are made."""
  tasks, mode = list(work.inputs.tasks), work.inputs.mode(work.metric)
  better = "higher" if mode == "max" else "lower"
  rows = {}
  for model in work.results:
    values = _values(work, model, split, work.metric)
    total = [mean(values, tasks)] if len(tasks) > 1 else []
    rows[model] = [*values.values(), *total]
  return {
    "title": f"{work.metric} on {title} ({better} is better)",
    "columns": [*tasks, *["mean"] * (len(tasks) > 1)],
    "rows": rows,
    "signed": False,
    "percent": False,
  }


def _accuracies(work, outcome, title, split) -> dict[str, Any]:
  inputs, tasks = work.inputs, work.inputs.tasks
  own = {
    name: _values(work, task.own, split)[name]
    for name, task in tasks.items()
    if task.own
  }
  higher = not inputs.is_judged or inputs.mode(inputs.metrics[0]) == "max"
  normalised = higher and len(own) == len(tasks) and min(own.values()) > 0
  patching, supported = outcome.patching, outcome.supported
  columns = list(tasks)
  if len(tasks) > 1:
    columns.append("mean")
  if normalised:
    columns.append("normalised")
  if patching:
    columns.append("combined")
  rows = {}
  for model in work.results:
    values = _values(work, model, split)
    row: list[float | None] = list(values.values())
    if len(tasks) > 1:
      row.append(mean(values, list(tasks)))
    if normalised:
      row.append(sum(values[t] / own[t] for t in tasks) / len(tasks))
    if patching:
      row.append((mean(values, patching) + mean(values, supported)) / 2)
    rows[model] = row
  return {
    **_title(work, f"Accuracy on {title} (%)", f"Metrics on {title}"),
    "columns": columns,
    "rows": rows,
    "signed": False,
  }


def _forgetting(work, title, split) -> dict[str, Any]:
  """Returns a table of changes from the initial model, by model and task."""
  start = _values(work, PRETRAINED, split)
  rows: dict[str, Sequence[float]] = {
    model: [
      value - start[t] for t, value in _values(work, model, split).items()
    ]
    for model in work.results
    if model != PRETRAINED
  }
  return {
    **_title(
      work,
      f"Change from the initial model on {title} (points)",
      f"Change from the initial model on {title}",
    ),
    "columns": list(start),
    "rows": rows,
    "signed": True,
  }


def record(work: Work, outcome: Outcome) -> dict[str, Any]:
  """Returns the contents of `search.json`: candidates, choice and tables."""
  return {
    "method": work.config.method,
    "metric": work.metric,
    "summary": outcome.summary,
    "axis": outcome.axis,
    "searches": {
      title: [dataclasses.asdict(c) for c in found.history]
      for title, found in outcome.searches.items()
    },
    "greedy": dict(outcome.greedy),
    "learned": dict(outcome.learned),
    "tables": tables(work, outcome),
    "differences": differences(work),
  }


def differences(work: Work) -> list[str]:
  """Compares the chosen and the initial model on test, image by image.

  Returns:
    A title and one line per task; [] without test sets or an initial model.
  """
  names = [name for name, task in work.inputs.tasks.items() if task.test]
  if PRETRAINED not in work.results or not names:
    return []
  found = work.evaluations.differences(
    PRETRAINED,
    {model: work.results[model] for model in (PRETRAINED, CHOSEN)},
    {f"{name}/{TEST}" for name in names},
  )
  lines = ["Chosen minus initial model on test (paired bootstrap, McNemar):"]
  for name in names:
    one = found.get((CHOSEN, f"{name}/{TEST}"))
    if one is not None:
      value, low, high = (100 * x for x in (one.value, one.low, one.high))
      lines.append(
        f"{name}: {value:+.2f} points, 95 % interval {low:+.2f} to "
        f"{high:+.2f}, p = {one.p:.2g}"
      )
  return lines if len(lines) > 1 else []


def rows(results: Mapping[str, tuple[str, Any]]) -> list[dict[str, Any]]:
  """Returns the lines of `results.jsonl`."""
  return [
    {
      "model": model,
      "kind": kind,
      "dataset": dataset,
      "metric": metric,
      "value": value,
    }
    | ({"n": values["n"]} if "n" in values else {})
    for model, (kind, sets) in results.items()
    for dataset, values in sets.items()
    for metric, value in values.items()
    if metric != "n"
  ]


def write(work: Work, outcome: Outcome) -> pathlib.Path:
  """Writes `results.jsonl`, `search.json` and the report; prints the tables."""
  workdir, made = work.workdir, record(work, outcome)
  if jax.process_index() == 0:
    lines = "".join(json.dumps(row) + "\n" for row in rows(work.results))
    files.write_text(workdir / "results.jsonl", lines)
    files.write_json(workdir / "search.json", made)
    report.write_search_report(workdir)
    print(summary(workdir))
  processes.barrier("searched")
  return workdir / "report.html"


def summary(workdir: pathlib.Path) -> str:
  """Returns the text to print when a search is finished."""
  made = files.read_json(workdir / "search.json")
  changes = "\n  ".join(made["differences"])
  return "\n\n".join(
    [
      report.tables_text(made["tables"]),
      *filter(None, [changes]),
      f"{made['summary']}. Report: {workdir / 'report.html'}",
    ]
  )


def save(work: Work, outcome: Outcome) -> None:
  """Writes the chosen model, and a copy with the ingredients' leaf names.

  Finished outputs of an earlier run are kept. With frozen heads, leaves outside
  the encoder, such as a text tower, are those of the initial model.
  """
  inputs, workdir = work.inputs, work.workdir
  ingredients = [*inputs.ingredients, *filter(None, [inputs.initial])]
  made = {
    "soupjax": __version__,
    "search": inputs.config.method,
    "summary": outcome.summary,
    "coefficients": {
      title: list(found.best.coefficients)
      for title, found in outcome.searches.items()
    },
    "ingredients": [{"name": i.name, "path": i.path} for i in ingredients],
  }
  folder = workdir / CHOSEN
  if not workdir_lib.has_model(folder):
    workdir_lib.save_model(
      folder, outcome.params, metadata={"soupjax": made}, chosen=made
    )
  # Without heads, even checkpoints with our leaf names need converting.
  known = set(inputs.ingredients[0].specs) <= set(inputs.original.specs)
  if inputs.is_judged or not known:
    rest = None
    if inputs.frozen and inputs.initial:
      family = inputs.initial.hyperparameters.get("family")
      rest = inputs.start if family == inputs.family else None
    export.write(inputs, folder, workdir / "export" / CHOSEN, made, rest)
