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
)


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
