# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments, and calls of functions that callers pass in."""

from collections.abc import Callable, Iterator, Sequence
import math
import operator
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups.core import tree


def numbers(value: Any) -> np.ndarray | None:
  """Returns real numbers as a float64 array, or None for anything else.

  Strings are rejected even if they parse as numbers.
  """
  try:
    array = np.asarray(value)
  except (TypeError, ValueError):  # Lists of uneven lengths, tracers.
    return None
  kinds = (jnp.floating, jnp.integer, np.bool_)
  # array.dtype.kind would not do: it is "V" for bfloat16.
  if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
    return None
  return array.astype(np.float64)


def as_number(value: Any) -> float | None:
  """Returns a number, or an array of size 1, as a float; else None."""
  array = numbers(value)
  return array.item() if array is not None and array.size == 1 else None


def has_bool(value: Any) -> bool:
  """Whether a value is or contains a boolean, which NumPy takes as a number."""
  if isinstance(value, list | tuple):
    return any(map(has_bool, value))
  return isinstance(value, bool) or getattr(value, "dtype", None) == np.bool_


def real(name: str, value: Any) -> float:
  """Returns a finite number as a float; unlike `number`, rejects booleans.

  Raises:
    ValueError: naming the argument and the value.
  """
  checked = None if has_bool(value) else as_number(value)
  if checked is None or not math.isfinite(checked):
    raise ValueError(f"{name} must be a finite number, got {value!r:.80}.")
  return checked


def flag(name: str, value: Any) -> bool:
  """Returns a boolean; raises a ValueError for others, such as "false" or 0."""
  if not isinstance(value, bool | np.bool_):
    raise ValueError(f"{name} must be True or False, got {value!r:.80}.")
  return bool(value)


def whole(name: str, value: Any) -> int:
  """Returns a whole number of any sign as an int.

  Raises:
    ValueError: for anything else, such as 1.5 or True.
  """
  try:
    if not has_bool(value):
      return operator.index(value)
  except TypeError:
    pass
  raise ValueError(f"{name} must be a whole number, got {value!r:.80}.")


def count(name: str, value: Any) -> int:
  """Returns a positive whole number as an int.

  Raises:
    ValueError: for anything else, such as 0, 1.5 or True.
  """
  checked = whole(name, value)
  if checked < 1:
    raise ValueError(f"{name} must be positive, got {checked}.")
  return checked


def number(
  name: str,
  value: Any,
  must: str = "be a finite number",
  holds: Callable[[float], bool] = lambda x: True,
) -> float:
  """Returns an argument as a float.

  Args:
    name: of the argument.
    value: of the argument.
    must: the requirement in words, such as "be positive".
    holds: whether a finite number meets the requirement.

  Raises:
    ValueError: if the value is not a number, not finite, or `holds` is false.
  """
  checked = as_number(value)
  if checked is None:
    raise ValueError(f"{name} must be a number, got {value!r:.80}.")
  if not math.isfinite(checked) or not holds(checked):
    raise ValueError(f"{name} must {must}, got {value}.")
  return checked


def mode(evaluate: Any, expected: str) -> None:
  """Checks that an evaluator and a recipe agree on which scores are better.

  Args:
    evaluate: may have an attribute `mode`, "max" or "min".
    expected: the mode of the recipe.

  Raises:
    ValueError: if the evaluator has the other mode.
  """
  declared = getattr(evaluate, "mode", expected)
  if declared != expected:
    raise ValueError(
      f"mode is {expected!r}, but the evaluator says that its scores are for "
      f"mode={declared!r}: pass mode={declared!r}."
    )


def call(function: Callable[..., Any], params: Any, *args: Any) -> Any:
  """Calls an evaluator with a tree that it may modify freely.

  Args:
    function: of a tree, and perhaps of further arguments.
    params: the tree, which does not change.
    *args: the further arguments.

  Returns:
    The result of the function.

  Raises:
    ValueError: if the function donated the arrays to a compiled function.
  """
  result = function(tree.owned(params), *args)
  for leaf in jax.tree.leaves(params):
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
      raise ValueError(
        f"{getattr(function, '__name__', 'evaluate')} donated the parameters "
        "to a compiled function, which deletes them, but they are used again: "
        "leave out donate_argnums, or give it copies."
      )
  return result


def higher_is_better(evaluate: Any) -> None:
  """Checks that higher scores of an evaluator are better.

  Raises:
    ValueError: if its attribute `mode` is not "max".
  """
  declared = getattr(evaluate, "mode", "max")
  if declared != "max":
    raise ValueError(
      f"The evaluator says that its scores are for mode={declared!r}, but "
      "higher must be better here: negate the score (return -loss), and set "
      "mode='max' or remove the attribute."
    )


def soup_weights(weights: Sequence[float] | None, count: int) -> np.ndarray:
  """Returns soup weights as float64, of magnitude at most 1; ones if None.

  Warns of negative weights.

  Args:
    weights: one number per ingredient, or None.
    count: the number of ingredients.

  Returns:
    (count,) weights, all divided by the same power of two.

  Raises:
    ValueError: if they are not `count` finite numbers, or sum to zero (up to
      1e-6 of the largest).
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
      f"Weights {weights} sum to zero and cannot be normalised. To add "
      "differences of models to a base, use task arithmetic."
    )
  if (array < 0).any():
    warnings.warn(f"Some soup weights are negative: {weights}.", stacklevel=3)
  # Scaling by a power of two is exact. It keeps the sum and its reciprocal in
  # the range of float32.
  _, exponent = np.frexp(np.abs(array).max())
  return np.ldexp(array, -exponent)
