# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Coefficients and weights that vary by leaf, layer or depth."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from soupjax.soups.core import arguments, layers, tree

# A number; regular expression -> number, or numbers along the first axis; or
# numbers over depth.
Coefficient = float | Mapping[str, float | Sequence[float]] | Sequence[float]
# One number per ingredient, or regular expression -> such numbers; None is 1
# for each.
Weights = Sequence[float] | Mapping[str, Sequence[float]] | None


def check(name: str, value: Coefficient) -> Any:
  """Returns a coefficient as a float, dict or list of floats.

  Raises:
    ValueError: naming it, if it is something else.
  """
  if isinstance(value, Mapping):
    if not value:
      raise ValueError(f"{name} is an empty mapping.")
    return {
      str(k): arguments.real(f"{name}[{k!r}]", v)
      if np.ndim(v) == 0
      else _flat(f"{name}[{k!r}]", v, "layer on the first axis")
      for k, v in value.items()
    }
  array = _finite(value)
  if array is None or array.ndim > 1 or not array.size:
    raise ValueError(
      f"{name} must be a finite number, a mapping from regular expressions to "
      f"numbers, or a sequence of numbers over depth; got {value!r}."
    )
  return array.tolist()


def check_weights(weights: Weights) -> Any:
  """Returns weights as a list of floats, dict of such lists, or None.

  Raises:
    ValueError: if they are something else.
  """
  if weights is None:
    return None
  if isinstance(weights, Mapping):
    if not weights:
      raise ValueError("weights is an empty mapping.")
    return {
      str(k): _flat(f"weights[{k!r}]", v, "ingredient", empty=True)
      for k, v in weights.items()
    }
  return _flat("weights", weights, "ingredient", empty=True)


def _finite(value) -> np.ndarray | None:
  """Returns finite numbers as an array, None if the value is anything else."""
  array = None if arguments.has_bool(value) else arguments.numbers(value)
  return array if array is not None and np.isfinite(array).all() else None


def _flat(name, values, item, *, empty=False):
  array = _finite(values)
  if array is None or array.ndim != 1 or not (array.size or empty):
    raise ValueError(
      f"{name} must be a flat sequence of finite numbers, one per {item}, got "
      f"{values!r:.80}."
    )
  return array.tolist()


def split(
  name: str,
  value: Coefficient,
  weights: Weights,
  numbers: Callable[[float, Any, int], Mapping[str, Any]],
) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
  """Makes the functions `values` and `leaf_values` of a rule.

  Args:
    name: of the coefficient, for errors.
    value: the coefficient.
    weights: of the ingredients.
    numbers: `numbers(coefficient, weights, count)` returns the values for
      `combine`; weights are those of a leaf, or None.

  Returns:
    The two functions; the second is None if all leaves have the same values.
  """
  value, weights = check(name, value), check_weights(weights)
  if isinstance(value, float) and not isinstance(weights, dict):
    return (lambda count: numbers(value, weights, count)), None

  def values(count):
    sets = weights.values() if isinstance(weights, dict) else [weights]
    for leaf_weights in sets:
      numbers(1.0, leaf_weights, count)  # Raises if the count does not fit.
    return {}

  def leaf_values(leaves, count, all_specs):
    weights_of = resolve_weights(weights, leaves)
    return {
      leaf: by_layer(number, lambda x, w=weights_of[leaf]: numbers(x, w, count))
      for leaf, number in resolve(name, value, leaves, all_specs).items()
    }

  return values, leaf_values


def by_layer(
  value: float | np.ndarray, numbers: Callable[[float], Mapping[str, Any]]
) -> dict[str, Any]:
  """Returns the values of a leaf, whose first axis may be its layers.

  Args:
    value: the coefficient of the leaf, or (L,) one for each of its layers.
    numbers: `numbers(coefficient)` returns the values for `combine`.

  Returns:
    The values. Those that differ between layers are in a dict called "by_layer"
    instead, with layers as their last axis: see `rule_inputs.spread`.
  """
  if not np.ndim(value):
    return dict(numbers(float(value)))
  layers_values = [numbers(float(number)) for number in np.asarray(value)]
  same, differ = {}, {}
  for key, first in layers_values[0].items():
    arrays = [values[key] for values in layers_values]
    if all(np.array_equal(array, first) for array in arrays):
      same[key] = first
    else:
      differ[key] = np.stack(arrays, axis=-1)
  return {**same, "by_layer": differ} if differ else same


