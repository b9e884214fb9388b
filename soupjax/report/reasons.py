# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Figures of the reasons why averages gain or lose."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
import numpy as np

from soupjax.report.style import DPI, ORANGE, styled

# Name of a metric -> label of its colour bar.
_LABELS = {"loss": "Loss (nats)", "error": "Error (%)"}


@styled
def plane_figure(record: Mapping[str, Any]) -> Figure:
  """Draws metrics on the plane through three models.

  Args:
    record: `reasons/plane.json`: the fields of `analysis.plane.Plane`; "error"
      is a fraction.

  Returns:
    The figure, with one panel for each metric: levels are denser near the
    minimum, the models are marked, and a star is the lowest point of the grid.
  """
  values = {k: np.asarray(v, float) for k, v in record["values"].items()}
  figure = Figure(figsize=(4.1 * len(values), 3.6), dpi=DPI)
  panels = figure.subplots(1, len(values), squeeze=False)[0]
  xs, ys = (np.asarray(record[axis], float) for axis in ("xs", "ys"))
  for axes, (metric, grid) in zip(panels, values.items()):
    grid = 100 * grid if metric == "error" else grid
    low, high = grid.min(), grid.max()
    # A flat plane has one level.
    room = max(high - low, 1e-9 * max(abs(low), 1.0))
    levels = low + room * np.linspace(0, 1, 15) ** 2
    image = axes.contourf(xs, ys, grid, levels, cmap="viridis_r", extend="both")
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
