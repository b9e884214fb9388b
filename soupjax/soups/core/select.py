# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""`select=` and `dtype=`: the leaves of a result, their sources and dtypes."""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups.core import (
  arguments,
  compensated,
  factors,
  nonfinite,
  precision,
  tree,
)
from soupjax.soups.core.ingredient import Ingredient, sharding_of

PyTree = Any

# Treatment of a leaf: None for the rule, "keep", "skip", a share of the way
# from the base, or one weight per ingredient.
Action = None | str | float | tuple[float, ...]


def actions(
  ingredients: Sequence[Ingredient],
  base: Ingredient | None,
  select: Mapping[str, Any],
) -> dict[str, Action]:
  """Resolves a selection to one action per leaf.

  Args:
    ingredients: at least one.
    base: the base model, if any.
    select: regular expression -> action, see `plan.make`.

  Returns:
    Leaf -> action, for every leaf of the ingredients and the base.

  Raises:
    ValueError: if an expression has no effect, or an action is not valid.
  """
  models = [*ingredients, *([] if base is None else [base])]
  leaves = list(dict.fromkeys(leaf for model in models for leaf in model.specs))
  ignored = {name for model in models for name in model.ignored}
  names = [*leaves, *sorted(ignored - set(leaves))]
  chosen: dict[str, Action] = {}
  for pattern, new in tree.matches("select", select, names):
    action = _check_action(pattern, select[pattern], len(ingredients), base)
    if action != "skip" and ignored.issuperset(new):
      raise ValueError(
        f"{pattern!r} in select matches only {new[:10]}, which are not read: "
        "they can be skipped, but not kept or averaged."
      )
    chosen |= dict.fromkeys(new, action)
  return {leaf: chosen.get(leaf) for leaf in leaves}


def as_dict(select: Any) -> dict[str, Any]:
  """Returns a selection as a dict.

  Raises:
    ValueError: if it is not a mapping.
  """
  if select is not None and not isinstance(select, Mapping):
    raise ValueError(
      "select must be a dict of regular expressions and actions, such as "
      f"{{'head': 'skip'}}, got {select!r:.80}."
    )
  return dict(select or {})


def reordered(
  select: Mapping[str, Any] | None, order: Sequence[int]
) -> dict[str, Any]:
  """Returns a selection for the same ingredients in another order.

  Args:
    select: as in `plan.make`.
    order: the old position of every ingredient.
  """

  def moved(action):
    if isinstance(action, str) or np.shape(action) != (len(order),):
      return action
    return [action[k] for k in order]

  return {pattern: moved(action) for pattern, action in as_dict(select).items()}


def _check_action(pattern, action, count, base):
  if isinstance(action, str) and action in ("keep", "skip"):
    if action == "keep" and base is None:
      raise ValueError(f"select keeps {pattern!r} from the base: pass base=.")
    return action
  numbers = arguments.numbers(action)
  if numbers is None or numbers.ndim > 1:
    raise ValueError(
      f"select has {action!r:.80} for {pattern!r}: expected 'keep', 'skip', a "
      "number, or one number per ingredient."
    )
  if arguments.has_bool(action):
    raise ValueError(
      f"select has {action!r} for {pattern!r}, but booleans are not weights. "
      "Give 'skip', 'keep' or numbers."
    )
  if numbers.ndim == 0:
    if not np.isfinite(numbers):
      raise ValueError(f"select[{pattern!r}] must be finite, got {action}.")
    if base is None:
      raise ValueError(
        f"select has {action} for {pattern!r}, which interpolates from a base. "
        f"Pass base=, or {count} weights."
      )
    return float(action)
  weights = tuple(numbers.tolist())
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
  """Checks that all averaged leaves exist and agree in shape and kind.

  Args:
    ingredients: at least one.
    base: the base model, if any.
    needs_base: whether the rule uses the base.
    chosen: from `actions`.

  Raises:
    ValueError: listing every leaf that differs, by ingredient.
  """
  mixed = {k for k, a in chosen.items() if a not in ("keep", "skip")}
  compared = _compared(ingredients, mixed, chosen)
  tree.check_alike(compared, has_base=base is not None)
  if len(ingredients) > 1:
    averaged = {k for k in mixed if not _is_one_hot(chosen[k])}
    first = ingredients[0]
    factors.check_scales(_only(first, averaged), first.specs, first.name)
  if base is not None:
    with_base = {k for k in mixed if needs_base or isinstance(chosen[k], float)}
    of_base = with_base | {k for k, a in chosen.items() if a == "keep"}
    of_ingredients = {leaf for model in ingredients for leaf in model.specs}
    problems = [
      f"the {owner} leaf {leaf!r}"
      for owner, leaves in (
        ("ingredients lack", mixed - of_ingredients),
        ("base lacks", of_base - set(base.specs)),
      )
      for leaf in sorted(leaves)
    ]
    if problems:
      raise ValueError(
        f"The base {base.name!r} and the ingredients differ:\n  "
        + "\n  ".join(problems)
        + "\nSelect an action for these leaves: select={regex: 'skip'}, or "
        "'keep' for those of the base."
      )
    first = ingredients[0]
    tree.check_alike(
      {
        first.name: _only(first, with_base),
        f"{base.name} (base)": _only(base, with_base),
      }
    )


