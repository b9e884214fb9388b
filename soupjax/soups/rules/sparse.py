# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Task vectors with elements dropped: at random, by size, or by both."""

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


def _merge(leaves, base, values, weights):
  """The sum, or the elected mean, of what was kept."""
  if "zero_sign" in values:
    return consensus.elected_mean(leaves, base, weights, weights, values)
  total = consensus.weighted_sum(leaves, base, weights)
  return compensated.mean(total, base, values["scale"])


def _dare(stack, base, values):
  leaves = []
  for k in range(len(stack)):
    mask = random_masks.chosen(
      values["keys"][k], values["index"], values["share"]
    )
    leaves.append(consensus.keep(stack[k], base, mask))
  return _merge(leaves, base, values, values["weights"])


def _breadcrumbs(stack, base, values):
  leaves = []
  for k in range(len(stack)):
    bits = consensus.magnitude(consensus.float32_delta(stack[k], base))
    low, high = values["threshold"][k]
    mask = (bits >= low) & (bits <= high) & (bits > 0)
    leaves.append(consensus.keep(stack[k], base, mask))
  return _merge(leaves, base, values, values["weights"])


def _numbers(scale, count, weights, elect, factor=1.0):
  """The numbers for `_merge`."""
  each = rule_base.per_model(weights, count).astype(np.float32)
  if not elect:
    return {"weights": each, "scale": compensated.parts(scale * factor)}
  return {
    "weights": each,
    "scale": np.float32(scale * factor),
    "zero_sign": np.float32(0),
    "by_count": np.bool_(False),
  }


