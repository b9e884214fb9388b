# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The figures, made without pyplot: no notebook finds its backend changed."""

from collections.abc import Mapping, Sequence
import re
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
import numpy as np

from soupjax.report import tables
from soupjax.report.labels import place_labels
from soupjax.report.results import SHIFTS, Results
from soupjax.report.style import BLUE, DPI, GREEN, ORANGE, frame, styled

_PREFIX = "ingredient_"
_MARKS = {
  "ingredient": dict(
    marker="o", s=22, c="#B0B0B0", edgecolors="#555555", linewidths=0.5
  ),
  "mean": dict(
    marker="X", s=46, c="#555555", edgecolors="white", linewidths=0.6
  ),
  "best": dict(marker="D", s=42, c=GREEN, edgecolors="black", linewidths=0.8),
  "pretrained": dict(
    marker="s", s=42, c="white", edgecolors="black", linewidths=1.0
  ),
  "soup": dict(marker="*", s=130, c=ORANGE, edgecolors="black", linewidths=0.6),
  "ensemble": dict(
    marker="^", s=52, c=BLUE, edgecolors="black", linewidths=0.6
  ),
}
_LEGEND = {
  "ingredient": "ingredient",
  "mean": "mean ingredient",
  "best": "best ingredient on minival",
  "pretrained": "initial model",
  "soup": "soup (cost of one)",
  "ensemble": "ensemble (cost of all)",
}


@styled
def accuracy_plane(results: Results) -> Figure | None:
  """Accuracy on test against mean accuracy over the shifts.

  Figure 1 of arXiv 2203.05482, for all models, with the WiSE-FT path.

  Returns:
    The figure, in percent; None if there is no shift or no test.
  """
  points: dict[str, dict[str, tuple[float, float]]] = {k: {} for k in _MARKS}
  for model, kind in results.kinds.items():
    x, y = results.accuracy(model, "test"), results.accuracy(model, SHIFTS)
    kind = "best" if model == results.best else kind
    if kind in points and None not in (x, y):
      points[kind][model] = (x, y)
  mean = tables.mean_row(results)
  place = mean.accuracy(results, "test"), mean.accuracy(results, SHIFTS)
  if len(mean.models) > 1 and None not in place:
    points["mean"]["mean ingredient"] = place
  path = [
    (a, results.accuracy(m, "test"), results.accuracy(m, SHIFTS))
    for a, m in results.wise_ft.items()
  ]
  path = [p for p in path if None not in p]
  keep = [
    p for k, of in points.items() if k != "ingredient" for p in of.values()
  ]
  keep += [p[1:] for p in path]
  if not keep:
    return None
  rest = list(points["ingredient"].values())
  figure = Figure(figsize=(5.6, 5.0), dpi=DPI)
  axes = figure.add_subplot()
  limits = [frame([p[i] for p in keep], [p[i] for p in rest]) for i in (0, 1)]
  axes.set(xlim=limits[0], ylim=limits[1])
  axes.set_xlabel("Accuracy on test (%)")
  axes.set_ylabel(f"Mean accuracy over {_shifts(results)} (%)")
  if path:
    axes.plot(
      *zip(*[p[1:] for p in path]),
      "-o",
      color="black",
      linewidth=1.1,
      markersize=2.4,
      label="WiSE-FT, initial to best",
      zorder=2,
    )
  for order, (kind, of) in enumerate(points.items()):
    if of:
      axes.scatter(
        *zip(*of.values()),
        label=_LEGEND[kind],
        zorder=3 + order / 10,
        **_MARKS[kind],
      )
  _note_outside(axes, rest, limits)
  figure.legend(loc="outside lower center", ncols=3, columnspacing=1.2)
  _label_plane(axes, results, points, path)
  return figure


def _shifts(results: Results) -> str:
  count = len(results.shifts)
  return f"{count} shift" + "s" * (count != 1)


def _note_outside(axes, points, limits):
  low = limits[0][0], limits[1][0]
  outside = len([p for p in points if p[0] < low[0] or p[1] < low[1]])
  if outside:
    axes.text(
      0.01,
      0.01,
      f"{outside} ingredient{'s' * (outside != 1)} below the frame",
      transform=axes.transAxes,
      fontsize=7.5,
      style="italic",
      color="0.3",
    )


def _label_plane(axes, results, points, path):
  """Names all but the plain ingredients, and the middle of the path."""
  places, texts = [], []
  for kind in ("pretrained", "best", "soup", "ensemble"):
    for model, place in points[kind].items():
      places.append(place)
      text = tables.label(model, kind, results)
      if tables.is_labelled(model, results):
        text = text[0].lower() + text[1:]
      texts.append({"best": "best ingredient"}.get(kind, text))
  for alpha, *place in path:
    if alpha == 0.5:
      places.append(tuple(place))
      texts.append("\N{GREEK SMALL LETTER ALPHA} = 0.5")
  obstacles = [p for of in points.values() for p in of.values()]
  for (_, *start), (_, *end) in zip(path, path[1:]):
    obstacles += [tuple(p) for p in np.linspace(start, end, 6)]
  place_labels(axes, places, texts, obstacles, fontsize=8)


