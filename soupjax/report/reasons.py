# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Figures that explain why averaging weights gains or loses accuracy."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
import numpy as np

from soupjax.report.style import BLUE, DPI, ORANGE, contours, styled

# Name of a metric -> label of its colour bar.
_LABELS = {"loss": "Loss (nats)", "error": "Error (%)"}


@styled
def plane_figure(record: Mapping[str, Any]) -> Figure:
  """Draws metrics in the plane through three models.

  Args:
    record: `reasons/plane.json`, the fields of `analysis.plane.Plane`; "error"
      is a fraction.

  Returns:
    The figure, with one panel per metric. Contour levels are denser near the
    minimum, the models are marked, and a star marks the lowest grid point.
  """
  values = {k: np.asarray(v, float) for k, v in record["values"].items()}
  figure = Figure(figsize=(4.1 * len(values), 3.6), dpi=DPI)
  panels = figure.subplots(1, len(values), squeeze=False)[0]
  xs, ys = (np.asarray(record[axis], float) for axis in ("xs", "ys"))
  for axes, (metric, grid) in zip(panels, values.items()):
    grid = 100 * grid if metric == "error" else grid
    low, high = grid.min(), grid.max()
    # Levels must increase, even if all values are equal.
    room = max(high - low, 1e-9 * max(abs(low), 1.0))
    levels = low + room * np.linspace(0, 1, 15) ** 2
    shades = {"levels": levels, "cmap": "viridis_r", "extend": "both"}
    image = contours(axes, xs, ys, grid, **shades)
    row, column = np.unravel_index(grid.argmin(), grid.shape)
    star = {"marker": "*", "s": 90, "c": ORANGE, "edgecolors": "black"}
    axes.scatter(xs[column], ys[row], zorder=3, linewidths=0.5, **star)
    for name, (x, y) in zip(record["names"], record["corners"]):
      axes.scatter(x, y, s=26, c="white", edgecolors="black", zorder=3)
      text = {"ha": "center", "fontsize": 7, "parse_math": False}
      text["bbox"] = {"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.8}
      name = name if len(name) <= 24 else name[:22] + "..."
      place = {"xytext": (0, 7), "textcoords": "offset points"}
      axes.annotate(name, (x, y), **place, **text)
    axes.set_aspect("equal")
    axes.set_xlabel("Distance along $u_1$")
    axes.grid(False)
    figure.colorbar(
      image, ax=axes, shrink=0.85, label=_LABELS.get(metric, metric),
      ticks=levels[[0, 6, 10, 14]], format="%.3g",
    )  # fmt: skip
  panels[0].set_ylabel("Distance along $u_2$")
  return figure


@styled
def pairs_figure(record: Mapping[str, Any]) -> Figure:
  """Draws gains of averaging pairs against angle and distance.

  Args:
    record: `reasons/pairs.json`: "pairs", a list of objects with "gain",
      "angle" (degrees or None), "distance", "color" (the larger value of a
      hyperparameter, or None) and "seed_only"; "metric"; "color", the name of
      the hyperparameter; "curves", a list of objects with "pair" (two names),
      "at" (shares of the second model) and lists "loss" and "error".

  Returns:
    The figure: two scatter plots and, if there are curves, their plots below.
  """
  pairs, curves = record["pairs"], record["curves"]
  rows = 2 if curves else 1
  figure = Figure(figsize=(7.2, 2.9 * rows), dpi=DPI)
  panels = figure.subplots(rows, 2, squeeze=False)
  percent = 100 if record["metric"] == "prec@1" else 1
  gains = percent * np.array([p["gain"] for p in pairs])
  known = [p["color"] for p in pairs]
  colored = None not in known and len(set(known)) > 1
  colors = np.array(known, float) if colored else None
  same = np.array([p["seed_only"] for p in pairs], bool)
  image = None
  for axes, key, label in (
    (panels[0, 0], "angle", "Angle at the start (degrees)"),
    (panels[0, 1], "distance", "Distance between the two models"),
  ):
    places = np.array([p[key] for p in pairs], float)  # None becomes NaN.
    axes.axhline(0, color="0.5", linewidth=0.8)
    for rows_of, marker, text in ((~same, "o", None), (same, "^", "seed only")):
      if not rows_of.any():
        continue
      style = {"c": BLUE}
      if colored:
        style = {"c": colors[rows_of], "vmin": colors.min()}
        style |= {"vmax": colors.max(), "cmap": "viridis"}
      image = axes.scatter(
        places[rows_of], gains[rows_of], s=24, marker=marker, label=text,
        edgecolors="black", linewidths=0.4, **style,
      )  # fmt: skip
    axes.set_xlabel(label)
  unit = "points" if percent == 100 else record["metric"]
  panels[0, 0].set_ylabel(f"Gain of the midpoint ({unit})")
  if same.any():
    panels[0, 0].legend()
  if colored:
    label = f"Larger {record['color']}"
    figure.colorbar(image, ax=list(panels[0]), label=label, pad=0.02)
  for axes, metric in zip(panels[1] if curves else (), ("loss", "error")):
    for curve in curves:
      values = (100 if metric == "error" else 1) * np.array(curve[metric])
      label = " to ".join(
        n if len(n) <= 20 else n[:18] + ".." for n in curve["pair"]
      )
      axes.plot(curve["at"], values, "-o", markersize=2.5, label=label)
    axes.set_xlabel("Share of the second model")
    axes.set_ylabel(_LABELS[metric])
  if curves and len(curves) <= 6:
    panels[1, 0].legend(fontsize=6)
  return figure


@styled
def ensemble_figure(record: Mapping[str, Any]) -> Figure:
  """Draws soups of two models against ensembles of the same models.

  Args:
    record: `reasons/ensemble.json`: "pairs", a list of objects with the fields
      of `analysis.ensembles.Relation`.

  Returns:
    The figure: predicted and true differences in loss, in nats, on the left;
    errors in percent on the right.
  """
  figure = Figure(figsize=(7.2, 3.3), dpi=DPI)
  panels = figure.subplots(1, 2)
  for axes, (x, y), labels, scale in (
    (
      panels[0],
      ("predicted", "true"),
      ("Predicted soup - ensemble (nats)", "True soup - ensemble (nats)"),
      1,
    ),
    (
      panels[1],
      ("ensemble_error", "soup_error"),
      ("Error of the ensemble (%)", "Error of the soup (%)"),
      100,
    ),
  ):
    points = scale * np.array([[p[x], p[y]] for p in record["pairs"]], float)
    axes.scatter(*points.T, s=24, c=BLUE, edgecolors="black", linewidths=0.4)
    axes.axline((points.mean(), points.mean()), slope=1, color="0.5", lw=0.8)
    if scale == 1:
      axes.axhline(0, color="0.8", lw=0.8)
      axes.axvline(0, color="0.8", lw=0.8)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
  return figure


def mean_of_pairs(matrix: Any, first: int = 0) -> float:
  """Returns the mean of the finite values above the diagonal, or NaN.

  Args:
    matrix: (M, M) numbers or None.
    first: index of the first row and column to include.
  """
  return float(np.mean(_pairs_of(matrix, first) or [np.nan]))


def _pairs_of(matrix, first: int) -> list[float]:
  values = np.array(matrix, float)[first:, first:]
  values = values[np.triu_indices(len(values), 1)]
  return values[np.isfinite(values)].tolist()


@styled
def features_figure(record: Mapping[str, Any]) -> Figure:
  """Draws CKA and class separation by layer.

  Args:
    record: `reasons/features.json`: "names" of the M models, optionally with
      "initial" first; "layers", names from input to output; "cka", layer ->
      (M, M) similarities; "separation", layer -> M values.
  """
  layers = record["layers"]
  first = int("initial" in record["names"])
  figure = Figure(figsize=(7.6, 3.6), dpi=DPI)
  left, right = figure.subplots(1, 2)
  between = [_pairs_of(record["cka"][layer], first) for layer in layers]
  _band(left, between, BLUE, "two ingredients")
  if first:
    rows = [np.array(record["cka"][la], float)[0, 1:] for la in layers]
    rows = [row[np.isfinite(row)].tolist() for row in rows]
    _band(left, rows, ORANGE, "initial and ingredient")
  separation = [
    np.array(record["separation"][layer], float) for layer in layers
  ]
  _band(
    right, [v[first:][np.isfinite(v[first:])].tolist() for v in separation],
    BLUE, "ingredients",
  )  # fmt: skip
  if first:
    start = [v[0] for v in separation]
    right.plot(start, "-o", color=ORANGE, markersize=3, label="initial")
  names = [n.removeprefix("Transformer/") for n in layers]
  names = [n.replace("encoderblock_", "block ") for n in names]
  for axes, label in ((left, "CKA"), (right, "Class separation")):
    size = min(7, 160 / len(names))
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_ylabel(label)
    axes.legend(fontsize=7)
  return figure


def _band(axes, values, color: str, label: str) -> None:
  """Draws the mean and range of each list, with gaps for empty lists."""
  values = [v or [np.nan] for v in values]
  low, mean, high = ([f(v) for v in values] for f in (min, np.mean, max))
  axes.fill_between(range(len(values)), low, high, color=color, alpha=0.2, lw=0)
  axes.plot(mean, "-o", color=color, markersize=3, label=label)


@styled
def growth_figure(record: Mapping[str, Any]) -> Figure:
  """Draws the size and score of greedy soups against the number of models.

  Args:
    record: `reasons/greedy.json`: "metric"; "counts" (C,); "sizes", "scores"
      and "best", each (orders, C).

  Returns:
    The figure, with means and standard deviations over orders.
  """
  figure = Figure(figsize=(7.2, 2.9), dpi=DPI)
  left, right = figure.subplots(1, 2)
  percent = 100 if record["metric"] == "prec@1" else 1
  for axes, key, scale, color, label in (
    (left, "sizes", 1, BLUE, "greedy soup"),
    (right, "scores", percent, BLUE, "greedy soup"),
    (right, "best", percent, ORANGE, "best model"),
  ):
    values = scale * np.array(record[key], float)
    # A single order has no standard deviation.
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else None
    axes.errorbar(
      record["counts"], values.mean(axis=0), yerr=spread, color=color,
      label=label, marker="o", markersize=3, capsize=2, linewidth=1.2,
    )  # fmt: skip
    axes.set_xlabel("Models to choose from")
  left.set_ylabel("Models in the greedy soup")
  unit = "Accuracy on minival (%)" if percent == 100 else "Score on minival"
  right.set_ylabel(unit)
  right.legend()
  return figure
