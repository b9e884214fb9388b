# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Learning rates over time, with everything a sweep varies as traced values."""

import jax
import jax.numpy as jnp

# Schedules are traced as numbers, so that a sweep over them compiles once.
NAMES = ("cosine", "rsqrt", "linear", "constant")


def index(name: str) -> int:
  """Returns the index of a schedule in `NAMES`.

  Raises:
    ValueError: if the schedule does not exist.
  """
  if name not in NAMES:
    raise ValueError(f"schedule={name!r} must be one of {', '.join(NAMES)}.")
  return NAMES.index(name)


def learning_rate(
  step: jax.typing.ArrayLike,
  *,
  schedule: jax.typing.ArrayLike,
  peak: jax.typing.ArrayLike,
  total_steps: jax.typing.ArrayLike,
  warmup_steps: jax.typing.ArrayLike,
  cooldown_steps: jax.typing.ArrayLike = 0,
) -> jax.Array:
  """Computes a rate: linear warmup, a schedule, linear cooldown to 0.

  Args:
    step: number of the step, from 0; the rate of step 0 is above 0.
    schedule: from `index`. "cosine" and "linear" fall to 0 at the end; "rsqrt"
      falls as 1 / sqrt(step) after the warmup, independent of the total (arXiv
      2106.04560, section 3.5); "constant" stays at the peak.
    peak: the highest rate.
    total_steps: length of the schedule, in steps.
    warmup_steps: length of the warmup, in steps; 0 is off.
    cooldown_steps: number of last steps over which the rate falls to 0; 0 is
      off.

  Returns:
    The rate, a float32 scalar.

  Examples:
    >>> linear = dict(schedule=index("linear"), total_steps=10, warmup_steps=2)
    >>> rates = [learning_rate(k, peak=1.0, **linear) for k in (0, 2, 6, 10)]
    >>> [round(float(rate), 2) for rate in rates]
    [0.5, 1.0, 0.5, 0.0]
  """
  step = jnp.asarray(step, jnp.float32)
  span = jnp.maximum(total_steps - warmup_steps, 1)
  done = jnp.clip((step - warmup_steps) / span, 0, 1)
  # Without a warmup, rsqrt falls from the first step.
  scale = jnp.maximum(warmup_steps, 1)
  rsqrt = jnp.sqrt(scale / jnp.maximum(step + 1, scale))
  warm = jnp.minimum((step + 1) / scale, 1)
  half_cosine = 0.5 * (1 + jnp.cos(jnp.pi * done))
  cosine = jnp.where(step < warmup_steps, warm, half_cosine)
  rates = jnp.stack([cosine, warm * rsqrt, warm * (1 - done), warm])
  left = jnp.clip((total_steps - step) / jnp.maximum(cooldown_steps, 1), 0, 1)
  cool = jnp.where(cooldown_steps > 0, left, 1.0)
  return peak * cool * rates[schedule]
