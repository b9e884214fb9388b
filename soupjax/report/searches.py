# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Tables, figures and the HTML report of a search."""

from collections.abc import Mapping, Sequence
import html
import os
import pathlib
from typing import Any

from matplotlib.figure import Figure
import numpy as np

from soupjax import files
from soupjax.report import figures, heatmaps, sections
from soupjax.report import tables as report_tables
from soupjax.report.style import BLUE, DPI, ORANGE, styled
from soupjax.report.web import document


@styled
def search_figure(
  title: str,
  history: Sequence[Mapping[str, Any]],
  axis: str = "Coefficient",
) -> Figure:
  """Draws scores against a coefficient, or the objective by evaluation number.

  Args:
    title: title of the figure.
    history: candidates with "coefficients", "scores" (dataset -> score),
      "value" (the objective) and "chosen", as in `soupjax.search.Search`.
    axis: name of the coefficient, if there is only one.

  Returns:
    The figure. With one coefficient, a line for each dataset and a thick one
    for the objective, unless it is the score on a single dataset; otherwise
    points for candidates and a line for the best so far.

  Raises:
    ValueError: if there are no candidates.
  """
  if not history:
    raise ValueError("There is nothing to draw: the search has no candidates.")
  figure = Figure(figsize=(4.2, 2.9), dpi=DPI)
  axes = figure.subplots()
  axes.set_title(title, loc="left", parse_math=False)
  best = next(c for c in history if c["chosen"])
  if len(best["coefficients"]) == 1:
    curve = sorted(history, key=lambda c: c["coefficients"])
    _draw_curve(axes, curve, best, axis)
    return figure
  values = np.array([c["value"] for c in history])
  trials = np.arange(1, len(values) + 1)
  axes.plot(trials, values, ".", color=BLUE, label="candidate")
  axes.plot(trials, np.maximum.accumulate(values), color=ORANGE, label="best")
  axes.set_xlabel("Evaluation")
  axes.set_ylabel("Objective on minival")
  axes.legend()
  return figure


def window_figure(record: Mapping[str, Any]) -> Figure:
  """Draws the scores of all windows in the `window.json` of a cooked run."""
  return search_figure("", record["history"], "Last checkpoints averaged")


def _draw_curve(axes, curve, best, axis):
  at = [c["coefficients"][0] for c in curve]
  values = [c["value"] for c in curve]
  for name in best["scores"]:
    scores = [c["scores"][name] for c in curve]
    axes.plot(at, scores, marker=".", label=name)
  if len(best["scores"]) > 1 or values != [c["scores"][name] for c in curve]:
    style = {"color": "black", "linewidth": 1.8}
    axes.plot(at, values, label="objective", **style)
  chosen = best["coefficients"][0]
  axes.axvline(chosen, color="0.4", linestyle="--", linewidth=1)
  axes.set_xlabel(f"{axis} (dashed: chosen)")
  axes.set_ylabel("Score on minival")
  axes.legend(fontsize=6, ncols=2)


# --- Tables and the page ------------------------------------------------------


def tables_text(tables: Sequence[Mapping[str, Any]]) -> str:
  """Formats tables as plain text.

  Args:
    tables: objects with "title", "columns", "rows" (label -> values, None for
      an empty cell), "signed" (whether the values are differences) and
      optionally "percent" (whether they are fractions, to be shown in percent;
      by default, they are).
  """
  parts = []
  for table in tables:
    rows = _rows(table)
    width = max(map(len, rows))
    sizes = [max(7, len(column)) for column in table["columns"]]
    lines = [table["title"]]
    for label, cells in {"": table["columns"], **rows}.items():
      padded = [cell.rjust(size) for cell, size in zip(cells, sizes)]
      lines.append("  ".join([label.ljust(width), *padded]))
    parts.append("\n".join(lines))
  return "\n\n".join(parts)


def _rows(table) -> dict[str, list[str]]:
  """Returns label -> cells of a table."""
  sign = "+" if table["signed"] else ""
  scale, form = (100, ".2f") if table.get("percent", True) else (1, ".4g")
  return {
    label: ["" if v is None else f"{scale * v:{sign}{form}}" for v in values]
    for label, values in table["rows"].items()
  }


def _html_table(table) -> str:
  rows = []
  for label, cells in _rows(table).items():
    texts = (cell.replace("-", "\N{MINUS SIGN}") for cell in cells)
    rows.append(
      f'<tr><th scope="row">{html.escape(label)}</th>'
      + "".join(f"<td>{text}</td>" for text in texts)
      + "</tr>"
    )
  columns = ["model", *map(html.escape, table["columns"])]
  heading = f"<h2>{html.escape(table['title'])}</h2>"
  return f"{heading}\n{report_tables.as_html(columns, rows)}"


def write_search_report(workdir: str | os.PathLike) -> pathlib.Path:
  """Writes `report.html` and `figures/` of a finished search.

  Args:
    workdir: directory with `search.json`, and optionally `config.json`.

  Returns:
    The path of the report.
  """
  workdir = files.path_of(workdir)
  record = files.read_json(workdir / "search.json")
  title = f"Search: {html.escape(record['method'])}"
  body = [f"<h1>{title}</h1>", f"<p>{html.escape(record['summary'])}</p>"]
  body += map(_html_table, record["tables"])
  if record.get("differences"):
    heading, *lines = map(html.escape, record["differences"])
    items = "".join(f"<li>{line}</li>" for line in lines)
    body.append(f"<p>{heading}</p><ul>{items}</ul>")
  for name, history in record["searches"].items():
    body.append(
      document.picture(
        search_figure(name, history, record["axis"]),
        workdir / "figures" / f"{name}.png",
        f"The candidates of {html.escape(name)}",
        "Scores of all candidates on minival, where the choice was made.",
      )
    )
  for name, trace in record.get("greedy", {}).items():
    figure = figures.greedy_trajectory(trace)
    path = workdir / "figures" / f"{name}.png"
    heading = f"The decisions of {html.escape(name)}"
    caption = sections.greedy_caption(trace)
    body.append(document.picture(figure, path, heading, caption))
  if record.get("learned"):
    figure = heatmaps.coefficients(record["learned"])
    path = workdir / "figures" / "coefficients.png"
    body.append(document.picture(figure, path, "Learned coefficients"))
  config = workdir / "config.json"
  if config.is_file():
    body.append(document.configuration(files.read_json(config)))
  files.write_text(workdir / "report.html", document.document(title, body))
  return workdir / "report.html"
