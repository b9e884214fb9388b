# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Checks of the arguments, the loss and the gradient of learned soups."""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups.core import arguments, nonfinite
from soupjax.soups.core.ingredient import sharding_of
from soupjax.soups.learned.options import CoefficientOptimizer, Granularity

# Advice for a soup that overflows.
TOO_FAR = (
  "their differences are beyond the range in which coefficients can be "
  "learned. Leave out the model with such weights, or make a greedy soup."
)


def settings(
  ingredients, base, granularity, steps, optimizer, batches
) -> tuple[int, CoefficientOptimizer]:
  """Checks the arguments of `learned_soup` that can be checked without leaves.

  Returns:
    The number of steps, and the optimizer with its learning rate.

  Raises:
    ValueError: if an argument is out of range, or two do not fit together.
  """
  if len(ingredients) < (2 if base is None else 1):
    least = "two ingredients" if base is None else "one besides its base"
    raise ValueError(
      f"A learned soup needs at least {least}, got {len(ingredients)}."
    )
  for name, setting, kind, choices in (
    ("granularity", granularity, Granularity, ("model", "layer", "tensor")),
    ("optimizer", optimizer, CoefficientOptimizer, ("adamw", "lbfgs")),
  ):
    if not isinstance(setting, kind):
      raise ValueError(
        f"{name} must be a string or a {kind.__name__}, got {setting!r:.80}."
      )
    if setting.name not in choices:
      raise ValueError(
        f"{name} must be one of {', '.join(map(repr, choices))}, got "
        f"{setting.name!r}."
      )
  decay = arguments.number(
    "weight_decay", optimizer.weight_decay, "not be negative", lambda x: x >= 0
  )
  learning_rate = optimizer.learning_rate
  if optimizer.name == "lbfgs":
    _check_lbfgs(batches, learning_rate, decay)
  elif learning_rate is None:
    learning_rate = 0.1 if base is None else 0.001
  if learning_rate is not None:
    learning_rate = arguments.number(
      "learning_rate", learning_rate, "be positive", lambda x: x > 0
    )
  return arguments.count("steps", steps), dataclasses.replace(
    optimizer, learning_rate=learning_rate, weight_decay=decay
  )


def _check_lbfgs(batches, learning_rate, decay):
  if batches is not None:
    raise ValueError(
      "optimizer 'lbfgs' needs one loss on all held-out data, not batches, "
      "because its line search compares losses. Compute the loss on all data, "
      "or use 'adamw'."
    )
  if learning_rate is not None or decay:
    name = "weight_decay" if learning_rate is None else "learning_rate"
    raise ValueError(
      f"optimizer 'lbfgs' has no {name}: leave it out, or use 'adamw'."
    )


def lower_is_better(loss: Any) -> None:
  """Raises a ValueError if the loss has a `mode` other than "min"."""
  mode = getattr(loss, "mode", "min")
  if mode != "min":
    raise ValueError(
      f"The loss has mode={mode!r}, but a learned soup minimises it: negate "
      "its values, and set mode='min' or remove the attribute."
    )


def batches(
  batches: Iterable[Any] | None, steps: int
) -> Iterator[tuple[Any, ...]]:
  """Returns an iterator of the loss's arguments after beta, step by step.

  Raises:
    ValueError: if `batches` is not a sequence or has too few batches. Without a
      length, the iterator raises when they run out.
  """
  if batches is None:
    return itertools.repeat(())
  # Arrays can be iterated over, but may not be registered as Iterable.
  is_iterable = isinstance(batches, Iterable) or hasattr(batches, "shape")
  if isinstance(batches, Mapping) or not is_iterable:
    raise ValueError(
      "batches must be a sequence of batches, got a "
      f"{type(batches).__name__}: put one batch in a list, or call the "
      "function that makes them."
    )
  if hasattr(batches, "__len__") and len(batches) < steps:
    raise _too_few(len(batches), steps)
  return _counted(batches, steps)


def _counted(batches, steps):
  count = 0
  for batch in batches:
    count += 1
    yield (batch,)
  if count < steps:
    raise _too_few(count, steps)


def _too_few(count, steps):
  return ValueError(
    f"Got {count} batches for {steps} steps: repeat the held-out data, or take "
    "fewer steps."
  )


def loss(loss_of, pool, batch: tuple[Any, ...]) -> None:
  """Checks the type of the loss without computing it.

  Args:
    loss_of: maps float leaves by position, beta and a batch to the loss.
    pool: a `streamed_passes.Pool`.
    batch: the arguments of one step after beta.

  Raises:
    ValueError: if the loss is not a floating-point scalar.
  """
  specs = [
    jax.ShapeDtypeStruct(
      spec.shape, np.float32, sharding=sharding_of(pool.sharding, leaf, spec)
    )
    for leaf, spec in pool.anchor.specs.items()
  ]
  result = None

  def run(*args):
    nonlocal result
    result = loss_of(*args)
    return ()

  beta = jax.ShapeDtypeStruct((), np.float32)
  jax.eval_shape(run, pool.floats(specs), beta, *batch)
  shape = getattr(result, "shape", () if isinstance(result, float) else None)
  dtype = getattr(result, "dtype", np.dtype(np.float32))
  if shape != () or not jnp.issubdtype(dtype, jnp.floating):
    kind = f"a {type(result).__name__}"
    if shape is not None:
      kind = f"an array of shape {shape} and dtype {dtype}"
    elif isinstance(result, tuple):
      kind = f"a tuple of {len(result)}, although it cannot have aux outputs"
    raise ValueError(
      f"loss must return one floating-point scalar, got {kind}. For example, "
      "average over the images with .mean()."
    )


def value(value: float, step: int, specs, soup) -> None:
  """Raises a ValueError if the loss of a soup is not finite."""
  if not math.isfinite(value):
    nonfinite.check_overflow(specs, soup, TOO_FAR)
    raise ValueError(
      f"The held-out loss is {value} at step {step} of the learned soup. Lower "
      "learning_rate, or look for an ingredient that diverged."
    )


def gradient(
  grad: np.ndarray, beta_grad: float, value: float, step: int, specs, soup
) -> None:
  """Raises a ValueError if the gradient of a soup is not finite."""
  if not (np.isfinite(grad).all() and math.isfinite(beta_grad)):
    nonfinite.check_overflow(specs, soup, TOO_FAR)
    of = "the coefficients" if math.isfinite(beta_grad) else "beta"
    raise ValueError(
      f"The gradient for {of} is not finite at step {step} of the learned "
      f"soup, although the loss is {value}. Common causes in the loss are a "
      "square root or a logarithm at 0, and a division by 0 inside jnp.where."
    )
