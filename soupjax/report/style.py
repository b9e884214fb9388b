# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Settings, colours and axis limits that all figures share."""

from collections.abc import Callable, Sequence
import functools

import matplotlib
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
  """Decorates a function that draws, for the style of the report."""

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
  difference on this scale, such as a point of accuracy.
  """
  values = np.asarray([*inside, *rest], float)
  quarter, three = np.percentile(values, [25, 75])
  floor = min(min(inside), quarter - max(3 * (three - quarter), 5 * unit))
  shown = values[values >= floor]
  margin = max(0.08 * (shown.max() - shown.min()), 0.2 * unit)
  return shown.min() - margin, shown.max() + margin
