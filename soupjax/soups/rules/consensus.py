# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Rules that average the elements of task vectors whose signs agree."""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups.core import compensated
from soupjax.soups.rules import base as rule_base
from soupjax.soups.rules import coefficients, thresholds
from soupjax.soups.rules.base import RULES, Rule, Values


def float32_delta(leaf: jax.Array, base: jax.Array) -> jax.Array:
  """Returns a task vector in float32, with the same bits as in `thresholds`."""
  return leaf.astype(np.float32) - base.astype(np.float32)


def magnitude(delta: jax.Array) -> jax.Array:
  """Returns the bits of |delta|, ordered as in `thresholds.magnitudes`."""
  bits = jax.lax.bitcast_convert_type(delta, np.uint32) & np.uint32(0x7FFFFFFF)
  return jnp.where(bits < np.uint32(0x00800000), np.uint32(0), bits)


def keep(leaf: jax.Array, base: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns the leaf where the mask is true, elsewhere the base."""
  return jnp.where(mask, compensated.wide(leaf), compensated.wide(base))


def elected_mean(
  count: int,
  base: jax.Array,
  leaf_of: Callable[[Any], jax.Array],
  values: Values,
  votes: Callable[[Any], jax.Array],
  weights: Callable[[Any], jax.Array],
  sizes: Callable[[Any], jax.Array] | None = None,
) -> jax.Array:
  """Adds to the base the scaled mean of deltas with the elected sign.

  Functions of k, the position of a model, run in `compensated.over_models`.

  Args:
    count: number of models.
    base: one array.
    leaf_of: returns the leaf of a model; dropped elements equal the base.
    values: those of `election_values`.
    votes: returns the weight of a delta in the election of the sign.
    weights: returns its weight in the mean.
    sizes: returns its part of the divisor, a sum over the deltas that agree;
      None is the weights.
  """
  sizes = weights if sizes is None else sizes
  high, low = compensated.sum_of(count, base, lambda k: (leaf_of(k), votes(k)))
  sign = jnp.sign(high + low)
  sign = jnp.where(sign == 0, values["zero_sign"].astype(sign.dtype), sign)

  def agreed(k):
    delta = compensated.wide(leaf_of(k)) - compensated.wide(base)
    # A negative weight reverses the vote of a model.
    vote = jnp.sign(delta) * jnp.sign(votes(k)).astype(delta.dtype)
    mask = (vote == sign) & (vote != 0)
    return mask, keep(leaf_of(k), base, mask)

  agreed = compensated.once(count, agreed)

  def add_size(k, share):
    size = jnp.where(values["by_count"], 1.0, sizes(k)).astype(share.dtype)
    return share + jnp.where(agreed(k)[0], size, jnp.zeros_like(share))

  share = compensated.over_models(count, add_size, jnp.zeros_like(sign))
  scale = values["scale"].astype(share.dtype) / jnp.where(share == 0, 1, share)
  total = compensated.sum_of(count, base, lambda k: (agreed(k)[1], weights(k)))
  mean = compensated.mean(total, base, compensated.halves(scale))
  # Deltas that overflow cannot vote: NaN makes this an error.
  return jnp.where(jnp.isfinite(high), mean, jnp.nan)


def election_values(
  scale: float, *, zero_sign: int = 0, by_count: bool = False
) -> dict[str, np.generic]:
  """Returns the values for `elected_mean`.

  Args:
    scale: factor of the mean.
    zero_sign: sign where votes cancel.
    by_count: whether to divide by the number of deltas that agree instead of
      the sum of their sizes.
  """
  return {
    "scale": np.float32(scale),
    "zero_sign": np.float32(zero_sign),
    "by_count": np.bool_(by_count),
  }


def _ties(stack, base, values):
  def trimmed(k):
    leaf = compensated.of_model(stack, k)
    bits = magnitude(float32_delta(leaf, base))
    threshold = compensated.of_model(values["threshold"], k)[0]
    return keep(leaf, base, (bits >= threshold) & (bits > 0))

  stack = compensated.stacked(stack)
  votes, weights = (
    functools.partial(compensated.of_model, values[name])
    for name in ("votes", "weights")
  )
  trimmed = compensated.once(len(stack), trimmed)
  return elected_mean(len(stack), base, trimmed, values, votes, weights)


def rank_of(density: float, size: int) -> int:
  """Returns the number of elements that a density keeps, at least one."""
  # Rounded down, but 0.29 * 100 is 28.999999999999996 in floats.
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
  """Trims, elects signs and averages those that agree (arXiv 2306.01708).

  d_k keeps the share `density` of the elements of t_k - base that are largest
  in magnitude, and is zero elsewhere; s = sign(sum_k d_k), element by element;
  the result is `base + scale * mean of the d_k with sign s`, or the base where
  s is zero.

  Args:
    density: share of the elements of every task vector that is kept. All
      elements whose magnitude equals the threshold are kept.
    scale: as for `task_arithmetic`.
    scope: "model" ranks the elements of all leaves together, as in the paper;
      "leaf" ranks each leaf alone. None is "model", or "leaf" with `compat`.
    weights: as for `task_arithmetic`; they scale the task vectors in the
      election, and weight the mean.
    compat: None is the paper. "mergekit" and "peft" trim leaf by leaf and
      resolve a tied election to the positive sign; peft elects without weights
      and divides the weighted sum by the number that agree.

  Returns:
    The rule; it needs a base, and reads all weights two more times (two
    histograms give the exact thresholds).

  Raises:
    ValueError: if an argument is invalid.

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
  rule_base.check_choice("compat", compat, None, "mergekit", "peft")
  scope = scope or ("model" if compat is None else "leaf")
  rule_base.check_choice("scope", scope, "model", "leaf")
  peft = compat == "peft"

  def numbers(scale, weights, count):
    weights = rule_base.per_model(weights, count).astype(np.float32)
    return {
      "weights": weights,
      "votes": np.ones_like(weights) if peft else weights,
      **election_values(scale, zero_sign=compat is not None, by_count=peft),
    }

  def first_pass(reader):
    sizes = {leaf: spec.size for leaf, spec in reader.specs.items()}
    groups = [list(sizes)]
    if scope == "leaf":
      groups = [[leaf] for leaf, size in sizes.items() if size]
    values = {}
    for leaves in groups:
      size = sum(sizes[leaf] for leaf in leaves)
      if density == 1:
        threshold = np.zeros((reader.count, 1), np.uint32)
      elif size:
        ranks = [rank_of(density, size)]
        threshold = thresholds.largest(reader, leaves, ranks)
      else:
        continue
      values |= {leaf: {"threshold": threshold} for leaf in leaves}
    return values

  return rule_base.scaled_rule(
    "ties",
    _ties,
    numbers,
    scale,
    weights=weights,
    measure=first_pass,
    settings={"density": density, "scope": scope, "compat": compat},
    needs_base=True,
  )


def _largest(sizes, count):
  """Masks the `count` largest of numbers that are not negative, with ties."""
  # Finds the threshold bit by bit, which is many times faster than sorting.
  bits = jax.lax.bitcast_convert_type(sizes, np.uint32)

  def step(k, threshold):
    trial = threshold | (np.uint32(1) << (31 - k).astype(np.uint32))
    enough = (bits >= trial).sum(dtype=np.uint32) >= count.astype(np.uint32)
    return jnp.where(enough, trial, threshold)

  return bits >= jax.lax.fori_loop(0, 32, step, np.uint32(0))


def _sce(stack, base, values):
  stack, count = compensated.stacked(stack), len(stack)
  deltas = compensated.each(
    count, lambda k: float32_delta(compensated.of_model(stack, k), base)
  )
  mask = _largest(jnp.var(deltas, axis=0), values["kept"])
  squares = jnp.where(mask, deltas, 0.0) ** 2
  energy = squares.reshape(len(deltas), -1).sum(1)
  energy = energy / jnp.where(energy.sum() > 0, energy.sum(), 1.0)
  return elected_mean(
    count,
    base,
    lambda k: keep(compensated.of_model(stack, k), base, mask),
    values,
    votes=lambda k: jnp.float32(1),
    weights=functools.partial(compensated.of_model, energy),
  )


@RULES.register
def sce(density: float = 0.1, scale: coefficients.Coefficient = 1.0) -> Rule:
  """Selects, calculates and erases (arXiv 2408.07990).

  Of every leaf, selects the share `density` of elements whose variance over the
  task vectors is largest; weighs every model by the sum of squares of its
  selected elements; erases those whose sign differs from that of the sum; and
  adds `scale *` the weighted mean of the rest to the base.

  Args:
    density: share of the elements that is selected.
    scale: as for `task_arithmetic`.

  Returns:
    The rule; it needs a base and at least two ingredients, and reads whole
    leaves of all ingredients into memory.

  Raises:
    ValueError: if an argument is invalid.

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

  def numbers(scale, weights, count):
    del weights
    rule_base.check_count("sce", count, 2)
    return election_values(scale)

  return rule_base.scaled_rule(
    "sce",
    _sce,
    numbers,
    scale,
    more_values=lambda specs: {
      leaf: {"kept": np.int32(rank_of(density, spec.size))}
      for leaf, spec in specs.items()
    },
    whole=True,
    settings={"density": density},
    needs_base=True,
  )
