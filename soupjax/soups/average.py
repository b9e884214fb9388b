# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Uniform and weighted soups, interpolation, and ensembles of logits."""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import functools
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups.core import (
  arguments,
  compensated,
  nonfinite,
  same_init,
  tree,
)
from soupjax.soups.core.ingredient import (
  Model,
  Models,
  as_ingredient,
  as_ingredients,
  check_ingredients,
  sharding_of,
)

PyTree = Any


@functools.partial(jax.jit, static_argnames="weighted")
def _mean_and_check(stack, weights, scale, *, weighted):
  flags = jnp.stack([jnp.isfinite(leaf).all() for leaf in stack])
  mean = compensated.linear(stack, weights, scale, weighted=weighted)
  mean = mean.astype(stack[0].dtype)
  return mean, jnp.append(flags, jnp.isfinite(mean).all())


def uniform_soup(
  ingredients: Models,
  weights: Sequence[float] | None = None,
  *,
  sharding: Any = None,
) -> PyTree:
  """Averages all ingredients (the uniform soup of arXiv 2203.05482, Table 2).

  Works one leaf at a time: at most K copies of one leaf are held besides the
  soup itself. Sums are taken in float32 with their rounding errors carried
  along, as differences from the first ingredient, and rounded once: the bits do
  not depend on the mesh. What that leaves of errors is in `soups.exact`.

  Args:
    ingredients: models of one architecture, in any form: trees, Ingredients,
      paths or patterns, or a list of any of these.
    weights: one number each, divided by their sum; None weighs all alike. What
      has weight 0 is not read.
    sharding: where the soup goes, as in `Ingredient.load`.

  Returns:
    A tree like the ingredients', with the dtypes of the first. Identical
    ingredients come back bit for bit. Leaves that are not floating are copied.

  Raises:
    ValueError: if there is nothing to average, trees differ, an ingredient
      has NaN or infinity, or the weights do not fit.

  Example:
    >>> make = sj.Ingredient.from_params
    >>> models = [make("a", {"w": jnp.array([1.0, 4.0])}),
    ...           make("b", {"w": jnp.array([3.0, 8.0])})]
    >>> sj.uniform_soup(models)["w"]
    Array([2., 6.], dtype=float32)
    >>> sj.uniform_soup(models, weights=[3, 1])["w"]
    Array([1.5, 5. ], dtype=float32)
  """
  ingredients = as_ingredients(ingredients)
  check_ingredients(ingredients)
  same_init.warn_of_other_inits(ingredients)
  weighted = weights is not None
  weights = arguments.soup_weights(weights, len(ingredients))
  ingredients = [i for i, weight in zip(ingredients, weights) if weight]
  weights = weights[weights != 0]
  scale = compensated.reciprocal(weights.sum())
  weights = compensated.pair(weights)
  soup, checked = [], []
  for leaf, spec in ingredients[0].specs.items():
    where = sharding_of(sharding, leaf, spec)
    if not tree.is_float(spec):
      soup.append(ingredients[0].read(leaf, sharding=where))
      continue
    stack = [i.read(leaf, sharding=where) for i in ingredients]
    mean, flags = _mean_and_check(stack, weights, scale, weighted=weighted)
    soup.append(mean)
    checked.append((leaf, flags))
  if checked:
    # One wait at the end instead of one a leaf.
    names = [leaf for leaf, _ in checked]
    flags = np.stack([flags for _, flags in checked])
    for k, ingredient in enumerate(ingredients):
      nonfinite.raise_if_not_finite(ingredient.name, names, flags[:, k])
    nonfinite.raise_if_overflows(ingredients[0].specs, names, flags[:, -1])
  return jax.tree.unflatten(ingredients[0].treedef, soup)