def _is_one_hot(action: Action) -> bool:
  return isinstance(action, tuple) and sum(w != 0 for w in action) == 1


def _compared(ingredients, mixed, chosen):
  """Returns specs that must agree, with substitutes for those of weight 0."""
  trees = {model.name: _only(model, mixed) for model in ingredients}
  for leaf in mixed:
    weights = chosen[leaf]
    if isinstance(weights, tuple):
      used = next(i for i, weight in zip(ingredients, weights) if weight)
      if leaf not in used.specs:
        raise ValueError(
          f"select averages leaf {leaf!r} with weights {list(weights)}, but "
          f"{used.name!r} lacks it: give that weight 0, or 'skip' the leaf."
        )
      for model, weight in zip(ingredients, weights):
        if not weight:
          trees[model.name].pop(leaf, None)
          if leaf in used.specs:
            trees[model.name][leaf] = used.specs[leaf]
  return trees


def _only(model, leaves):
  return {leaf: spec for leaf, spec in model.specs.items() if leaf in leaves}


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
  """Returns specs in the order of their tree, and its treedef.

  The containers are those of the first source with the same leaves, or else
  nested dicts.
  """
  for source in sources:
    if source.specs.keys() == specs.keys():
      return {leaf: specs[leaf] for leaf in source.specs}, source.treedef
  return tree.nest(specs)


@functools.partial(jax.jit, static_argnames="dtypes")
def _finished(means, ends, *, dtypes):
  """Applies `finish` to several leaves."""
  return [
    finish(mean, end, dtype) for mean, end, dtype in zip(means, ends, dtypes)
  ]


def finish(
  mean: jax.Array,
  end: tuple[jax.Array, Mapping[str, jax.Array]] | None,
  dtype: np.dtype,
  large: bool = False,
) -> jax.Array:
  """Blends a mean with the base if asked, and casts it; runs inside jit.

  Args:
    mean: of the ingredients, not yet rounded to their dtype.
    end: from `Selection.ends`.
    dtype: from `Selection.specs`.
    large: whether differences may overflow, see `compensated.of_large`.
  """
  if end is not None:
    base, coefficients = end
    blend = functools.partial(compensated.linear, **coefficients)
    leaves = [base, mean]
    mean = compensated.of_large(blend, leaves) if large else blend(leaves)
  return mean.astype(dtype)


