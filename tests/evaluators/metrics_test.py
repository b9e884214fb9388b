# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import jax.numpy as jnp
import numpy as np
import pytest

from soupjax.evaluators import (
  METRICS,
  Evaluator,
  classification_metrics,
  get_metric,
  metric,
  metrics,
)
from soupjax.evaluators.label_spaces import LabelSpace


def test_macro_f1_and_the_worst_class_by_hand():
  labels = np.array([0, 0, 0, 1, 1, 3])
  predictions = np.array([0, 0, 1, 1, 2, 3])
  # F1 of the classes 0, 1 and 3; class 2 is predicted once, but has no image.
  expected = (2 * 2 / 5 + 2 * 1 / 4 + 1) / 3
  logits = np.eye(4, dtype=np.float32)[predictions]
  evaluator = Evaluator.from_arrays(
    lambda params, x: x * params, logits, labels, batch_size=4,
    metric="macro_f1", more_metrics=("worst_class",),
  )  # fmt: skip
  assert evaluator(1.0) == pytest.approx(expected)
  totals = evaluator.totals(1.0)
  assert totals["macro_f1"] == pytest.approx(expected)
  assert totals["worst_class"] == 0.5
  # No early rejection: the score is exact even where it cannot suffice.
  trial = evaluator.evaluate_until(1.0, lambda bound: False)
  assert trial.score == evaluator(1.0)


def test_a_metric_returns_a_value_per_image():
  @metric("mean_of_a_batch")
  def _mean(logits, labels, mask):
    return (logits.argmax(-1) == labels).mean()

  evaluator = Evaluator.from_arrays(
    lambda params, x: x, np.eye(3, dtype=np.float32), np.arange(3),
    batch_size=4, metric="mean_of_a_batch",
  )  # fmt: skip
  with pytest.raises(ValueError, match=r"'mean_of_a_batch' .*\(4,\), not \(\)"):
    evaluator(None)


def test_one_image_in_a_class_and_joined_outputs():
  space = LabelSpace(groups=((0, 2), (1,)))
  logits = np.array([[0, 1, 3], [0, 2, 1], [2, 5, 0]], np.float32)
  evaluator = Evaluator.from_arrays(
    lambda params, x: x, logits, np.array([0, 1, 0]), metric="worst_class",
    outputs=space,
  )  # fmt: skip
  assert evaluator(None) == 0.5


def test_a_summary_has_no_bound():
  with pytest.raises(ValueError, match="'mine' has a bound and a summary"):
    metrics.metric("mine", bound=1.0, summary=metrics.macro_f1)


def test_metrics_by_hand():
  logits = np.log([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1]])
  values = classification_metrics(logits, np.array([0, 2]))
  assert values["prec@1"] == 0.5
  assert values["loss"] == pytest.approx(-(np.log(0.7) + np.log(0.1)) / 2)
  huge = classification_metrics(np.array([[1e4, 0.0]]), np.array([1]))
  assert huge["loss"] == pytest.approx(1e4)


@pytest.mark.parametrize(
  "logits,labels,message",
  [
    (np.zeros((2, 3)), np.zeros(3, int), r"\(2, 3\).*\(3,\)"),
    (np.zeros((2, 3)), np.array([0, 3]), "3 classes"),
    (np.zeros((2, 3)), np.array([-1, 0]), "-1"),
    (np.zeros((2, 3)), np.zeros(2), "float64"),
    (np.full((2, 3), np.nan), np.array([0, 0]), "NaN"),
  ],
)
def test_bad_input(logits, labels, message):
  with pytest.raises(ValueError, match=message):
    classification_metrics(logits, labels)


def test_a_metric_of_a_user():
  @metric("second guess", bound=1.0)
  def second(logits, labels, mask):
    del mask
    return jnp.argsort(logits, axis=-1)[:, -2] == labels

  assert "second guess" in METRICS
  logits = np.array([[3.0, 2, 1], [3, 2, 1], [1, 2, 3]], np.float32)
  evaluate = Evaluator.from_arrays(
    lambda params, rows: rows, logits, np.array([1, 0, 1]),
    metric="second guess",
  )  # fmt: skip
  assert evaluate(None) == 2 / 3
  assert evaluate.totals(None)["prec@1"] == 1 / 3


def test_metrics_that_cannot_be_used():
  with pytest.raises(ValueError, match="'prec@2'"):
    get_metric("prec@2")
  with pytest.raises(ValueError, match="'math.hypot'"):
    get_metric("math.hypot")
  with pytest.raises(ValueError, match="'most'"):
    metric("x", mode="most")
  with pytest.raises(ValueError, match="inf"):
    metric("x", bound=float("inf"))
