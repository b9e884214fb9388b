# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Rules that drop elements of task vectors at random, by size, or both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups.core import arguments, compensated
from soupjax.soups.rules import base as rule_base
from soupjax.soups.rules import (
  coefficients,
  consensus,
  random_masks,
  thresholds,
)
from soupjax.soups.rules.base import RULES, Rule


def _merge(count, base, kept, values):
  """Returns the sum, or the elected mean, of the elements that were kept.

  `kept(k)` returns the leaf of a model, which equals the base where an element
  was dropped, and its weight.
  """
  if "zero_sign" not in values:
    total = compensated.sum_of(count, base, kept)
    return compensated.mean(total, base, values["scale"])
  sizes = None
  if "by_norm" in values:
    # Factors by norm scale task vectors, and do not count as weights.
    sizes = functools.partial(compensated.of_model, values["weights"])

  def weight_of(k):
    return kept(k)[1]

  return consensus.elected_mean(
    count, base, lambda k: kept(k)[0], values, weight_of, weight_of, sizes
  )


def _drop_at_random(stack, base, values, share_of, *, divide):
  """Keeps elements with probability `share_of(delta)`, and merges.

  Weights are divided by these probabilities if `divide`, or by the share of
  the norm that is kept if "by_norm" is in `values`.
  """
  stack = compensated.stacked(stack)

  def kept(k):
    leaf = compensated.of_model(stack, k)
    delta = consensus.float32_delta(leaf, base)
    share, key = share_of(delta), compensated.of_model(values["keys"], k)
    mask = random_masks.random_mask(key, values["index"], share)
    weight = compensated.of_model(values["weights"], k)
    if "by_norm" in values:
      weight = weight / _kept_norm(delta, mask)
    elif divide:
      weight = weight / share
    return consensus.keep(leaf, base, mask), weight

  # Sorts and norms take longer than storing their results.
  store = divide or "by_norm" in values
  kept = compensated.once(len(stack), kept, store=store)
  return _merge(len(stack), base, kept, values)


def _kept_norm(delta, mask):
  """Returns the share of its L1 norm that a task vector keeps, 1 if tiny."""
  before = jnp.abs(delta).sum()
  after = jnp.where(mask, jnp.abs(delta), 0).sum()
  small = jnp.minimum(before, after) < np.float32(1e-7)
  return jnp.where(small, 1, after / jnp.where(small, 1, before))


def _dare(stack, base, values):
  return _drop_at_random(
    stack, base, values, lambda delta: values["share"], divide=False
  )


def _breadcrumbs(stack, base, values):
  stack = compensated.stacked(stack)

  def kept(k):
    leaf = compensated.of_model(stack, k)
    bits = consensus.magnitude(consensus.float32_delta(leaf, base))
    low, high = compensated.of_model(values["threshold"], k)
    mask = (bits >= low) & (bits <= high) & (bits > 0)
    weight = compensated.of_model(values["weights"], k)
    return consensus.keep(leaf, base, mask), weight

  kept = compensated.once(len(stack), kept)
  return _merge(len(stack), base, kept, values)


def _della(stack, base, values):
  def share_of(delta):
    ranks = _ranks(consensus.magnitude(delta))
    return values["lowest"] + values["spread"] * ranks

  return _drop_at_random(stack, base, values, share_of, divide=True)


def _ranks(bits):
  """Ranks elements within rows from 0 to 1; a single element gets 0.5."""
  if not bits.ndim or bits.shape[-1] == 1:
    return jnp.full(bits.shape, np.float32(0.5))
  order = jnp.argsort(bits, axis=-1)
  # Inverts the permutation; a second sort would take as long as the first.
  ranks = jax.lax.broadcasted_iota(order.dtype, order.shape, order.ndim - 1)
  ranks = jnp.put_along_axis(order, order, ranks, axis=-1, inplace=False)
  return (ranks / (bits.shape[-1] - 1)).astype(np.float32)


def _values(scale, weights, count, elect, **election):
  """Returns the values for `_merge`."""
  weights = rule_base.per_model(weights, count).astype(np.float32)
  if not elect:
    return {"weights": weights, "scale": compensated.parts(scale)}
  return {"weights": weights, **consensus.election_values(scale, **election)}


