# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Linear probes on frozen features (the LP of LP-FT, arXiv 2202.10054).

They are fitted by logistic regression or, for few examples, ridge regression.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from soupjax.train import losses


@functools.partial(jax.jit, static_argnames=("num_classes", "steps"))
def linear_probe(
  features: jax.Array,
  labels: jax.Array,
  *,
  num_classes: int,
  l2: float,
  steps: int = 200,
  init: dict[str, jax.Array] | None = None,
) -> dict[str, jax.Array]:
  """Fits multinomial logistic regression with L-BFGS on all data at once.

  Args:
    features: (n, width) floats.
    labels: (n,) class indices.
    num_classes: number of classes.
    l2: factor of half the squared norm of the kernel, added to the mean loss.
    steps: number of L-BFGS steps; the problem is convex and needs few.
    init: the head to start from, None for zeros.

  Returns:
    `{"kernel": (width, num_classes), "bias": (num_classes,)}`, a ViT head.
  """
  targets = losses.smooth_labels(labels, num_classes, 0.0)
  head = init or {
    "kernel": jnp.zeros((features.shape[1], num_classes)),
    "bias": jnp.zeros(num_classes),
  }

  def objective(head):
    logits = features @ head["kernel"] + head["bias"][None]
    penalty = 0.5 * l2 * jnp.sum(head["kernel"] ** 2)
    return losses.softmax_loss(logits, targets) + penalty

  solver = optax.lbfgs()
  value_and_grad = optax.value_and_grad_from_state(objective)

  def step(carry, _):
    head, state = carry
    value, grad = value_and_grad(head, state=state)
    updates, state = solver.update(
      grad, state, head, value=value, grad=grad, value_fn=objective
    )
    return (optax.apply_updates(head, updates), state), value

  (head, _), _ = jax.lax.scan(step, (head, solver.init(head)), length=steps)
  return head


def ridge_probe(
  features: np.ndarray, labels: np.ndarray, *, num_classes: int, l2: float
) -> dict[str, np.ndarray]:
  """Fits ridge regression to one-hot labels in closed form, in float64.

  This is the few-shot probe of arXiv 1912.11370 (section 3.3.1) and 2106.04560.
  Each feature is standardised by its mean and its standard deviation (plus
  1e-5) in these examples; targets are 1 for the class and -1 for the others;
  the bias is not penalised. The linear system has the size of the features or
  of the examples, whichever are fewer.

  Args:
    features: (n, width) floats.
    labels: (n,) class indices.
    num_classes: number of classes.
    l2: factor of the squared norm of the kernel of standardised features, added
      to the sum of squared errors; `alpha` of scikit-learn's `Ridge`.

  Returns:
    `{"kernel": (width, num_classes), "bias": (num_classes,)}` in float64, for
    features as they are given.

  Raises:
    ValueError: if `l2` is not positive, a feature is not finite, or labels are
      not class indices, one for each example.
  """
  labels = np.asarray(labels)
  if (
    labels.shape != (len(features),)
    or labels.dtype.kind not in "iu"
    or not ((labels >= 0) & (labels < num_classes)).all()
  ):
    raise ValueError(
      f"labels must be {len(features)} class indices from 0 to "
      f"{num_classes - 1}, got {labels!r:.100}."
    )
  if not 0 < l2 < math.inf:
    raise ValueError(f"l2 must be positive and finite, got {l2!r}.")
  mean, scale = standardisation(features)
  x = (np.asarray(features, np.float64) - mean) / scale
  y = 2 * np.eye(num_classes)[labels] - 1
  bias = y.mean(axis=0)
  if len(x) < x.shape[1]:
    kernel = x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(len(x)), y - bias)
  else:
    gram = x.T @ x + l2 * np.eye(x.shape[1])
    kernel = np.linalg.solve(gram, x.T @ (y - bias))
  kernel = kernel / scale[:, None]
  return {"kernel": kernel, "bias": bias - mean @ kernel}


def standardisation(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the mean and the standard deviation plus 1e-5 of each feature.

  Both are (width,) float64.

  Raises:
    ValueError: if a feature is not finite.
  """
  features = np.asarray(features, np.float64)
  if not np.isfinite(features).all():
    raise ValueError("The features are not finite: the model diverged.")
  return features.mean(axis=0), features.std(axis=0) + 1e-5
