# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""One training step."""

from collections.abc import Callable
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from soupjax.train import losses, optim

PyTree = Any
# augment(key, images, targets, hyperparameters) -> images, targets
Augment = Callable[..., tuple[jax.Array, jax.Array]]


@flax.struct.dataclass
class TrainState:
  """What a run needs to go on: everything else follows from config and step."""

  step: jax.Array
  params: PyTree
  opt_state: PyTree


def init_state(params: PyTree, tx: optax.GradientTransformation) -> TrainState:
  """Starts a run from given parameters, which are copied."""
  # The step donates its state: without the copy it would eat the caller's.
  params = jax.tree.map(jnp.array, params)
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def make_train_step(
  model: nn.Module,
  tx: optax.GradientTransformation,
  augment: Augment,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """Builds the jitted step.

  Args:
    model: a module that returns logits and features, as `models.ViT`.
    tx: from `optim.adamw`.
    augment: changes a batch of images and targets under `jit`.

  Returns:
    `step(state, images, labels, key, hyperparameters) -> state, metrics`. The
    state is donated. Randomness follows from `key` and `state.step`. Metrics
    are "loss", "learning_rate" and "grad_norm", scalars on the device.
  """

  @functools.partial(jax.jit, donate_argnums=0)
  def train_step(state, images, labels, key, hyper):
    key = jax.random.fold_in(key, state.step)
    key_augment, key_dropout = jax.random.split(key)

    def loss_of(params):
      logits, _ = model.apply(
        {"params": params}, x, train=True, rngs={"dropout": key_dropout}
      )
      return losses.softmax_loss(logits, targets)

    targets = losses.smooth_labels(
      labels, model.num_classes, hyper.label_smoothing
    )
    x, targets = augment(key_augment, images, targets, hyper)
    loss, grads = jax.value_and_grad(loss_of)(state.params)
    rate = optim.warmup_cosine(
      state.step,
      peak=hyper.learning_rate,
      total_steps=hyper.total_steps,
      warmup_steps=hyper.warmup_steps,
    )
    opt_state = optim.with_rates(
      state.opt_state, learning_rate=rate, weight_decay=hyper.weight_decay
    )
    updates, opt_state = tx.update(grads, opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {
      "loss": loss,
      "learning_rate": rate,
      "grad_norm": optax.tree.norm(grads),
    }
    return TrainState(state.step + 1, params, opt_state), metrics

  return train_step
