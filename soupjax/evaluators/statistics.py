# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Intervals and tests of paired differences, and calibration.

Everything runs on the host in float64. For other tests, call the libraries:
`scipy.stats.permutation_test(..., permutation_type="samples")` for sign-flip
tests, `statsmodels.stats.multitest.multipletests(p, method="holm")` to correct
for several tests.
"""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from soupjax.evaluators.metrics import check_logits
from soupjax.soups.core import arguments

# Draws processed at a time: their image counts take 5 MB at 10,000 images.
_DRAWS = 64
# Differences with at most this many distinct values are resampled by value, not
# by image. Those of accuracies are -1, 0 and 1; sums over sets have few more.
_KINDS = 256


@dataclasses.dataclass(frozen=True)
class Difference:
  """A difference of means over the same images, with its interval.

  Attributes:
    value: the mean difference.
    low: the lower end of the interval.
    high: its upper end.
    level: coverage of the interval.
    n: number of images, or of runs.
    p: two-sided p-value of the function's test; None if it has no test.
  """

  value: float
  low: float
  high: float
  level: float
  n: int
  p: float | None = None

  @property
  def holds_zero(self) -> bool:
    """Whether the interval contains zero: there is no clear difference."""
    return self.low <= 0 <= self.high


# --- Differences over images ------------------------------------------------


def paired_bootstrap(
  differences: np.ndarray | Sequence[np.ndarray],
  *,
  draws: int = 10_000,
  level: float = 0.95,
  seed: int = 0,
) -> list[Difference]:
  """Returns percentile intervals of mean differences, by resampling images.

  Each interval compares one model with the reference. With several sets, such
  as distribution shifts, the statistic is the unweighted mean of their means;
  the interval reflects the sampling of images, not of sets. Sets of equal size
  are resampled with the same indices, as they may be corruptions of the same
  images, whose differences are correlated. For different images, the interval
  is also valid.

  Examples:
    >>> rng = np.random.default_rng(0)
    >>> ours, theirs = rng.random((2, 500)) < [[0.9], [0.7]]
    >>> (gain,) = paired_bootstrap(ours * 1.0 - theirs)
    >>> gain.low > 0
    True

  Args:
    differences: (n,) or (n, models) values of each model minus those of the
      reference, per image; or a sequence of such arrays, one per set.
    draws: number of resamples.
    level: coverage, above 0 and below 1.
    seed: seed of the resamples. For one set with many distinct values, these
      are the same as in `scipy.stats.bootstrap(method="percentile")` with
      `default_rng(seed)`.

  Returns:
    One difference for each model; `n` counts the images of all sets.

  Raises:
    ValueError: if there are no sets, a set has fewer than two images, numbers
      of models differ, a value is not finite, or `draws` or `level` is out of
      range.
  """
  sets = _sets(differences)
  draws = arguments.count("draws", draws)
  _check_level(level)
  total = 0.0
  for k, n in enumerate(dict.fromkeys(map(len, sets))):
    same = sum(values for values in sets if len(values) == n)
    total = total + _resampled_means(same, draws, [seed, k] if k else seed)
  tail = 100 * (1 - level) / 2
  ends = np.percentile(total / len(sets), [tail, 100 - tail], axis=0)
  value = sum(values.mean(axis=0) for values in sets) / len(sets)
  n = sum(map(len, sets))
  return [
    Difference(float(v), float(low), float(high), level, n)
    for v, low, high in zip(value, *ends)
  ]


def _sets(differences) -> list[np.ndarray]:
  """Returns (n, models) float64 arrays, one for each set."""
  if isinstance(differences, np.ndarray):
    differences = [differences]
  sets = [np.asarray(d, np.float64) for d in differences]
  sets = [d[:, None] if d.ndim == 1 else d for d in sets]
  if not sets or any(d.ndim != 2 or len(d) < 2 for d in sets):
    raise ValueError(
      "differences must be (n,) or (n, models) with at least 2 images per set, "
      f"got shapes {[d.shape for d in sets]}."
    )
  if len({d.shape[1] for d in sets}) > 1:
    raise ValueError(
      "every set must have the same models, got shapes "
      f"{[d.shape for d in sets]}."
    )
  if not all(np.isfinite(d).all() for d in sets):
    raise ValueError("differences have NaN or infinity: a model diverged.")
  return sets


def _resampled_means(values, draws, seed) -> np.ndarray:
  """Returns (draws, models) means over images drawn with replacement."""
  n, means = len(values), np.empty((draws, values.shape[1]))
  kinds = [np.unique(column, return_counts=True) for column in values.T]
  few = np.array([len(x) <= min(_KINDS, n // 2) for x, _ in kinds])
  for k in np.flatnonzero(few):
    # How often each value is drawn is multinomial: no need to draw images.
    x, count = kinds[k]
    rng = np.random.default_rng(seed)
    means[:, k] = rng.multinomial(n, count / n, draws) @ x / n
  if not few.all():
    rng, many = np.random.default_rng(seed), values[:, ~few]
    for start in range(0, draws, _DRAWS):
      part = slice(start, min(start + _DRAWS, draws))
      means[part, ~few] = _counts(rng, n, part.stop - start) @ many / n
  return means


def _counts(rng, n: int, draws: int) -> np.ndarray:
  """Returns how often each of n items is drawn: (draws, n) float64."""
  chosen = rng.integers(0, n, (draws, n))
  chosen += n * np.arange(draws)[:, None]
  counts = np.bincount(chosen.ravel(), minlength=draws * n)
  return counts.reshape(draws, n).astype(np.float64)


def mcnemar(
  correct: np.ndarray, other: np.ndarray, *, level: float = 0.95
) -> Difference:
  """Exact McNemar test of two accuracies on the same images.

  Let b be the number of images that only the first model classifies correctly,
  and c the number for the other. If both models are equally good, b follows
  Binomial(b + c, 1/2).

  Args:
    correct: (n,) whether the first model is right.
    other: (n,) the same for the other model.
    level: coverage of the interval.

  Returns:
    The difference (b - c) / n with its interval from `paired_bootstrap`, and
    the p-value of the test.

  Raises:
    ValueError: if shapes differ, a value is neither 0 nor 1, or there are fewer
      than two images.
  """
  pair = [np.asarray(x) for x in (correct, other)]
  if pair[0].ndim != 1 or pair[0].shape != pair[1].shape:
    raise ValueError(
      f"correct and other must be (n,), got {pair[0].shape}, {pair[1].shape}."
    )
  if any(not np.isin(x, (0, 1)).all() for x in pair):
    raise ValueError("correct and other must have only 0 and 1, or booleans.")
  ours, theirs = (x.astype(bool) for x in pair)
  b, c = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
  found = paired_bootstrap(ours * 1.0 - theirs, level=level)[0]
  return dataclasses.replace(found, p=mcnemar_p(b, c))


def mcnemar_p(b: int, c: int) -> float:
  """Two-sided exact p-value for b and c discordant pairs; 1 for none."""
  from scipy import stats  # Slow to import.

  return float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0


# --- Differences over runs --------------------------------------------------


def over_seeds(differences: np.ndarray, *, level: float = 0.95) -> Difference:
  """Student's t interval and test of a mean over independent runs.

  If all differences are equal, the statistic is not defined: the interval has
  no width, and p is None.

  Args:
    differences: (seeds,) one difference for each run, such as soup minus best
      ingredient. Runs that share test images are not independent of each other:
      see `hierarchical_bootstrap`.
    level: coverage.

  Returns:
    The mean difference; `n` counts runs.

  Raises:
    ValueError: with fewer than two runs, or values that are not finite.
  """
  from scipy import stats  # Slow to import.

  values = _runs(differences, 1)
  _check_level(level)
  if np.ptp(values) == 0:  # The t statistic is not defined.
    value = float(values[0])
    return Difference(value, value, value, level, len(values))
  test = stats.ttest_1samp(values, 0)
  ends = test.confidence_interval(level)
  return Difference(
    *(float(x) for x in (values.mean(), ends.low, ends.high)),
    *(level, len(values), float(test.pvalue)),
  )


def hierarchical_bootstrap(
  differences: np.ndarray,
  *,
  draws: int = 10_000,
  level: float = 0.95,
  seed: int = 0,
) -> Difference:
  """Percentile interval of a mean over runs with the same test images.

  Runs and images are drawn independently of each other, both with replacement:
  a bootstrap of a crossed design (Owen 2007, arXiv 0712.1111: it is
  conservative).

  Args:
    differences: (seeds, n), the difference of each run on each image.
    draws: number of resamples.
    level: coverage.
    seed: seed of the resamples.

  Returns:
    The difference; `n` counts runs.

  Raises:
    ValueError: with fewer than two runs or images, or values that are not
      finite.
  """
  values, means = _runs(differences, 2), []
  draws = arguments.count("draws", draws)
  _check_level(level)
  rng, (seeds, n) = np.random.default_rng(seed), values.shape
  for start in range(0, draws, _DRAWS):
    some = min(_DRAWS, draws - start)
    by_run = _counts(rng, n, some) @ values.T
    means.append((by_run * _counts(rng, seeds, some)).sum(1) / (n * seeds))
  tail = 100 * (1 - level) / 2
  low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
  return Difference(float(values.mean()), float(low), float(high), level, seeds)


def _runs(differences, ndim: int) -> np.ndarray:
  values = np.asarray(differences, np.float64)
  if values.ndim != ndim or min(values.shape) < 2:
    expected = "(seeds,)" if ndim == 1 else "(seeds, n)"
    raise ValueError(
      f"differences must be {expected}, at least 2 along each axis, got "
      f"{values.shape}: one run has no interval over seeds."
    )
  if not np.isfinite(values).all():
    raise ValueError("differences have NaN or infinity: a model diverged.")
  return values


def _check_level(level: float) -> None:
  if not 0 < level < 1:
    raise ValueError(f"level must be above 0 and below 1, got {level!r}.")


# --- Over datasets ----------------------------------------------------------


def over_datasets(
  accuracies: np.ndarray, sizes: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
  """Mean logits and mean ranks of models over several datasets.

  Logits ln(p / (1 - p)) give gains on easy and hard datasets similar weight
  (arXiv 1805.08974, section 2). With k of n images right, p is (k + 1/2) / (n +
  1), so that accuracies of 0 and 1 have finite logits. The best model on a
  dataset has rank 1, and ties get the mean of their ranks.

  Args:
    accuracies: (models, datasets) fractions.
    sizes: (datasets,) numbers of images.

  Returns:
    The mean logit and the mean rank of each model, both (models,).

  Raises:
    ValueError: if shapes do not match, a value is not from 0 to 1, or a size is
      below 1.
  """
  from scipy import stats  # Slow to import.

  values, n = np.asarray(accuracies, np.float64), np.asarray(sizes, np.float64)
  if values.ndim != 2 or n.shape != values.shape[1:] or not values.size:
    raise ValueError(
      f"accuracies {values.shape} and sizes {n.shape} do not match: expected "
      "(models, datasets) and (datasets,)."
    )
  if not ((values >= 0) & (values <= 1)).all() or not (n >= 1).all():
    raise ValueError(
      "accuracies must be fractions from 0 to 1, and sizes at least 1."
    )
  p = (values * n + 0.5) / (n + 1)
  logits = np.log(p) - np.log1p(-p)
  return logits.mean(axis=1), stats.rankdata(-logits, axis=0).mean(axis=1)


# --- Calibration ------------------------------------------------------------


def ece(logits: np.ndarray, labels: np.ndarray, *, bins: int = 15) -> float:
  """Expected calibration error over bins of equally many images.

  The mean over bins, weighted by their images, of |accuracy - mean confidence|,
  where the confidence is the highest probability (arXiv 1706.04599; equal-mass
  bins as in arXiv 2203.05482, appendix B).

  Args:
    logits: (n, classes).
    labels: (n,) class indices.
    bins: at most n bins are used. Few images per bin bias the value upwards.

  Raises:
    ValueError: if shapes do not match, labels are out of range, a logit is NaN
      or inf, all logits of an image are -inf, or `bins` is not positive.
  """
  logits, labels = check_logits(logits, labels)
  bins = arguments.count("bins", bins)
  logp = _log_softmax(logits)
  confidence = np.exp(logp.max(axis=1))
  gap = (logits.argmax(axis=1) == labels) - confidence
  order = np.argsort(confidence, kind="stable")
  parts = np.array_split(gap[order], min(bins, len(gap)))
  return math.fsum(abs(math.fsum(p.tolist())) for p in parts) / len(gap)


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
  """Fits the T > 0 that minimises the loss of logits / T (arXiv 1706.04599).

  Fit it on minival. Dividing by T changes no prediction, only confidences.

  Args:
    logits: (n, classes).
    labels: (n,) class indices.

  Returns:
    T, between 0.01 and 100.

  Raises:
    ValueError: as for `ece`, or if the logit of a label is -inf, so that the
      loss is infinite at every T.
  """
  from scipy import optimize  # Slow to import.

  logits, labels = check_logits(logits, labels)
  without = np.isneginf(logits[np.arange(len(labels)), labels])
  if without.any():
    raise ValueError(
      f"The logit of image {int(without.argmax())} for its label is -inf: the "
      "loss is infinite at every temperature."
    )
  return math.exp(
    optimize.minimize_scalar(
      lambda t: _nll(logits * math.exp(-t), labels),
      bounds=(math.log(0.01), math.log(100)),
      method="bounded",
      options={"xatol": 1e-8},
    ).x
  )


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
  """Mean negative log-likelihood in nats: the metric "loss", in float64.

  Args:
    logits: (n, classes).
    labels: (n,) class indices.

  Raises:
    ValueError: as for `ece`.
  """
  return _nll(*check_logits(logits, labels))


def brier(logits: np.ndarray, labels: np.ndarray) -> float:
  """Brier score: mean squared distance of probabilities from one-hot labels.

  Summed over classes, so from 0 to 2, as in `sklearn.metrics.brier_score_loss`
  with `scale_by_half=False`.

  Args:
    logits: (n, classes).
    labels: (n,) class indices.

  Raises:
    ValueError: as for `ece`.
  """
  logits, labels = check_logits(logits, labels)
  p = np.exp(_log_softmax(logits))
  at_label = np.take_along_axis(p, labels[:, None], axis=1)[:, 0]
  return float(((p**2).sum(axis=1) - 2 * at_label + 1).mean())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
  shifted = logits - logits.max(axis=1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _nll(logits: np.ndarray, labels: np.ndarray) -> float:
  logp = _log_softmax(logits)
  return -float(np.take_along_axis(logp, labels[:, None], axis=1).mean())
