# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Intervals, tests and calibration, against SciPy and scikit-learn."""

import numpy as np
import pytest
from scipy import optimize, special, stats
from sklearn import metrics as sklearn_metrics

from soupjax.evaluators import statistics

RNG = np.random.default_rng(0)


def test_paired_bootstrap_is_scipys():
  values = RNG.normal(0.1, 1, (300, 3))
  found = statistics.paired_bootstrap(values, draws=500, level=0.9, seed=3)
  for k, difference in enumerate(found):
    expected = stats.bootstrap(
      (values[:, k],),
      np.mean,
      n_resamples=500,
      confidence_level=0.9,
      method="percentile",
      rng=np.random.default_rng(3),
    ).confidence_interval
    np.testing.assert_allclose(
      [difference.low, difference.high], expected, rtol=0, atol=1e-10
    )
    assert difference.value == pytest.approx(values[:, k].mean(), abs=1e-12)
    assert (difference.n, difference.level, difference.p) == (300, 0.9, None)


def test_differences_of_accuracies_have_the_same_distribution():
  # Drawn by value, not by image: compared with all images drawn.
  values = RNG.choice([-1.0, 0, 1], 400, p=[0.1, 0.7, 0.2])
  found, twice = (
    statistics.paired_bootstrap(x, draws=20_000)[0]
    for x in (values, [values, values[::-1]])
  )
  rows = RNG.integers(0, 400, (20_000, 400))
  for difference, drawn in (
    (found, values[rows].mean(1)),
    (twice, (values + values[::-1])[rows].mean(1) / 2),
  ):
    expected = np.percentile(drawn, [2.5, 97.5])
    np.testing.assert_allclose(
      [difference.low, difference.high], expected, atol=0.004
    )
    assert difference.value == pytest.approx(values.mean())


def test_bootstrap_of_a_mean_over_sets():
  sets = [RNG.normal(1, 2, 400), RNG.normal(3, 1, 50), RNG.normal(-1, 1, 90)]
  (found,) = statistics.paired_bootstrap(sets, draws=4000)
  assert found.value == pytest.approx(np.mean([x.mean() for x in sets]))
  # Means of sets are independent: their variances add up.
  error = np.sqrt(sum(x.var() / len(x) for x in sets)) / 3
  assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.06)
  assert found.n == 540 and not found.holds_zero


def test_sets_of_one_size_may_be_of_the_same_images():
  values = RNG.normal(0, 1, 200)
  (once,) = statistics.paired_bootstrap(values, draws=500)
  (twice,) = statistics.paired_bootstrap([values, values], draws=500)
  np.testing.assert_allclose(
    [twice.low, twice.high], [once.low, once.high], atol=1e-12
  )
  other = RNG.normal(0, 1, 200)  # Independent: as narrow as of two sets.
  (both,) = statistics.paired_bootstrap([values, other], draws=4000)
  expected = 2 * 1.96 * np.sqrt((values.var() + other.var()) / 200) / 2
  assert both.high - both.low == pytest.approx(expected, rel=0.15)


def test_models_share_their_resamples():
  values = RNG.normal(0, 1, 100)
  both = statistics.paired_bootstrap(np.stack([values, values + 1], 1))
  assert both[1].low == pytest.approx(both[0].low + 1, abs=1e-12)


def test_an_interval_does_not_depend_on_other_models():
  sets = [
    np.stack(
      [
        RNG.normal(0, 1, n),
        RNG.choice([-1.0, 1], n),
        RNG.choice([-1.0, 0, 1], n, p=[0.1, 0.6, 0.3]),
      ],
      axis=1,
    )
    for n in (60, 200)
  ]
  together = statistics.paired_bootstrap(sets, draws=500)
  for k, found in enumerate(together):
    (alone,) = statistics.paired_bootstrap([x[:, k] for x in sets], draws=500)
    np.testing.assert_allclose(
      [found.low, found.high], [alone.low, alone.high], atol=1e-12
    )


@pytest.mark.parametrize("b, c", [(0, 0), (7, 0), (12, 3), (5, 5), (40, 61)])
def test_mcnemar(b, c):
  ours = np.array([1] * b + [0] * c + [1] * 20 + [0] * 5)
  theirs = np.array([0] * b + [1] * c + [1] * 20 + [0] * 5)
  found = statistics.mcnemar(ours, theirs.astype(bool))
  # Twice the smaller tail of a fair coin, at most 1.
  tail = stats.binom.cdf(min(b, c), b + c, 0.5)
  assert found.p == pytest.approx(min(1, 2 * tail), abs=1e-10)
  assert found.value == pytest.approx((b - c) / len(ours))
  assert found.low <= found.value <= found.high


def test_over_seeds_is_students_t():
  values = RNG.normal(0.5, 1, 7)
  found = statistics.over_seeds(values, level=0.9)
  half = stats.t.ppf(0.95, 6) * values.std(ddof=1) / np.sqrt(7)
  expected = values.mean() - half, values.mean() + half
  np.testing.assert_allclose((found.low, found.high), expected, atol=1e-10)
  assert found.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
  constant = statistics.over_seeds(np.full(3, 0.25))
  assert constant.low == constant.high == 0.25 and constant.p is None


