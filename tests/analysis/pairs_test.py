# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pairs of models, against closed forms."""

import math

import numpy as np
import pytest

import soupjax as sj
from soupjax.analysis import pairs as pairs_lib


def at(name, *point):
  return sj.Ingredient.from_params(name, {"w": np.array(point, np.float32)})


def bowl(params):
  return -float((np.asarray(params["w"]) ** 2).sum())


def test_the_gain_in_a_quadratic_bowl_is_a_quarter_of_the_squared_distance():
  models = [at("a", 3, 0), at("b", 0, 4), at("c", -3, 0), at("o", 0, 0)]
  diagnosis = sj.diagnose(models, bowl, {"w": np.zeros(2, np.float32)})
  found = {pair.names: pair for pair in pairs_lib.pairs_of(diagnosis)}
  assert len(found) == 6
  for pair in found.values():
    assert pair.gain == pytest.approx(pair.distance**2 / 4, rel=1e-5)
  assert found["a", "b"].angle == pytest.approx(90, abs=1e-2)
  assert found["a", "c"].angle == pytest.approx(180, abs=0.1)
  assert found["a", "b"].distance == pytest.approx(5)
  assert found["a", "b"].score == pytest.approx(-6.25)
  assert math.isnan(found["a", "o"].angle)  # A model that is the start.


def test_rank_correlation_is_spearmans_of_finite_values():
  x = [1.0, 2.0, 3.0, 4.0, math.nan]
  # 1 - 6 sum d^2 / (n (n^2 - 1)), with d = 0, 1, 1, 0.
  assert pairs_lib.rank_correlation(x, [0, 5, 3, 9, 1]) == pytest.approx(0.8)
  assert math.isnan(pairs_lib.rank_correlation(x[:2], [1, 2]))
  assert math.isnan(pairs_lib.rank_correlation(x, [1, 1, 1, 1, 2]))


def test_a_curve_is_a_parabola_between_its_models():
  ends = [at("a", 3, 1), at("b", -1, 2)]
  shares, values = pairs_lib.curve(ends, lambda p: {"loss": -bowl(p)}, points=5)
  points = [(3 - 4 * s, 1 + s) for s in np.linspace(0, 1, 5)]
  np.testing.assert_array_equal(shares, np.linspace(0, 1, 5))
  np.testing.assert_allclose(values["loss"], np.square(points).sum(1), 1e-6)


@pytest.mark.parametrize(
  "change,message",
  [
    ({"models": [at("a", 1)]}, "two models, got 1"),
    ({"points": 1}, "at least 2, got 1"),
    ({"evaluate": lambda p: math.inf}, "score at 0 of the way must be a fin"),
    ({"models": [at("a", 1), at("bad", math.nan)]}, "bad"),
  ],
)
def test_refuses(change, message):
  settings = {"models": [at("a", 1), at("b", 2)], "evaluate": bowl, **change}
  with pytest.raises(ValueError, match=message):
    pairs_lib.curve(**settings)
