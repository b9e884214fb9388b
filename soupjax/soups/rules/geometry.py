# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Rules that use angles and distances between models.

However many parameters there are, all of these need no more of them than the
dot products of all pairs of models. A first pass takes these, in float64; what
is left is a weighted sum.
"""

import math

import numpy as np

from soupjax.soups.core import compensated
from soupjax.soups.rules import base as rule_base
from soupjax.soups.rules import coefficients, thresholds
from soupjax.soups.rules.arithmetic import combine_deltas
from soupjax.soups.rules.base import RULES, Rule
from soupjax.soups.rules.linear import combine_sum, sum_values


def _check_scope(scope):
  if scope not in ("model", "leaf"):
    raise ValueError(f"scope={scope!r} is neither 'model' nor 'leaf'.")
  return scope


def _grams(reader, scope, reduce):
  """Leaf -> Gram matrix; the same for all leaves if scope is "model"."""
  if scope == "leaf":
    return reader.each(reduce)
  total = reader.total(reduce, reader.specs)
  return {} if total is None else dict.fromkeys(reader.specs, total)


def _raw(stack, base):
  del base
  return thresholds.gram(stack, None)


def _centred(stack, base):
  del base
  return thresholds.gram(stack, stack[0].copy())


def cosines(gram: np.ndarray) -> np.ndarray:
  """Cosines of all pairs, 0 where a vector is zero."""
  norms = np.sqrt(np.maximum(np.diag(gram), 0))
  sizes = np.outer(norms, norms)
  safe = np.where(sizes > 0, sizes, 1)
  return np.clip(np.where(sizes > 0, gram / safe, 0), -1, 1)


@RULES.register
def slerp(t: coefficients.Coefficient, *, scope: str = "leaf") -> Rule:
  """Spherical interpolation of two ingredients (Shoemake, 1985).

  `(sin((1 - t) w) a + sin(t w) b) / sin(w)`, with w the angle between the
  weights a and b themselves. Where these are parallel it is `(1 - t) a + t b`,
  the limit; also where they are opposite (within 1e-3 rad) or one is zero,
  though no arc is shortest there.

  Args:
    t: share of the second ingredient; one for all, or for every leaf.
    scope: whether the angle is that of every "leaf" or of the whole "model".

  Returns:
    The rule; it reads all weights once more.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> models = [make("a", {"w": jnp.array([1.0, 0.0])}),
    ...           make("b", {"w": jnp.array([0.0, 1.0])})]
    >>> rule = sj.rules.slerp(0.5)
    >>> sj.mix(rule, models).params["w"].round(3)
    Array([0.707, 0.707], dtype=float32)
  """
  t = coefficients.check("t", t)
  _check_scope(scope)

  def values(count):
    if count != 2:
      raise ValueError(f"slerp goes between 2 ingredients, got {count}.")
    return {}

  def leaf_values(specs, count, every):
    del count  # Raises before anything is read.
    coefficients.resolve("t", t, specs, every)
    return {}

  def measured(reader):
    shares = coefficients.resolve("t", t, reader.specs, reader.every)
    grams = _grams(reader, scope, _raw)
    return {
      leaf: coefficients.by_layer(
        shares[leaf], lambda t, gram=gram: sum_values(slerp_weights(gram, t))
      )
      for leaf, gram in grams.items()
    }

  return Rule(
    name="slerp",
    combine=combine_sum,
    values=values,
    leaf_values=leaf_values,
    measure=measured,
    settings={"t": t, "scope": scope},
  )


def slerp_weights(gram: np.ndarray, t: float) -> np.ndarray:
  """The weights of two vectors in `slerp`, from their (2, 2) Gram matrix."""
  angle = math.acos(cosines(gram)[0, 1])
  if gram[0, 0] <= 0 or gram[1, 1] <= 0:
    angle = 0.0
  # Near 0 the quotient is 0 / 0; near pi it is large and points nowhere.
  if angle < 1e-6 or math.pi - angle < 1e-3:
    return np.array([1 - t, t])
  return np.sin([(1 - t) * angle, t * angle]) / math.sin(angle)


@RULES.register
def model_stock(*, scope: str = "leaf", compat: str | None = None) -> Rule:
  """Between the base and the mean, by the angle (arXiv 2403.19522).

  `(1 - r) base + r mean_k t_k` with `r = K c / (1 + (K - 1) c)` and c the mean
  cosine between the task vectors of all pairs, taken as 0 where it is negative
  or a leaf has not changed.

  Args:
    scope: whether r is that of every "leaf" (the paper's layer-wise) or of the
      whole "model".
    compat: None is the mean of the cosines, "fusion_bench" the cosine of the
      mean angle; they differ for more than two ingredients.

  Returns:
    The rule; it needs a base and two ingredients, and reads all weights once
    more.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> base = make("base", {"w": jnp.zeros(4)})
    >>> models = [make("a", {"w": jnp.array([4.0, 1.0, -2.0, 0.1])}),
    ...           make("b", {"w": jnp.array([2.0, -3.0, -4.0, 0.3])})]
    >>> rule = sj.rules.model_stock()
    >>> sj.mix(rule, models, base=base).params["w"].round(3)
    Array([ 2.071     , -0.69000006, -2.071     ,  0.13800001], dtype=float32)
  """
  _check_scope(scope)
  if compat not in (None, "fusion_bench"):
    raise ValueError(f"compat={compat!r} is neither None nor 'fusion_bench'.")

  def values(count):
    rule_base.check_count("model_stock", count, 2)
    return {}

  def measured(reader):
    found = {}
    for leaf, gram in _grams(reader, scope, thresholds.gram).items():
      ratio = stock_ratio(gram, mean_angle=compat == "fusion_bench")
      ones = np.ones(reader.count)
      found[leaf] = compensated.delta_coefficients(ones, ratio / reader.count)
    return found

  return Rule(
    name="model_stock",
    combine=combine_deltas,
    values=values,
    measure=measured,
    settings={"scope": scope, "compat": compat},
    needs_base=True,
  )


def stock_ratio(gram: np.ndarray, *, mean_angle: bool = False) -> float:
  """The share of the mean in `model_stock`, from a Gram matrix."""
  count = len(gram)
  pairs = cosines(gram)[np.triu_indices(count, 1)]
  cosine = pairs.mean()
  if mean_angle:
    cosine = math.cos(np.arccos(pairs).mean())
  cosine = max(0.0, float(cosine))
  return count * cosine / (1 + (count - 1) * cosine)


@RULES.register
def geometric_median(
  weights: coefficients.Weights = None, *, scope: str = "model"
) -> Rule:
  """The point of least summed distance (Weiszfeld; arXiv 1912.13445).

  `argmin_x sum_k w_k |x - t_k|`: unlike the mean it is hardly moved by a
  minority of models that went astray.

  Args:
    weights: one positive number an ingredient, or a mapping from regular
      expressions to such; None weighs all alike.
    scope: whether distances are of the whole "model" or of every "leaf".

  Returns:
    The rule; it reads all weights once more.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> models = [make("a", {"w": jnp.array([0.0, 0.0])}),
    ...           make("b", {"w": jnp.array([0.0, 0.1])}),
    ...           make("c", {"w": jnp.array([9.0, 0.0])})]
    >>> rule = sj.rules.geometric_median()
    >>> sj.mix(rule, models).params["w"].round(3)
    Array([0.029, 0.049], dtype=float32)
  """
  return _centre("geometric_median", weights, scope, median_weights, _centred)


def _centre(name, weights, scope, weights_of, products) -> Rule:
  """A middle of the models: their sum with weights from a Gram matrix."""
  _check_scope(scope)
  weights = rule_base.check_weights(weights)

  def check(number, weights, count):
    del number
    each = rule_base.per_model(weights, count)
    if (each < 0).any() or not each.any():
      raise ValueError(f"Weights must be positive, got {weights}.")
    return {}

  # Nothing is known before the first pass, but that the weights fit.
  values, leaf_values = coefficients.split_weighted("", 1.0, weights, check)

  def measured(reader):
    each = coefficients.resolve_weights(weights, reader.specs)
    found, made = {}, {}
    for leaf, gram in _grams(reader, scope, products).items():
      key = id(gram), tuple(each[leaf] or ())
      if key not in made:
        mine = rule_base.per_model(each[leaf], reader.count)
        made[key] = sum_values(weights_of(gram, mine))
      found[leaf] = made[key]
    return found

  return Rule(
    name=name,
    combine=combine_sum,
    values=values,
    leaf_values=leaf_values,
    measure=measured,
    settings={
      "scope": scope,
      **({} if weights is None else {"weights": weights}),
    },
  )


def median_weights(gram: np.ndarray, each: np.ndarray) -> np.ndarray:
  """The median as a mean with these weights, from a Gram matrix.

  Args:
    gram: (K, K) dot products, of differences from any one point.
    each: (K,) positive.
  """
  found = each / each.sum()
  size = math.sqrt(max(0.0, float(np.diag(gram).max(initial=0))))
  for _ in range(10_000):
    away = found - np.eye(len(each))
    squares = np.einsum("ki,ij,kj->k", away, gram, away)
    # A distance of zero would end the iteration at any of the models.
    distances = np.maximum(np.sqrt(np.maximum(squares, 0)), 1e-9 * size)
    if not distances.all():  # All models are equal.
      return found
    new = each / distances
    new /= new.sum()
    if np.abs(new - found).max() < 1e-13:
      return new
    found = new
  return found


@RULES.register
def karcher(
  weights: coefficients.Weights = None, *, scope: str = "leaf"
) -> Rule:
  """The Karcher mean on the sphere of directions (Karcher, 1977).

  `argmin_u sum_k w_k angle(u, t_k)^2` over unit vectors u, times the mean norm
  of the t_k. For two models of one norm it is `slerp` halfway.

  Args:
    weights: one positive number an ingredient, or a mapping from regular
      expressions to such; None weighs all alike.
    scope: whether angles are of every "leaf" or of the whole "model".

  Returns:
    The rule; it reads all weights once more.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> models = [make("a", {"w": jnp.array([3.0, 0.0])}),
    ...           make("b", {"w": jnp.array([0.0, 1.0])})]
    >>> rule = sj.rules.karcher()
    >>> sj.mix(rule, models).params["w"].round(3)
    Array([1.414, 1.414], dtype=float32)
  """
  return _centre("karcher", weights, scope, karcher_weights, _raw)


def karcher_weights(gram: np.ndarray, each: np.ndarray) -> np.ndarray:
  """The Karcher mean as a sum with these weights, from a Gram matrix."""
  each = each / each.sum()
  norms = np.sqrt(np.maximum(np.diag(gram), 0))
  used = norms > 0
  if not used.any():
    return each
  cosine = cosines(gram)[np.ix_(used, used)]
  share = each[used] / each[used].sum()
  # u = sum_k c_k t_k / |t_k|; it never leaves their span.
  c = share.copy()
  for _ in range(1000):
    length = math.sqrt(max(0.0, c @ cosine @ c))
    if length < 1e-12:  # Opposite models: no direction is the mean.
      return each
    c = c / length
    dots = np.clip(cosine @ c, -1, 1)
    angles = np.arccos(dots)
    sines = np.sin(angles)
    ratio = np.where(sines > 1e-9, angles / np.where(sines > 0, sines, 1), 1)
    step = share * ratio - c * (share * ratio * dots).sum()
    size = math.sqrt(max(0.0, step @ cosine @ step))
    if size < 1e-12:
      break
    c = math.cos(size) * c + math.sin(size) * step / size
  found = np.zeros(len(each))
  found[used] = c / norms[used] * (each @ norms)
  return found
