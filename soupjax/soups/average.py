# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Uniform and weighted soups, interpolation, and ensembles of logits."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
  precision,
  records,
  tree,
)
from soupjax.soups.core import select as selection_lib
from soupjax.soups.core.ingredient import (
  Ingredient,
  Model,
  Models,
  as_ingredient,
  as_ingredients,
  check_ingredients,
  check_unchanged,
  sharding_of,
)
from soupjax.soups.core.select import Selection

PyTree = Any


# Maximum number of models whose leaves are in memory at once.
_WIDTH = 16


@functools.partial(
  jax.jit, static_argnames=("weighted", "wide", "factor", "dtype")
)
def _sum_and_check(
  total,
  first,
  leaves,
  coefficients,
  end,
  small,
  *,
  weighted,
  wide,
  factor,
  dtype,
):
  """Adds some models to a sum; with the last ones, returns the mean.

  Args:
    total: the packed sum so far; None for the first models.
    first: leaf of the very first model.
    leaves: of these models.
    coefficients: their weights, and the scale if they are the last.
    end: as in `select.finish`.
    small: the mean from a smaller `factor`, if differences may overflow.
    weighted: False if all weights are 1.
    wide: dtype of the sum.
    factor: multiplies all leaves. If it is not 1, the mean is returned in the
      dtype of the sum.
    dtype: of the result.

  Returns:
    The sum or mean, and flags: whether each leaf, and the mean, is finite.
  """
  flags = jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])
  first, *leaves = [leaf.astype(wide) for leaf in (first, *leaves)]
  if factor != 1:
    first, *leaves = [leaf * factor for leaf in (first, *leaves)]
  weights, scale = coefficients["weights"], coefficients.get("scale")
  skipped = int(total is None)  # The first does not differ from itself.

  def term(k):
    parts = compensated.weight_parts(weights, k + skipped) if weighted else ()
    return leaves[k + skipped], *parts

  total = None if total is None else compensated.unpacked(total)
  total = compensated.sum_of(len(leaves) - skipped, first, term, total)
  if scale is None:
    return compensated.packed(total), flags
  mean = compensated.mean(total, first, scale)
  if factor != 1:
    return mean / factor, flags
  if small is not None:
    mean = jnp.where(jnp.isfinite(mean), mean, small)
  leaf = selection_lib.finish(mean, end, dtype, small is not None)
  return leaf, jnp.append(flags, jnp.isfinite(leaf).all())


def uniform_soup(
  ingredients: Models,
  weights: Sequence[float] | None = None,
  *,
  base: Model | None = None,
  select: Mapping[str, Any] | None = None,
  dtype: Any = None,
  sharding: Any = None,
) -> PyTree:
  """Averages all ingredients (the uniform soup of arXiv 2203.05482, Table 2).

  Works one leaf at a time: memory holds at most 16 copies of one leaf in
  addition to the soup. Differences from the first ingredient are summed in
  float32 with compensated rounding errors, and rounded once. The bits do not
  depend on the mesh. `soups.core.compensated` states the remaining error.

  Args:
    ingredients: models of one architecture, in any form: trees, Ingredients,
      paths or patterns, or a list of any of these.
    weights: one number per ingredient, divided by their sum; None is equal
      weights. Ingredients of weight 0 are not read.
    base: the model that `select` refers to, in any form.
    select: exceptions for some leaves, as in `mix`: a regular expression ->
      "keep", "skip", a number or K numbers.
    dtype: of the floating leaves; None keeps those of the first ingredient.
    sharding: of the soup, as in `Ingredient.load`.

  Returns:
    A tree with the structure of the ingredients. The mean of identical
    ingredients has exactly their bits. Integer and boolean leaves are copied.

  Raises:
    ValueError: if the list is empty, trees differ, an ingredient has NaN or
      infinity, or the weights, `select` or `dtype` are not valid.
    TypeError: if an ingredient is not a model.

  Examples:
    >>> a, b = {"w": jnp.array([1.0, 4.0])}, {"w": jnp.array([3.0, 8.0])}
    >>> sj.uniform_soup([a, b])["w"]
    Array([2., 6.], dtype=float32)
    >>> sj.uniform_soup([a, b], weights=[3, 1])["w"]
    Array([1.5, 5. ], dtype=float32)
  """
  ingredients = as_ingredients(ingredients)
  means = Means(
    ingredients, base=base, select=select, dtype=dtype, sharding=sharding
  )
  records.warn_of_other_inits(ingredients)
  checked = (
    None
    if weights is None
    else arguments.soup_weights(weights, len(ingredients))
  )
  return average(means.mixed, checked, means.selection, sharding)