class Selection:
  """The leaves of a soup that is made in memory; see `plan.make` for files.

  Attributes:
    ingredients: with only the leaves that the recipe mixes.
    base: likewise, if the recipe itself has a base; else None.
    specs: leaf -> shape and dtype of the result, in the order of `treedef`.
    treedef: of the result.
    is_all: whether the recipe mixes all leaves and keeps their dtypes.
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
      dtype: of the floating leaves of the result; None keeps the dtypes of the
        base if `mixes_base`, else of the first ingredient.
      mixes_base: whether the recipe mixes the base with the ingredients.

    Raises:
      ValueError: listing the problems by ingredient and leaf.
    """
    self._all, self._base = list(ingredients), base
    self._dtype = None if dtype is None else float_dtype(dtype)
    self.select = as_dict(select)
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
      raise ValueError(
        f"select={self.select} leaves nothing to mix: select fewer leaves."
      )
    first = self._base if mixes_base else self._all[0]
    specs = {
      leaf: next(
        model.specs[leaf]
        for model in (self._base if action == "keep" else first, *self._all)
        if leaf in model.specs
      )
      for leaf, action in self._actions.items()
      if action != "skip"
    }
    sources = [first, *self._all, *([self._base] if self._base else [])]
    self.specs, self.treedef = output(sources, specs)
    self.ingredients = [restricted(i, mixed) for i in self._all]
    if mixes_base:
      self.base = restricted(self._base, mixed)

  def share(self, leaf: str) -> float | None:
    """Returns the selected fraction of the way from the base; else None."""
    share = self._actions.get(leaf)
    return share if isinstance(share, float) else None

  def ends(self, leaves: Sequence[str], sharding: Any) -> list[Any]:
    """Reads base leaves from which the selection interpolates.

    Returns:
      For each leaf None, or that of the base and the coefficients of
      `compensated.linear`.
    """

    def end(leaf):
      share = self.share(leaf)
      if share is None:
        return None
      weights = arguments.soup_weights([1 - share, share], 2)
      base = self._read(self._base, leaf, sharding)
      return base, compensated.share_coefficients(weights)

    return [end(leaf) for leaf in leaves]

  def check_base(self, leaf: str, sharding: Any) -> None:
    """Raises a ValueError if the base of a blended leaf is not finite."""
    if self.share(leaf) is not None:
      flags = nonfinite.all_finite([self._read(self._base, leaf, sharding)])
      nonfinite.raise_if_not_finite(self._base.name, [leaf], flags)

  def fixed(self, sharding: Any) -> dict[str, Any]:
    """Returns the leaves that do not depend on the recipe.

    They are kept from the base, or averaged with selected weights.

    Raises:
      ValueError: if leaves of such an average are not finite, or integers
        differ.
    """
    fixed = {}
    for leaf, spec in self.specs.items():
      action = self._actions.get(leaf)
      if action == "keep":
        value = self._read(self._base, leaf, sharding)
        if tree.is_float(spec):
          value = precision.placed(value.astype(spec.dtype))
        fixed[leaf] = value
      elif isinstance(action, tuple):
        used = [i for i, weight in zip(self._all, action) if weight]
        stack = [self._read(i, leaf, sharding) for i in used]
        if not tree.is_float(spec):
          tree.check_equal_integers(
            {i.name: {leaf: value} for i, value in zip(used, stack)},
            used[0].specs,
          )
          fixed[leaf] = stack[0]
          continue
        for ingredient, value in zip(used, stack):
          flags = nonfinite.all_finite([value])
          nonfinite.raise_if_not_finite(ingredient.name, [leaf], flags)
        weights = arguments.soup_weights([w for w in action if w], len(used))
        coefficients = compensated.mean_coefficients(weights)
        linear = functools.partial(compensated.linear, **coefficients)
        with precision.kept(stack):
          mean = compensated.of_large(linear, stack).astype(spec.dtype)
        fixed[leaf] = precision.placed(mean)
    return fixed

  def _read(self, ingredient, leaf, sharding):
    spec = ingredient.specs[leaf]
    value = ingredient.read(leaf, sharding=sharding_of(sharding, leaf, spec))
    return precision.placed(value) if tree.is_float(spec) else value

  def finished(
    self, means: Mapping[str, jax.Array], ends: Sequence[Any]
  ) -> dict[str, jax.Array]:
    """Returns leaves of the result; see `finish`.

    Args:
      means: of floating leaves.
      ends: from `ends`, in that order.
    """
    dtypes = tuple(self.specs[leaf].dtype for leaf in means)
    leaves = _finished(list(means.values()), ends, dtypes=dtypes)
    return dict(zip(means, leaves))

  def assembled(self, leaves: Mapping[str, Any]) -> PyTree:
    """Puts all leaves of the result into a new tree."""
    ordered = [
      precision.placed(leaves[leaf]) if tree.is_float(spec) else leaves[leaf]
      for leaf, spec in self.specs.items()
    ]
    return tree.owned(jax.tree.unflatten(self.treedef, ordered))


def restricted(ingredient: Ingredient, leaves: Collection[str]) -> Ingredient:
  """Returns an ingredient with some of its leaves, in nested dicts."""
  specs = {k: spec for k, spec in ingredient.specs.items() if k in leaves}
  specs, treedef = tree.nest(specs)
  return dataclasses.replace(ingredient, specs=specs, treedef=treedef)
