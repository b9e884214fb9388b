# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Coefficients that differ from leaf to leaf."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import re
from typing import Any

import numpy as np

from soupjax.soups import tree

# A number, regular expression -> number, or numbers over depth.
Coefficient = float | Mapping[str, float] | Sequence[float]

# Unnumbered leaves with such names come before the layers, all others after.
_BEFORE = re.compile(r"embed|patch|pos|cls|token|stem|wte|wpe", re.IGNORECASE)


def check(name: str, value: Coefficient) -> Any:
  """Returns a coefficient as float, dict or list of floats.

  Raises:
    ValueError: naming it, if it is none.
  """
  if isinstance(value, Mapping):
    if not value:
      raise ValueError(f"{name} is an empty mapping.")
    return {str(k): check(f"{name}[{k!r}]", v) for k, v in value.items()}
  try:
    array = np.asarray(value, np.float64)
  except (TypeError, ValueError):
    array = np.array(np.nan)
  if array.ndim > 1 or not array.size or not np.isfinite(array).all():
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

  def leaf_values(leaves, count):
    found = resolve(name, value, leaves)
    return {leaf: numbers(c, count) for leaf, c in found.items()}

  return values, leaf_values


def resolve(
  name: str, value: Coefficient, leaves: Iterable[str]
) -> dict[str, float]:
  """Finds the coefficient of every leaf.

  Args:
    name: of the coefficient, for errors.
    value: a number for all; a mapping, of which the first expression found in
      the leaf's name counts; or numbers that are interpolated over depth, the
      first for the first layer and the last for the last.
    leaves: their names.

  Returns:
    Leaf -> number.

  Raises:
    ValueError: for an expression that matches nothing, a leaf without a
      coefficient, or depth without numbered layers.
  """
  value, leaves = check(name, value), list(leaves)
  if isinstance(value, float):
    return dict.fromkeys(leaves, value)
  if isinstance(value, dict):
    return _by_regex(name, value, leaves)
  depths = depth_of(leaves)
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


def depth_of(leaves: Iterable[str]) -> dict[str, float]:
  """How deep in the network each leaf is, from 0 to 1.

  Layers are told by the first number in a name ("encoderblock_3/...",
  "blocks.3...."); of several families of numbered modules, that with the most
  numbers are the layers. All other leaves are at 0 if their name speaks of
  embeddings, patches, positions, tokens or a stem, else at 1.

  Raises:
    ValueError: if no leaf has a number.
  """
  leaves = list(leaves)
  numbered: dict[str, tuple[str, int]] = {}
  for leaf in leaves:
    for part in re.finditer(r"[^/.]+", leaf):
      number = re.fullmatch(r"(?:.*[_-])?(\d+)", part.group())
      if number:
        stem = leaf[: part.start() + number.start(1)]
        numbered[leaf] = (stem, int(number.group(1)))
        break
  families: dict[str, set[int]] = {}
  for stem, number in numbered.values():
    families.setdefault(stem, set()).add(number)
  if not families:
    raise ValueError(
      "No leaf has a numbered layer in its name, as 'encoderblock_3/kernel', "
      "so that coefficients cannot go by depth. Use a mapping instead."
    )
  family = max(families, key=lambda stem: len(families[stem]))
  layers = sorted(families[family])
  last = max(1, len(layers) - 1)
  depths = {}
  for leaf in leaves:
    stem, number = numbered.get(leaf, ("", 0))
    if leaf in numbered and stem == family:
      depths[leaf] = layers.index(number) / last
    else:
      depths[leaf] = 0.0 if _BEFORE.search(leaf) else 1.0
  return depths
