# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Losses over batches of logits."""

import jax

from soupjax.registry import Registry

# Functions from logits and target probabilities, both (batch, classes), to a
# scalar. `@LOSSES.register` adds a loss for use in configs.
LOSSES = Registry("loss")


def smooth_labels(
  labels: jax.Array, num_classes: int, smoothing: jax.typing.ArrayLike
) -> jax.Array:
  """Turns class indices (batch,) into probabilities (batch, num_classes).

  Args:
    labels: class indices.
    num_classes: number of classes.
    smoothing: probability spread evenly over all classes (arXiv 1512.00567).

  Examples:
    >>> smooth_labels(jnp.array([2]), 4, 0.4).round(1)
    Array([[0.1, 0.1, 0.7, 0.1]], dtype=float32)
  """
  hot = jax.nn.one_hot(labels, num_classes)
  return hot * (1 - smoothing) + smoothing / num_classes


@LOSSES.register(name="softmax")
def softmax_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns the mean cross-entropy, a scalar in nats.

  Args:
    logits: (batch, classes).
    targets: (batch, classes) probabilities.

  Examples:
    >>> logits, targets = jnp.zeros((3, 10)), jnp.eye(10)[:3]
    >>> round(float(softmax_loss(logits, targets)), 3)  # log 10
    2.303
  """
  return -(targets * jax.nn.log_softmax(logits)).sum(axis=-1).mean()


@LOSSES.register(name="sigmoid")
def sigmoid_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns the binary cross-entropy, a sum over classes and mean over batch.

  Args:
    logits: (batch, classes).
    targets: (batch, classes), each in [0, 1].

  Examples:
    >>> logits, targets = jnp.zeros((3, 10)), jnp.eye(10)[:3]
    >>> round(float(sigmoid_loss(logits, targets)), 3)  # 10 log 2
    6.931
  """
  yes, no = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
  return -(targets * yes + (1 - targets) * no).sum(axis=-1).mean()
