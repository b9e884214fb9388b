# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""CAR-FT: context-aware robust fine-tuning (arXiv 2211.16175)."""

import jax
import jax.numpy as jnp

from soupjax.train.recipes import base


@base.RECIPES.register
def car_ft() -> base.Recipe:
  """Keeps what CLIP says about the context of an image (arXiv 2211.16175).

  The loss of the labels plus `hyper.context` times the divergence of the
  context distributions of the start and of the model in training. With 0, it is
  plain fine-tuning.
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
  """Returns the mean divergence KL(before || now) of contexts, in nats.

  A context is a template of prompts, such as "a sketch of a {}."

  Args:
    before: (batch, size) features of the start, of length 1.
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
