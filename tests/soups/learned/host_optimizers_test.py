# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
from scipy import optimize

from soupjax.soups.learned import host_optimizers

START = np.array([-1.2, 1.0, 0.3])


def run(steps, state=None):
  """Minimises the Rosenbrock function; returns (x, evaluations, state)."""
  evaluations, states = [], [state]

  def evaluate(x):
    value, grad = optimize.rosen(x), optimize.rosen_der(x)
    evaluations.append((float(value), x.copy()))
    return float(value), grad

  x = host_optimizers.lbfgs(
    evaluate, START, steps=steps, state=state, on_state=states.append
  )
  return x, evaluations, states[-1]


def test_lbfgs_returns_the_best_wherever_it_is_stopped():
  last_was_best = []
  for steps in range(1, 25):
    x, evaluations, _ = run(steps)
    assert len(evaluations) == steps
    best = min(evaluations, key=lambda evaluation: evaluation[0])
    np.testing.assert_array_equal(x, best[1])
    last_was_best.append(best is evaluations[-1])
  assert {True, False} == set(last_was_best)


def test_lbfgs_converges_and_stops():
  x, evaluations, _ = run(500)
  np.testing.assert_allclose(x, 1, atol=1e-4)
  assert len(evaluations) < 100


def test_lbfgs_goes_on_where_it_was():
  whole, evaluations, _ = run(20)
  _, _, state = run(7)
  plain = [
    {k: np.asarray(v).tolist() for k, v in evaluation.items()}
    for evaluation in state["evaluations"]
  ]
  again = json.loads(json.dumps({"evaluations": plain}))
  x, after, _ = run(20, again)
  np.testing.assert_array_equal(x, whole)
  assert len(after) == 13
  np.testing.assert_array_equal(after[-1][1], evaluations[-1][1])


def test_adamw_decays_what_it_should():
  x = host_optimizers.adamw(
    lambda x, update: update(slice(None), np.zeros(2)),
    np.array([1.0, 1.0]),
    steps=3,
    learning_rate=0.1,
    weight_decay=np.array([0.5, 0.0]),
    state=None,
    on_state=lambda state: None,
  )
  assert x == pytest.approx([0.95**3, 1.0])
