# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics in the plane through three models (arXiv 2203.05482, Figure 2)."""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

import numpy as np

from soupjax.analysis.geometry import geometry
from soupjax.soups.core import arguments
from soupjax.soups.core.ingredient import Models, as_ingredients
from soupjax.soups.search.interpolate import Blend

PyTree = Any

# Two models count as the same if they are closer than this fraction of the
# larger distance from the first model; a third model this close to the line
# through two does not span a plane. (With float32 inner products, distances are
# accurate to about 3e-4.)
_SAME = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
  """Metrics on a grid in the plane through three models.

  The axes are orthonormal in parameter space, by Gram-Schmidt: the first model
  is the origin, and the second lies on the x axis.

  Attributes:
    names: names of the three models.
    corners: (3, 2) coordinates of the models.
    xs: (columns,) x coordinates of the grid.
    ys: (rows,) y coordinates of the grid.
    values: metric -> (rows, columns) values on the grid.
    at_corners: metric -> (3,) values of the three models themselves.
  """

  names: tuple[str, str, str]
  corners: np.ndarray
  xs: np.ndarray
  ys: np.ndarray
  values: dict[str, np.ndarray]
  at_corners: dict[str, np.ndarray]

  def weights(self, x: float, y: float) -> np.ndarray:
    """Returns the (3,) weights of the models at a point; they sum to 1."""
    along, (across, height) = self.corners[1, 0], self.corners[2]
    second = y / height
    first = (x - second * across) / along
    return np.array([1 - first - second, first, second])


def corners_of(models: Models) -> np.ndarray:
  """Returns the (3, 2) coordinates of three models in their plane.

  Args:
    models: three models of one architecture, in any form.

  Raises:
    ValueError: if there are not three models, two are the same, all lie on one
      line, or trees differ.
  """
  models = as_ingredients(models)
  if len(models) != 3:
    raise ValueError(
      f"A plane goes through three models, got {len(models)}: "
      f"{[model.name for model in models]}."
    )
  first, *others = models
  (aa, ab), (_, bb) = geometry(others, first).gram
  size = max(math.sqrt(max(aa, bb, 0.0)), 1e-30)
  gap = math.sqrt(max(aa + bb - 2 * ab, 0.0))
  sides = zip((math.sqrt(aa), math.sqrt(bb), gap), ((0, 1), (0, 2), (1, 2)))
  for length, (a, b) in sides:
    if length <= _SAME * size:
      raise ValueError(
        f"{models[a].name!r} and {models[b].name!r} are the same model, so "
        "they define no plane: give three different models."
      )
  x = ab / math.sqrt(aa)
  height = math.sqrt(max(bb - x**2, 0.0))
  if height <= _SAME * size:
    raise ValueError(
      f"{', '.join(repr(m.name) for m in models)} lie on one line, so they "
      "define no plane: replace one of them."
    )
  return np.array([(0.0, 0.0), (math.sqrt(aa), 0.0), (x, height)])


def plane(
  models: Models,
  evaluate: Callable[[PyTree], Mapping[str, float] | float],
  *,
  points: int = 11,
  margin: float = 0.25,
  sharding: Any = None,
) -> Plane:
  """Evaluates models on a grid in the plane through three models.

  Keeps the three models and one grid point in memory.

  Args:
    models: three models of one architecture, in any form, such as the start and
      two ingredients.
    evaluate: maps parameters to a metric, or to several metrics by name.
    points: rows and columns of the grid; evaluates `points**2 + 3` models.
    margin: margin of the grid around the models, as a fraction of their extent.
    sharding: sharding of the models, as in `Ingredient.load`.

  Returns:
    The grid and its values; a single metric is called "score".

  Raises:
    ValueError: if there are not three models, two are the same, all lie on one
      line, trees differ, `points` is below 2, `margin` is negative, or weights
      or values are not finite.

  Examples:
    >>> models = [{"w": np.array(w)} for w in ([0.0, 0], [2.0, 0], [1.0, 1])]
    >>> bowl = plane(models, lambda p: float((p["w"] ** 2).sum()), points=3)
    >>> bowl.xs.tolist(), bowl.ys.tolist()
    ([-0.5, 1.0, 2.5], [-0.25, 0.5, 1.25])
    >>> bowl.values["score"][0].tolist()
    [0.3125, 1.0625, 6.3125]
  """
  models = as_ingredients(models)
  points = arguments.count("points", points)
  margin = arguments.real("margin", margin)
  if points < 2 or margin < 0:
    raise ValueError(
      "A plane needs at least 2 points per side and a margin >= 0, got "
      f"points={points}, margin={margin:g}."
    )
  corners = corners_of(models)
  low, high = corners.min(axis=0), corners.max(axis=0)
  room = margin * (high - low)
  xs, ys = np.linspace(low - room, high + room, points).T
  at = Blend(models[0], models[1:], sharding=sharding)
  result = Plane(
    names=tuple(model.name for model in models),
    corners=corners,
    xs=xs,
    ys=ys,
    values={},
    at_corners={},
  )

  def values_at(x, y):
    metrics = arguments.call(evaluate, at(result.weights(x, y)[1:]))
    metrics = metrics if isinstance(metrics, Mapping) else {"score": metrics}
    place = f"at ({x:.4g}, {y:.4g})"
    return {k: arguments.number(f"{k} {place}", v) for k, v in metrics.items()}

  for k, corner in enumerate(corners):
    for metric, value in values_at(*corner).items():
      result.at_corners.setdefault(metric, np.zeros(3))[k] = value
  for row, column in np.ndindex(points, points):
    for metric, value in values_at(xs[column], ys[row]).items():
      grid = result.values.setdefault(metric, np.zeros((points, points)))
      grid[row, column] = value
  return result
