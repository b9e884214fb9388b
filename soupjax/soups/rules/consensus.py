# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Task vectors that are trimmed and must agree in sign."""

from collections.abc import Sequence
import math

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups.core import compensated
from soupjax.soups.rules import base as rule_base
from soupjax.soups.rules import coefficients, thresholds
from soupjax.soups.rules.base import RULES, Rule


def float32_delta(leaf: jax.Array, base: jax.Array) -> jax.Array:
  """The task vector as masks see it: as `thresholds` does, bit for bit."""
  return leaf.astype(np.float32) - base.astype(np.float32)


def magnitude(delta: jax.Array) -> jax.Array:
  """Bits of |delta| that order like it, as in `thresholds.magnitudes`."""
  bits = jax.lax.bitcast_convert_type(delta, np.uint32) & np.uint32(0x7FFFFFFF)
  return jnp.where(bits < np.uint32(0x00800000), np.uint32(0), bits)


def keep(leaf: jax.Array, base: jax.Array, mask: jax.Array) -> jax.Array:
  """The leaf where the mask holds, the base elsewhere: a delta of zero."""
  return jnp.where(mask, compensated.wide(leaf), compensated.wide(base))


def weighted_sum(
  leaves: Sequence[jax.Array], base: jax.Array, weights: jax.Array
) -> compensated.Pair:
  """sum_k w_k (t_k - base), with its rounding error; w_k may be arrays."""
  total = compensated.zero(base)
  for k, leaf in enumerate(leaves):
    total = compensated.add(total, base, leaf, weights[k])
  return total


def elected_mean(
  leaves: Sequence[jax.Array],
  base: jax.Array,
  votes: jax.Array,
  weights: jax.Array,
  values,
  sizes: jax.Array | None = None,
) -> jax.Array:
  """`base + scale *` the mean of deltas that agree with the elected sign.

  Args:
    leaves: K arrays; where one takes no part it equals the base.
    base: one array.
    votes: (K,) what each delta counts in the election of the sign.
    weights: (K,) what each counts in the mean.
    values: with `scale`; `zero_sign`, the sign where votes cancel; and
      `by_count`, whether to divide by the number that agree, or else by the sum
      of their sizes.
    sizes: (K,) None takes the weights.
  """
  high, low = weighted_sum(leaves, base, votes)
  sign = jnp.sign(high + low)
  sign = jnp.where(sign == 0, values["zero_sign"].astype(sign.dtype), sign)
  sizes = weights if sizes is None else sizes
  agreed, share = [], jnp.zeros_like(sign)
  for k, leaf in enumerate(leaves):
    delta = compensated.wide(leaf) - compensated.wide(base)
    # What a model says counts the other way if its weight is negative.
    vote = jnp.sign(delta) * jnp.sign(votes[k]).astype(delta.dtype)
    mask = (vote == sign) & (vote != 0)
    agreed.append(keep(leaf, base, mask))
    one = jnp.where(values["by_count"], 1.0, sizes[k]).astype(share.dtype)
    share = share + jnp.where(mask, one, jnp.zeros_like(share))
  scale = values["scale"].astype(share.dtype) / jnp.where(share == 0, 1, share)
  total = weighted_sum(agreed, base, weights)
  return compensated.mean(total, base, compensated.halves(scale))


def _ties(stack, base, values):
  leaves = []
  for k in range(len(stack)):
    bits = magnitude(float32_delta(stack[k], base))
    mask = (bits >= values["threshold"][k, 0]) & (bits > 0)
    leaves.append(keep(stack[k], base, mask))
  return elected_mean(leaves, base, values["votes"], values["weights"], values)


def rank_of(density: float, size: int) -> int:
  """How many elements a density keeps: rounded down, and at least one."""
  # 0.29 * 100 is 28.999999999999996.
  return max(1, math.floor(density * size + 1e-6))


