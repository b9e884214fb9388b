# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Effective robustness: accuracy under shift above a line through baselines."""

from collections.abc import Iterator, Mapping
import html
import math
import textwrap
from typing import Any

from matplotlib.figure import Figure
import numpy as np

from soupjax.report import tables
from soupjax.report.results import Results
from soupjax.report.style import (
  BLUE,
  DPI,
  GREEN,
  ORANGE,
  grouped,
  scatter,
  styled,
)

TITLE = "Effective robustness"
_COLORS = {"soup": ORANGE, "ensemble": BLUE, "pretrained": "white"}


def about(record: Mapping[str, Any]) -> str:
  """Explains rho, the line and the interval of a `robustness.json`."""
  line = record["line"]
  return (
    "rho: mean accuracy over shifts minus the accuracy that a line fitted to "
    f"{record['baselines']} (n = {line['n']}, slope {line['slope']:.2f} on "
    "logit axes) predicts from the accuracy on test, in points "
    "(arXiv 2007.00644). The 95 % interval covers the uncertainty of the line "
    "alone. ~: the interval contains zero."
  )


def table(
  record: Mapping[str, Any] | None,
  results: Results,
  sizes: Mapping[str, int] | None = None,
) -> str:
  """Formats the rho of all models as plain text; "" without a record."""
  if record is None:
    return ""
  lines = [f"{TITLE}{'':<36}{'rho':>10}{'interval':>20}"]
  for name, rho in _rows(record, results, sizes):
    name = "".join(c if c.isprintable() else "?" for c in name)
    lines.append(f"{name[:50]:<52}{_value(rho):>14}{_ends(rho):>20}")
  return "\n".join([*lines, *textwrap.wrap(about(record), 100)])


def section(
  record: Mapping[str, Any], results: Results, sizes: Mapping[str, int]
) -> str:
  """Formats the rho of all models as an HTML table."""
  body = [
    f'<tr><th scope="row">{html.escape(name)}</th><td>{_value(rho)}</td>'
    f"<td>{_ends(rho)}</td></tr>"
    for name, rho in _rows(record, results, sizes)
  ]
  columns = ("model", "rho", "95 % interval")
  return tables.as_html(columns, body)


def _rows(record, results, sizes) -> Iterator[tuple[str, Mapping[str, float]]]:
  for row in tables.rows(results, sizes):
    if len(row.models) == 1 and row.models[0] in record["models"]:
      yield row.label, record["models"][row.models[0]]


def _value(rho: Mapping[str, float]) -> str:
  unclear = rho["low"] <= 0 <= rho["high"]
  return tables.signed(100 * rho["rho"]) + " ~" * unclear


def _ends(rho: Mapping[str, float]) -> str:
  return f"{100 * rho['low']:.1f} to {100 * rho['high']:.1f}"


@styled
def robustness_figure(
  record: Mapping[str, Any], kinds: Mapping[str, str]
) -> Figure:
  """Draws accuracies on logit axes, with the line through the baselines.

  Args:
    record: `robustness.json`: "points", baseline -> accuracies on test and
      under shift; "line", with "slope" and "intercept"; "models", model -> an
      object with "accuracy" (on test) and "shifted".
    kinds: model -> one of `results.KINDS`.
  """
  figure = Figure(figsize=(5.2, 4.2), dpi=DPI)
  axes = figure.add_subplot()
  points = np.array(list(record["points"].values()), float)
  style = {"s": 18, "c": "#B0B0B0", "edgecolors": "#555555", "linewidths": 0.5}
  named = dict(zip(record["points"], _logit(points).tolist()))
  drawn = scatter(axes, named, label="baseline", **style)
  grouped(drawn, "baselines")
  shown, places = dict.fromkeys(kinds.values()), [points]
  for kind in shown:
    found = {
      name: (model["accuracy"], model["shifted"])
      for name, model in record["models"].items()
      if kinds.get(name) == kind and 0 < model["shifted"] < 1
    }
    if kind == "ingredient" and record["baselines"] == "the ingredients":
      continue
    if found:
      places.append(np.array(list(found.values())))
      named = dict(zip(found, _logit(places[-1]).tolist()))
      drawn = scatter(
        axes, named, label=kind, s=34, zorder=3, linewidths=0.6,
        c=_COLORS.get(kind, GREEN), edgecolors="black",
      )  # fmt: skip
      grouped(drawn, kind)
  xs = _logit(np.concatenate(places)[:, 0])
  ends = np.array([xs.min(), xs.max()])
  line = record["line"]
  heights = line["intercept"] + line["slope"] * ends
  axes.plot(ends, heights, color="black", linewidth=1, label="fitted line")
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_formatter(lambda x, _: f"{100 / (1 + math.exp(-x)):.3g}")
  axes.set_xlabel("Accuracy on test (%, logit axis)")
  axes.set_ylabel("Mean accuracy over shifts (%, logit axis)")
  axes.legend(fontsize=7)
  return figure


def _logit(accuracies: np.ndarray) -> np.ndarray:
  return np.log(accuracies / (1 - accuracies))
