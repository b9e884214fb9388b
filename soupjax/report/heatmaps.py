# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Heatmaps: coefficients of learned soups, and barriers between models."""

from collections.abc import Mapping, Sequence
import re
from typing import Any

from matplotlib.figure import Figure
import numpy as np

from soupjax.report.style import DPI, styled

_PREFIX = "ingredient_"


@styled
def coefficients(learned: Mapping[str, Mapping[str, Any]]) -> Figure | None:
  """Draws the coefficients of learned soups on one colour scale.

  Args:
    learned: title -> `learned.json`: "names", the K ingredients, and "alphas",
      group of leaves -> K coefficients.

  Returns:
    A figure with one panel per soup: groups in rows, ingredients in columns,
    and 1/K marked on the colour bar if all coefficients sum to one, as they do
    without a base; None without coefficients.
  """
  learned = {t: v for t, v in learned.items() if v["alphas"] and v["names"]}
  if not learned:
    return None
  heights = [max(len(v["alphas"]), 1.3) for v in learned.values()]
  names = [v["names"] for v in learned.values()]
  columns = max(map(len, names))
  rows = [row for v in learned.values() for row in v["alphas"].values()]
  low, high = min(map(np.min, rows)), max(map(np.max, rows))
  limits = 0, max(high, 2 / columns)
  if low < 0:
    limits = -max(-low, high), max(-low, high)
  size = max(5.6, 0.13 * columns), 1.6 + 0.21 * sum(heights)
  figure = Figure(figsize=size, dpi=DPI)
  panels = figure.subplots(len(learned), squeeze=False, height_ratios=heights)
  panels = panels[:, 0]
  for axes, (title, trace) in zip(panels, learned.items()):
    order = sorted(trace["alphas"], key=_depth)
    image = axes.imshow(
      np.asarray([trace["alphas"][group] for group in order], float),
      aspect="auto",
      interpolation="nearest",
      cmap="RdBu" if low < 0 else "YlGnBu",
      vmin=limits[0],
      vmax=limits[1],
    )
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_yticks(
      range(len(order)),
      [g if len(g) <= 36 else "..." + g[-34:] for g in order],
      parse_math=False,
      fontsize=8 if len(order) <= 60 else 5,
    )
    axes.set_title(title, loc="left", parse_math=False)
    name_ticks(axes, trace["names"], "Ingredient")
    if axes is not panels[-1] and trace["names"] == names[-1]:
      axes.set_xlabel("")
      axes.set_xticklabels([])
  bar = figure.colorbar(image, ax=list(panels), pad=0.02, aspect=25)
  bar.set_label("Coefficient")
  if np.allclose([np.sum(row) for row in rows], 1, atol=1e-3):
    _mark_uniform(bar, 1 / columns, *limits)
  return figure


def _depth(group: str) -> tuple:
  """Sort key from input to output: embeddings, blocks, head."""
  last = re.search(r"head|classifier|pre_logits|MAPHead|(^|/)fc", group)
  first = re.search(r"embed|(^|/)cls|patch|stem|conv1", group)
  numbers = [int(n) for n in re.findall(r"\d+", group)]
  return 3 if last else 0 if first else 1 if numbers else 2, numbers, group


def _mark_uniform(bar, uniform: float, low: float, high: float) -> None:
  """Marks 1/K on a colour bar, in place of ticks that would overlap it."""
  bar.ax.axhline(uniform, color="white", linewidth=2.6)
  bar.ax.axhline(uniform, color="black", linewidth=1.0)
  ticks = [t for t in bar.get_ticks() if low <= t <= high]
  ticks = [t for t in ticks if abs(t - uniform) > 0.06 * (high - low)]
  texts = [*(f"{t:.3g}" for t in ticks), f"1/K = {uniform:.3g}"]
  bar.set_ticks([*ticks, uniform], labels=texts)


def name_ticks(axes, names: Sequence[str], title: str) -> None:
  """Labels the x axis with names; moves a common "ingredient_" to `title`."""
  if all(n.startswith(_PREFIX) and n != _PREFIX for n in names):
    names = [n.removeprefix(_PREFIX) for n in names]
    title += f" ({_PREFIX}...)"
  else:
    names = [n if len(n) <= 24 else n[:22] + "..." for n in names]
  upright = max(map(len, names)) <= 3 and len(names) <= 24
  axes.set_xticks(
    range(len(names)),
    names,
    rotation=0 if upright else 90,
    fontsize=min(8, 290 / len(names)),
    parse_math=False,
  )
  axes.set_xlabel(title)
  axes.grid(False, axis="x")


@styled
def diagnosis_figure(
  names: Sequence[str],
  barriers: Mapping[tuple[str, str], float],
  cosines: np.ndarray,
) -> Figure:
  """Draws the score lost at the midpoint, and the angle, of pairs of models.

  Args:
    names: K models.
    barriers: pair -> mean score of the two minus that of their midpoint, as in
      `Diagnosis.barriers`. Pairs that were not evaluated stay white.
    cosines: (K, K) cosines of the angles between their task vectors.

  Returns:
    The figure: midpoints on the left (red: the score is lower there, blue:
    higher), angles in degrees on the right.
  """
  row = {name: k for k, name in enumerate(names)}
  losses = np.full((len(names), len(names)), np.nan)
  for (a, b), value in barriers.items():
    losses[row[a], row[b]] = losses[row[b], row[a]] = value
  angles = np.degrees(np.arccos(np.clip(np.asarray(cosines, float), -1, 1)))
  np.fill_diagonal(angles, np.nan)
  top = np.nanmax(np.abs(losses)) if np.isfinite(losses).any() else 1.0
  side = max(3.2, 0.16 * len(names))
  figure = Figure(figsize=(2 * side + 1.6, side + 0.6), dpi=DPI)
  left, right = figure.subplots(1, 2)
  midpoint = "Midpoint", "Score lost at the midpoint"
  for axes, values, (title, label), colours, low, high in (
    (left, losses, midpoint, "RdBu_r", -top, top),
    (right, angles, ("Angle", "Angle (degrees)"), "viridis", 0, 180),
  ):
    image = axes.imshow(
      values, cmap=colours, vmin=low, vmax=high, interpolation="nearest"
    )
    axes.set_title(f"{title} of each pair", loc="left")
    text = {"fontsize": 6, "parse_math": False}
    axes.set_xticks(range(len(names)), names, rotation=90, **text)
    axes.set_yticks(range(len(names)), names, **text)
    axes.grid(False)
    figure.colorbar(image, ax=axes, shrink=0.8, label=label)
  return figure
