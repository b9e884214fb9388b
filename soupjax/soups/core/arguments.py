# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Checks of numbers that callers pass in."""

from collections.abc import Callable, Iterator, Sequence
import math
import operator
from typing import Any
import warnings

import jax.numpy as jnp
import numpy as np


def numbers(value: Any) -> np.ndarray | None:
  """Returns real numbers as float64, None if that is not what they are.

  Text that looks like a number is none: it is a slip in most programs.
  """
  try:
    array = np.asarray(value)
  except (TypeError, ValueError):  # Lists of uneven lengths, tracers.
    return None
  kinds = (jnp.floating, jnp.integer, np.bool_)
  # Not array.dtype.kind, which is "V" for bfloat16.
  if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
    return None
  return array.astype(np.float64)


def as_number(value: Any) -> float | None:
  """Returns one number, or an array that holds one, as a float; else None."""
  array = numbers(value)
  return array.item() if array is not None and array.size == 1 else None


def has_bool(value: Any) -> bool:
  """Whether it is a boolean, or has one in it: 1 and 0 to numpy."""
  if isinstance(value, list | tuple):
    return any(has_bool(one) for one in value)
  return isinstance(value, bool) or getattr(value, "dtype", None) == np.bool_


def real(name: str, value: Any) -> float:
  """Returns a finite number as a float; unlike `number` takes no boolean.

  Raises:
    ValueError: that names it.
  """
  found = None if has_bool(value) else as_number(value)
  if found is None or not math.isfinite(found):
    raise ValueError(f"{name} must be a finite number, got {value!r:.80}.")
  return found


def flag(name: str, value: Any) -> bool:
  """Returns a boolean, or raises a ValueError: "false" and 0 are none."""
  if not isinstance(value, bool | np.bool_):
    raise ValueError(f"{name} must be True or False, got {value!r:.80}.")
  return bool(value)


def whole(name: str, value: Any) -> int:
  """Returns a whole number, of any sign, as an int.

  Raises:
    ValueError: if it is something else, such as 1.5 or True.
  """
  try:
    if not has_bool(value):
      return operator.index(value)
  except TypeError:
    pass
  raise ValueError(f"{name} must be a whole number, got {value!r:.80}.")


def number(
  name: str,
  value: Any,
  must: str = "be a finite number",
  holds: Callable[[float], bool] = lambda x: True,
) -> float:
  """Returns an argument as a float.

  Args:
    name: what the argument is called.
    value: what was given.
    must: what it must do, in words, as "be positive".
    holds: whether a finite number does.

  Raises:
    ValueError: if it is no number, not finite, or `holds` is false.
  """
  found = as_number(value)
  if found is None:
    raise ValueError(f"{name} must be a number, got {value!r:.80}.")
  if not math.isfinite(found) or not holds(found):
    raise ValueError(f"{name} must {must}, got {value}.")
  return found


def mode(evaluate: Any, wanted: str) -> None:
  """Checks that an evaluator means by a better score what a recipe does.

  Args:
    evaluate: may have an attribute `mode`, "max" or "min".
    wanted: the mode of the recipe.

  Raises:
    ValueError: if it has another.
  """
  found = getattr(evaluate, "mode", wanted)
  if found != wanted:
    raise ValueError(
      f"mode is {wanted!r}, but the evaluator says that its scores are for "
      f"mode={found!r}: give that."
    )


def higher_is_better(evaluate: Any) -> None:
  """Checks that an evaluator does not say that lower scores are better.

  Raises:
    ValueError: if its attribute `mode` is not "max".
  """
  found = getattr(evaluate, "mode", "max")
  if found != "max":
    raise ValueError(
      f"The evaluator says that its scores are for mode={found!r}, but higher "
      "must be better here: negate the score (return -loss, with mode='max' or "
      "none)."
    )


def count(name: str, value: Any) -> int:
  """Returns a positive whole number as an int.

  Args:
    name: what the argument is called.
    value: what was given.

  Raises:
    ValueError: if it is something else.
  """
  try:
    found = operator.index(value)
  except TypeError:
    raise ValueError(
      f"{name} must be a whole number, got {value!r:.80}."
    ) from None
  if found < 1:
    raise ValueError(f"{name} must be positive, got {found}.")
  return found


def soup_weights(weights: Sequence[float] | None, count: int) -> np.ndarray:
  """Returns soup weights as float64, of size 1 at most, ones if None.

  Args:
    weights: one number an ingredient, or None.
    count: the number of ingredients.

  Returns:
    (count,) weights, all divided by one power of two.

  Raises:
    ValueError: if they are no numbers, their number is wrong, one is not
      finite, or they sum to 0.
  """
  if weights is None:
    return np.ones(count)
  if isinstance(weights, Iterator):
    weights = list(weights)
  array = numbers(weights)
  if array is None:
    raise ValueError(
      f"Weights must be a sequence of {count} numbers, in the order of the "
      f"ingredients, got a {type(weights).__name__}: {weights!r:.80}."
    )
  weights = np.asarray(weights).tolist()
  if array.shape != (count,):
    raise ValueError(
      f"Got weights of shape {array.shape} for {count} ingredients: give one "
      "number for each."
    )
  if not np.isfinite(array).all():
    raise ValueError(f"Weights must be finite, got {weights}.")
  if abs(array.sum()) <= 1e-6 * np.abs(array).max():
    raise ValueError(
      f"Weights {weights} sum to zero: they cannot be normalised. To add "
      "differences of models to a base, use task arithmetic."
    )
  if (array < 0).any():
    warnings.warn(f"Some soup weights are negative: {weights}.", stacklevel=3)
  # A power of two changes no digit, and keeps the sum and its reciprocal in
  # the range of float32.
  _, exponent = np.frexp(np.abs(array).max())
  return np.ldexp(np.asarray(array, np.float64), -exponent)
