# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Distances and angles between models, one leaf at a time."""

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups import tree
from soupjax.soups.ingredient import Ingredient, check_ingredients


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Geometry:
  """Inner products of K models, measured from an origin.

  Attributes:
    names: of the models.
    origin: what they were measured from: a name, or "their mean".
    grams: leaf -> (K, K) inner products of the differences from the origin.
    scales: leaf -> norm of the origin's leaf.
  """

  names: tuple[str, ...]
  origin: str
  grams: dict[str, np.ndarray]
  scales: dict[str, float]

  @property
  def gram(self) -> np.ndarray:
    """(K, K) inner products over all leaves."""
    return sum(self.grams.values())

  @property
  def norms(self) -> np.ndarray:
    """(K,) distances from the origin."""
    return np.sqrt(np.maximum(np.diag(self.gram), 0))

  @property
  def scale(self) -> float:
    """Norm of the origin."""
    return float(np.sqrt(sum(s**2 for s in self.scales.values())))

  @property
  def distances(self) -> np.ndarray:
    """(K, K) distances between models."""
    square = np.diag(self.gram)
    gaps = square[:, None] + square[None, :] - 2 * self.gram
    return np.sqrt(np.maximum(gaps, 0))

  @property
  def cosines(self) -> np.ndarray:
    """(K, K) cosines of the angles at the origin; NaN for a model on it."""
    norms = self.norms
    with np.errstate(invalid="ignore", divide="ignore"):
      return np.clip(self.gram / np.outer(norms, norms), -1, 1)


@jax.jit
def _gram(stack, origin):
  stack = jnp.stack([x.astype(jnp.float32).reshape(-1) for x in stack])
  if origin is None:
    origin = stack.mean(axis=0)
  else:
    origin = origin.astype(jnp.float32).reshape(-1)
  delta = stack - origin[None]
  # HIGHEST: angles of small differences do not bear bfloat16 products.
  gram = jnp.matmul(delta, delta.T, precision=jax.lax.Precision.HIGHEST)
  return gram, jnp.linalg.norm(origin)


def geometry(
  ingredients: Sequence[Ingredient], origin: Ingredient | None = None
) -> Geometry:
  """Measures distances and angles; holds K copies of one leaf at a time.

  Args:
    ingredients: of one architecture.
    origin: the pretrained model; None measures from the ingredients' mean.

  Returns:
    Inner products for every floating leaf.

  Raises:
    ValueError: if trees differ.
  """
  ingredients = list(ingredients)
  if origin is not None and origin.name in {i.name for i in ingredients}:
    origin = dataclasses.replace(origin, name=f"{origin.name} (origin)")
  check_ingredients([*ingredients, *([origin] if origin else [])])
  grams, scales = {}, {}
  for leaf, spec in ingredients[0].specs.items():
    if tree.is_float(spec):
      stack = [jnp.asarray(i.read(leaf)) for i in ingredients]
      start = None if origin is None else jnp.asarray(origin.read(leaf))
      gram, scale = _gram(stack, start)
      grams[leaf], scales[leaf] = np.asarray(gram, np.float64), float(scale)
  return Geometry(
    names=tuple(i.name for i in ingredients),
    origin="their mean" if origin is None else origin.name,
    grams=grams,
    scales=scales,
  )
