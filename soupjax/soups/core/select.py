# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""`select=` and `dtype=`: the leaves of a result, their sources and dtypes."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups.core import arguments, compensated, nonfinite, tree
from soupjax.soups.core.ingredient import Ingredient, sharding_of

PyTree = Any

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


def float_dtype(dtype: Any) -> np.dtype:
  """Returns the dtype of a soup's floating leaves.

  Raises:
    ValueError: if it is not a floating dtype of at most 32 bits.
  """
  try:
    checked = jnp.dtype(dtype)
  except TypeError as e:
    raise ValueError(f"{dtype!r} is not a dtype.") from e
  if not jnp.issubdtype(checked, jnp.floating) or checked == np.float64:
    raise ValueError(
      f"A soup can be float32, bfloat16, float16 or float8, not {checked}."
    )
  return checked


def output(
  sources: Sequence[Ingredient], specs: Mapping[str, jax.ShapeDtypeStruct]
) -> tuple[dict[str, jax.ShapeDtypeStruct], Any]:
  """Specs in the order of their tree, and its treedef.

  The containers are those of a source with the same leaves, if there is one.
  """
  for source in sources:
    if set(source.specs) == set(specs):
      return {leaf: specs[leaf] for leaf in source.specs}, source.treedef
  return tree.nest(specs)


@functools.partial(jax.jit, static_argnames="dtypes")
def _finished(means, ends, *, dtypes):
  """Blends means with leaves of the base where asked; casts them."""
  return [
    finish(mean, end, dtype) for mean, end, dtype in zip(means, ends, dtypes)
  ]


def finish(
  mean: jax.Array,
  end: tuple[jax.Array, Mapping[str, jax.Array]] | None,
  dtype: np.dtype,
) -> jax.Array:
  """Returns a leaf of the result; for compiled functions.

  Args:
    mean: of the ingredients, not rounded to their dtype yet.
    end: from `Selection.ends`.
    dtype: from `Selection.specs`.
  """
  if end is not None:
    base, coefficients = end
    mean = compensated.linear([base, mean], **coefficients)
  return mean.astype(dtype)


