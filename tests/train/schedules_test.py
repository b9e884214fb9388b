# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from soupjax.train import schedules


def rate(name, at, **changes):
  settings = {"peak": 2.0, "total_steps": 100, "warmup_steps": 10, **changes}
  return float(
    schedules.learning_rate(at, schedule=schedules.index(name), **settings)
  )


@pytest.mark.parametrize("name", schedules.NAMES)
def test_all_warm_up_linearly_to_the_peak(name):
  result = [rate(name, at) for at in range(10)]
  np.testing.assert_allclose(result, np.arange(1, 11) * 0.2, rtol=1e-5)


@pytest.mark.parametrize(
  "name,at,expected",
  [
    ("cosine", 55, 1.0),
    ("cosine", 32.5, 1 + 0.5**0.5),
    ("cosine", 100, 0.0),
    ("linear", 55, 1.0),
    ("linear", 100, 0.0),
    ("constant", 99, 2.0),
    ("rsqrt", 39, 1.0),  # 40 updates: sqrt(10 / 40).
    ("rsqrt", 999, 0.2),
  ],
)
def test_then_fall_as_their_name_says(name, at, expected):
  assert rate(name, at) == pytest.approx(expected, abs=1e-6)


def test_cooldown_ends_at_zero():
  settings = {"cooldown_steps": 20}
  assert rate("rsqrt", 79, **settings) == rate("rsqrt", 79)
  half = rate("rsqrt", 90) / 2
  assert rate("rsqrt", 90, **settings) == pytest.approx(half, rel=1e-6)
  assert rate("rsqrt", 100, **settings) == 0


def test_unknown_schedules_are_named():
  with pytest.raises(ValueError, match="'step'.*cosine"):
    schedules.index("step")
