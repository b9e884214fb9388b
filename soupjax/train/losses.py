# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Losses over batches of logits."""

import jax
import jax.numpy as jnp

from soupjax.registry import Registry

# Functions from logits and target probabilities, both (batch, classes), to a
# scalar. `@LOSSES.register` adds a loss for use in configs.
LOSSES = Registry("loss")
# Functions from logits of all pairs of images and texts (batch, batch), and the
# pairs to leave out (batch, batch) or None, to a scalar. Row k and column k
# belong together.
PAIR_LOSSES = Registry("loss of pairs")


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


@PAIR_LOSSES.register(name="softmax")
def contrastive_loss(
  logits: jax.Array, ignored: jax.Array | None = None
) -> jax.Array:
  """Returns the symmetric InfoNCE loss of CLIP (arXiv 2103.00020, figure 3).

  The mean cross-entropy of choosing the text of every image, and that of
  choosing the image of every text, are averaged.

  Args:
    logits: (batch, batch), of images and texts; pairs are on the diagonal.
    ignored: (batch, batch), True for pairs to leave out; None for no pair.

  Examples:
    >>> round(float(contrastive_loss(jnp.zeros((8, 8)))), 3)  # log 8
    2.079
  """
  if ignored is not None:
    logits = jnp.where(ignored, -jnp.inf, logits)
  own = jnp.diagonal(logits)[None]
  others = jax.nn.logsumexp(jnp.stack([logits, logits.T]), axis=-1)
  return (others - own).mean()


@PAIR_LOSSES.register(name="sigmoid")
def pairwise_sigmoid_loss(
  logits: jax.Array, ignored: jax.Array | None = None
) -> jax.Array:
  """Returns the loss of SigLIP, a sum over pairs (arXiv 2303.15343, eq. 1).

  It is divided by the batch size.

  Args:
    logits: as for `contrastive_loss`, with the bias added.
    ignored: as for `contrastive_loss`.

  Examples:
    >>> round(float(pairwise_sigmoid_loss(jnp.zeros((8, 8)))), 3)  # 8 log 2
    5.545
  """
  sign = 2 * jnp.eye(len(logits)) - 1
  values = jax.nn.log_sigmoid(sign * logits)
  if ignored is not None:
    values = jnp.where(ignored, 0.0, values)
  return -values.sum() / len(logits)
