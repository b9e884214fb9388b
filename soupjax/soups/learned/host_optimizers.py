# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Optimizers of a few numbers on the host, in float64, that can be resumed.

Each takes `evaluate`, which maps numbers to a loss and its gradient, and tells
`on_state` after every evaluation what it needs to go on from there: JSON that
comes back bit for bit.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Evaluate = Callable[[np.ndarray], tuple[float, np.ndarray]]
State = Mapping[str, Any]


def adamw(
  evaluate: Evaluate,
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
    evaluate: returns loss and gradient.
    x: (n,) numbers to start from.
    steps: in all, with those that `state` has behind it.
    learning_rate: of all numbers.
    weight_decay: (n,) decoupled decay towards 0.
    state: from `on_state`, to go on; None to start.
    on_state: called after every step.

  Returns:
    (n,) numbers after the last step.
  """
  b1, b2, eps = 0.9, 0.999, 1e-8
  done, mu, nu = 0, np.zeros_like(x), np.zeros_like(x)
  if state is not None:
    done = int(state["step"])
    x, mu, nu = (np.array(state[k], np.float64) for k in ("x", "mu", "nu"))
  for step in range(done + 1, steps + 1):
    _, grad = evaluate(x)
    mu = b1 * mu + (1 - b1) * grad
    nu = b2 * nu + (1 - b2) * grad**2
    m, n = mu / (1 - b1**step), nu / (1 - b2**step)
    x = x - learning_rate * (m / (np.sqrt(n) + eps) + weight_decay * x)
    on_state({"step": step, "x": x, "mu": mu, "nu": nu})
  return x


class _EnoughError(Exception):
  """All evaluations are used up."""


def lbfgs(
  evaluate: Evaluate,
  x: np.ndarray,
  *,
  steps: int,
  state: State | None,
  on_state: Callable[[State], None],
) -> np.ndarray:
  """L-BFGS (SciPy's L-BFGS-B without bounds), until it converges.

  SciPy cannot be stopped and taken up again: a resumed run goes the way again
  with the losses and gradients that were evaluated before.

  Args:
    evaluate: returns loss and gradient; always the same for the same numbers.
    x: (n,) numbers to start from.
    steps: evaluations in all, at most.
    state: from `on_state`, to go on; None to start.
    on_state: called after every evaluation.

  Returns:
    (n,) the numbers of least loss among those evaluated.

  Raises:
    ValueError: if `state` is not of a run from these numbers.
  """
  # Takes about as long to import as all of soupjax; JAX needs SciPy itself.
  from scipy import optimize

  past = list(state["evaluations"]) if state is not None else []
  turn = 0

  def evaluated(x):
    nonlocal turn
    if turn == steps:
      raise _EnoughError
    if turn == len(past):
      loss, grad = evaluate(x)
      past.append({"x": x.copy(), "loss": loss, "grad": grad})
      on_state({"evaluations": list(past)})
    elif not np.array_equal(past[turn]["x"], x):
      raise ValueError(
        f"resume does not fit: L-BFGS asks for other numbers at step {turn} "
        "than it did then. Resume with the same init and the same SciPy, or "
        "start afresh."
      )
    turn += 1
    return past[turn - 1]["loss"], np.array(past[turn - 1]["grad"])

  try:
    optimize.minimize(
      evaluated,
      x,
      jac=True,
      method="L-BFGS-B",
      options={"maxiter": steps, "maxfun": 20 * steps},
    )
  except _EnoughError:
    pass
  best = min(past, key=lambda one: one["loss"])
  return np.array(best["x"], np.float64)
