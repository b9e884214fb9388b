# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Linear probes on frozen features (the LP of LP-FT, arXiv 2202.10054)."""

import functools

import jax
import jax.numpy as jnp
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