class Means:
  """Means of subsets of the ingredients, all with the same selected leaves.

  Attributes:
    ingredients: all ingredients.
    mixed: the same with only the leaves that are averaged.
    selection: the leaves of every mean.
  """

  def __init__(
    self,
    ingredients: Sequence[Ingredient],
    *,
    base: Model | None = None,
    select: Mapping[str, Any] | None = None,
    dtype: Any = None,
    sharding: Any = None,
  ):
    """Checks the ingredients; see `uniform_soup` for the arguments.

    Raises:
      ValueError: as in `uniform_soup`.
    """
    self.selection = Selection(
      ingredients,
      base=None if base is None else as_ingredient(base, "base"),
      select=select,
      dtype=dtype,
    )
    self.mixed = check_ingredients(self.selection.ingredients)
    self.ingredients, self._sharding = list(ingredients), sharding

  def model(self, k: int) -> PyTree:
    """Returns one ingredient, with the selected leaves in place of its own."""
    if self.selection.is_all:
      return self.ingredients[k].load(sharding=self._sharding)
    return self.mean([k])

  def mean(self, positions: Iterable[int]) -> PyTree:
    """Returns the mean of the ingredients at these positions.

    Raises:
      ValueError: naming an ingredient or a leaf that is not finite.
    """
    members = [self.mixed[k] for k in positions]
    return average(members, None, self.selection, self._sharding)


def average(
  ingredients,
  weights,
  selection,
  sharding,
  coefficients_of=compensated.mean_coefficients,
) -> PyTree:
  """Averages checked ingredients leaf by leaf.

  Args:
    ingredients: from `check_ingredients`, with the leaves to be averaged.
    weights: (K,) from `arguments.soup_weights`; None for equal weights.
    selection: the leaves of the result.
    sharding: as in `Ingredient.load`.
    coefficients_of: maps the weights to the arguments of `compensated.linear`.

  Returns:
    The soup, a tree with the leaves and dtypes of the selection.

  Raises:
    ValueError: naming an ingredient or a leaf that is not finite.
  """
  weighted = weights is not None
  weights = weights if weighted else np.ones(len(ingredients))
  ingredients = [i for i, weight in zip(ingredients, weights) if weight]
  coefficients = coefficients_of(weights[weights != 0])
  soup, checked = selection.fixed(sharding), []

  def mean(leaf, large=False):
    specs = [ingredient.specs[leaf] for ingredient in ingredients]
    is_double = any(spec.dtype == np.float64 for spec in specs)
    leaf_sharding = sharding_of(sharding, leaf, specs[0])
    (end,) = selection.ends([leaf], sharding)
    value = None
    for factor in (compensated.SMALLER, 1.0) if large else (1.0,):
      value, flags = _in_parts(
        [
          functools.partial(i.read, leaf, sharding=leaf_sharding)
          for i in ingredients
        ],
        specs,
        coefficients,
        end,
        value,
        weighted=weighted,
        wide=np.float64 if is_double else np.float32,
        factor=factor,
        dtype=selection.specs[leaf].dtype,
      )
    moved = any(map(precision.is_cut, specs))  # Computed on the CPU.
    return precision.placed(value, leaf_sharding if moved else None), flags

  for leaf, spec in ingredients[0].specs.items():
    if tree.is_float(spec):
      soup[leaf], flags = mean(leaf)
      checked.append((leaf, flags))
    else:
      soup[leaf] = ingredients[0].read(
        leaf, sharding=sharding_of(sharding, leaf, spec)
      )
  check_unchanged(ingredients)
  if checked:
    # Waits once, not for every leaf.
    names, flags = zip(*checked)
    flags = np.stack([np.concatenate(parts) for parts in flags])
    for k, ingredient in enumerate(ingredients):
      nonfinite.raise_if_not_finite(ingredient.name, names, flags[:, k])
    for leaf, is_finite in zip(names, flags[:, -1]):
      if not is_finite:
        selection.check_base(leaf, sharding)
        soup[leaf], large = mean(leaf, large=True)
        nonfinite.raise_if_overflows(selection.specs, [leaf], large[-1][-1:])
  return selection.assembled(soup)


