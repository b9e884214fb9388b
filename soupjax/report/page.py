# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The report of a run: one self-contained HTML page."""

import base64
from collections.abc import Sequence
import html
import io
import json
import os
import pathlib
from typing import Any

from matplotlib.figure import Figure

from soupjax import files
from soupjax.report import (
  comparison,
  figures,
  heatmaps,
  robustness,
  sections,
  unseen,
)
from soupjax.report.results import Results, in_words, read_run

_CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
figure { margin: 1rem 0; }
figure img { display: block; width: 100%; max-width: 40rem; height: auto; }
figcaption { color: #444; font-size: .9rem; max-width: 46rem;
  margin: .5rem 0 0; overflow-wrap: anywhere; }
p, ul { max-width: 46rem; }
p, li { overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0;
  font-size: .78rem; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .4rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid #ddd; }
thead th { border-bottom: 2px solid #333; vertical-align: bottom; }
th:first-child { text-align: left; position: sticky; left: 0;
  background: #fff; }
tbody th { font-weight: normal; white-space: normal; min-width: 6rem;
  overflow-wrap: anywhere; }
td small { display: block; color: #555; font-size: .72rem; }
td.mean, th.mean { border-left: 1px solid #999; }
tr.best > *, tr.best > th:first-child { background: #eef6f2; }
tr.ensemble > * { font-style: italic; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; }
@media print {
  @page { size: A4; margin: 14mm; }
  body { font-size: 10pt; max-width: none; padding: 0; }
  figure, tr, p, li { break-inside: avoid; }
  h2 { break-after: avoid; }
  figure img { max-width: 13.5cm; }
  .wide { overflow: visible; }
  table { font-size: 6.6pt; width: 100%; }
  th, td { padding: 1.2pt 2pt; }
  td small { font-size: 5.2pt; }
  thead th { white-space: normal; }
}
"""


def write_report(workdir: str | os.PathLike) -> pathlib.Path:
  """Writes `report.html` and `figures/*.png` for a finished run.

  The page embeds its figures and has neither scripts nor links. A figure
  without its input is left out.

  Args:
    workdir: directory of the run, with `results.jsonl`. Used if they exist:
      `choices.json`, `config.json`, `soups/NAME/greedy.json`,
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
  for name in chosen:  # None removes an older picture.
    drawn[_picture_of(name)] = (
      figures.greedy_trajectory(greedy[name]) if name in greedy else None
    )
  pictures = {
    name: _save(figure, workdir / "figures" / f"{name}.png")
    for name, figure in drawn.items()
  }
  config = workdir / "config.json"
  page = _page(
    results,
    {name: len(trace["selected"]) for name, trace in members.items()},
    greedy,
    pictures,
    _hyperparameters(workdir / "ingredients", results.models("ingredient")),
    files.read_json(config) if config.is_file() else None,
    rho,
  )
  files.write_text(workdir / "report.html", page)
  return workdir / "report.html"


def _picture_of(greedy: str) -> str:
  """Returns the name of the picture of a greedy soup."""
  return greedy.replace("greedy", "greedy_trajectory", 1)


def _read(path: pathlib.Path, fields: Sequence[str]) -> dict[str, Any]:
  """Reads the record of a soup, or raises a ValueError without the fields."""
  record = files.read_json(path)
  if not isinstance(record, dict) or set(fields) - set(record):
    raise ValueError(
      f"{path} must be an object with {' and '.join(fields)}. Delete it and "
      "cook the soup again."
    )
  return record


def _hyperparameters(
  folder: pathlib.Path, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
  """Reads the hyperparameters of the ingredients that have them on disk."""
  # A name such as "../x" is not in this set and is not opened.
  present = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
  paths = {n: folder / n / "hyperparameters.json" for n in names}
  values = {
    name: files.read_json(path)
    for name, path in paths.items()
    if name in present and path.is_file()
  }
  return {k: v for k, v in values.items() if isinstance(v, dict)}


def _save(figure: Figure | None, path: pathlib.Path) -> bytes | None:
  """Saves a figure; None removes the file of an earlier report."""
  if figure is None:
    path.unlink(missing_ok=True)
    return None
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=figures.DPI)
  files.make_directory(path.parent)
  path.write_bytes(buffer.getvalue())
  return buffer.getvalue()


def _page(
  results: Results, sizes, greedy, pictures, hyperparameters, config, rho
) -> str:
  kind = "Models" if results.choices.reference else "Model soups"
  title = f"{kind} on {html.escape(results.dataset)}"
  body = [f"<h1>{title}</h1>", sections.summary(results, sizes, greedy)]

  def show(name, heading, caption):
    if png := pictures.get(name):
      body.append(_embedded(png, heading, caption))

  show(
    "accuracy_plane",
    "Accuracy on test and under shift",
    sections.plane_caption(results),
  )
  body.append("<h2>Every split</h2>")
  body.append(sections.results_section(results, sizes))
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
    body.append(configuration(config))
  return document(title, body)


def _embedded(png: bytes, heading: str, caption: str) -> str:
  """Returns a heading and a picture as HTML."""
  data = base64.b64encode(png).decode("ascii")
  return (
    f"<h2>{heading}</h2>\n"
    f'<figure><img alt="{heading}" src="data:image/png;base64,{data}">\n'
    f"<figcaption>{caption}</figcaption></figure>"
  )


def picture(
  figure: Figure | None, path: pathlib.Path, heading: str, caption: str = ""
) -> str:
  """Saves a figure and returns it as HTML; "" without a figure."""
  png = _save(figure, path)
  return _embedded(png, heading, caption) if png else ""


def configuration(config: Any) -> str:
  """Returns a config as HTML."""
  text = html.escape(json.dumps(config, indent=2))
  return (
    "<h2>Configuration</h2>\n<details><summary>config.json</summary>"
    f"<pre>{text}</pre></details>"
  )


def document(title: str, body: Sequence[str]) -> str:
  """Returns a page of a title and of parts, which are HTML."""
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>{title}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
    + "\n".join(body)
    + "\n</body>\n</html>\n"
  )