def resolve_weights(weights: Any, leaves: Iterable[str]) -> dict[str, Any]:
  """Returns the weights of every leaf that is merged.

  Args:
    weights: from `check_weights`. In a mapping, the first expression that
      matches part of the leaf's name counts.
    leaves: their names.

  Returns:
    Leaf -> weights, or None.

  Raises:
    ValueError: for an expression that matches no leaf, or a leaf without
      weights.
  """
  leaves = list(leaves)
  if isinstance(weights, dict):
    return _by_regex("weights", weights, leaves)
  return dict.fromkeys(leaves, weights)


def resolve(
  name: str,
  value: Coefficient,
  leaves: Iterable[str] | Mapping[str, Any],
  all_specs: Mapping[str, Any] | None = None,
) -> dict[str, float | np.ndarray]:
  """Returns the coefficient of every leaf that is merged.

  Args:
    name: of the coefficient, for errors.
    value: a number for all leaves; a mapping, in which the first expression
      that matches part of the leaf's name counts; or numbers that are
      interpolated over depth, from the first layer to the last. In a mapping,
      lists are interpolated over the layers on the first axis of leaves.
    leaves: their names, or their specs, which lists in a mapping need.
    all_specs: specs of all leaves of the model, including those that are not
      merged, to determine depth; None if `leaves` has all of them.

  Returns:
    Leaf -> number, or (L,) numbers for the L layers on its first axis.

  Raises:
    ValueError: for an expression that matches no leaf, a leaf without a
      coefficient, or depth without recognisable layers (see `layers.depths`).
  """
  value, specs, leaves = check(name, value), leaves, list(leaves)
  if isinstance(value, float):
    return dict.fromkeys(leaves, value)
  if isinstance(value, dict):
    return _by_regex(name, value, leaves, specs)
  depths = layers.depths(leaves if all_specs is None else all_specs)
  return {leaf: float(_interpolated(depths[leaf], value)) for leaf in leaves}


def _interpolated(depth, values):
  """Interpolates from the first of `values` at depth 0 to the last at 1."""
  depths = np.linspace(0, 1, len(values)) if len(values) > 1 else np.zeros(1)
  return np.interp(depth, depths, values)


def _along(name, values, leaves, specs):
  """Returns the numbers of leaves whose first axis is their layers."""
  counts = {leaf: (specs[leaf].shape or (0,))[0] for leaf in leaves}
  deepest = max(leaves, key=counts.__getitem__)
  for leaf, count in counts.items():
    if count < 2 or count != counts[deepest]:
      raise ValueError(
        f"{name} is a list, for leaves with the same number of layers, two or "
        f"more, on their first axis, but {leaf!r} has the shape "
        f"{specs[leaf].shape} and {deepest!r} has {specs[deepest].shape}. "
        "Let the expression match scanned blocks only."
      )
  numbers = _interpolated(np.linspace(0, 1, counts[deepest]), values)
  return dict.fromkeys(leaves, numbers)


def _by_regex(name, values, leaves, specs=None):
  """Resolves a mapping; with specs, its lists go along the first axis."""
  result: dict[str, Any] = {}
  for pattern, matches in tree.matches(name, values, leaves):
    value = values[pattern]
    if specs is not None and isinstance(value, list):
      result |= _along(f"{name}[{pattern!r}]", value, matches, specs)
    else:
      result |= dict.fromkeys(matches, value)
  missing = [leaf for leaf in leaves if leaf not in result]
  if missing:
    raise ValueError(
      f"{name} does not cover {len(missing)} leaves, such as "
      f"{', '.join(map(repr, missing[:3]))}. Add a last entry '' for all "
      "other leaves."
    )
  return result
