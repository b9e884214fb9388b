# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest

import soupjax as sj

RANGES = {"density": (0.2, 1.0), "scale": (-2.0, 2.0)}


def make(point):
  return {"w": point}


def evaluate(params):
  density, scale = params["w"]
  return {"a": -abs(density - 0.7), "b": -abs(scale + 1.1)}


def test_the_simplex_leaves_the_first_points_behind():
  seen = []
  found = sj.search.tune(
    make,
    lambda params: seen.append(params["w"]) or evaluate(params),
    [(0.5, 1.0), (0.5, 0.0)],
    ranges=RANGES,
    budget=40,
  )
  assert len(found.history) == len(seen) == len(set(seen)) <= 40
  assert seen[:2] == [(0.5, 1.0), (0.5, 0.0)]
  density, scale = found.best.coefficients
  assert abs(density - 0.7) < 0.03 and abs(scale + 1.1) < 0.1
  assert all(0.2 <= d <= 1 and -2 <= s <= 2 for d, s in seen)
  assert found.params == {"w": found.best.coefficients}


def test_a_resumed_search_evaluates_nothing_twice():
  saved = []
  options = {"ranges": RANGES, "budget": 12}
  whole = sj.search.tune(
    make, evaluate, [(0.5, 1.0)], on_candidate=saved.append, **options
  )
  new = []
  again = sj.search.tune(
    make,
    lambda params: new.append(params) or evaluate(params),
    [(0.5, 1.0)],
    resume=[dataclasses.asdict(c) for c in saved[:7]],
    **options,
  )
  assert again.history == whole.history and len(new) == len(saved) - 7


def test_without_ranges_only_the_first_points_are_tried():
  value = lambda scores: scores["b"]  # noqa: E731
  found = sj.search.tune(make, evaluate, [(0.3, 1.0), (0.9, -1.0)], value=value)
  assert found.best.coefficients == (0.9, -1.0) and len(found.history) == 2


@pytest.mark.parametrize(
  "first,changes,message",
  [
    ([(0.5, 1.0)], {"budget": 2}, "budget=2 does not cover 3 evaluations"),
    ([(0.5, 3.0)], {}, r"scale=3.0.* outside -2.0 to 2.0"),
    ([(0.5,)], {}, "each of 1 arguments"),
    ([(0.5,), (1.0, 2.0)], {}, "points of one length"),
    ([(0.5, 1.0)], {"ranges": {"a": (1, 0), "b": (0, 1)}}, r"ranges\['a'\]"),
  ],
)
def test_invalid_searches(first, changes, message):
  options = {"ranges": RANGES, "budget": 9, **changes}
  with pytest.raises(ValueError, match=message):
    sj.search.tune(make, evaluate, first, **options)
