# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Figures of a run's results, drawn without pyplot.

Without pyplot, the backend and settings of a notebook stay as they are.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
import numpy as np

from soupjax.report import tables
from soupjax.report.heatmaps import name_ticks
from soupjax.report.labels import place_labels
from soupjax.report.results import SHIFTS, Results
from soupjax.report.style import (
  BLUE,
  DPI,
  GREEN,
  MODEL,
  ORANGE,
  frame,
  grouped,
  quoted,
  scatter,
  styled,
)

# Kind -> legend, marker, marker size, fill colour, edge colour, edge width.
_MARKS = {
  "ingredient": ("ingredient", "o", 22, "#B0B0B0", "#555555", 0.5),
  "mean": ("mean ingredient", "X", 46, "#555555", "white", 0.6),
  "best": ("best ingredient on minival", "D", 42, GREEN, "black", 0.8),
  "pretrained": ("initial model", "s", 42, "white", "black", 1.0),
  "soup": ("soup (cost of one)", "*", 130, ORANGE, "black", 0.6),
  "ensemble": ("ensemble (cost of members)", "^", 52, BLUE, "black", 0.6),
  "model": ("model", "o", 42, ORANGE, "black", 0.6),
}
# Kind -> the group of marks that the page can show and hide.
_GROUPS = {
  "ingredient": "ingredients",
  "mean": "ingredients",
  "best": "best or reference",
  "pretrained": "initial model",
  "soup": "soups",
  "ensemble": "ensembles",
  "model": "models",
}
_COLOURS = [to_hex(c) for c in matplotlib.colormaps["tab20"].colors]
_WISE_FT = "WiSE-FT"
_ALPHA = "\N{GREEK SMALL LETTER ALPHA}"


@styled
def accuracy_plane(results: Results) -> Figure | None:
  """Draws mean accuracy over the shifts against accuracy on test.

  As Figure 1 of arXiv 2203.05482, with all models and the WiSE-FT path.

  Returns:
    The figure, in percent; None without "test" or without shifts.
  """
  points: dict[str, dict[str, tuple[float, float]]] = {k: {} for k in _MARKS}
  for model, kind in results.kinds.items():
    kind = "best" if model == results.best else kind
    if kind in points and (point := _point(results, model)):
      points[kind][model] = point
  ingredients = tables.mean_row(results).models
  if len(ingredients) > 1 and (point := _point(results, *ingredients)):
    points["mean"]["mean ingredient"] = point
  path = {
    alpha: point
    for alpha, model in results.wise_ft.items()
    if (point := _point(results, model))
  }
  rest = list(points["ingredient"].values())
  inside = [
    *(p for k in points if k != "ingredient" for p in points[k].values()),
    *path.values(),
  ]
  if not inside:
    return None
  figure = Figure(figsize=(5.6, 5.0), dpi=DPI)
  axes = figure.add_subplot()
  limits = [frame([p[i] for p in inside], [p[i] for p in rest]) for i in (0, 1)]
  axes.set(xlim=limits[0], ylim=limits[1])
  axes.set_xlabel("Accuracy on test (%)")
  axes.set_ylabel(f"Mean accuracy over {_shifts(results)} (%)")
  if len(results.shifts) == 1:
    shift = results.shifts[0]
    axes.set_ylabel(f"Accuracy on {shift} (%)", parse_math=False)
  if path:
    style = {"color": "black", "linewidth": 1.1, "markersize": 2.4, "zorder": 2}
    label = "WiSE-FT, initial to best"
    (line,) = axes.plot(*zip(*path.values()), "-o", label=label, **style)
    grouped(line, _WISE_FT)
    # Named points on the path, for the page's tooltips.
    names = {results.wise_ft[alpha]: place for alpha, place in path.items()}
    dots = scatter(axes, names, s=9, c="black", zorder=2.1)
    grouped(dots, _WISE_FT)
  for order, (kind, places) in enumerate(points.items()):
    if places:
      style = _mark(kind)
      if kind == "best" and results.choices.reference:
        style["label"] = "reference"
      drawn = scatter(axes, places, zorder=3 + order / 10, **style)
      grouped(drawn, _GROUPS[kind])
  low = limits[0][0], limits[1][0]
  if outside := len([1 for x, y in rest if x < low[0] or y < low[1]]):
    axes.text(
      0.01,
      0.01,
      f"{outside} ingredient{'s' * (outside != 1)} below the frame",
      transform=axes.transAxes,
      fontsize=7.5,
      style="italic",
      color="0.3",
    )
  figure.legend(loc="outside lower center", ncols=3, columnspacing=1.2)
  _label_plane(axes, results, points, path)
  return figure