def _short(names: Sequence[str]) -> tuple[list[str], str]:
  """Names for ticks, and what of them the axis title must say instead."""
  if all(n.startswith(_PREFIX) and n != _PREFIX for n in names):
    return [n.removeprefix(_PREFIX) for n in names], f" ({_PREFIX}...)"
  return [n if len(n) <= 24 else n[:22] + "..." for n in names], ""


def _name_ticks(axes, names: Sequence[str], title: str) -> None:
  names, what = _short(names)
  upright = max(map(len, names)) <= 3 and len(names) <= 24
  axes.set_xticks(
    range(len(names)),
    names,
    rotation=0 if upright else 90,
    fontsize=min(8, 290 / len(names)),
    parse_math=False,
  )
  axes.set_xlabel(title + what)
  axes.grid(False, axis="x")


@styled
def greedy_trajectory(trace: Mapping[str, Any]) -> Figure | None:
  """Held-out score of every candidate of a greedy soup, and the bar.

  Args:
    trace: `greedy.json`: "history", a list of objects with "name", "score" and
      "accepted", and "bound" where a candidate was rejected early. "metric" is
      the metric; without it, scores that are all fractions are accuracies.

  Returns:
    The figure, accuracies in percent; None if nothing was tried.
  """
  history = trace["history"]
  if not history:
    return None
  early = np.asarray([d["score"] is None for d in history], bool)
  scores = np.asarray(
    [d["bound"] if d["score"] is None else d["score"] for d in history], float
  )
  taken = np.asarray([d["accepted"] for d in history], bool)
  metric = trace.get("metric")
  percent = metric == "prec@1"
  if metric is None:
    percent = scores.min() >= 0 and scores.max() <= 1
  scores = 100 * scores if percent else scores
  bar = _running_bar(scores, taken)
  places = np.arange(len(scores))

  figure = Figure(figsize=(max(5.6, 0.13 * len(scores)), 3.5), dpi=DPI)
  axes = figure.add_subplot()
  unit = 1.0 if percent else 0.01
  low, high = frame(scores[taken], scores[~taken], unit)
  axes.set(xlim=(-0.6, len(scores) - 0.4), ylim=(low, high))
  name = "Held-out score" if metric is None else f"{metric} on minival"
  if scores.max() < 0 and metric:  # Higher is better for every score.
    name = f"\N{MINUS SIGN} {name}"
  axes.set_ylabel("Accuracy on minival (%)" if percent else name)
  axes.stairs(
    bar,
    np.arange(len(scores) + 1) - 0.5,
    baseline=None,
    color=GREEN,
    linewidth=1.4,
    label="soup so far",
  )
  axes.scatter(
    places[taken],
    scores[taken],
    s=46,
    c=BLUE,
    edgecolors="black",
    linewidths=0.6,
    zorder=3,
    label="accepted",
  )
  whole = ~taken & ~early
  _mark_rejected(axes, places[whole], scores[whole], low)
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
  title = "Candidate, in the order tried"
  _name_ticks(axes, [d["name"] for d in history], title)
  figure.legend(loc="outside upper center", ncols=4, columnspacing=1.2)
  return figure


def _running_bar(scores, taken):
  """Score of the soup after each decision; the first one starts it."""
  last = np.maximum.accumulate(np.where(taken, np.arange(len(scores)), 0))
  return scores[last]


def _mark_rejected(axes, places, scores, low):
  """Crosses, and at the edge arrows with the value for those below it."""
  below = scores < low
  if (~below).any():
    axes.scatter(
      places[~below],
      scores[~below],
      s=40,
      c=ORANGE,
      marker="x",
      linewidths=1.6,
      zorder=3,
      label="rejected",
    )
  if not below.any():
    return
  axes.scatter(
    places[below],
    np.full(below.sum(), low),
    marker="v",
    s=40,
    c=ORANGE,
    clip_on=False,
    zorder=3,
    label="rejected, below frame",
  )
  for place, score in zip(places[below], scores[below]):
    axes.annotate(
      f"{score:.1f}",
      (place, low),
      (0, 6),
      textcoords="offset points",
      ha="center",
      fontsize=7,
    )