def _in_parts(reads, specs, coefficients, end, small, **options):
  """Reads and sums models, some at a time; see `_sum_and_check`.

  Args:
    reads: functions that return the leaf of each model.
    specs: their shapes and dtypes.
    coefficients: weights of all models, and the scale.
    end: this and all that follows are as in `_sum_and_check`.

  Returns:
    The mean, and for each part the flags of `_sum_and_check`.
  """
  first = value = None
  all_flags = []
  for start in range(0, len(reads), _WIDTH):
    part = slice(start, start + _WIDTH)
    jax.block_until_ready(value)  # Frees the previous part before reading.
    leaves = [read() for read in reads[part]]
    first = leaves[0] if first is None else first
    numbers = {"weights": coefficients["weights"][:, part]}
    if part.stop >= len(reads):
      numbers["scale"] = coefficients["scale"]
    with precision.kept(specs):
      value, flags = _sum_and_check(
        value, first, leaves, numbers, end, small, **options
      )
    all_flags.append(flags)
  return value, all_flags


def abstract_sum(
  ingredients: Sequence[Ingredient], leaf: str, sharding: Any
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
  """Returns the largest program for the mean of one leaf, to be compiled.

  Args:
    ingredients: from `check_ingredients`.
    leaf: its name.
    sharding: as in `Ingredient.load`; its devices need not exist.

  Returns:
    The jitted function, its arguments, with shapes in place of leaves, and its
    static arguments.
  """
  spec, count = ingredients[0].specs[leaf], len(ingredients)
  place = sharding_of(sharding, leaf, spec)
  wide = np.dtype(np.float64 if spec.dtype == np.float64 else np.float32)
  part = slice(0, _WIDTH) if count <= _WIDTH else slice(_WIDTH, 2 * _WIDTH)
  coefficients = compensated.mean_coefficients(np.ones(count))
  numbers = {"weights": coefficients["weights"][:, part]}
  if part.stop >= count:
    numbers["scale"] = coefficients["scale"]

  def placed(dtype):
    return jax.ShapeDtypeStruct(spec.shape, dtype, sharding=place)

  pair = np.dtype(f"complex{16 * wide.itemsize}")
  total = placed(pair) if part.start else None
  leaves = [placed(i.specs[leaf].dtype) for i in ingredients[part]]
  first = placed(spec.dtype)
  options = {"weighted": False, "wide": wide.type, "factor": 1.0}
  return (
    _sum_and_check,
    (total, first, leaves, numbers, None, None),
    {**options, "dtype": spec.dtype},
  )


def wise_ft(
  pretrained: Model,
  finetuned: Model,
  alpha: float,
  *,
  select: Mapping[str, Any] | None = None,
  dtype: Any = None,
  sharding: Any = None,
) -> PyTree:
  """Interpolates a pretrained and a fine-tuned model (arXiv 2109.01903).

  Args:
    pretrained: a model in any form (a tree, an Ingredient or a path) with a
      working head, zero-shot or linear probe; with a random head, interpolation
      fails.
    finetuned: a model that was fine-tuned from `pretrained`, in any form.
    alpha: share of the fine-tuned model; the paper recommends 0.5 if the target
      is unknown.
    select: exceptions for some leaves, as in `mix`, with `pretrained` as the
      base.
    dtype: of the floating leaves; None keeps those of `pretrained`.
    sharding: of the result, as in `Ingredient.load`.

  Returns:
    `(1 - alpha) * pretrained + alpha * finetuned`, computed in float32. Alpha 0
    and 1 return the exact bits of the ends (up to the cast); values outside
    [0, 1] extrapolate.

  Raises:
    ValueError: if the trees differ, alpha is not a finite number, or `select`
      or `dtype` are not valid.

  Examples:
    >>> pretrained, finetuned = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}
    >>> sj.wise_ft(pretrained, finetuned, alpha=0.25)["w"]
    Array([0.25, 0.25], dtype=float32)
  """
  alpha = arguments.real("alpha", alpha)
  ends = [
    dataclasses.replace(as_ingredient(end, name), name=name)
    for name, end in (("pretrained", pretrained), ("finetuned", finetuned))
  ]
  selection = Selection(
    ends[1:], base=ends[0], select=select, dtype=dtype, mixes_base=True
  )
  ends = check_ingredients(
    [m for m in (selection.base, *selection.ingredients) if m is not None],
    has_base=True,
  )
  records.warn_of_other_inits(ends)
  if alpha == 1:
    ends.reverse()
    alpha = 0.0
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Extrapolation is intended here.
    weights = arguments.soup_weights([1 - alpha, alpha], 2)
  return average(
    ends, weights, selection, sharding, compensated.share_coefficients
  )


def ensemble_logits(
  logits: Iterable[Any], weights: Sequence[float] | None = None
) -> np.ndarray:
  """Averages unnormalised logits: the ensemble of arXiv 2203.05482, Table 2.

  Args:
    logits: arrays of one shape, such as (images, classes). A generator keeps
      only one array in memory.
    weights: one number per array, divided by their sum; None is equal weights.

  Returns:
    A float32 array of the same shape, on the host.

  Raises:
    ValueError: if `logits` is empty, an element is not an array of numbers or
      has NaN, shapes differ, or the weights are not valid.

  Examples:
    >>> sj.ensemble_logits([jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])])
    array([1. , 0.5], dtype=float32)
  """
  if weights is not None:
    weights = list(weights) if isinstance(weights, Iterator) else weights
    size = len(weights) if hasattr(weights, "__len__") else 1
    scaled = arguments.soup_weights(weights, size)  # Before any work.
  total, count = None, 0
  for count, array in enumerate(logits, start=1):
    array = _without_nan(array, count)
    if weights is not None and count <= size:
      array = array * scaled[count - 1]
    if total is None:
      total = array
    elif array.shape != total.shape:
      raise ValueError(
        f"Logits {count} have shape {array.shape}, those before {total.shape}."
      )
    else:
      with np.errstate(invalid="ignore"):  # Infinities are checked below.
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
      "0. Use finite logits."
    )
  scale = count if weights is None else scaled.sum(dtype=np.float64)
  return (total / scale).astype(np.float32)


def _without_nan(logits: Any, position: int) -> np.ndarray:
  """Returns logits in float64; rejects NaN, but infinity may mask classes."""
  array = arguments.numbers(logits)
  if array is None:
    raise ValueError(
      f"Logits {position} must be an array of numbers, got a "
      f"{type(logits).__name__}: {logits!r:.80}."
    )
  if np.isnan(array).any():
    raise ValueError(
      f"Logits {position} have NaN. Leave that model out: its weights diverged."
    )
  return array
