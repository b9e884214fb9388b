# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Resumable optimizers of a few numbers, on the host in float64.

Each takes `evaluate`, which evaluates a loss and its gradient. After every
evaluation it passes its state to `on_state`; a state that was saved as JSON
resumes with the same bits.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# Maps the numbers to the loss and its gradient.
Evaluate = Callable[[np.ndarray], tuple[float, np.ndarray]]
# Maps the positions of some numbers and their gradient to the moved numbers.
Update = Callable[[Any, np.ndarray], np.ndarray]
State = Mapping[str, Any]


def adamw(
  evaluate: Callable[[np.ndarray, Update], Any],
  x: np.ndarray,
  *,
  steps: int,
  learning_rate: float,
  weight_decay: np.ndarray,
  state: State | None,
  on_state: Callable[[State], None],
) -> np.ndarray:
  """AdamW (arXiv 1711.05101) with a constant learning rate.

  Args:
    evaluate: `evaluate(x, update)` computes the gradient at x and passes every
      part of it to the `Update`, once, as soon as it is known.
    x: (n,) numbers to start from.
    steps: total number of steps, including those of a resumed state.
    learning_rate: of all numbers.
    weight_decay: (n,) decoupled decay towards 0.
    state: a state from `on_state` to resume from; None starts from `x`.
    on_state: called after every step.

  Returns:
    (n,) numbers after the last step.
  """
  b1, b2, eps = 0.9, 0.999, 1e-8
  done, x, mu, nu = 0, x.copy(), np.zeros_like(x), np.zeros_like(x)
  if state is not None:
    done = int(state["step"])
    x, mu, nu = (np.array(state[k], np.float64) for k in ("x", "mu", "nu"))

  def update(where, grad):
    mu[where] = b1 * mu[where] + (1 - b1) * grad
    nu[where] = b2 * nu[where] + (1 - b2) * grad**2
    m, n = mu[where] / (1 - b1**step), nu[where] / (1 - b2**step)
    decay = weight_decay[where] * x[where]
    x[where] -= learning_rate * (m / (np.sqrt(n) + eps) + decay)
    return x[where]

  for step in range(done + 1, steps + 1):
    evaluate(x.copy(), update)
    on_state({"step": step, "x": x, "mu": mu, "nu": nu})
  return x


class _BudgetSpent(Exception):
  """Stops SciPy when all evaluations are used up."""


def lbfgs(
  evaluate: Evaluate,
  x: np.ndarray,
  *,
  steps: int,
  state: State | None,
  on_state: Callable[[State], None],
) -> np.ndarray:
  """L-BFGS (SciPy's L-BFGS-B without bounds), until it converges.

  SciPy cannot be interrupted and resumed. A resumed run therefore starts again
  and replays the losses and gradients of the earlier evaluations.

  Args:
    evaluate: returns loss and gradient; deterministic.
    x: (n,) numbers to start from.
    steps: maximum number of evaluations, including those of a resumed state.
    state: a state from `on_state` to resume from; None starts from `x`.
    on_state: called after every evaluation.

  Returns:
    (n,) the evaluated numbers with the lowest loss.

  Raises:
    ValueError: if `state` is from a run that started from other numbers.
  """
  # Imported late: it takes as long as all of soupjax. JAX depends on SciPy.
  from scipy import optimize

  past = list(state["evaluations"]) if state is not None else []
  turn = 0

  def replay_or_evaluate(x):
    nonlocal turn
    if turn == steps:
      raise _BudgetSpent
    if turn == len(past):
      loss, grad = evaluate(x)
      past.append({"x": x.copy(), "loss": loss, "grad": grad})
      on_state({"evaluations": list(past)})
    elif not np.array_equal(past[turn]["x"], x):
      raise ValueError(
        f"resume does not fit: at step {turn}, L-BFGS evaluates other numbers "
        "than in that run. Resume with the same init and the same version of "
        "SciPy, or start without resume."
      )
    turn += 1
    return past[turn - 1]["loss"], np.array(past[turn - 1]["grad"])

  try:
    optimize.minimize(
      replay_or_evaluate,
      x,
      jac=True,
      method="L-BFGS-B",
      options={"maxiter": steps, "maxfun": 20 * steps},
    )
  except _BudgetSpent:
    pass
  best = min(past, key=lambda evaluation: evaluation["loss"])
  return np.array(best["x"], np.float64)
