# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Coefficients that differ from leaf to leaf."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from soupjax.soups import checks, depth, tree

# A number, regular expression -> number, or numbers over depth.
Coefficient = float | Mapping[str, float] | Sequence[float]


def check(name: str, value: Coefficient) -> Any:
  """Returns a coefficient as float, dict or list of floats.

  Raises:
    ValueError: naming it, if it is none.
  """
  if isinstance(value, Mapping):
    if not value:
      raise ValueError(f"{name} is an empty mapping.")
    return {str(k): checks.real(f"{name}[{k!r}]", v) for k, v in value.items()}
  array = None if checks.has_bool(value) else checks.numbers(value)
  if (
    array is None
    or array.ndim > 1
    or not array.size
    or not np.isfinite(array).all()
  ):
    raise ValueError(
      f"{name} must be a finite number, a mapping from regular expressions to "
      f"numbers, or a sequence of numbers over depth; got {value!r}."
    )
  return array.tolist()


def split(
  name: str,
  value: Coefficient,
  numbers: Callable[[float, int], Mapping[str, Any]],
) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
  """Makes the functions `values` and `leaf_values` of a rule.

  Args:
    name: of the coefficient, for errors.
    value: the coefficient.
    numbers: `numbers(coefficient, count)` returns what goes to `combine`.

  Returns:
    The two; the second is None if all leaves have the same coefficient.
  """
  value = check(name, value)
  if isinstance(value, float):
    return (lambda count: numbers(value, count)), None

  def values(count):
    numbers(1.0, count)  # Raises if the count does not fit.
    return {}

  def leaf_values(leaves, count, every):
    found = resolve(name, value, leaves, every)
    return {leaf: numbers(c, count) for leaf, c in found.items()}

  return values, leaf_values


def resolve(
  name: str,
  value: Coefficient,
  leaves: Iterable[str],
  every: Mapping[str, Any] | None = None,
) -> dict[str, float]:
  """Finds the coefficient of every leaf that is merged.

  Args:
    name: of the coefficient, for errors.
    value: a number for all; a mapping, of which the first expression found in
      the leaf's name counts; or numbers that are interpolated over depth, the
      first for the first layer and the last for the last.
    leaves: their names.
    every: specs of all leaves of the model, also those that are kept or left
      out: depth is that in the whole of it. None: there are no others.

  Returns:
    Leaf -> number.

  Raises:
    ValueError: for an expression that matches nothing, a leaf without a
      coefficient, or depth without layers to be told (see `depth.of`).
  """
  value, leaves = check(name, value), list(leaves)
  if isinstance(value, float):
    return dict.fromkeys(leaves, value)
  if isinstance(value, dict):
    return _by_regex(name, value, leaves)
  depths = depth.of(leaves if every is None else every)
  at = np.linspace(0, 1, len(value)) if len(value) > 1 else np.zeros(1)
  return {leaf: float(np.interp(depths[leaf], at, value)) for leaf in leaves}


def _by_regex(name, value, leaves):
  found: dict[str, float] = {}
  for pattern, new in tree.matches(name, value, leaves):
    found |= dict.fromkeys(new, value[pattern])
  missing = [leaf for leaf in leaves if leaf not in found]
  if missing:
    raise ValueError(
      f"{name} says nothing about {len(missing)} leaves, such as "
      f"{', '.join(map(repr, missing[:3]))}. End it with '': number, for all "
      "others."
    )
  return found
