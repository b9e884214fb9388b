# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Rules that use angles and distances between models.

All of them only need the dot products of all pairs of models, whatever the
number of parameters. A first pass computes these in float64; the result is then
a weighted sum.
"""

import math

import numpy as np

from soupjax.soups.core import compensated
from soupjax.soups.rules import base as rule_base
from soupjax.soups.rules import coefficients, thresholds
from soupjax.soups.rules.arithmetic import combine_deltas
from soupjax.soups.rules.base import RULES, Rule
from soupjax.soups.rules.linear import combine_sum, sum_values

# Above this number of models, `median_weights` uses a formula that takes K**2
# instead of K**3 operations per iteration.
_EXPLICIT = 64


def _grams(reader, scope, reduce):
  """Returns leaf -> Gram matrix, one for all leaves if scope is "model"."""
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
  """Returns the cosines of all pairs, 0 where a vector is zero."""
  norms = np.sqrt(np.maximum(np.diag(gram), 0))
  sizes = np.outer(norms, norms)
  safe = np.where(sizes > 0, sizes, 1)
  return np.clip(np.where(sizes > 0, gram / safe, 0), -1, 1)


@RULES.register
def slerp(t: coefficients.Coefficient, *, scope: str = "leaf") -> Rule:
  """Interpolates two ingredients spherically (Shoemake, 1985).

  `(sin((1 - t) w) a + sin(t w) b) / sin(w)`, with w the angle between the
  weights a and b themselves. If these are parallel, it is the limit, `(1 - t) a
  + t b`; so it is if they are opposite (within 1e-3 rad), where the shortest
  arc is not unique, or if one is zero.

  Args:
    t: share of the second ingredient; one number, or one per leaf.
    scope: whether to measure the angle per "leaf" or for the whole "model".

  Returns:
    The rule; it reads all weights one more time.

  Raises:
    ValueError: if an argument is invalid; on merging, if there are not exactly
      two ingredients.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> models = [make("a", {"w": jnp.array([1.0, 0.0])}),
    ...           make("b", {"w": jnp.array([0.0, 1.0])})]
    >>> rule = sj.rules.slerp(0.5)
    >>> sj.mix(rule, models).params["w"].round(3)
    Array([0.707, 0.707], dtype=float32)
  """
  rule_base.check_choice("scope", scope, "model", "leaf")

  def check(t, weights, count):
    del t, weights
    if count != 2:
      raise ValueError(f"slerp needs exactly 2 ingredients, got {count}.")
    return {}

  def measured(reader):
    shares = coefficients.resolve("t", t, reader.specs, reader.all_specs)
    return {
      leaf: coefficients.by_layer(
        shares[leaf], lambda t, gram=gram: sum_values(slerp_weights(gram, t))
      )
      for leaf, gram in _grams(reader, scope, _raw).items()
    }

  return rule_base.scaled_rule(
    "slerp",
    combine_sum,
    check,
    t,
    coefficient="t",
    measure=measured,
    settings={"scope": scope},
  )


def slerp_weights(gram: np.ndarray, t: float) -> np.ndarray:
  """Returns the weights of two vectors, from their (2, 2) Gram matrix."""
  angle = math.acos(cosines(gram)[0, 1])
  if gram[0, 0] <= 0 or gram[1, 1] <= 0:
    angle = 0.0
  # Near 0 the quotient is 0 / 0; near pi it is large and arbitrary.
  if angle < 1e-6 or math.pi - angle < 1e-3:
    return np.array([1 - t, t])
  return np.sin([(1 - t) * angle, t * angle]) / math.sin(angle)


@RULES.register
def model_stock(*, scope: str = "leaf", compat: str | None = None) -> Rule:
  """Interpolates base and mean by the angle (arXiv 2403.19522).

  `(1 - r) base + r mean_k t_k` with `r = K c / (1 + (K - 1) c)`, where c is the
  mean cosine between two task vectors, over all pairs; 0 if that is negative or
  a leaf has not changed.

  Args:
    scope: whether r is computed per "leaf" (layer-wise in the paper) or for the
      whole "model".
    compat: None takes the mean of the cosines, "fusion_bench" the cosine of the
      mean angle; they differ for more than two ingredients.

  Returns:
    The rule; it needs a base and at least two ingredients, and reads all
    weights one more time.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> base = make("base", {"w": jnp.zeros(4)})
    >>> models = [make("a", {"w": jnp.array([4.0, 1.0, -2.0, 0.1])}),
    ...           make("b", {"w": jnp.array([2.0, -3.0, -4.0, 0.3])})]
    >>> rule = sj.rules.model_stock()
    >>> sj.mix(rule, models, base=base).params["w"].round(3)
    Array([ 2.071     , -0.69000006, -2.071     ,  0.13800001], dtype=float32)
  """
  rule_base.check_choice("scope", scope, "model", "leaf")
  rule_base.check_choice("compat", compat, None, "fusion_bench")

  def values(count):
    rule_base.check_count("model_stock", count, 2)
    return {}

  def measured(reader):
    values = {}
    for leaf, gram in _grams(reader, scope, thresholds.gram).items():
      ratio = stock_ratio(gram, mean_angle=compat == "fusion_bench")
      values[leaf] = compensated.delta_coefficients(
        np.ones(reader.count), ratio / reader.count
      )
    return values

  return Rule(
    name="model_stock",
    combine=combine_deltas,
    values=values,
    measure=measured,
    settings={"scope": scope, "compat": compat},
    needs_base=True,
  )


def stock_ratio(gram: np.ndarray, *, mean_angle: bool = False) -> float:
  """Returns the share of the mean in `model_stock`, from a Gram matrix."""
  count = len(gram)
  pairs = cosines(gram)[np.triu_indices(count, 1)]
  cosine = math.cos(np.arccos(pairs).mean()) if mean_angle else pairs.mean()
  cosine = max(0.0, float(cosine))
  return count * cosine / (1 + (count - 1) * cosine)


@RULES.register
def geometric_median(
  weights: coefficients.Weights = None, *, scope: str = "model"
) -> Rule:
  """Minimises the sum of distances to all models (arXiv 1912.13445).

  `argmin_x sum_k w_k |x - t_k|`, by Weiszfeld's algorithm. Unlike the mean, it
  hardly moves if a minority of the models are outliers.

  Args:
    weights: one number per ingredient, none of them negative, or a mapping from
      regular expressions to such sequences; None is equal weights.
    scope: whether to measure distances for the whole "model" or per "leaf".

  Returns:
    The rule; it reads all weights one more time.

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
  """Makes a rule that sums models with weights from a Gram matrix."""
  rule_base.check_choice("scope", scope, "model", "leaf")
  weights = rule_base.check_weights(weights)

  def check(number, weights, count):
    del number
    array = rule_base.per_model(weights, count)
    if (array < 0).any() or not array.any():
      raise ValueError(
        f"Weights must be positive, or 0 for some models, got {weights}."
      )
    return {}

  def measured(reader):
    weights_by_leaf = coefficients.resolve_weights(weights, reader.specs)
    cache, result = {}, {}
    for leaf, gram in _grams(reader, scope, products).items():
      leaf_weights = weights_by_leaf[leaf]
      key = id(gram), tuple(leaf_weights or ())
      if key not in cache:
        array = rule_base.per_model(leaf_weights, reader.count)
        cache[key] = sum_values(weights_of(gram, array))
      result[leaf] = cache[key]
    return result

  return rule_base.scaled_rule(
    name,
    combine_sum,
    check,
    coefficient="",
    weights=weights,
    measure=measured,
    settings={"scope": scope},
  )


