# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pairs of models: gains from averaging, angles, and curves between them."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from soupjax.analysis.diagnose import Diagnosis
from soupjax.soups.core import arguments
from soupjax.soups.core.ingredient import Models, as_ingredients
from soupjax.soups.search.interpolate import Blend

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two models and their average.

  Attributes:
    names: names of the two models.
    score: score of their average.
    gain: that score minus the mean score of the two models, called the
      interpolation advantage in arXiv 2203.05482.
    distance: distance between their weights.
    angle: angle between their differences from the origin (of `Geometry`), in
      degrees; NaN if one of them equals the origin.
  """

  names: tuple[str, str]
  score: float
  gain: float
  distance: float
  angle: float


def pairs_of(diagnosis: Diagnosis) -> list[Pair]:
  """Returns the pairs whose midpoints a diagnosis has evaluated."""
  measured = diagnosis.geometry
  row = {name: k for k, name in enumerate(measured.names)}
  angles = np.degrees(np.arccos(measured.cosines))
  return [
    Pair(
      names=pair,
      score=diagnosis.midpoints[pair],
      gain=-barrier,
      distance=float(measured.distances[row[pair[0]], row[pair[1]]]),
      angle=float(angles[row[pair[0]], row[pair[1]]]),
    )
    for pair, barrier in diagnosis.barriers.items()
  ]


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
  """Returns Spearman's rank correlation of the finite values.

  Returns NaN for fewer than three pairs of values, or if x or y is constant.
  """
  from scipy import stats  # Slow to import.

  x, y = np.asarray(x, float), np.asarray(y, float)
  finite = np.isfinite(x) & np.isfinite(y)
  x, y = x[finite], y[finite]
  if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
    return math.nan
  return float(stats.spearmanr(x, y).statistic)


def curve(
  models: Models,
  evaluate: Callable[[PyTree], Mapping[str, float] | float],
  *,
  points: int = 9,
  sharding: Any = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Evaluates interpolations between two models.

  Args:
    models: two models of one architecture, in any form.
    evaluate: maps parameters to a metric, or to several metrics by name.
    points: number of models on the line, including both ends.
    sharding: sharding of the models, as in `Ingredient.load`.

  Returns:
    (points,) shares of the second model, from 0 to 1, and metric -> (points,)
    values; a single metric is called "score".

  Raises:
    ValueError: if there are not two models, `points` is below 2, or weights or
      values are not finite.

  Examples:
    >>> ends = [{"w": np.float32([-1])}, {"w": np.float32([3])}]
    >>> at, values = curve(ends, lambda p: float(p["w"][0]) ** 2, points=5)
    >>> at.tolist(), values["score"].tolist()
    ([0.0, 0.25, 0.5, 0.75, 1.0], [1.0, 0.0, 1.0, 4.0, 9.0])
  """
  models = as_ingredients(models)
  if len(models) != 2:
    raise ValueError(f"A curve joins two models, got {len(models)}.")
  points = arguments.count("points", points)
  if points < 2:
    raise ValueError(f"points must be at least 2, got {points}.")
  between = Blend(models[0], models[1:], sharding=sharding)
  shares = np.linspace(0, 1, points)
  values: dict[str, list[float]] = {}
  for share in shares:
    metrics = arguments.call(evaluate, between([share]))
    metrics = metrics if isinstance(metrics, Mapping) else {"score": metrics}
    for metric, value in metrics.items():
      place = f"{metric} at {share:.4g} of the way"
      values.setdefault(metric, []).append(arguments.number(place, value))
  return shares, {k: np.array(v) for k, v in values.items()}
