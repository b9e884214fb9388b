# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Black-box search in the unit cube within a budget of evaluations."""

from collections.abc import Callable, Collection, Sequence

import numpy as np


class _BudgetSpent(Exception):
  """Stops SciPy when the budget is used up."""


def maximize(
  value: Callable[[Sequence[float]], float],
  start: Sequence[float],
  budget: int,
  known: Collection[tuple[float, ...]] = (),
) -> None:
  """Searches for a high value in [0, 1]^K with the Nelder-Mead simplex.

  The result is not returned: `value` should record its points. Held-out scores
  are step functions, on which gradients and surrogate models are of little use.
  The first simplex is wide enough to step over plateaus. When it has shrunk to
  a point, the search restarts there with a smaller simplex.

  Args:
    value: maps a point to its value; deterministic.
    start: the first point.
    budget: maximum number of points to evaluate.
    known: points that do not count towards the budget.
  """
  import scipy.optimize  # Imported late, as it takes a tenth of a second.

  def rounded(x):
    return tuple(float(c) for c in np.round(x, 4))

  # A known point may be 0.30000000000000004, which is 0.3 when rounded.
  known_by_rounded = {rounded(point): point for point in known}
  best, best_value, left = np.asarray(start, float), -np.inf, budget

  def negated(x):
    nonlocal best, best_value, left
    # Thanks to the rounding, a resumed run meets exactly the same points.
    point = rounded(x)
    point = known_by_rounded.get(point, point)
    if point not in known:
      if left < 1:
        raise _BudgetSpent
      left -= 1
    point_value = value(point)
    if point_value > best_value:
      best, best_value = np.array(point), point_value
    return -point_value

  size = 0.4
  try:
    while size > 0.01:
      corners = [best]
      for k in range(len(best)):
        corner = best.copy()
        # Step towards the farther side of the cube.
        corner[k] += size if corner[k] < 0.5 else -size
        corners.append(corner)
      scipy.optimize.minimize(
        negated,
        best,
        method="Nelder-Mead",
        bounds=[(0, 1)] * len(best),
        options={
          "initial_simplex": np.clip(corners, 0, 1),
          "xatol": 0.02,
          "fatol": 1e-9,
          "adaptive": len(best) > 3,
        },
      )
      size /= 2
  except _BudgetSpent:
    return
