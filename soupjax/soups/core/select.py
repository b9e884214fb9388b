# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The leaves that a rule merges, and whether the ingredients have them."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from soupjax.soups.core import arguments, tree
from soupjax.soups.core.ingredient import Ingredient

# What becomes of a leaf: None for the rule, "keep", "skip", a share of the way
# from the base, or one weight an ingredient.
Action = None | str | float | tuple[float, ...]


def actions(
  ingredients: Sequence[Ingredient],
  base: Ingredient | None,
  select: Mapping[str, Any],
) -> dict[str, Action]:
  """Resolves a selection.

  Args:
    ingredients: at least one.
    base: the base model, if any.
    select: regular expression -> action, see `plan.make`.

  Returns:
    Leaf -> action, for every leaf of any of them.

  Raises:
    ValueError: for an expression that does nothing, or an action that makes no
      sense.
  """
  everyone = [*ingredients, *([] if base is None else [base])]
  leaves = list(dict.fromkeys(leaf for one in everyone for leaf in one.specs))
  chosen: dict[str, Action] = {}
  for pattern, new in tree.matches("select", select, leaves):
    action = _check_action(pattern, select[pattern], len(ingredients), base)
    chosen |= dict.fromkeys(new, action)
  return {leaf: chosen.get(leaf) for leaf in leaves}


def _check_action(pattern, action, count, base):
  if isinstance(action, str) and action in ("keep", "skip"):
    if action == "keep" and base is None:
      raise ValueError(f"select keeps {pattern!r} from the base: pass base=.")
    return action
  if isinstance(action, str) or action is None:
    raise ValueError(
      f"select has {action!r} for {pattern!r}: expected 'keep', 'skip', a "
      "number, or one number an ingredient."
    )
  if arguments.has_bool(action):
    raise ValueError(
      f"select has {action!r} for {pattern!r}: True and False are no weights. "
      "Give 'skip', 'keep' or numbers."
    )
  if np.ndim(action) == 0:
    if not np.isfinite(action):
      raise ValueError(f"select has {action} for {pattern!r}, a share of what?")
    if base is None:
      raise ValueError(
        f"select has {action} for {pattern!r}: a share of the way from the "
        f"base. Pass base=, or {count} weights."
      )
    return float(action)
  weights = tuple(float(w) for w in action)
  try:
    arguments.soup_weights(weights, count)
  except ValueError as e:
    raise ValueError(f"In select for {pattern!r}: {e}") from e
  return weights


def check(
  ingredients: Sequence[Ingredient],
  base: Ingredient | None,
  needs_base: bool,
  chosen: Mapping[str, Action],
) -> None:
  """Checks that all leaves that are averaged are there and alike.

  Args:
    ingredients: at least one.
    base: the base model, if any.
    needs_base: whether the rule looks at the base.
    chosen: from `actions`.

  Raises:
    ValueError: listing every leaf that differs, and in whom.
  """
  mixed = {k for k, a in chosen.items() if a not in ("keep", "skip")}
  first = ingredients[0]
  tree.check_alike(_compared(ingredients, mixed, chosen))
  if base is not None:
    wanted = {
      k
      for k, a in chosen.items()
      if a == "keep" or (k in mixed and (needs_base or isinstance(a, float)))
    }
    everyone = {leaf for one in ingredients for leaf in one.specs}
    alone = sorted(mixed - everyone)
    missing = sorted(wanted - set(base.specs))
    if alone or missing:
      lines = [f"the ingredients lack leaf {leaf!r}" for leaf in alone]
      lines += [f"the base lacks leaf {leaf!r}" for leaf in missing]
      raise ValueError(
        f"The base {base.name!r} and the ingredients differ:\n  "
        + "\n  ".join(lines)
        + "\nSay what to do with these leaves: select={regex: 'skip'}, or "
        "'keep' for those of the base."
      )
    name = f"{base.name} (base)"
    tree.check_alike(
      {
        first.name: _only(first, wanted & mixed),
        name: _only(base, wanted & mixed),
      }
    )
  if not jax.config.jax_enable_x64:
    _refuse_float64(ingredients, mixed)


def _compared(ingredients, mixed, chosen):
  """What must be alike: not the leaves of an ingredient with weight 0."""
  trees = {one.name: _only(one, mixed) for one in ingredients}
  for leaf in mixed:
    weights = chosen[leaf]
    if isinstance(weights, tuple) and not all(weights):
      used = [one for one, weight in zip(ingredients, weights) if weight]
      unused = [one for one, weight in zip(ingredients, weights) if not weight]
      for one in unused:
        trees[one.name].pop(leaf, None)
        if leaf in used[0].specs:
          trees[one.name][leaf] = used[0].specs[leaf]
  return trees


def _only(one, leaves):
  return {leaf: spec for leaf, spec in one.specs.items() if leaf in leaves}


def _refuse_float64(ingredients, mixed):
  for one in ingredients:
    for leaf, spec in _only(one, mixed).items():
      if spec.dtype == np.float64:
        raise ValueError(
          f"Leaf {leaf!r} of {one.name!r} is float64, which JAX would silently "
          "cut to float32. Cast it, or set jax_enable_x64."
        )
