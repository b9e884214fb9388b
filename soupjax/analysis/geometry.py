# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Distances and angles between models, one leaf at a time."""

from collections.abc import Iterable, Sequence
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups.core import tree
from soupjax.soups.core.ingredient import Ingredient, check_ingredients
from soupjax.soups.core.select import restricted


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Geometry:
  """Inner products of K models, relative to an origin.

  Attributes:
    names: names of the models.
    origin: name of the origin, or "their mean".
    grams: leaf -> (K, K) inner products of the differences from the origin.
    scales: leaf -> norm of the origin's leaf.
    products: leaf -> inner products of the weights themselves, (K, K); with a
      pretrained model as the origin, (K + 1, K + 1) with the origin last.
    sizes: leaf -> number of elements.
  """

  names: tuple[str, ...]
  origin: str
  grams: dict[str, np.ndarray]
  scales: dict[str, float]
  products: dict[str, np.ndarray]
  sizes: dict[str, int]

  @property
  def gram(self) -> np.ndarray:
    """Returns the (K, K) inner products over all leaves."""
    return sum(self.grams.values())

  @property
  def norms(self) -> np.ndarray:
    """Returns the (K,) distances from the origin."""
    return np.sqrt(np.maximum(np.diag(self.gram), 0))

  @property
  def scale(self) -> float:
    """Returns the norm of the origin."""
    return float(np.sqrt(sum(s**2 for s in self.scales.values())))

  @property
  def distances(self) -> np.ndarray:
    """Returns the (K, K) distances between models."""
    square = np.diag(self.gram)
    gaps = square[:, None] + square[None, :] - 2 * self.gram
    return np.sqrt(np.maximum(gaps, 0))

  @property
  def cosines(self) -> np.ndarray:
    """Returns the (K, K) cosines at the origin; NaN for a model equal to it."""
    norms = self.norms
    with np.errstate(invalid="ignore", divide="ignore"):
      return np.clip(self.gram / np.outer(norms, norms), -1, 1)

  def weight_cosines(self, leaves: Iterable[str]) -> np.ndarray:
    """Returns the cosines between the weights of models, averaged over leaves.

    They are about 0 for models from different starts. Leaves are weighted by
    their number of elements, so normalisation scales and biases, which are
    similar in all models, hardly count.

    Args:
      leaves: names of the leaves to average over.

    Returns:
      An array with the shape of an entry of `products`; NaN for pairs without
      a leaf in which neither model is zero.
    """
    total = weight = 0.0
    for leaf in leaves:
      product, size = self.products[leaf], self.sizes[leaf]
      norms = np.sqrt(np.maximum(np.diag(product), 0))
      both = np.outer(norms, norms)
      total = total + size * product / np.where(both > 0, both, 1)
      weight = weight + size * (both > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
      return np.clip(np.divide(total, weight), -1, 1)


@jax.jit
def _gram(stack, origin):
  stack = jnp.stack([x.astype(jnp.float32).reshape(-1) for x in stack])
  if origin is None:
    origin, models = stack.mean(axis=0), stack
  else:
    origin = origin.astype(jnp.float32).reshape(-1)
    models = jnp.concatenate([stack, origin[None]])

  def products(x):
    # HIGHEST: products in bfloat16 are too coarse for small differences.
    return jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)

  gram = products(stack - origin[None])
  return gram, products(models), jnp.linalg.norm(origin)


def _floats(model: Ingredient) -> Ingredient:
  return restricted(
    model, [k for k, s in model.specs.items() if tree.is_float(s)]
  )


def geometry(
  ingredients: Sequence[Ingredient], origin: Ingredient | None = None
) -> Geometry:
  """Measures distances and angles, one leaf of K models at a time.

  Args:
    ingredients: K models of one architecture.
    origin: the pretrained model; None for the mean of the ingredients.

  Returns:
    Inner products of the floating-point leaves.

  Raises:
    ValueError: if the trees differ.
  """
  ingredients = list(ingredients)
  if origin is not None and origin.name in {i.name for i in ingredients}:
    origin = dataclasses.replace(origin, name=f"{origin.name} (origin)")
  # Integer leaves have no distance, and may differ from those of the origin.
  ingredients, origin = (
    [_floats(i) for i in ingredients],
    origin and _floats(origin),
  )
  check_ingredients([*ingredients, *([origin] if origin else [])])
  grams, scales, products, sizes = {}, {}, {}, {}
  for leaf, spec in ingredients[0].specs.items():
    stack = [jnp.asarray(i.read(leaf)) for i in ingredients]
    start = None if origin is None else jnp.asarray(origin.read(leaf))
    gram, product, scale = _gram(stack, start)
    grams[leaf], scales[leaf] = np.asarray(gram, np.float64), float(scale)
    products[leaf] = np.asarray(product, np.float64)
    sizes[leaf] = math.prod(spec.shape)
  return Geometry(
    names=tuple(i.name for i in ingredients),
    origin="their mean" if origin is None else origin.name,
    grams=grams,
    scales=scales,
    products=products,
    sizes=sizes,
  )