@RULES.register
def dare(
  density: float,
  scale: coefficients.Coefficient = 1.0,
  *,
  rescale: bool = True,
  seed: int = 0,
  weights: coefficients.Weights = None,
  elect: bool = False,
  compat: str | None = None,
) -> Rule:
  """Drops elements at random and rescales the rest (arXiv 2311.03099).

  `base + scale * sum_k w_k m_k d_k / density`; d_k is t_k - base, and every
  element of the mask m_k is 1 with probability `density` (1 - p in the paper),
  else 0.

  Args:
    density: share of the elements that is kept on average.
    scale: as for `task_arithmetic`.
    rescale: whether to divide by the density, which keeps the expected value.
    seed: masks depend on it, on the names of leaf and ingredient, and on the
      index in the leaf; not on the order of the ingredients, blocks, threads or
      mesh.
    weights: as for `task_arithmetic`.
    elect: whether to merge the rest like `ties`: elect signs, and average the
      elements that agree instead of summing all.
    compat: None is the paper. "mergekit" scales the rest to the former L1 norm
      of the leaf instead of dividing by the density (unless `rescale` is off),
      and resolves a tied election to the positive sign. (mergekit 0.1.5:
      `dare_linear`; with elect=True `dare_ties`, `normalize` on.)

  Returns:
    The rule; it needs a base. To scale by norms it reads whole leaves of all
    ingredients into memory.

  Raises:
    ValueError: if an argument is invalid.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> base = make("base", {"w": jnp.zeros(4)})
    >>> models = [make("a", {"w": jnp.array([4.0, 1.0, -2.0, 0.1])}),
    ...           make("b", {"w": jnp.array([2.0, -3.0, -4.0, 0.3])})]
    >>> rule = sj.rules.dare(density=0.5, seed=0)
    >>> sj.mix(rule, models, base=base).params["w"]
    Array([ 8. ,  2. , -8. ,  0.6], dtype=float32)
  """
  density = rule_base.check_share("density", density)
  arguments.flag("elect", elect)
  arguments.flag("rescale", rescale)
  seed = arguments.whole("seed", seed)
  rule_base.check_choice("compat", compat, None, "mergekit")
  by_norm = rescale and compat is not None
  factor = 1 / density if rescale and not by_norm else 1.0

  def numbers(scale, weights, count):
    return {
      **_values(
        scale * factor, weights, count, elect, zero_sign=compat is not None
      ),
      "share": np.float32(density),
      **({"by_norm": np.bool_(True)} if by_norm else {}),
    }

  return rule_base.scaled_rule(
    "dare",
    _dare,
    numbers,
    scale,
    weights=weights,
    indexed=True,
    seed=seed,
    whole=by_norm,
    settings={
      "density": density,
      "rescale": rescale,
      "seed": seed,
      "compat": compat,
      "elect": elect,
    },
    needs_base=True,
  )


@RULES.register
def breadcrumbs(
  density: float = 0.14,
  gamma: float = 0.01,
  scale: coefficients.Coefficient = 1.0,
  *,
  weights: coefficients.Weights = None,
  elect: bool = False,
) -> Rule:
  """Drops the largest and the smallest changes (arXiv 2312.06795).

  `base + scale * sum_k w_k m_k (t_k - base)`; of the n elements of a leaf, m_k
  drops the `floor(gamma * n)` of largest magnitude, keeps the `floor(density *
  n)` that follow (at least one), and drops the rest. Elements whose magnitude
  equals that of a kept element are kept too.

  Args:
    density: share of the elements that is kept.
    gamma: share of the largest elements that is dropped; may be 0.
    scale: as for `task_arithmetic`.
    weights: as for `task_arithmetic`.
    elect: whether to merge the rest like `ties`, instead of summing.

  Returns:
    The rule; it needs a base, and reads all weights two more times.

  Raises:
    ValueError: if an argument is invalid.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> base = make("base", {"w": jnp.zeros(4)})
    >>> models = [make("a", {"w": jnp.array([4.0, 1.0, -2.0, 0.1])}),
    ...           make("b", {"w": jnp.array([2.0, -3.0, -4.0, 0.3])})]
    >>> rule = sj.rules.breadcrumbs(density=0.5, gamma=0.25)
    >>> sj.mix(rule, models, base=base).params["w"]
    Array([ 2., -2., -2.,  0.], dtype=float32)
  """
  density = rule_base.check_share("density", density)
  arguments.flag("elect", elect)
  gamma = rule_base.check_share("gamma", gamma, zero=True)
  if density + gamma > 1 + 1e-9:
    raise ValueError(f"density={density} and gamma={gamma} sum to more than 1.")

  def first_pass(reader):
    values = {}
    for leaf, spec in reader.specs.items():
      if spec.size:
        top = min(int(gamma * spec.size + 1e-6), spec.size - 1)
        last = top + consensus.rank_of(density, spec.size)
        ranks = [min(spec.size, last), top + 1]
        values[leaf] = {"threshold": thresholds.largest(reader, [leaf], ranks)}
    return values

  return rule_base.scaled_rule(
    "breadcrumbs",
    _breadcrumbs,
    lambda scale, weights, count: _values(scale, weights, count, elect),
    scale,
    weights=weights,
    measure=first_pass,
    settings={"density": density, "gamma": gamma, "elect": elect},
    needs_base=True,
  )