def wise_ft(
  pretrained: Model,
  finetuned: Model,
  alpha: float,
  *,
  sharding: Any = None,
) -> PyTree:
  """Interpolates a pretrained and a fine-tuned model (arXiv 2109.01903).

  Args:
    pretrained: parameters with a head that works, zero-shot or linear probe; a
      random head ruins the path. A model in any form.
    finetuned: parameters fine-tuned from it, likewise.
    alpha: share of the fine-tuned model; the paper's advice without knowledge
      of the target is 0.5.
    sharding: where the result goes, as in `Ingredient.load`.

  Returns:
    `(1 - alpha) * pretrained + alpha * finetuned`, in float32, with the dtypes
    of `pretrained`. Alpha 0 and 1 give the ends bit for bit (up to that cast);
    values outside [0, 1] extrapolate.

  Raises:
    ValueError: if the trees differ or alpha is no finite number.

  Example:
    >>> make = sj.Ingredient.from_params
    >>> pretrained = make("zero-shot", {"w": jnp.array([0.0, 1.0])})
    >>> finetuned = make("fine-tuned", {"w": jnp.array([1.0, 3.0])})
    >>> sj.wise_ft(pretrained, finetuned, alpha=0.25)["w"]
    Array([0.25, 1.5 ], dtype=float32)
  """
  alpha = arguments.number("alpha", alpha)
  ends = [
    dataclasses.replace(as_ingredient(end, name), name=name)
    for name, end in (("pretrained", pretrained), ("finetuned", finetuned))
  ]
  specs = list(ends[0].specs.values())
  if alpha == 1:
    ends.reverse()
    alpha = 0.0
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Extrapolation is asked for, not a slip.
    soup = uniform_soup(ends, [1 - alpha, alpha], sharding=sharding)
  leaves, treedef = jax.tree.flatten(soup)
  return jax.tree.unflatten(
    treedef,
    [
      leaf.astype(spec.dtype) if tree.is_float(spec) else leaf
      for leaf, spec in zip(leaves, specs)
    ],
  )


def ensemble_logits(
  logits: Iterable[Any], weights: Sequence[float] | None = None
) -> np.ndarray:
  """Averages unnormalised logits: the ensemble of arXiv 2203.05482, Table 2.

  Args:
    logits: arrays of one shape, such as (images, classes). A generator works:
      one array is held at a time.
    weights: one number each, divided by their sum; None weighs all alike.

  Returns:
    float32 array of that shape, on the host.

  Raises:
    ValueError: if there are none, one is no array of numbers or has NaN, shapes
      differ, or the weights do not fit.

  Example:
    >>> sj.ensemble_logits([jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])])
    array([1. , 0.5], dtype=float32)
  """
  if weights is not None:
    weights = list(weights) if isinstance(weights, Iterator) else weights
    size = len(weights) if hasattr(weights, "__len__") else 1
    scaled = arguments.soup_weights(weights, size)  # Before any work.
  total, count = None, 0
  for count, array in enumerate(logits, start=1):
    array = _finite_enough(array, count)
    if weights is not None and count <= size:
      array = array * scaled[count - 1]
    if total is None:
      total = array
    elif array.shape != total.shape:
      raise ValueError(
        f"Logits {count} have shape {array.shape}, those before {total.shape}."
      )
    else:
      with np.errstate(invalid="ignore"):  # Of infinities: checked below.
        total = total + array
  if total is None:
    raise ValueError("An ensemble needs the logits of at least one model.")
  if weights is not None and count != size:
    raise ValueError(
      f"Got {size} weights for the logits of {count} models: give one number "
      "for each."
    )
  if np.isnan(total).any():
    raise ValueError(
      "The ensemble has NaN: infinite logits cancel each other, or have weight "
      "0. Use finite ones."
    )
  scale = count if weights is None else scaled.sum(dtype=np.float64)
  return (total / scale).astype(np.float32)


def _finite_enough(logits: Any, position: int) -> np.ndarray:
  """The logits of one model in float64; infinity may mask classes."""
  array = arguments.numbers(logits)
  if array is None:
    raise ValueError(
      f"Logits {position} are no array of numbers but a "
      f"{type(logits).__name__}: {logits!r:.80}."
    )
  if np.isnan(array).any():
    raise ValueError(
      f"Logits {position} have NaN. Leave that model out: its weights diverged."
    )
  return array