def _mark(kind: str) -> dict[str, Any]:
  """Returns the style of the points of a kind."""
  label, marker, size, colour, edge, width = _MARKS[kind]
  style = {"label": label, "marker": marker, "s": size, "c": colour}
  return style | {"edgecolors": edge, "linewidths": width}


def _point(results: Results, *models: str) -> tuple[float, float] | None:
  """Returns the models' mean accuracy on test and on the shifts, or None."""
  row = tables.Row(label="", models=models, kind="")
  x, y = row.accuracy(results, "test"), row.accuracy(results, SHIFTS)
  return None if x is None or y is None else (x, y)


def _shifts(results: Results) -> str:
  count = len(results.shifts)
  return f"{count} shift" + "s" * (count != 1)


def _label_plane(axes, results, points, path) -> None:
  """Labels all models except other ingredients, and the path's midpoint."""
  places, texts, groups = [], [], []
  for kind in ("pretrained", "best", "soup", "ensemble", "model"):
    for model, place in points[kind].items():
      places.append(place)
      groups.append(_GROUPS[kind])
      text = tables.label(model, kind, results)
      named = tables.is_labelled(model, results)
      if named and not text.startswith("WiSE-FT"):
        text = text[0].lower() + text[1:]
      if kind == "best":
        reference = results.choices.reference
        text = f"{model} (reference)" if reference else "best ingredient"
      texts.append(text)
  if 0.5 in path:
    places.append(path[0.5])
    groups.append(_WISE_FT)
    texts.append(f"{_ALPHA} = 0.5")
  obstacles = [p for kind in points.values() for p in kind.values()]
  line = list(path.values())
  for start, end in zip(line, line[1:]):
    obstacles += [tuple(p) for p in np.linspace(start, end, 6)]
  labels = place_labels(axes, places, texts, obstacles, fontsize=8)
  for drawn, group in zip(labels, groups):
    grouped(drawn, group)


@styled
def shift_plane(results: Results) -> Figure | None:
  """Draws accuracy on each shift against accuracy on test, a colour per shift.

  Returns:
    The figure, in percent; None without "test" or with fewer than two shifts,
    for which `accuracy_plane` is enough.
  """
  kinds = {
    model: "best" if model == results.best else kind
    for model, kind in results.kinds.items()
    if kind in _MARKS
  }
  points = {
    (split, kind): {
      model: (x, y)
      for model in kinds
      if kinds[model] == kind
      and (x := results.accuracy(model, "test")) is not None
      and (y := results.accuracy(model, split)) is not None
    }
    for split in results.shifts
    for kind in _GROUPS
  }
  inside, rest = [], []
  for (_, kind), places in points.items():
    (rest if kind == "ingredient" else inside).extend(places.values())
  if len(results.shifts) < 2 or not inside:
    return None
  figure = Figure(figsize=(5.6, 5.6), dpi=DPI)
  axes = figure.add_subplot()
  limits = [frame([p[i] for p in inside], [p[i] for p in rest]) for i in (0, 1)]
  axes.set(xlim=limits[0], ylim=limits[1])
  axes.set_xlabel("Accuracy on test (%)")
  axes.set_ylabel("Accuracy on the shift (%)")
  handles = []
  for k, split in enumerate(results.shifts):
    colour = _COLOURS[k % len(_COLOURS)]
    for order, kind in enumerate(_GROUPS):
      places = points[split, kind]
      if places:
        style = _mark(kind) | {"c": colour, "label": split}
        style |= {"s": style["s"] / 2, "edgecolors": "black"}
        style |= {"alpha": 0.4 if kind == "ingredient" else 1}
        style["linewidths"] = 0.3
        drawn = scatter(axes, places, zorder=3 + order / 10, **style)
        grouped(drawn, split, _GROUPS[kind])
    name = split if len(split) <= 24 else split[:22] + "..."
    # Legends leave out names that start with an underscore, hence the space.
    handles.append(Patch(color=colour, label=f" {name}"))
  for kind in _GROUPS:
    if any(points[split, kind] for split in results.shifts):
      text, marker, _, _, _, _ = _MARKS[kind]
      handles.append(
        Line2D([], [], linestyle="", marker=marker, color="0.6", label=text)
      )
  legend = figure.legend(
    handles=handles, loc="outside lower center", ncols=4, fontsize=7
  )
  for text in legend.get_texts():
    text.set_parse_math(False)
  return figure


