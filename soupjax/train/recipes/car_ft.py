# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""CAR-FT: context-aware robust fine-tuning (arXiv 2211.16175)."""

import jax
import jax.numpy as jnp

from soupjax.train.recipes import base


@base.RECIPES.register
def car_ft() -> base.Recipe:
  """Preserves CLIP's predictions of image context (arXiv 2211.16175).

  The objective is the classification loss plus `hyper.context` times the KL
  divergence between the context distributions of the initial and the trained
  model. With a weight of 0, it is plain fine-tuning.
  """
  return base.Recipe(_objective, shared=("start", "context"), weight="context")


def _objective(params, batch, key, *, model, loss, hyper, shared):
  images = batch["images"]
  logits, features = model.apply(
    {"params": params}, images, train=True, rngs={"dropout": key}
  )
  _, before = model.apply({"params": shared["start"]}, images)
  divergence = context_kl(before, features, shared["context"])
  return loss(logits, batch["targets"]) + hyper.context * divergence


def context_kl(
  before: jax.Array, features: jax.Array, kernel: jax.Array
) -> jax.Array:
  """Returns the mean KL(before || now) between context distributions, in nats.

  A context is a prompt template, such as "a sketch of a {}."

  Args:
    before: (batch, size) unit-length features of the initial model.
    features: (batch, size) features of the model in training.
    kernel: (size, templates), from `zeroshot.context_kernel`.

  Examples:
    >>> x = jnp.eye(3)
    >>> float(context_kl(x, x, 10 * x))
    0.0
  """
  log_p = jax.nn.log_softmax(jax.lax.stop_gradient(before) @ kernel)
  log_q = jax.nn.log_softmax(features @ kernel)
  return (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()
