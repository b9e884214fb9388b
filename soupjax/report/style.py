# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Settings, colours and axis limits that all figures share."""

from collections.abc import Callable, Mapping, Sequence
import functools
import json
from typing import Any
import urllib.parse

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
import numpy as np

DPI = 200
# Colours of Okabe and Ito. Marker shapes carry the same information in print.
BLUE, GREEN, ORANGE = "#0072B2", "#009E73", "#D55E00"
_STYLE = {
  "axes.axisbelow": True,
  "axes.edgecolor": "0.3",
  "axes.grid": True,
  "axes.labelsize": 9,
  "axes.linewidth": 0.7,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "axes.titlesize": 9,
  "figure.constrained_layout.use": True,
  "font.size": 8.5,
  "grid.color": "0.9",
  "grid.linewidth": 0.6,
  "legend.fontsize": 8,
  "legend.frameon": False,
  "xtick.labelsize": 8,
  "ytick.labelsize": 8,
}


def styled(function: Callable) -> Callable:
  """Decorates a drawing function, to use the style of the report."""

  @functools.wraps(function)
  def wrapper(*args, **kwargs):
    with matplotlib.rc_context(_STYLE):
      return function(*args, **kwargs)

  return wrapper


def frame(
  inside: Sequence[float], rest: Sequence[float], unit: float = 1.0
) -> tuple[float, float]:
  """Returns axis limits for all of `inside` and most of `rest`.

  Values of `rest` far below the others are left out, so that one diverged
  ingredient does not squeeze the others into a corner. `unit` is a small
  difference on this scale, such as one point of accuracy.
  """
  values = np.asarray([*inside, *rest], float)
  quarter, three = np.percentile(values, [25, 75])
  floor = min(min(inside), quarter - max(3 * (three - quarter), 5 * unit))
  shown = values[values >= floor]
  margin = max(0.08 * (shown.max() - shown.min()), 0.2 * unit)
  return shown.min() - margin, shown.max() + margin


# Prefixes of quoted names in SVG files, for `report.web.drawings`.
MODEL, GROUPS = "model:", "groups:"


def quoted(prefix: str, text: str) -> str:
  """Returns prefix and percent-encoded text: ASCII, no quotes or brackets."""
  return prefix + urllib.parse.quote(text, safe="", errors="surrogateescape")


def scatter(
  axes: Axes, places: Mapping[str, tuple[float, float]], **style: Any
) -> PathCollection:
  """Draws points that are named after models; `places` is model -> (x, y)."""
  names = [quoted(MODEL, name) for name in places]
  return axes.scatter(*zip(*places.values()), urls=names, **style)


def contours(
  axes: Axes, xs: np.ndarray, ys: np.ndarray, values: np.ndarray, **style: Any
) -> Any:
  """Draws filled contours with `axes.contourf`, and keeps their values.

  Args:
    axes: gets an attribute `cells`, a list of (x, y, value) of all grid points.
    xs: (n,) coordinates.
    ys: (m,) coordinates.
    values: (m, n) values at the grid points.
    **style: keyword arguments of `axes.contourf`.

  Returns:
    The result of `axes.contourf`.
  """
  grid = np.stack([*np.meshgrid(xs, ys), values], -1)
  vars(axes)["cells"] = grid.reshape(-1, 3).tolist()
  return axes.contourf(xs, ys, values, **style)


def grouped(artist: Artist, *groups: str) -> None:
  """Adds an artist to groups that the page can show and hide."""
  artist.set_gid(quoted(GROUPS, json.dumps(groups)))
