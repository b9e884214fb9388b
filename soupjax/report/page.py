# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The report of a run: one self-contained HTML page."""

from collections.abc import Sequence
import html
import os
import pathlib
from typing import Any

from soupjax import files
from soupjax.report import (
  comparison,
  figures,
  heatmaps,
  robustness,
  searches,
  sections,
  unseen,
)
from soupjax.report.results import Results, in_words, read_run
from soupjax.report.web import document


def write_report(workdir: str | os.PathLike) -> pathlib.Path:
  """Writes `report.html` and `figures/` for a finished run.

  The page embeds its figures, their data and the values of `results.jsonl`,
  and loads nothing else. Pointing at a mark in a figure shows its model, groups
  of marks can be hidden, and tables can be sorted; everything can be read
  without JavaScript. Figures whose input is missing are left out. `figures/`
  has each figure as PNG, SVG and PDF, and its data as CSV.

  Args:
    workdir: directory of the run, with `results.jsonl`. Also read if present:
      `choices.json`, `config.json`, `soups/NAME/greedy.json`,
      `soups/window/window.json`,
      `soups/learned_model/learned.json`, `soups/learned_layer/learned.json`,
      `ensembles/greedy_ensemble/greedy.json` (for the number of members),
      `robustness.json` and `ingredients/NAME/hyperparameters.json`.

  Returns:
    Path of the page.

  Raises:
    ValueError: if `results.jsonl` is missing, empty or malformed, or another
      of these files is damaged.
  """
  workdir = files.path_of(workdir)
  results = read_run(workdir)
  chosen = results.choices.greedy

  def read(fields, names):
    """Reads the records of soups or ensembles that exist."""
    paths = {key: workdir / f"{name}.json" for key, name in names.items()}
    return {k: _read(p, fields) for k, p in paths.items() if p.is_file()}

  fields = ("selected", "history")
  greedy = read(fields, {name: f"soups/{name}/greedy" for name in chosen})
  path = "ensembles/greedy_ensemble/greedy"
  members = read(fields, {"greedy_ensemble": path})
  learned = read(
    ("names", "alphas"),
    {
      "Per model": "soups/learned_model/learned",
      "Per layer": "soups/learned_layer/learned",
    },
  )
  drawn = {
    "accuracy_plane": figures.accuracy_plane(results),
    "shift_plane": figures.shift_plane(results),
    "coefficients": heatmaps.coefficients(learned),
    "wise_ft_curve": figures.wise_ft_curve(results),
  }
  path = workdir / "robustness.json"
  rho = None
  if path.is_file():
    rho = _read(path, ("baselines", "points", "line", "models"))
  drawn["robustness"] = (
    robustness.robustness_figure(rho, results.kinds) if rho else None
  )
  (window,) = read(
    ("last", "history"), {"window": "soups/window/window"}
  ).values() or (None,)
  drawn["window_curve"] = window and searches.window_figure(window)
  for name in chosen:  # None deletes the figure of an earlier report.
    drawn[_picture_of(name)] = (
      figures.greedy_trajectory(greedy[name]) if name in greedy else None
    )
  hyperparameters = document.hyperparameters_of(
    workdir / "ingredients", results.models("ingredient")
  )
  models = document.models_of(workdir / "results.jsonl", hyperparameters)
  names = [model["name"] for model in models]
  pictures = {
    name: document.save(figure, workdir / "figures" / f"{name}.png", names)
    for name, figure in drawn.items()
  }
  config = workdir / "config.json"
  page = _page(
    results,
    {name: len(trace["selected"]) for name, trace in members.items()},
    greedy,
    pictures,
    hyperparameters,
    files.read_json(config) if config.is_file() else None,
    rho,
    models,
  )
  files.write_text(workdir / "report.html", page)
  return workdir / "report.html"


def _picture_of(greedy: str) -> str:
  """Returns the file name, without suffix, of a greedy soup's figure."""
  return greedy.replace("greedy", "greedy_trajectory", 1)


def _read(path: pathlib.Path, fields: Sequence[str]) -> dict[str, Any]:
  """Reads a record, or raises a ValueError if a field is missing."""
  record = files.read_json(path)
  if not isinstance(record, dict) or set(fields) - set(record):
    raise ValueError(
      f"{path} must be a JSON object with {' and '.join(fields)}. Delete it "
      "and cook again."
    )
  return record


def _page(
  results: Results,
  sizes,
  greedy,
  pictures,
  hyperparameters,
  config,
  rho,
  models,
) -> str:
  kind = "Models" if results.choices.reference else "Model soups"
  title = f"{kind} on {html.escape(results.dataset)}"
  body = [f"<h1>{title}</h1>", sections.summary(results, sizes, greedy)]

  def show(name, heading, caption):
    if saved := pictures.get(name):
      body.append(document.figure(saved, heading, caption))

  show(
    "accuracy_plane",
    "Accuracy on test and under shift",
    sections.plane_caption(results),
  )
  show("shift_plane", "Accuracy on each shift", sections.SHIFTS_CAPTION)
  body.append("<h2>Accuracy on every set</h2>")
  body.append(sections.results_section(results, sizes))
  if table := comparison.metrics_section(results, sizes):
    body.append(f"<h2>Further metrics</h2>\n{table}")
  if table := unseen.section(results, sizes):
    body.append(f"<h2>{unseen.TITLE}</h2>\n{table}")
  if table := comparison.probes_section(results):
    body.append(f"<h2>Probes on other datasets</h2>\n{table}")
  metrics = results.choices.greedy
  for name, trace in greedy.items():
    by = f" by {html.escape(in_words(metrics[name]))}" * (len(metrics) > 1)
    show(
      _picture_of(name),
      f"The decisions of the greedy soup{by}",
      sections.greedy_caption(trace),
    )
  show("coefficients", "Learned coefficients", sections.LEARNED_CAPTION)
  show(
    "wise_ft_curve",
    "Between the initial model and the best ingredient",
    sections.WISE_FT_CAPTION,
  )
  show("window_curve", "The last checkpoints of a run", sections.WINDOW_CAPTION)
  if rho:
    caption = html.escape(robustness.about(rho))
    show("robustness", robustness.TITLE, caption)
    body.append(robustness.section(rho, results, sizes))
  if table := sections.calibration_section(results, sizes):
    body.append(f"<h2>Calibration</h2>\n{table}")
  if results.models("ingredient"):
    body.append("<h2>The ingredients</h2>")
    body.append(sections.ingredients_section(results, greedy, hyperparameters))
  if config is not None:
    body.append(document.configuration(config))
  return document.document(title, body, models)