@styled
def greedy_trajectory(trace: Mapping[str, Any]) -> Figure | None:
  """Draws the held-out score of every candidate of a greedy soup.

  Args:
    trace: `greedy.json`: "history", a list of objects with "name", "accepted"
      and "score" (if None, the candidate was rejected early, and "bound" is the
      best score it could have reached); and optionally "metric". Without it,
      scores that are all in [0, 1] are taken for accuracies.

  Returns:
    The figure, with accuracies in percent; None if nothing was tried.
  """
  history = trace["history"]
  if not history:
    return None
  early = np.array([d["score"] is None for d in history])
  taken = np.array([d["accepted"] for d in history], bool)
  scores = np.array(
    [d["bound"] if d["score"] is None else d["score"] for d in history], float
  )
  metric = trace.get("metric")
  percent = metric == "prec@1"
  if metric is None:
    percent = scores.min() >= 0 and scores.max() <= 1
  scores = 100 * scores if percent else scores
  places = np.arange(len(scores))
  # The score of the soup after each decision; the first candidate starts it.
  soup = scores[np.maximum.accumulate(np.where(taken, places, 0))]

  figure = Figure(figsize=(max(5.6, 0.13 * len(scores)), 3.5), dpi=DPI)
  axes = figure.add_subplot()
  low, high = frame(scores[taken], scores[~taken], 1.0 if percent else 0.01)
  axes.set(xlim=(-0.6, len(scores) - 0.4), ylim=(low, high))
  name = "Held-out score" if metric is None else f"{metric} on minival"
  if scores.max() < 0 and metric:  # Scores are negated metrics.
    name = f"\N{MINUS SIGN} {name}"
  axes.set_ylabel("Accuracy on minival (%)" if percent else name)
  axes.stairs(
    soup,
    np.arange(len(scores) + 1) - 0.5,
    baseline=None,
    color=GREEN,
    linewidth=1.4,
    label="soup so far",
  )

  def mark(rows, heights, label, **style):
    if rows.any():
      urls = [quoted(MODEL, d["name"]) for d, row in zip(history, rows) if row]
      style |= {"label": label, "urls": urls}
      axes.scatter(places[rows], heights[rows], zorder=3, **style)

  below = ~taken & ~early & (scores < low)
  edge = {"edgecolors": "black", "linewidths": 0.6}
  mark(taken, scores, "accepted", s=46, c=BLUE, **edge)
  cross = {"marker": "x", "s": 40, "c": ORANGE, "linewidths": 1.6}
  mark(~taken & ~early & ~below, scores, "rejected", **cross)
  arrow = {"marker": "v", "s": 40, "c": ORANGE, "clip_on": False}
  mark(below, np.full(len(scores), low), "rejected, below frame", **arrow)
  for place, score in zip(places[below], scores[below]):
    text = {"ha": "center", "fontsize": 7, "textcoords": "offset points"}
    axes.annotate(f"{score:.1f}", (place, low), (0, 6), **text)
  if early.any():
    axes.errorbar(
      places[early],
      scores[early],
      yerr=0.06 * (high - low),
      uplims=True,
      fmt="_",
      color=ORANGE,
      markersize=8,
      capsize=2.5,
      zorder=3,
      label="rejected early: at most",
    )
  name_ticks(
    axes, [d["name"] for d in history], "Candidate, in the order tried"
  )
  figure.legend(loc="outside upper center", ncols=4, columnspacing=1.2)
  return figure


@styled
def wise_ft_curve(results: Results) -> Figure | None:
  """Draws accuracy on the line from the initial model to the best ingredient.

  Returns:
    A figure with a panel for test, with 95 % intervals, and one for the mean
    over shifts, each on its own scale, in percent; None if fewer than two
    interpolations were evaluated.
  """
  curves = {}
  for split in ("test", SHIFTS):
    curve = {a: results.accuracy(m, split) for a, m in results.wise_ft.items()}
    if len(curve) >= 2 and None not in curve.values():
      curves[split] = curve
  if not curves:
    return None
  figure = Figure(figsize=(2.8 * max(2, len(curves)), 2.6), dpi=DPI)
  panels = figure.subplots(1, len(curves), squeeze=False)[0]
  for axes, (split, curve) in zip(panels, curves.items()):
    title = "Test" if split == "test" else f"Mean of {_shifts(results)}"
    axes.set_title(title, loc="left")
    style = {"color": "black", "markersize": 3.5, "linewidth": 1.2}
    axes.plot([*curve], [*curve.values()], "-o", label="WiSE-FT", **style)
    if split == "test":
      intervals = [
        tables.interval(results, results.wise_ft[alpha], split)
        for alpha in curve
      ]
      style = {"color": "0.88", "linewidth": 0, "label": "95 % interval"}
      axes.fill_between([*curve], *np.transpose(intervals), **style)
    greedy = results.accuracy("greedy", split)
    if greedy is not None:
      style = {"color": ORANGE, "linestyle": "--", "linewidth": 1.3}
      axes.axhline(greedy, label="greedy soup", **style)
    axes.set_xlabel(f"{_ALPHA} (0: initial, 1: best)")
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
  panels[0].set_ylabel("Accuracy (%)")
  handles, texts = panels[0].get_legend_handles_labels()
  figure.legend(handles, texts, loc="outside upper center", ncols=3)
  return figure