def test_hierarchical_bootstrap_has_both_spreads():
  runs, images = RNG.normal(0, 1, (20, 1)), RNG.normal(0, 5, 200)
  found = statistics.hierarchical_bootstrap(runs + images, draws=4000)
  error = np.sqrt(runs.var() / 20 + images.var() / 200)
  assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.06)
  assert found.n == 20 and found.value == pytest.approx(
    runs.mean() + images.mean()
  )


def test_ece_of_calibrated_and_of_sure_models():
  # Two bins: 3 of 4 right at confidence 3/4, and 1 of 2 right at 1/2.
  p = np.array([[0.75, 0.25]] * 4 + [[0.5, 0.5]] * 2)
  labels = np.array([0, 0, 0, 1, 0, 1])
  assert statistics.ece(np.log(p), labels, bins=1) == pytest.approx(0, abs=1e-9)
  assert statistics.ece(np.log(p[:4]), labels[:4], bins=1) == pytest.approx(0)
  sure = np.array([[100.0, 0]] * 4)
  assert statistics.ece(sure, [0, 0, 1, 1], bins=1) == pytest.approx(0.5)


def test_ece_by_hand_in_equal_bins():
  logits, labels = RNG.normal(0, 2, (100, 4)), RNG.integers(0, 4, 100)
  p = special.softmax(logits, axis=1)
  order = np.argsort(p.max(1), kind="stable")
  right = (p.argmax(1) == labels)[order].reshape(10, 10)
  gap = np.abs(right.mean(1) - p.max(1)[order].reshape(10, 10).mean(1))
  found = statistics.ece(logits, labels, bins=10)
  assert found == pytest.approx(gap.mean(), abs=1e-10)


def test_temperature_has_the_least_loss_and_keeps_predictions():
  labels = RNG.integers(0, 3, 500)
  logits = 4 * (RNG.normal(0, 1, (500, 3)) + np.eye(3)[labels])
  found = statistics.temperature(logits, labels)
  expected = optimize.brentq(  # Where the derivative by 1/T is zero.
    lambda t: (
      (special.softmax(logits / t, 1) * logits).sum()
      - logits[np.arange(500), labels].sum()
    ),
    0.1,
    50,
  )
  assert found == pytest.approx(expected, rel=1e-6) and found > 1.5
  better = statistics.nll(logits / found, labels)
  assert better < statistics.nll(logits, labels)
  assert statistics.ece(logits / found, labels) < statistics.ece(logits, labels)


def test_nll_and_brier_are_scikit_learns():
  logits, labels = RNG.normal(0, 2, (50, 4)), RNG.integers(0, 4, 50)
  p = special.softmax(logits, axis=1)
  expected = sklearn_metrics.log_loss(labels, p, labels=range(4))
  assert statistics.nll(logits, labels) == pytest.approx(expected, abs=1e-10)
  expected = ((p - np.eye(4)[labels]) ** 2).sum(1).mean()
  assert statistics.brier(logits, labels) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: statistics.paired_bootstrap(np.ones(1)), "at least 2 images"),
    (lambda: statistics.paired_bootstrap([]), "at least 2 images"),
    (
      lambda: statistics.paired_bootstrap([np.ones((3, 2)), np.ones((3, 1))]),
      "same models",
    ),
    (lambda: statistics.paired_bootstrap(np.array([1, np.nan])), "NaN"),
    (lambda: statistics.paired_bootstrap(np.ones(3), level=95), "level"),
    (lambda: statistics.paired_bootstrap(np.ones(3), draws=0), "draws"),
    (lambda: statistics.mcnemar(np.ones(3), np.ones(2)), "got \\(3,\\)"),
    (lambda: statistics.mcnemar(np.ones(3), np.full(3, 0.5)), "0 and 1"),
    (lambda: statistics.over_seeds(np.ones(1)), "one run has no interval"),
    (
      lambda: statistics.hierarchical_bootstrap(np.ones((1, 9))),
      "one run has no interval",
    ),
    (lambda: statistics.ece(np.zeros((2, 2)), [0, 2]), "2 classes"),
    (lambda: statistics.nll(np.full((1, 2), np.nan), [0]), "NaN"),
    (lambda: statistics.ece(np.array([[np.inf, 0]]), [0]), "infinite"),
    (lambda: statistics.brier(np.full((1, 2), -np.inf), [0]), "infinite"),
    (
      lambda: statistics.temperature(np.array([[-np.inf, 0], [0, 1]]), [0, 1]),
      "image 0 .* -inf",
    ),
    (lambda: statistics.brier(np.zeros((0, 2)), np.zeros(0, int)), "at least"),
  ],
)
def test_bad_input(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_over_datasets():
  accuracies = np.array([[0.9, 0.5], [0.8, 0.5], [0.7, 1.0]])
  logits, ranks = statistics.over_datasets(accuracies, [10, 4])
  assert ranks.tolist() == [1.75, 2.25, 2]  # Equal models share 2.5.
  expected = special.logit([[9.5 / 11, 0.5], [8.5 / 11, 0.5], [7.5 / 11, 0.9]])
  np.testing.assert_allclose(logits, expected.mean(1), rtol=1e-12)
  with pytest.raises(ValueError, match=r"\(3, 2\) and sizes \(1,\)"):
    statistics.over_datasets(accuracies, [10])
  with pytest.raises(ValueError, match="fractions"):
    statistics.over_datasets(100 * accuracies, [10, 4])