class Selection:
  """Leaves of a model that is made in memory; see `plan.make` for files.

  Attributes:
    ingredients: with those leaves alone that the recipe mixes.
    base: likewise, if the recipe itself has a base; else None.
    specs: leaf -> shape and dtype of the result, in the order of `treedef`.
    treedef: of the result.
    is_all: whether the recipe mixes all leaves and their dtypes stay.
  """

  def __init__(
    self,
    ingredients: Sequence[Ingredient],
    *,
    base: Ingredient | None,
    select: Mapping[str, Any] | None,
    dtype: Any,
    mixes_base: bool = False,
  ):
    """Checks the selection against metadata.

    Args:
      ingredients: at least one.
      base: the model that the selection refers to.
      select: as in `plan.make`.
      dtype: of the floating leaves of the result; None keeps theirs.
      mixes_base: whether the recipe mixes the base with the ingredients. Dtypes
        that stay are then those of the base, else of the first ingredient.

    Raises:
      ValueError: listing what is wrong, by ingredient and leaf.
    """
    self._all, self._base = list(ingredients), base
    self._dtype = None if dtype is None else float_dtype(dtype)
    self.select = dict(select or {})
    self.is_all = not self.select and self._dtype is None
    self.ingredients, self.base = self._all, base if mixes_base else None
    if not ingredients:
      return
    first = base if mixes_base else ingredients[0]
    self.specs, self.treedef = first.specs, first.treedef
    self._actions: Mapping[str, Action] = {}
    if self.select:
      self._choose(mixes_base)
    if self._dtype is not None:
      self.specs = {
        leaf: jax.ShapeDtypeStruct(spec.shape, self._dtype)
        if tree.is_float(spec)
        else spec
        for leaf, spec in self.specs.items()
      }

  def _choose(self, mixes_base):
    self._actions = actions(self._all, self._base, self.select)
    check(self._all, self._base, mixes_base, self._actions)
    mixed = {
      leaf
      for leaf, action in self._actions.items()
      if action is None or isinstance(action, float)
    }
    if not mixed:
      raise ValueError(f"select={self.select} leaves nothing to mix.")
    first = self._base if mixes_base else self._all[0]
    specs = {}
    for leaf, action in self._actions.items():
      if action == "skip":
        continue
      source = self._base if action == "keep" else first
      for other in (source, *self._all):
        if leaf in other.specs:
          specs[leaf] = other.specs[leaf]
          break
    sources = [first, *self._all, *([self._base] if self._base else [])]
    self.specs, self.treedef = output(sources, specs)
    self.ingredients = [_restricted(i, mixed) for i in self._all]
    if mixes_base:
      self.base = _restricted(self._base, mixed)

  def share(self, leaf: str) -> float | None:
    """How far from the base to the mean a leaf goes; None if all the way."""
    share = self._actions.get(leaf)
    return share if isinstance(share, float) else None

  def ends(self, leaves: Sequence[str], sharding: Any) -> list[Any]:
    """Reads leaves of the base that results go only a share of the way from.

    Returns:
      For each leaf None, or the base's and the coefficients of both ends.
    """
    ends: list[Any] = []
    for leaf in leaves:
      share = self.share(leaf)
      if share is None:
        ends.append(None)
        continue
      weights = arguments.soup_weights([1 - share, share], 2)
      ends.append(
        (
          self._read(self._base, leaf, sharding),
          compensated.mean_coefficients(weights),
        )
      )
    return ends

  def fixed(self, sharding: Any) -> dict[str, Any]:
    """Returns the leaves that do not depend on the recipe.

    They are kept from the base, or averaged with weights of their own.

    Raises:
      ValueError: if one is not finite.
    """
    fixed = {}
    for leaf, spec in self.specs.items():
      action = self._actions.get(leaf)
      if action == "keep":
        value = self._read(self._base, leaf, sharding)
        fixed[leaf] = value.astype(spec.dtype) if tree.is_float(spec) else value
      elif isinstance(action, tuple):
        used = [i for i, weight in zip(self._all, action) if weight]
        stack = [self._read(i, leaf, sharding) for i in used]
        if not tree.is_float(spec):
          tree.check_equal_integers(
            {i.name: {leaf: value} for i, value in zip(used, stack)}
          )
          fixed[leaf] = stack[0]
          continue
        for ingredient, value in zip(used, stack):
          nonfinite.raise_if_not_finite(
            ingredient.name, [leaf], nonfinite.all_finite([value])
          )
        weights = arguments.soup_weights([w for w in action if w], len(used))
        mean = compensated.linear(
          stack, **compensated.mean_coefficients(weights)
        )
        fixed[leaf] = mean.astype(spec.dtype)
    return fixed

  def _read(self, ingredient, leaf, sharding):
    spec = ingredient.specs[leaf]
    value = ingredient.read(leaf, sharding=sharding_of(sharding, leaf, spec))
    return jnp.asarray(value) if tree.is_float(spec) else value

  def finished(
    self, means: Mapping[str, jax.Array], ends: Sequence[Any]
  ) -> dict[str, jax.Array]:
    """Returns leaves of the result; see `finish`.

    Args:
      means: of floating leaves.
      ends: from `ends`, in that order.
    """
    dtypes = tuple(self.specs[leaf].dtype for leaf in means)
    return dict(
      zip(means, _finished(list(means.values()), ends, dtypes=dtypes))
    )

  def assembled(self, leaves: Mapping[str, Any]) -> PyTree:
    """Puts all leaves of the result into its tree."""
    return jax.tree.unflatten(
      self.treedef, [leaves[leaf] for leaf in self.specs]
    )


def _restricted(ingredient: Ingredient, leaves: set[str]) -> Ingredient:
  """An ingredient without its other leaves."""
  specs = {k: spec for k, spec in ingredient.specs.items() if k in leaves}
  specs, treedef = tree.nest(specs)
  return dataclasses.replace(ingredient, specs=specs, treedef=treedef)
