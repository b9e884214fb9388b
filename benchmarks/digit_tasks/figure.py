# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""A picture of the candidates of a search."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
import numpy as np

from soupjax.report.style import BLUE, DPI, ORANGE, styled


@styled
def search_figure(title: str, history: Sequence[Any]) -> Figure:
  """Scores along one coefficient; or the search over several, trial by trial.

  Args:
    title: of the picture.
    history: candidates with `coefficients`, `scores`, `value` and `chosen`, as
      of `soupjax.search.Search`.

  Returns:
    The figure.

  Raises:
    ValueError: if there are none.
  """
  if not history:
    raise ValueError("There is nothing to draw: the search has no candidates.")
  figure = Figure(figsize=(4.2, 2.9), dpi=DPI)
  axes = figure.subplots()
  axes.set_title(title, loc="left", parse_math=False)
  best = next(c for c in history if c.chosen)
  if len(best.coefficients) == 1:
    curve = sorted(history, key=lambda c: c.coefficients)
    at = [c.coefficients[0] for c in curve]
    for name in best.scores:
      axes.plot(at, [c.scores[name] for c in curve], marker=".", label=name)
    axes.axvline(best.coefficients[0], color="0.4", linestyle="--", linewidth=1)
    axes.set_xlabel("Coefficient (dashed: chosen)")
    axes.set_ylabel("Score")
    axes.legend(fontsize=6, ncols=2)
    return figure
  values = np.array([c.value for c in history])
  trials = np.arange(1, len(values) + 1)
  axes.plot(trials, values, ".", color=BLUE, label="candidate")
  axes.plot(trials, np.maximum.accumulate(values), color=ORANGE, label="best")
  axes.set_xlabel("Evaluation")
  axes.set_ylabel("Value")
  axes.legend()
  return figure