def median_weights(gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Returns (K,) coefficients of the models in the median, which sum to 1.

  Args:
    gram: (K, K) dot products, of differences from any one point.
    weights: (K,), not negative.
  """
  mean = weights / weights.sum()
  size = math.sqrt(max(0.0, float(np.diag(gram).max(initial=0))))
  for _ in range(10_000):
    if len(weights) <= _EXPLICIT:
      away = mean - np.eye(len(weights))
      squares = np.einsum("ki,ij,kj->k", away, gram, away)
    else:
      dots = gram @ mean
      squares = mean @ dots - 2 * dots + np.diag(gram)
    # A distance of zero would stop the iteration at a model.
    distances = np.maximum(np.sqrt(np.maximum(squares, 0)), 1e-9 * size)
    if not distances.all():  # All models are equal.
      return mean
    new = weights / distances
    new /= new.sum()
    if np.abs(new - mean).max() < 1e-13:
      return new
    mean = new
  return mean


@RULES.register
def karcher(
  weights: coefficients.Weights = None, *, scope: str = "leaf"
) -> Rule:
  """Computes the Karcher mean of directions (Karcher, 1977).

  `argmin_u sum_k w_k angle(u, t_k)^2` over unit vectors u, times the weighted
  mean norm of the t_k. For two models of equal norm and weight, it is `slerp`
  with t = 0.5.

  Args:
    weights: as for `geometric_median`.
    scope: whether to measure angles per "leaf" or for the whole "model".

  Returns:
    The rule; it reads all weights one more time.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> models = [make("a", {"w": jnp.array([3.0, 0.0])}),
    ...           make("b", {"w": jnp.array([0.0, 1.0])})]
    >>> rule = sj.rules.karcher()
    >>> sj.mix(rule, models).params["w"].round(3)
    Array([1.414, 1.414], dtype=float32)
  """
  return _centre("karcher", weights, scope, karcher_weights, _raw)


def karcher_weights(gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Returns (K,) coefficients of the models in the Karcher mean."""
  weights = weights / weights.sum()
  norms = np.sqrt(np.maximum(np.diag(gram), 0))
  used = norms > 0
  if not used.any():
    return weights
  cosine = cosines(gram)[np.ix_(used, used)]
  share = weights[used] / weights[used].sum()
  # u = sum_k c_k t_k / |t_k| stays in their span.
  c = share.copy()
  for _ in range(1000):
    length = math.sqrt(max(0.0, c @ cosine @ c))
    if length < 1e-12:  # Opposite models have no mean direction.
      return weights
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
  result = np.zeros(len(weights))
  result[used] = c / norms[used] * (weights @ norms)
  return result
