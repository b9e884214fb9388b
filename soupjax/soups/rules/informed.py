# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Rules that weight parameters by statistics of data."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from soupjax.soups.core import compensated
from soupjax.soups.rules import base as rule_base
from soupjax.soups.rules import coefficients
from soupjax.soups.rules.base import RULES, Rule


def _fisher(stack, base, values):
  del base
  stack = compensated.stacked(stack)
  first, count = stack[0], len(stack)
  sizes = jnp.maximum(values["extra"], values["floor"])
  # Divided by the largest per element, which avoids underflow.
  sizes = sizes * values["weights"].reshape(-1, *(1,) * (sizes.ndim - 1))
  sizes = sizes / sizes.max(0, keepdims=True)
  total = compensated.sum_of(
    count, first, lambda k: (compensated.of_model(stack, k), sizes[k])
  )
  # Summed one by one: XLA may reorder the terms of `jnp.sum`.
  share = compensated.over_models(
    count, lambda k, share: share + sizes[k], jnp.zeros_like(sizes[0])
  )
  scale = (np.float32(1) / share).astype(compensated.wide(first).dtype)
  return compensated.mean(total, first, compensated.halves(scale))


@RULES.register
def fisher(
  fishers: Sequence[Any],
  *,
  floor: float = 1e-8,
  weights: coefficients.Weights = None,
) -> Rule:
  """Averages elements weighted by Fisher information (arXiv 2111.09832).

  `sum_k w_k F_k t_k / sum_k w_k F_k`. Equal Fishers give the weighted mean.

  Args:
    fishers: one tree like the parameters per ingredient, in their order: in
      memory (see `soupjax.diagonal_fisher`), an Ingredient, or a path. They are
      read block by block, like the ingredients.
    floor: lower bound of Fisher values; positive.
    weights: one positive number per ingredient, or a mapping from regular
      expressions to such sequences; None is equal weights.

  Returns:
    The rule.

  Raises:
    ValueError: if a number is invalid; on merging, also for a Fisher value that
      is negative or not finite.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> models = [make("a", {"w": jnp.array([1.0, 4.0])}),
    ...           make("b", {"w": jnp.array([3.0, 8.0])})]
    >>> fishers = [make("a", {"w": jnp.array([3.0, 1.0])}),
    ...            make("b", {"w": jnp.array([1.0, 1.0])})]
    >>> rule = sj.rules.fisher(fishers)
    >>> sj.mix(rule, models).params["w"]
    Array([1.5, 6. ], dtype=float32)
  """
  floor = rule_base.check_number("floor", floor)
  if floor <= 0:
    raise ValueError(f"floor must be positive, got {floor}.")
  fishers = tuple(fishers)
  if not fishers:
    raise ValueError("The rule 'fisher' needs one Fisher tree per ingredient.")

  def numbers(floor, weights, count):
    array = rule_base.per_model(weights, count)
    if (array <= 0).any():
      raise ValueError(f"Weights must be positive, got {weights}.")
    return {"floor": np.float32(floor), "weights": array.astype(np.float32)}

  return rule_base.scaled_rule(
    "fisher",
    _fisher,
    numbers,
    floor,
    coefficient="floor",
    weights=weights,
    extra=fishers,
    extra_shape=lambda leaf, spec: tuple(spec.shape),
    extra_least=0.0,
  )


def _regmean(stack, base, values):
  del base
  leaves = compensated.as_array(stack).astype(np.float32)
  # Relative to the first, so that equal leaves are unchanged.
  mean = leaves[0] + (leaves - leaves[:1]).mean(0)
  if "extra" not in values:
    return mean
  grams = values["extra"]
  diagonal = jnp.eye(grams.shape[-1], dtype=np.float32)[None] * grams
  grams = diagonal + values["share"] * (grams - diagonal)
  total = grams.sum(0)
  # Relative to the mean: inputs that never occur do not change it, and errors
  # scale with the differences.
  change = leaves - mean[None]
  if grams.shape[-1] != change.shape[1]:  # Inputs on the first two axes.
    change = change.reshape(len(change), grams.shape[-1], -1)
  target = jnp.einsum("kij,kj...->i...", grams, change)
  size, vectors = jnp.linalg.eigh(total)
  least = size[-1] * len(size) * np.float32(1e-7)
  inverse = jnp.where(size > least, 1 / jnp.where(size > least, size, 1), 0)
  flat = target.reshape(len(size), -1)
  solved = vectors @ (inverse[:, None] * (vectors.T @ flat))
  return mean + solved.reshape(mean.shape)


@RULES.register
def regmean(grams: Sequence[Any], *, share: float = 0.9) -> Rule:
  """Merges linear layers by regression on their inputs (arXiv 2212.09849).

  `W = (sum_k G_k)^-1 sum_k G_k W_k`, the least-squares fit to the outputs of
  every model on its inputs X_k, with G_k = X_k^T X_k. All other leaves are
  averaged.

  Args:
    grams: one tree per ingredient, in their order, with a matrix G_k, (inputs,
      inputs), under the name of each kernel (inputs, ...); in memory (see
      `soupjax.activation_grams`), an Ingredient, or a path. Kernels (heads,
      channels, outputs) whose names end in "out/kernel", as after attention,
      have heads * channels inputs.
    share: factor for the off-diagonal elements of G_k; the paper's alpha.

  Returns:
    The rule. It reads whole leaves into memory.

  Raises:
    ValueError: without grams, or if the share is invalid.
  """
  share = rule_base.check_share("share", share, zero=True)
  grams = tuple(grams)
  if not grams:
    raise ValueError("The rule 'regmean' needs one gram tree per ingredient.")

  def gram_shape(leaf, spec):
    shape = spec.shape
    if len(shape) == 3 and leaf.split("/")[-2:] == ["out", "kernel"]:
      return (shape[0] * shape[1],) * 2
    return (shape[0],) * 2 if len(shape) >= 2 else None

  return Rule(
    name="regmean",
    combine=_regmean,
    values=lambda count: {"share": np.float32(share)},
    extra=grams,
    extra_shape=gram_shape,
    extra_optional=True,
    whole=True,
    settings={"share": share},
  )
