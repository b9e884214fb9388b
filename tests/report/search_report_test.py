# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from soupjax import report
from soupjax.soups.search import Candidate


def candidates(*coefficients):
  return [
    Candidate(
      coefficients=c,
      scores={"a": 0.1 * k, "b": 0.2},
      value=0.1 * ((k * 7) % 5),
      chosen=k == 1,
    )
    for k, c in enumerate(coefficients)
  ]


def test_a_curve_for_every_dataset_by_rising_coefficient():
  figure = report.search_figure("x", candidates((1.0,), (0.0,), (0.5,)))
  (axes,) = figure.axes
  a, b, chosen = axes.lines
  assert a.get_xdata().tolist() == [0, 0.5, 1]
  np.testing.assert_allclose(a.get_ydata(), [0.1, 0.2, 0])
  np.testing.assert_allclose(b.get_ydata(), 0.2)
  assert list(chosen.get_xdata()) == [0, 0]
  assert axes.get_title(loc="left") == "x"


def test_several_coefficients_trial_by_trial():
  history = candidates(*((0.1 * k, 0.5) for k in range(5)))
  (axes,) = report.search_figure("y", history).axes
  values, best = (line.get_ydata() for line in axes.lines)
  np.testing.assert_allclose(values, [0, 0.2, 0.4, 0.1, 0.3])
  np.testing.assert_allclose(best, [0, 0.2, 0.4, 0.4, 0.4])


def test_nothing_to_draw():
  with pytest.raises(ValueError, match="nothing to draw"):
    report.search_figure("z", [])


def test_table():
  text = report.search_table(
    {
      "first": {"test": 0.5, "a long name": 1.0},
      "b": {"test": 0.125, "a long name": 0.0},
    }
  )
  assert text.split("\n")[1].split() == ["first", "50.0", "100.0"]
  assert text.split("\n")[2].split() == ["b", "12.5", "0.0"]
  assert len({len(line) for line in text.split("\n")}) == 1
