# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Search over the arguments of any function that makes a model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from soupjax.soups.core import arguments
from soupjax.soups.search import blackbox, candidates
from soupjax.soups.search.candidates import (
  Resume,
  Save,
  Scorer,
  Scores,
  Search,
)

PyTree = Any


class _Made:
  """A function of coefficients that knows their number, for `Scorer`."""

  def __init__(self, make: Callable[[tuple[float, ...]], PyTree], size: int):
    self._make, self.size = make, size

  def __call__(self, coefficients: tuple[float, ...]) -> PyTree:
    return self._make(coefficients)


def tune(
  make: Callable[[tuple[float, ...]], PyTree],
  evaluate: Callable[[PyTree], Any],
  first: Sequence[Sequence[float]],
  *,
  ranges: Mapping[str, tuple[float, float]] | None = None,
  budget: int | None = None,
  value: Callable[[Scores], float] | None = None,
  method: str = "tune",
  label: str = "score",
  resume: Resume | None = None,
  on_candidate: Save | None = None,
) -> Search:
  """Searches arguments of a function that makes a model, such as a merge rule.

  Evaluates the points of `first`. With `ranges`, a Nelder-Mead simplex then
  starts from the best of them, until the budget is spent. Deterministic.

  Args:
    make: maps a point to a model.
    evaluate: as in `soupjax.search`.
    first: points to try first, each with one number for each argument.
    ranges: argument -> (lowest, highest), in the order of the points; None
      only tries `first`.
    budget: total number of evaluations, including `first`.
    value: the objective of the scores; None is the mean over datasets.
    method: see `Search`.
    label: the objective in words.
    resume: candidates of an earlier run, which are not evaluated again.
    on_candidate: called with every new candidate, to save it.

  Returns:
    The search, and the model at the best point.

  Raises:
    ValueError: if a point or range is invalid, a score is not finite, or the
      budget is below the number of first points and corners of the simplex.

  Examples:
    >>> models = [{"w": jnp.array(0.0)}, {"w": jnp.array(1.0)}]
    >>> def make(point):  # TIES with a density and a scale.
    ...   rule = sj.rules.ties(*point)
    ...   return sj.mix(rule, models[1:], base=models[0]).params
    >>> def evaluate(params):
    ...   return -abs(float(params["w"]) - 0.3)
    >>> ranges = {"density": (0.1, 1.0), "scale": (0.0, 2.0)}
    >>> found = sj.search.tune(
    ...   make, evaluate, [(0.5, 1.0)], ranges=ranges, budget=20)
    >>> round(found.best.coefficients[1], 1)
    0.3
  """
  points = [tuple(candidates.grid("first", point)) for point in first]
  if not points or len(set(map(len, points))) > 1:
    raise ValueError(
      f"first must be points of one length, got {list(first)!r:.80}."
    )
  size = len(points[0])
  scorer = Scorer(
    _Made(make, size), evaluate, lambda scores: None, resume, on_candidate
  )
  value = value or (lambda scores: float(np.mean(list(scores.values()))))
  if ranges is not None:
    count = check_budget(budget, len(points), size)
    lows, highs = _bounds(ranges, points)
  scorer.each(points)
  if ranges is not None and budget is not None:
    best = max(points, key=lambda point: value(scorer.scored[point]))
    _maximize(scorer, value, best, lows, highs, count - len(scorer.scored))
  return candidates.choose(method, scorer, value, label=label)


def check_budget(budget: Any, first: int, size: int) -> int:
  """Returns a budget as an int; checks that it covers the first simplex.

  Args:
    budget: total number of evaluations.
    first: number of points tried first, the best of which is a corner.
    size: number of arguments; the simplex has one more corner.

  Raises:
    ValueError: if the budget is not a positive whole number, or too small.
  """
  count = arguments.count("budget", budget)
  if count < first + size:
    raise ValueError(
      f"budget={budget} does not cover {first + size} evaluations: {first} "
      f"first points and {size} more corners of the simplex. Raise budget."
    )
  return count


def _bounds(ranges, points):
  """Returns the lowest and highest values as arrays."""
  pairs = [
    [arguments.real(f"A bound of {name}", bound) for bound in pair]
    for name, pair in ranges.items()
  ]
  if len(pairs) != len(points[0]) or any(len(pair) != 2 for pair in pairs):
    raise ValueError(
      f"ranges must have (lowest, highest) for each of {len(points[0])} "
      f"arguments, got {dict(ranges)!r:.80}."
    )
  for name, (low, high) in zip(ranges, pairs):
    if not low < high:
      raise ValueError(
        f"ranges[{name!r}] must be (lowest, highest), got {low} and {high}."
      )
  for point in points:
    for name, (low, high), x in zip(ranges, pairs, point):
      if not low <= x <= high:
        raise ValueError(f"first has {name}={x}, outside {low} to {high}.")
  return np.array(pairs).T


def _maximize(scorer, value, start, lows, highs, left):
  """Runs the simplex in the unit cube, which is mapped onto the ranges."""

  def unit(point):
    return tuple(((np.array(point) - lows) / (highs - lows)).tolist())

  known = {unit(point): point for point in scorer.scored}

  def at(x):
    if x not in known:
      known[x] = tuple((lows + np.array(x) * (highs - lows)).round(6).tolist())
    return value(scorer(known[x]))

  blackbox.maximize(at, unit(start), left, known=known)