@styled
def coefficients(learned: Mapping[str, Mapping[str, Any]]) -> Figure | None:
  """Heatmaps of the coefficients of learned soups, on one scale.

  Args:
    learned: title -> `learned.json`: "names", the K ingredients, and "alphas",
      group of leaves -> K coefficients.

  Returns:
    A figure with one panel a soup, groups in rows and ingredients in columns,
    1/K marked on the colour bar; None if there are no coefficients.
  """
  learned = {t: v for t, v in learned.items() if v["alphas"] and v["names"]}
  if not learned:
    return None
  heights = [max(len(v["alphas"]), 1.3) for v in learned.values()]
  names = [v["names"] for v in learned.values()]
  columns = max(map(len, names))
  top = max(np.max([*v["alphas"].values()]) for v in learned.values())
  figure = Figure(
    figsize=(max(5.6, 0.13 * columns), 1.6 + 0.21 * sum(heights)), dpi=DPI
  )
  panels = figure.subplots(len(learned), squeeze=False, height_ratios=heights)
  panels = panels[:, 0]
  scale = dict(vmin=0, vmax=max(top, 2 / columns), cmap="YlGnBu")
  for axes, (title, trace) in zip(panels, learned.items()):
    order = sorted(trace["alphas"], key=_depth)
    image = axes.imshow(
      np.asarray([trace["alphas"][group] for group in order], float),
      aspect="auto",
      interpolation="nearest",
      **scale,
    )
    axes.grid(False)
    axes.spines[:].set_visible(False)
    groups = [g if len(g) <= 36 else "..." + g[-34:] for g in order]
    axes.set_yticks(
      range(len(groups)),
      groups,
      parse_math=False,
      fontsize=8 if len(groups) <= 60 else 5,
    )
    axes.set_title(title, loc="left", parse_math=False)
    _name_ticks(axes, trace["names"], "Ingredient")
    if axes is not panels[-1] and trace["names"] == names[-1]:
      axes.set_xlabel("")
      axes.set_xticklabels([])
  _colour_bar(figure, image, panels, columns)
  return figure


def _depth(group: str) -> tuple:
  """Sorts layers as the image meets them: embeddings, blocks, head."""
  last = re.search(r"head|classifier|pre_logits|MAPHead|(^|/)fc", group)
  first = re.search(r"embed|(^|/)cls|patch|stem|conv1", group)
  numbers = [int(n) for n in re.findall(r"\d+", group)]
  place = 3 if last else 0 if first else 1 if numbers else 2
  return place, numbers, group


def _colour_bar(figure, image, panels, count):
  bar = figure.colorbar(image, ax=list(panels), pad=0.02, aspect=25)
  bar.set_label("Coefficient")
  uniform = 1 / count
  bar.ax.axhline(uniform, color="white", linewidth=2.6)
  bar.ax.axhline(uniform, color="black", linewidth=1.0)
  # Its label takes the place of the ticks that would run into it.
  low, high = image.get_clim()
  ticks = [t for t in bar.get_ticks() if low <= t <= high]
  ticks = [t for t in ticks if abs(t - uniform) > 0.06 * (high - low)]
  bar.set_ticks(
    [*ticks, uniform],
    labels=[f"{t:.3g}" for t in ticks] + [f"1/K = {uniform:.3g}"],
  )


@styled
def wise_ft_curve(results: Results) -> Figure | None:
  """Accuracy along the line from the initial model to the best ingredient.

  Returns:
    A figure with a panel for test, with 95 % intervals, and one for the mean
    over shifts, each on its own scale, in percent; None if fewer than two
    interpolations were evaluated.
  """
  curves = {}
  for split, title in (
    ("test", "Test"),
    (SHIFTS, f"Mean of {_shifts(results)}"),
  ):
    curve = {a: results.accuracy(m, split) for a, m in results.wise_ft.items()}
    if len(curve) >= 2 and None not in curve.values():
      curves[split] = (title, curve)
  if not curves:
    return None
  figure = Figure(figsize=(2.8 * max(2, len(curves)), 2.6), dpi=DPI)
  panels = figure.subplots(1, len(curves), squeeze=False)[0]
  for axes, (split, (title, curve)) in zip(panels, curves.items()):
    axes.set_title(title, loc="left")
    axes.plot(
      [*curve],
      [*curve.values()],
      "-o",
      color="black",
      markersize=3.5,
      linewidth=1.2,
      label="WiSE-FT",
    )
    if split == "test":
      _shade_interval(axes, results, curve)
    greedy = results.accuracy("greedy", split)
    if greedy is not None:
      axes.axhline(
        greedy,
        color=ORANGE,
        linestyle="--",
        linewidth=1.3,
        label="greedy soup",
      )
    axes.set_xlabel("\N{GREEK SMALL LETTER ALPHA} (0: initial, 1: best)")
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
  panels[0].set_ylabel("Accuracy (%)")
  handles, texts = panels[0].get_legend_handles_labels()
  figure.legend(handles, texts, loc="outside upper center", ncols=3)
  return figure


def _shade_interval(axes, results, curve):
  ends = []
  for alpha, value in curve.items():
    n = results.images(results.wise_ft[alpha], "test")
    ends.append(tables.clopper_pearson(round(value / 100 * n), n))
  low, high = 100 * np.asarray(ends).T
  axes.fill_between(
    [*curve], low, high, color="0.88", linewidth=0, label="95 % interval"
  )
