# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Coefficients that differ from leaf to leaf."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from soupjax.soups.core import arguments, layers, tree

# A number, regular expression -> number or numbers along the first axis, or
# numbers over depth.
Coefficient = float | Mapping[str, float | Sequence[float]] | Sequence[float]
# One number an ingredient, or regular expression -> such numbers; None is 1s.
Weights = Sequence[float] | Mapping[str, Sequence[float]] | None


def check(name: str, value: Coefficient) -> Any:
  """Returns a coefficient as float, dict or list of floats.

  Raises:
    ValueError: naming it, if it is none.
  """
  if isinstance(value, Mapping):
    if not value:
      raise ValueError(f"{name} is an empty mapping.")
    return {str(k): _one_or_list(f"{name}[{k!r}]", v) for k, v in value.items()}
  array = None if arguments.has_bool(value) else arguments.numbers(value)
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


def _one_or_list(name, value):
  if np.ndim(value) == 0:
    return arguments.real(name, value)
  found = _flat(name, value, "over the layers that are the first axis")
  if not found:
    raise ValueError(f"{name} is an empty list: give a number for a layer.")
  return found


def check_weights(weights: Weights) -> Any:
  """Returns weights as list of floats, dict of such lists, or None.

  Raises:
    ValueError: if they are no flat sequence of finite numbers, nor a mapping
      to such.
  """
  if weights is None:
    return None
  if isinstance(weights, Mapping):
    if not weights:
      raise ValueError("weights is an empty mapping.")
    return {str(k): _flat(f"weights[{k!r}]", v) for k, v in weights.items()}
  return _flat("weights", weights)


def _flat(name, values, what="one an ingredient"):
  array = None if arguments.has_bool(values) else arguments.numbers(values)
  if array is None or array.ndim != 1 or not np.isfinite(array).all():
    raise ValueError(
      f"{name} must be a flat sequence of finite numbers, {what}, got "
      f"{values!r:.80}."
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
  return split_weighted(
    name, value, None, lambda one, weights, count: numbers(one, count)
  )


def split_weighted(
  name: str,
  value: Coefficient,
  weights: Weights,
  numbers: Callable[[float, Any, int], Mapping[str, Any]],
) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
  """Like `split`, for a rule that has weights besides.

  Args:
    name: of the coefficient, for errors.
    value: the coefficient.
    weights: of the ingredients.
    numbers: `numbers(coefficient, weights, count)` returns what goes to
      `combine`; weights are those of a leaf, or None.
  """
  value, weights = check(name, value), check_weights(weights)
  if isinstance(value, float) and not isinstance(weights, dict):
    return (lambda count: numbers(value, weights, count)), None

  def values(count):
    sets = weights.values() if isinstance(weights, dict) else [weights]
    for one in sets:
      numbers(1.0, one, count)  # Raises if the count does not fit.
    return {}

  def leaf_values(leaves, count, every):
    found = resolve(name, value, leaves, every)
    each = resolve_weights(weights, leaves)
    return {
      leaf: by_layer(one, lambda x, w=each[leaf]: numbers(x, w, count))
      for leaf, one in found.items()
    }

  return values, leaf_values


def by_layer(
  value: float | np.ndarray, numbers: Callable[[float], Mapping[str, Any]]
) -> dict[str, Any]:
  """The numbers of a leaf, whose layers may be its first axis.

  Args:
    value: the coefficient of the leaf, or (L,) one for each of its layers.
    numbers: `numbers(coefficient)` returns what goes to `combine`.

  Returns:
    What `numbers` does. Entries that differ between layers are in a dict called
    "by_layer" instead, with layers as their last axis: see
    `rule_inputs.spread`.
  """
  if not np.ndim(value):
    return dict(numbers(float(value)))
  found = [numbers(float(one)) for one in np.asarray(value)]
  first = found[0]
  differ = {
    key: np.stack([one[key] for one in found], axis=-1)
    for key in first
    if not all(np.array_equal(one[key], first[key]) for one in found)
  }
  same = {key: one for key, one in first.items() if key not in differ}
  return {**same, "by_layer": differ} if differ else same


def resolve_weights(weights: Any, leaves: Iterable[str]) -> dict[str, Any]:
  """Finds the weights of every leaf that is merged.

  Args:
    weights: from `check_weights`. Of a mapping, the first expression found in
      the leaf's name counts.
    leaves: their names.

  Returns:
    Leaf -> weights, or None.

  Raises:
    ValueError: for an expression that matches nothing, or a leaf without
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
  every: Mapping[str, Any] | None = None,
) -> dict[str, float | np.ndarray]:
  """Finds the coefficient of every leaf that is merged.

  Args:
    name: of the coefficient, for errors.
    value: a number for all; a mapping, of which the first expression found in
      the leaf's name counts; or numbers that are interpolated over depth, the
      first for the first layer and the last for the last. In a mapping, numbers
      are interpolated over the layers that are the first axis of leaves.
    leaves: their names, or also their specs, which lists in a mapping need.
    every: specs of all leaves of the model, also those that are kept or left
      out: depth is that in the whole of it. None: there are no others.

  Returns:
    Leaf -> number, or (L,) numbers for the L layers of its first axis.

  Raises:
    ValueError: for an expression that matches nothing, a leaf without a
      coefficient, or depth without layers to be told (see `layers.of`).
  """
  value, specs, leaves = check(name, value), leaves, list(leaves)
  if isinstance(value, float):
    return dict.fromkeys(leaves, value)
  if isinstance(value, dict):
    return _by_regex(name, value, leaves, specs)
  depths = layers.depths(leaves if every is None else every)
  return {leaf: float(_interpolated(depths[leaf], value)) for leaf in leaves}


def _interpolated(at, values):
  """Numbers that go from the first of `values` at 0 to the last at 1."""
  ends = np.linspace(0, 1, len(values)) if len(values) > 1 else np.zeros(1)
  return np.interp(at, ends, values)


def _along(name, values, leaves, specs):
  """The numbers of leaves whose first axis counts layers."""
  counts = {leaf: (specs[leaf].shape or (0,))[0] for leaf in leaves}
  other = max(leaves, key=counts.__getitem__)
  for leaf, count in counts.items():
    if count < 2 or count != counts[other]:
      raise ValueError(
        f"{name} is a list, for layers that are the first axis of leaves: the "
        f"shapes {specs[leaf].shape} of {leaf!r} and {specs[other].shape} of "
        f"{other!r} are not of as many layers, two or more. Let the expression "
        "match the scanned blocks alone."
      )
  numbers = _interpolated(np.linspace(0, 1, counts[other]), values)
  return dict.fromkeys(leaves, numbers)


def _by_regex(name, value, leaves, specs=None):
  """Leaf -> what its expression says; with specs, lists go along an axis."""
  found: dict[str, Any] = {}
  for pattern, new in tree.matches(name, value, leaves):
    one = value[pattern]
    if specs is not None and isinstance(one, list):
      found |= _along(f"{name}[{pattern!r}]", one, new, specs)
    else:
      found |= dict.fromkeys(new, one)
  missing = [leaf for leaf in leaves if leaf not in found]
  if missing:
    raise ValueError(
      f"{name} says nothing about {len(missing)} leaves, such as "
      f"{', '.join(map(repr, missing[:3]))}. End it with an entry '' for all "
      "others."
    )
  return found
