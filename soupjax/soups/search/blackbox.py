# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Black-box search in a box, within a budget of evaluations, by scipy."""

from collections.abc import Callable, Collection, Sequence

import numpy as np


class _Spent(Exception):
  """The budget is gone."""


def maximize(
  value: Callable[[Sequence[float]], float],
  start: Sequence[float],
  budget: int,
  known: Collection[tuple[float, ...]] = (),
) -> None:
  """Looks for a high value in [0, 1]^K with the simplex of Nelder and Mead.

  The caller remembers what was tried. Scores of a held-out set are stairs, on
  which gradients and models say little; the simplex begins wide enough to step
  over them, and begins anew, smaller, when it has shrunk to a point.

  Args:
    value: of a point. Deterministic.
    start: a point.
    budget: how many points may be evaluated.
    known: points that cost nothing.
  """
  import scipy.optimize  # Comes with jax; a tenth of a second to import.

  def rounded(x):
    return tuple(float(c) for c in np.round(x, 4))

  # A grid has 0.30000000000000004, which is 0.3 here.
  free = {rounded(point): point for point in known}
  best, best_value, left = np.asarray(start, float), -np.inf, budget

  def lost(x):
    nonlocal best, best_value, left
    # Fewer digits find a point again that a resumed run has tried.
    point = rounded(x)
    point = free.get(point, point)
    if point not in known:
      if left < 1:
        raise _Spent
      left -= 1
    found = value(point)
    if found > best_value:
      best, best_value = np.array(point), found
    return -found

  size = 0.4
  try:
    while size > 0.01:
      corners = [best]
      for k in range(len(best)):
        corner = best.copy()
        # Towards the farther side of the box.
        corner[k] += size if corner[k] < 0.5 else -size
        corners.append(corner)
      scipy.optimize.minimize(
        lost,
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
  except _Spent:
    return