@RULES.register
def della(
  density: float,
  epsilon: float = 0.1,
  scale: coefficients.Coefficient = 1.0,
  *,
  seed: int = 0,
  weights: coefficients.Weights = None,
  elect: bool = True,
  compat: str | None = None,
) -> Rule:
  """Drops small changes with higher probability (arXiv 2406.11617).

  An element is kept with probability `q = density - epsilon / 2 + epsilon * r`,
  and then divided by q; r rises from 0 for the smallest magnitude of a row (the
  last axis) to 1 for the largest (1/2 in a row of one). Signs are elected, and
  the elements that agree are averaged, as in `ties`.

  Args:
    density: share of the elements that is kept on average.
    epsilon: range of the probabilities.
    scale: as for `task_arithmetic`.
    seed: as for `dare`.
    weights: as for `task_arithmetic`.
    elect: whether to elect signs; False sums all elements instead.
    compat: None is the paper. With "mergekit" q ranges from density - epsilon
      to density + epsilon; the rest is scaled to the former L1 norm of the leaf
      instead of being divided by q; a tied election resolves to the positive
      sign, and the mean is weighted. (mergekit 0.1.5: `della` with `rescale`
      and `normalize` on; with elect=False `della_linear`, `normalize` off.)

  Returns:
    The rule; it needs a base, and reads whole leaves of all ingredients into
    memory.

  Raises:
    ValueError: if an argument is invalid.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> base = make("base", {"w": jnp.zeros(4)})
    >>> models = [make("a", {"w": jnp.array([4.0, 1.0, -2.0, 0.1])}),
    ...           make("b", {"w": jnp.array([2.0, -3.0, -4.0, 0.3])})]
    >>> rule = sj.rules.della(density=0.5, epsilon=0.2, seed=0)
    >>> sj.mix(rule, models, base=base).params["w"].round(3)
    Array([ 6.6670003 ,  2.1430001 , -5.208     ,  0.75000006], dtype=float32)
  """
  density = rule_base.check_share("density", density)
  arguments.flag("elect", elect)
  epsilon = rule_base.check_number("epsilon", epsilon)
  seed = arguments.whole("seed", seed)
  rule_base.check_choice("compat", compat, None, "mergekit")
  half = epsilon / 2 if compat is None else epsilon
  low, high = density - half, density + half
  if epsilon < 0 or low <= 0 or high > 1:
    raise ValueError(
      f"density={density} and epsilon={epsilon} give probabilities from "
      f"{low:g} to {high:g}; they must lie in (0, 1]."
    )

  def numbers(scale, weights, count):
    # In the paper's mean, weights are already divided by probabilities.
    election = {"by_count": True} if compat is None else {"zero_sign": 1}
    return {
      **_values(scale, weights, count, elect, **election),
      "lowest": np.float32(low),
      "spread": np.float32(2 * half),
      **({} if compat is None else {"by_norm": np.bool_(True)}),
    }

  return rule_base.scaled_rule(
    "della",
    _della,
    numbers,
    scale,
    weights=weights,
    indexed=True,
    seed=seed,
    whole=True,
    settings={
      "density": density,
      "epsilon": epsilon,
      "seed": seed,
      "compat": compat,
      "elect": elect,
    },
    needs_base=True,
  )
