# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""A loss for learned soups on data without labels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def entropy_loss(
  predict: Callable[[PyTree, Any], Any], images: Any = None
) -> Callable[..., jax.Array]:
  """Makes a loss for unlabelled data: the entropy of the predictions.

  This is the mean entropy of the predicted class probabilities, as in
  AdaMerging (arXiv 2310.02575, Section 3.2), for `learned_soup` with a base and
  images of all tasks.

  It ignores the logit scale beta, which therefore stays 1: a larger scale would
  lower the entropy of any prediction.

  Args:
    predict: `predict(params, images)` returns logits, (n, classes), or a tree
      of logits, one array per task; their mean entropies are summed. A logit of
      -inf leaves its class out.
    images: the second argument of `predict`; None if it comes in `batches`.

  Returns:
    `loss(params, beta)`, or without images `loss(params, beta, images)`.

  Examples:
    >>> loss = sj.entropy_loss(lambda params, images: images @ params["w"])
    >>> sure, unsure = {"w": 9 * jnp.eye(2)}, {"w": jnp.zeros((2, 2))}
    >>> bool(loss(sure, 1.0, jnp.eye(2)) < loss(unsure, 1.0, jnp.eye(2)))
    True
  """

  def loss(params, beta, images):
    del beta
    logits = jax.tree.leaves(predict(params, images))
    return sum(_entropy(task).mean() for task in logits)

  if images is None:
    return loss
  return lambda params, beta: loss(params, beta, images)


def _entropy(logits: jax.Array) -> jax.Array:
  """Returns entropies in nats, (...), of logits, (..., classes)."""
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  probs = jnp.exp(log_probs)
  return -(probs * jnp.where(probs > 0, log_probs, 0)).sum(-1)