def _settings(scale, weights, elect, **more):
  return {
    **more,
    "scale": coefficients.check("scale", scale),
    "elect": elect,
    **({} if weights is None else {"weights": weights}),
  }


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
  """Drops elements at random, and rescales (arXiv 2311.03099).

  `base + scale * sum_k w_k m_k d_k / density`; d_k is t_k - base, and every
  element of the mask m_k is 1 with probability `density` (1 - p in the paper),
  else 0.

  Args:
    density: share of the elements that is kept on average.
    scale: as for `task_arithmetic`.
    rescale: whether to divide by the density, which keeps the expected value.
    seed: the masks depend on it, on the names of leaf and ingredient, and on
      the place in the leaf: not on the order of the ingredients, blocks,
      threads or mesh.
    weights: as for `task_arithmetic`.
    elect: merges what is left like `ties`: elects signs and takes the mean of
      those that agree, instead of the sum.
    compat: None is the paper. With "mergekit" what is kept is not divided by
      the density, but scaled to the L1 norm that the leaf had (unless `rescale`
      is off), and an election that ends even goes to the positive side.
      (mergekit 0.1.5: `dare_linear`; with elect=True `dare_ties`, `normalize`
      on.)

  Returns:
    The rule; it needs a base. To scale by norms it holds whole leaves of all
    ingredients.

  Raises:
    ValueError: if a number or a word makes no sense.

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
  weights = rule_base.check_weights(weights)
  arguments.flag("elect", elect)
  arguments.flag("rescale", rescale)
  seed = arguments.whole("seed", seed)
  if compat not in (None, "mergekit"):
    raise ValueError(f"compat={compat!r} is neither None nor 'mergekit'.")
  by_norm = rescale and compat is not None
  factor = 1 / density if rescale and not by_norm else 1.0

  def numbers(scale, weights, count):
    found = _numbers(scale, count, weights, elect, factor)
    if elect and compat is not None:
      found["zero_sign"] = np.float32(1)
    return found

  values, leaf_values = coefficients.split_weighted(
    "scale", scale, weights, numbers
  )
  return Rule(
    name="dare",
    combine=_dare_by_norm if by_norm else _dare,
    values=lambda count: {**values(count), "share": np.float32(density)},
    leaf_values=leaf_values,
    indexed=True,
    seed=seed,
    whole=by_norm,
    settings=_settings(
      scale,
      weights,
      elect,
      density=density,
      rescale=rescale,
      seed=seed,
      compat=compat,
    ),
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
  n)` that follow (one at least), and drops the rest. Elements whose magnitude
  equals that of one that is kept are kept too.

  Args:
    density: share of the elements that is kept.
    gamma: share that is dropped at the top; 0 drops none there.
    scale: as for `task_arithmetic`.
    weights: as for `task_arithmetic`.
    elect: merges what is left like `ties`, instead of the sum.

  Returns:
    The rule; it needs a base, and reads all weights twice more.

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
  weights = rule_base.check_weights(weights)
  arguments.flag("elect", elect)
  gamma = rule_base.check_share("gamma", gamma, zero=True)
  if density + gamma > 1 + 1e-9:
    raise ValueError(
      f"density={density} and gamma={gamma} are more than everything."
    )

  def first_pass(reader):
    found = {}
    for leaf, spec in reader.specs.items():
      if not spec.size:
        continue
      top = min(int(gamma * spec.size + 1e-6), spec.size - 1)
      kept = consensus.rank_of(density, spec.size)
      ranks = [min(spec.size, top + kept), top + 1]
      found[leaf] = {"threshold": thresholds.largest(reader, [leaf], ranks)}
    return found

  values, leaf_values = coefficients.split_weighted(
    "scale",
    scale,
    weights,
    lambda one, weights, count: _numbers(one, count, weights, elect),
  )
  return Rule(
    name="breadcrumbs",
    combine=_breadcrumbs,
    values=values,
    leaf_values=leaf_values,
    measure=first_pass,
    settings=_settings(scale, weights, elect, density=density, gamma=gamma),
    needs_base=True,
  )


def _ranks(bits):
  """0 for the smallest of a row, 1 for the largest; one alone is neither."""
  if not bits.ndim or bits.shape[-1] == 1:
    return jnp.full(bits.shape, np.float32(0.5))
  order = jnp.argsort(bits, axis=-1)
  # The inverse of the order; another sort would take as long as the first.
  ranks = jax.lax.broadcasted_iota(order.dtype, order.shape, order.ndim - 1)
  ranks = jnp.put_along_axis(order, order, ranks, axis=-1, inplace=False)
  return (ranks / (bits.shape[-1] - 1)).astype(np.float32)


def _della(stack, base, values):
  leaves, each = [], []
  for k in range(len(stack)):
    delta = consensus.float32_delta(stack[k], base)
    rank = _ranks(consensus.magnitude(delta))
    share = values["lowest"] + values["spread"] * rank
    mask = random_masks.chosen(values["keys"][k], values["index"], share)
    leaves.append(consensus.keep(stack[k], base, mask))
    if "by_norm" in values:
      share = _kept_norm(delta, mask)
    each.append(values["weights"][k] / share)
  if "by_norm" in values:
    return _merge_by_norm(leaves, base, values, each)
  return _merge(leaves, base, values, each)


def _dare_by_norm(stack, base, values):
  leaves, each = [], []
  for k in range(len(stack)):
    mask = random_masks.chosen(
      values["keys"][k], values["index"], values["share"]
    )
    leaves.append(consensus.keep(stack[k], base, mask))
    delta = consensus.float32_delta(stack[k], base)
    each.append(values["weights"][k] / _kept_norm(delta, mask))
  return _merge_by_norm(leaves, base, values, each)


def _kept_norm(delta, mask):
  """Which share of its L1 norm a task vector keeps; 1 if there is too little.

  What is kept, divided by it, has the norm that the leaf had before.
  """
  before = jnp.abs(delta).sum()
  after = jnp.where(mask, jnp.abs(delta), 0).sum()
  small = jnp.minimum(before, after) < np.float32(1e-7)
  return jnp.where(small, 1, after / jnp.where(small, 1, before))


def _merge_by_norm(leaves, base, values, each):
  """`_merge`, where factors scale task vectors and do not count as weights."""
  if "zero_sign" in values:
    return consensus.elected_mean(
      leaves, base, each, each, values, sizes=values["weights"]
    )
  return _merge(leaves, base, values, each)


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
  """Drops at random, small changes more likely (arXiv 2406.11617).

  An element is kept with probability `q = density - epsilon / 2 + epsilon * r`,
  where r rises from 0 for the smallest magnitude of its row (the last axis) to
  1 for the largest (1/2 in a row of one), and divided by q. Signs are elected,
  and the mean of those that agree is taken, as in `ties`.

  Args:
    density: share of the elements that is kept on average.
    epsilon: how far the probabilities are apart.
    scale: as for `task_arithmetic`.
    seed: as for `dare`.
    weights: as for `task_arithmetic`.
    elect: False takes the sum instead.
    compat: None is the paper. With "mergekit" q goes from density - epsilon to
      density + epsilon; what is kept is not divided by q, but scaled to the L1
      norm that the leaf had; an election that ends even goes to the positive
      side, and the mean is weighted. (mergekit 0.1.5: `rescale` and `normalize`
      on, `della`; off the latter with elect=False, `della_linear`.)

  Returns:
    The rule; it needs a base, and holds whole leaves of all ingredients.

  Raises:
    ValueError: if a number or a word makes no sense.

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
  weights = rule_base.check_weights(weights)
  arguments.flag("elect", elect)
  epsilon = rule_base.check_number("epsilon", epsilon)
  seed = arguments.whole("seed", seed)
  if compat not in (None, "mergekit"):
    raise ValueError(f"compat={compat!r} is neither None nor 'mergekit'.")
  half = epsilon / 2 if compat is None else epsilon
  low, high = density - half, density + half
  if epsilon < 0 or low <= 0 or high > 1:
    raise ValueError(
      f"density={density} and epsilon={epsilon} give probabilities from "
      f"{low:g} to {high:g}; they must lie in (0, 1]."
    )

  def numbers(scale, weights, count):
    found = _numbers(scale, count, weights, elect)
    if elect and compat is None:
      # Weights are divided by the probabilities here.
      found["by_count"] = np.bool_(True)
    elif elect:
      found["zero_sign"] = np.float32(1)
    return found

  values, leaf_values = coefficients.split_weighted(
    "scale", scale, weights, numbers
  )
  fixed: dict[str, np.generic] = {
    "lowest": np.float32(low),
    "spread": np.float32(2 * half),
  }
  if compat is not None:
    fixed["by_norm"] = np.bool_(True)
  return Rule(
    name="della",
    combine=_della,
    values=lambda count: {**values(count), **fixed},
    leaf_values=leaf_values,
    indexed=True,
    seed=seed,
    whole=True,
    settings=_settings(
      scale,
      weights,
      elect,
      density=density,
      epsilon=epsilon,
      seed=seed,
      compat=compat,
    ),
    needs_base=True,
  )