@RULES.register
def ties(
  density: float = 0.2,
  scale: coefficients.Coefficient = 1.0,
  *,
  scope: str | None = None,
  weights: coefficients.Weights = None,
  compat: str | None = None,
) -> Rule:
  """TIES merging: trim, elect signs, mean of those that agree (2306.01708).

  d_k is the share `density` of largest magnitude of t_k - base, the rest zero;
  s = sign(sum_k d_k), element by element; the result is `base + scale * mean of
  the d_k with sign s`, or the base where none has it or the sum is zero.

  Args:
    density: share of the elements of every task vector that is kept. Where
      magnitudes are equal at the threshold, all of them are.
    scale: as for `task_arithmetic`.
    scope: "model" takes the largest over all leaves together, as the paper
      does, "leaf" over each by itself. None is "model", "leaf" with `compat`.
    weights: as for `task_arithmetic`; scale the task vectors in the election,
      and make the mean a weighted one.
    compat: None is the paper. "mergekit" and "peft" trim leaf by leaf and give
      an election that ends even to the positive side; peft elects without
      weights and divides the weighted sum by the number that agree.

  Returns:
    The rule; it needs a base, and reads all weights twice more (two histograms
    give the exact thresholds).

  Raises:
    ValueError: if a number or a word makes no sense.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> base = make("base", {"w": jnp.zeros(4)})
    >>> models = [make("a", {"w": jnp.array([4.0, 1.0, -2.0, 0.1])}),
    ...           make("b", {"w": jnp.array([2.0, -3.0, -4.0, 0.3])})]
    >>> rule = sj.rules.ties(density=0.5)
    >>> sj.mix(rule, models, base=base).params["w"]
    Array([ 4., -3., -3.,  0.], dtype=float32)
  """
  density = rule_base.check_share("density", density)
  weights = rule_base.check_weights(weights)
  if compat not in (None, "mergekit", "peft"):
    raise ValueError(f"compat={compat!r} is none of None, 'mergekit', 'peft'.")
  scope = scope or ("model" if compat is None else "leaf")
  if scope not in ("model", "leaf"):
    raise ValueError(f"scope={scope!r} is neither 'model' nor 'leaf'.")

  def numbers(scale, weights, count):
    each = rule_base.per_model(weights, count)
    return {
      "weights": each.astype(np.float32),
      "votes": (np.ones(count) if compat == "peft" else each).astype("f"),
      "scale": np.float32(scale),
      "zero_sign": np.float32(0 if compat is None else 1),
      "by_count": np.bool_(compat == "peft"),
    }

  def first_pass(reader):
    sizes = {leaf: spec.size for leaf, spec in reader.specs.items()}
    if density == 1:
      found = np.zeros((reader.count, 1), np.uint32)
      return {leaf: {"threshold": found} for leaf in sizes}
    if scope == "leaf":
      return {
        leaf: {
          "threshold": thresholds.largest(
            reader, [leaf], [rank_of(density, size)]
          )
        }
        for leaf, size in sizes.items()
        if size
      }
    if not any(sizes.values()):
      return {}
    rank = rank_of(density, sum(sizes.values()))
    found = thresholds.largest(reader, sizes, [rank])
    return {leaf: {"threshold": found} for leaf in sizes}

  values, leaf_values = coefficients.split_weighted(
    "scale", scale, weights, numbers
  )
  return Rule(
    name="ties",
    combine=_ties,
    values=values,
    leaf_values=leaf_values,
    measure=first_pass,
    settings={
      "density": density,
      "scale": coefficients.check("scale", scale),
      "scope": scope,
      "compat": compat,
      **({} if weights is None else {"weights": weights}),
    },
    needs_base=True,
  )


def _largest(sizes, kept):
  """Which of some numbers from 0 on are at least the `kept`-th largest."""
  # Bit by bit of the threshold, which is many times faster than to sort.
  bits = jax.lax.bitcast_convert_type(sizes, np.uint32)

  def step(k, threshold):
    trial = threshold | (np.uint32(1) << (31 - k).astype(np.uint32))
    enough = (bits >= trial).sum(dtype=np.uint32) >= kept.astype(np.uint32)
    return jnp.where(enough, trial, threshold)

  return bits >= jax.lax.fori_loop(0, 32, step, np.uint32(0))


def _sce(stack, base, values):
  deltas = jnp.stack([float32_delta(stack[k], base) for k in range(len(stack))])
  spread = jnp.var(deltas, axis=0)
  mask = _largest(spread, values["kept"])
  leaves = [keep(stack[k], base, mask) for k in range(len(stack))]
  squares = jnp.where(mask, deltas, 0.0) ** 2
  energy = squares.reshape(len(deltas), -1).sum(1)
  weights = energy / jnp.where(energy.sum() > 0, energy.sum(), 1.0)
  votes = jnp.ones_like(weights)
  return elected_mean(leaves, base, votes, weights, values)


@RULES.register
def sce(density: float = 0.1, scale: coefficients.Coefficient = 1.0) -> Rule:
  """Select, calculate, erase (arXiv 2408.07990).

  Of every leaf, selects the share `density` of elements whose variance over the
  task vectors is largest; weighs every model by the sum of squares of its
  selected elements; erases those whose sign is not that of the sum; and adds
  `scale *` the weighted mean of the rest to the base.

  Args:
    density: share of the elements that is selected.
    scale: as for `task_arithmetic`.

  Returns:
    The rule; it needs a base and two ingredients, and holds whole leaves of all
    of them.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> base = make("base", {"w": jnp.zeros(4)})
    >>> models = [make("a", {"w": jnp.array([4.0, 1.0, -2.0, 0.1])}),
    ...           make("b", {"w": jnp.array([2.0, -3.0, -4.0, 0.3])})]
    >>> rule = sj.rules.sce(density=0.5)
    >>> sj.mix(rule, models, base=base).params["w"].round(3)
    Array([ 2.8400002, -3.0000002, -3.16     ,  0.       ], dtype=float32)
  """
  density = rule_base.check_share("density", density)

  def numbers(scale, count):
    rule_base.check_count("sce", count, 2)
    return {
      "scale": np.float32(scale),
      "zero_sign": np.float32(0),
      "by_count": np.bool_(False),
    }

  values, by_scale = coefficients.split("scale", scale, numbers)

  def leaf_values(specs, count, every):
    others = by_scale(specs, count, every) if by_scale else {}
    return {
      leaf: {
        **others.get(leaf, {}),
        "kept": np.int32(rank_of(density, spec.size)),
      }
      for leaf, spec in specs.items()
    }

  return Rule(
    name="sce",
    combine=_sce,
    values=values,
    leaf_values=leaf_values,
    whole=True,
    settings={
      "density": density,
      "scale": coefficients.check("scale", scale),
    },
    needs_base=True,
  )
