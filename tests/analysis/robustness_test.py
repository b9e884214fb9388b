# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Effective robustness on made-up lines."""

import numpy as np
import pytest
from scipy import special, stats

from soupjax.analysis import robustness

IN = np.array([0.3, 0.5, 0.62, 0.7, 0.81])


def baselines(slope=0.9, intercept=-0.7, noise=0.0):
  rng = np.random.default_rng(0)
  logits = intercept + slope * special.logit(IN) + noise * rng.normal(size=5)
  shifted = special.expit(logits)
  return {f"b{k}": pair for k, pair in enumerate(zip(IN, shifted))}


def test_a_model_above_an_exact_line_has_its_distance_as_rho():
  line = robustness.fit_line(baselines())
  assert (line.slope, line.intercept) == pytest.approx((0.9, -0.7))
  want = special.expit(-0.7 + 0.9 * special.logit(0.9))
  assert line.predict(0.9) == pytest.approx(want)
  found = line.rho(0.9, want + 0.05)
  # Without noise, the line is known exactly.
  assert found.value == pytest.approx(0.05)
  assert (found.low, found.high) == pytest.approx((0.05, 0.05), abs=1e-9)


def test_the_interval_is_that_of_a_regression():
  points = baselines(noise=0.2)
  line = robustness.fit_line(points)
  x, y = special.logit(np.array(list(points.values()))).T
  fit = stats.linregress(x, y)
  assert (line.slope, line.intercept) == pytest.approx(
    (fit.slope, fit.intercept)
  )
  # The same line with its origin at the model: the intercept is the prediction.
  at = special.logit(0.9)
  moved = stats.linregress(x - at, y)
  room = stats.t.ppf(0.95, 3) * moved.intercept_stderr
  found = line.rho(0.9, 0.8, level=0.9)
  ends = [0.8 - special.expit(moved.intercept + s * room) for s in (1, -1)]
  assert (found.low, found.high) == pytest.approx(tuple(ends), abs=1e-10)
  assert found.low < found.value < found.high


@pytest.mark.parametrize(
  "points,message",
  [
    ({"a": (0.1, 0.1), "b": (0.2, 0.2)}, "three baselines, got 2: a, b"),
    ({"a": (0.5, 0.1), "b": (0.5, 0.2), "c": (0.5, 0.3)}, "accuracy of 0.5 in"),
    ({"a": (0.5, 0.1), "b": (1.0, 0.2), "c": (0.5, 0.3)}, "The accuracy of b"),
    ({"a": (0.5, 0.1), "b": (0.4, np.nan), "c": (0.5, 0.3)}, "accuracy of b"),
  ],
)
def test_refuses_baselines(points, message):
  with pytest.raises(ValueError, match=message):
    robustness.fit_line(points)


@pytest.mark.parametrize(
  "arguments,message",
  [
    ((1.0, 0.5, 0.95), "accuracy must lie between"),
    ((0.9, 1.5, 0.95), "shifted must be from 0 to 1"),
    ((0.9, 0.5, 95), "level must be"),
  ],
)
def test_refuses_models(arguments, message):
  line = robustness.fit_line(baselines())
  with pytest.raises(ValueError, match=message):
    line.rho(*arguments[:2], level=arguments[2])
