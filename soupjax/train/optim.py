# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The optimizer, with everything a sweep varies as a traced value."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class Hyperparameters:
  """What differs between members of a sweep. Arrays, so nothing recompiles.

  Attributes:
    learning_rate: the peak.
    weight_decay: decoupled, multiplied by the learning rate, on leaves of two
      or more dimensions.
    label_smoothing: in [0, 1).
    mixup: alpha of Beta(alpha, alpha); 0 is off.
    augment: strength of augmentation; 1 is the full range of the config.
    total_steps: length of the schedule, in steps.
    warmup_steps: linear warmup, in steps.
  """

  learning_rate: jax.typing.ArrayLike
  weight_decay: jax.typing.ArrayLike
  label_smoothing: jax.typing.ArrayLike
  mixup: jax.typing.ArrayLike
  augment: jax.typing.ArrayLike
  total_steps: jax.typing.ArrayLike
  warmup_steps: jax.typing.ArrayLike

  @classmethod
  def of(cls, **values: float) -> "Hyperparameters":
    """Makes one with every value a float32 scalar array."""
    return cls(**{k: jnp.asarray(v, jnp.float32) for k, v in values.items()})


def adamw(
  *, b1: float = 0.9, b2: float = 0.999, clip_norm: float = 1.0
) -> optax.GradientTransformation:
  """AdamW with clipping; learning rate and weight decay live in its state.

  Args:
    b1: decay of the first moment.
    b2: decay of the second moment.
    clip_norm: largest global norm of a gradient.

  Returns:
    A transformation whose state has `hyperparams`; see `with_rates`.
  """

  def make(learning_rate, weight_decay):
    return optax.chain(
      optax.clip_by_global_norm(clip_norm),
      optax.scale_by_adam(b1=b1, b2=b2),
      optax.add_decayed_weights(weight_decay, mask=is_matrix),
      optax.scale_by_learning_rate(learning_rate),
    )

  return optax.inject_hyperparams(make)(learning_rate=0.0, weight_decay=0.0)


def is_matrix(params: Any) -> Any:
  """Marks the leaves that weight decay applies to."""
  return jax.tree.map(lambda x: jnp.ndim(x) > 1, params)


def with_rates(
  opt_state: Any,
  *,
  learning_rate: jax.typing.ArrayLike,
  weight_decay: jax.typing.ArrayLike,
) -> Any:
  """Puts rates into the state of an `adamw`."""
  rates = {"learning_rate": learning_rate, "weight_decay": weight_decay}
  rates = {k: jnp.asarray(v, jnp.float32) for k, v in rates.items()}
  return opt_state._replace(hyperparams={**opt_state.hyperparams, **rates})


def warmup_cosine(
  step: jax.typing.ArrayLike,
  *,
  peak: jax.typing.ArrayLike,
  total_steps: jax.typing.ArrayLike,
  warmup_steps: jax.typing.ArrayLike,
) -> jax.Array:
  """Linear warmup, then half a cosine down to 0.

  Args:
    step: from 0; the first step already has a rate above 0.
    peak: the highest rate.
    total_steps: where the cosine ends.
    warmup_steps: where it begins; 0 for none.
  """
  warm = (step + 1) / jnp.maximum(warmup_steps, 1)
  span = jnp.maximum(total_steps - warmup_steps, 1)
  done = jnp.clip((step - warmup_steps) / span, 0, 1)
  cosine = 0.5 * (1 + jnp.cos(jnp.pi * done))
  return peak * jnp.where(step < warmup_steps, warm, cosine)
