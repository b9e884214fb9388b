# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Effective robustness: accuracy under shift beyond a line through baselines.

Over many models, accuracy under shift is close to a linear function of accuracy
in distribution, both on a logit scale (arXiv 2007.00644, section 2; arXiv
2107.04649). The effective robustness rho of a model is its accuracy under shift
minus the accuracy that this line predicts.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math

import numpy as np

from soupjax.soups.core import arguments

_INSIDE = "lie between 0 and 1, since its logit must be finite"


@dataclasses.dataclass(frozen=True)
class Rho:
  """Effective robustness, as a fraction.

  Attributes:
    value: accuracy under shift minus the predicted accuracy under shift.
    low: lower end of the confidence interval.
    high: upper end of the confidence interval.
  """

  value: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Line:
  """A least-squares line through baselines on logit axes.

  Attributes:
    slope: slope of the line.
    intercept: logit under shift at an accuracy of 1/2 in distribution.
    n: number of baselines.
    center: mean logit of the baselines' accuracies in distribution.
    spread: sum of the squared differences of these logits from `center`.
    noise: standard deviation of the residuals, with n - 2 degrees of freedom.
  """

  slope: float
  intercept: float
  n: int
  center: float
  spread: float
  noise: float

  def predict(self, accuracy: float) -> float:
    """Returns the accuracy under shift that the line predicts."""
    return _sigmoid(self.intercept + self.slope * _logit("accuracy", accuracy))

  def rho(self, accuracy: float, shifted: float, *, level: float = 0.95) -> Rho:
    """Returns the effective robustness of a model.

    The confidence interval is that of the line at this accuracy, by Student's t
    with n - 2 degrees of freedom. The model's accuracies are taken as exact.

    Args:
      accuracy: accuracy of the model in distribution, above 0 and below 1.
      shifted: its accuracy under shift.
      level: coverage of the interval, above 0 and below 1.

    Raises:
      ValueError: if an accuracy or the level is out of range.
    """
    from scipy import stats  # Slow to import.

    x = _logit("accuracy", accuracy)
    arguments.number(
      "shifted", shifted, "be from 0 to 1", lambda v: 0 <= v <= 1
    )
    arguments.number(
      "level", level, "be above 0 and below 1", lambda v: 0 < v < 1
    )
    middle = self.intercept + self.slope * x
    error = self.noise * math.sqrt(
      1 / self.n + (x - self.center) ** 2 / self.spread
    )
    room = float(stats.t.ppf((1 + level) / 2, self.n - 2)) * error
    return Rho(
      value=shifted - _sigmoid(middle),
      low=shifted - _sigmoid(middle + room),
      high=shifted - _sigmoid(middle - room),
    )


def fit_line(baselines: Mapping[str, Sequence[float]]) -> Line:
  """Fits a line through baselines on logit axes.

  Args:
    baselines: name -> accuracies in distribution and under shift, as fractions
      above 0 and below 1.

  Raises:
    ValueError: for fewer than three baselines, accuracies out of range, or if
      all baselines have the same accuracy in distribution.

  Examples:
    >>> line = fit_line({"a": (0.5, 0.3), "b": (0.8, 0.6), "c": (0.9, 0.8)})
    >>> round(line.slope, 2), round(line.predict(0.85), 2)
    (1.0, 0.7)
  """
  if len(baselines) < 3:
    raise ValueError(
      "A line of effective robustness needs at least three baselines, got "
      f"{len(baselines)}: {', '.join(baselines) or 'none'}."
    )
  points = np.array(
    [
      [_logit(f"The accuracy of {name}", value) for value in pair]
      for name, pair in baselines.items()
    ]
  )
  x, y = points.T
  center, spread = x.mean(), ((x - x.mean()) ** 2).sum()
  if np.ptp(x) <= 1e-12:
    accuracy = next(iter(baselines.values()))[0]
    raise ValueError(
      f"All {len(baselines)} baselines have an accuracy of {accuracy:g} in "
      "distribution, so they define no line: give models with different "
      "accuracies."
    )
  slope = ((x - center) * y).sum() / spread
  intercept = y.mean() - slope * center
  residuals = y - intercept - slope * x
  noise = math.sqrt((residuals**2).sum() / (len(x) - 2))
  return Line(
    *(float(v) for v in (slope, intercept)), len(x), float(center),
    float(spread), noise,
  )  # fmt: skip


def _logit(name: str, accuracy: float) -> float:
  value = arguments.number(name, accuracy, _INSIDE, lambda v: 0 < v < 1)
  return math.log(value / (1 - value))


def _sigmoid(x: float) -> float:
  return 1 / (1 + math.exp(-x)) if x > -500 else 0.0
