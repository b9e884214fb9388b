# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Checks the arguments of a learned soup, its loss and its gradient."""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups.core import arguments, nonfinite
from soupjax.soups.core.ingredient import Ingredient, sharding_of
from soupjax.soups.learned.options import CoefficientOptimizer, Granularity


@dataclasses.dataclass(frozen=True)
class Settings:
  """Of the optimizer; see `learned_soup`."""

  steps: int
  optimizer: str
  learning_rate: float | None
  weight_decay: float


def settings(
  ingredients,
  base,
  granularity,
  steps,
  optimizer,
  batches,
) -> Settings:
  """Checks those arguments of `learned_soup` that need no ingredient's leaves.

  Raises:
    ValueError: if one is out of range, or two do not fit together.
  """
  if len(ingredients) < (2 if base is None else 1):
    wanted = "two ingredients" if base is None else "one beside its base"
    raise ValueError(
      f"A learned soup needs at least {wanted}, got {len(ingredients)}."
    )
  _check_kind("granularity", granularity, Granularity)
  _check_kind("optimizer", optimizer, CoefficientOptimizer)
  for name, value, choices in (
    ("granularity", granularity.name, ("model", "layer", "tensor")),
    ("optimizer", optimizer.name, ("adamw", "lbfgs")),
  ):
    if value not in choices:
      *most, last = map(repr, choices)
      raise ValueError(
        f"{name} must be {', '.join(most)} or {last}, got {value!r}."
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
  return Settings(
    arguments.count("steps", steps), optimizer.name, learning_rate, decay
  )


def _check_kind(name, value, kind):
  if not isinstance(value, kind):
    raise ValueError(
      f"{name} must be a word or a {kind.__name__}, got {value!r:.80}."
    )


def direction(loss: Any) -> None:
  """Raises a ValueError if a loss says of itself that higher is better."""
  found = getattr(loss, "mode", "min")
  if found != "min":
    raise ValueError(
      f"The loss says that its values are for mode={found!r}, but a learned "
      "soup makes them as low as it can: negate them, with mode='min' or none."
    )


def _check_lbfgs(batches, learning_rate, decay):
  if batches is not None:
    raise ValueError(
      "optimizer 'lbfgs' needs one loss on all held-out data, not batches: its "
      "line search compares losses. Let loss go over all data, or use 'adamw'."
    )
  if learning_rate is not None or decay:
    name = "weight_decay" if learning_rate is None else "learning_rate"
    raise ValueError(f"{name} is of optimizer 'adamw'; 'lbfgs' has none.")


def something_to_learn(anchor: Ingredient, layout) -> None:
  """Raises a ValueError if no leaf has coefficients."""
  if not layout.groups:
    raise ValueError(
      f"No leaf of {anchor.name!r} is floating: there is nothing to learn. Its "
      f"leaves: {sorted(anchor.specs)[:10]}."
    )


def batches(
  batches: Iterable[Any] | None, steps: int
) -> Iterator[tuple[Any, ...]]:
  """Returns the arguments that follow beta, for every step.

  Raises:
    ValueError: if they are no sequence, or too few; at the latest when they
      run out.
  """
  if batches is None:
    return itertools.repeat(())
  if isinstance(batches, Mapping) or not isinstance(batches, Iterable):
    # Arrays are iterable without saying so.
    if not hasattr(batches, "shape"):
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
  """Checks what the loss returns, without computing it.

  Args:
    loss_of: of float leaves by position, beta, and what a batch is made of.
    pool: a `mixing.Pool`.
    batch: of one step.

  Raises:
    ValueError: if that is no floating-point scalar.
  """
  specs = [
    jax.ShapeDtypeStruct(
      spec.shape, np.float32, sharding=sharding_of(pool.sharding, leaf, spec)
    )
    for leaf, spec in pool.anchor.specs.items()
  ]
  found = None

  def run(*args):
    nonlocal found
    found = loss_of(*args)
    return ()

  beta = jax.ShapeDtypeStruct((), np.float32)
  jax.eval_shape(run, pool.floats(specs), beta, *batch)
  shape = getattr(found, "shape", () if isinstance(found, float) else None)
  dtype = getattr(found, "dtype", np.dtype(np.float32))
  if shape != () or not jnp.issubdtype(dtype, jnp.floating):
    what = f"a {type(found).__name__}"
    if shape is not None:
      what = f"an array of shape {shape} and dtype {dtype}"
    elif isinstance(found, tuple):
      what = f"a tuple of {len(found)} (only the loss is used, nothing beside)"
    raise ValueError(
      f"loss must return one floating-point scalar, got {what}. Average over "
      "the images with .mean(), for instance."
    )


def value(value: float, step: int, specs, soup) -> None:
  """Raises a ValueError if the loss at a soup is not finite."""
  if not math.isfinite(value):
    nonfinite.check_overflow(specs, soup)
    raise ValueError(
      f"The held-out loss is {value} at step {step} of the learned soup. Lower "
      "learning_rate, or look for a model that diverged."
    )


def gradient(
  grad: np.ndarray, beta_grad: float, value: float, step: int, specs, soup
) -> None:
  """Raises a ValueError if the gradient at a soup is not finite."""
  if not (np.isfinite(grad).all() and math.isfinite(beta_grad)):
    nonfinite.check_overflow(specs, soup)
    of = "the coefficients" if math.isfinite(beta_grad) else "beta"
    raise ValueError(
      f"The gradient for {of} is not finite at step {step} of the learned "
      f"soup, although the loss is {value}. Look in the loss for a square root "
      "or a logarithm at 0, or a division that jnp.where only hides."
    )
