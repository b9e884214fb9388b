# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Weighted means of ingredients, and of a base and ingredients."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from soupjax.soups.core import arguments, compensated
from soupjax.soups.rules import base as rule_base
from soupjax.soups.rules import coefficients
from soupjax.soups.rules.base import RULES, Rule, Values, check_share, per_model


def _linear(stack, base, values):
  del base
  return compensated.linear(stack, values["weights"], values["scale"])


def _uniform(stack, base, values):
  del base
  return compensated.linear(stack, None, values["scale"], weighted=False)


def _lerp(stack, base, values):
  return compensated.linear(
    stack, values["weights"], values["scale"], first=base
  )


def combine_sum(stack, base, values):
  """Returns `sum_k w_k t_k`, to 1 ulp; equal leaves are unchanged."""
  del base
  stack, weights = compensated.stacked(stack), values["weights"]
  first = stack[0]

  def term(k):
    leaf = compensated.of_model(stack, k + 1)
    return leaf, *compensated.weight_parts(weights, k + 1)

  total = compensated.sum_of(len(stack) - 1, first, term)
  # The excess of the weights over 1 multiplies the first leaf itself.
  zeros = jnp.zeros_like(first)
  total = compensated.add(total, zeros, first, *values["excess"])
  return compensated.mean(total, first, values["scale"])


def sum_values(weights: np.ndarray) -> Values:
  """Returns the values for `combine_sum`."""
  weights = np.asarray(weights, np.float64)
  excess = math.fsum([*weights, -1.0])
  is_rounding = abs(excess) <= len(weights) * 2.0**-53  # Such as from 1/3.
  return {
    "weights": compensated.pair(weights),
    "excess": compensated.pair([0 if is_rounding else excess])[:, 0],
    "scale": compensated.parts(1.0),
  }


@RULES.register
def linear(
  weights: coefficients.Weights = None, *, normalize: bool = True
) -> Rule:
  """Averages the ingredients, `sum_k w_k t_k / sum_k w_k`.

  Args:
    weights: one number per ingredient, such as those of `schedule`, or a
      mapping from regular expressions to such sequences; None is equal weights
      (the uniform soup of arXiv 2203.05482).
    normalize: whether to divide by the sum of the weights.

  Returns:
    The rule. It warns about negative weights before it merges.

  Raises:
    ValueError: if weights are not finite numbers, or `normalize` is False
      without weights; on merging, if there are not as many weights as
      ingredients, or weights to normalise sum to zero.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> models = [make("a", {"w": jnp.array([1.0, 4.0])}),
    ...           make("b", {"w": jnp.array([3.0, 8.0])})]
    >>> rule = sj.rules.linear([1, 3])
    >>> sj.mix(rule, models).params["w"]
    Array([2.5, 7. ], dtype=float32)
  """
  arguments.flag("normalize", normalize)
  if weights is None:
    if not normalize:
      raise ValueError(
        "normalize=False needs weights; without them, linear() is a mean."
      )
    return Rule(
      name="uniform",
      combine=_uniform,
      values=lambda count: {"scale": compensated.reciprocal(count)},
      affine=True,
    )
  checked = rule_base.check_weights(weights)
  if isinstance(checked, dict):
    return _by_leaf(checked, normalize)
  if not normalize:
    return Rule(
      name="weighted",
      combine=combine_sum,
      values=lambda count: sum_values(per_model(checked, count)),
      settings={"weights": checked, "normalize": False},
      affine=True,
    )
  return Rule(
    name="weighted",
    combine=_linear,
    values=lambda count: compensated.mean_coefficients(
      arguments.soup_weights(checked, count)
    ),
    weights=tuple(checked),
    settings={"weights": checked},
    affine=True,
  )


def _by_leaf(weights, normalize) -> Rule:
  """Makes the rule of `linear` with weights that vary by leaf."""

  def numbers(number, weights, count):
    del number
    if normalize:
      return compensated.mean_coefficients(
        arguments.soup_weights(weights, count)
      )
    return sum_values(per_model(weights, count))

  return rule_base.scaled_rule(
    "weighted",
    _linear if normalize else combine_sum,
    numbers,
    coefficient="",
    weights=weights,
    settings={} if normalize else {"normalize": False},
    affine=True,
  )


def schedule(
  kind: str, count: int, *, last: int | None = None, decay: float | None = None
) -> list[float]:
  """Returns weights for averaging checkpoints of one run, oldest first.

  A mean of checkpoints imitates a learning rate that decays over them (arXiv
  2507.17634): the n weights are the steps by which the decay curve falls from 1
  to 0 over n equal intervals.

  Args:
    kind: "uniform", equal weights, which imitates a linear decay; "minus-sqrt",
      the steps of 1 - sqrt(x); "linear", weights 1, 2, ..., n; "ema", an
      exponential moving average that starts at the oldest.
    count: number of ingredients.
    last: how many of the last ingredients get weights above 0; None is all.
    decay: of "ema", such as 0.9.

  Returns:
    `count` weights that sum to 1.

  Raises:
    ValueError: if an argument is invalid.

  Examples:
    >>> sj.rules.schedule("linear", 4)
    [0.1, 0.2, 0.3, 0.4]
    >>> sj.rules.schedule("uniform", 4, last=2)
    [0.0, 0.0, 0.5, 0.5]
  """
  count = arguments.count("count", count)
  n = count if last is None else arguments.whole("last", last)
  if not 1 <= n <= count:
    raise ValueError(f"last={n} must be between 1 and the {count} checkpoints.")
  if (kind == "ema") != (decay is not None):
    raise ValueError("decay= must be given for kind='ema', and only then.")
  rule_base.check_choice("kind", kind, "uniform", "linear", "minus-sqrt", "ema")
  if kind == "uniform":
    weights = np.full(n, 1 / n)
  elif kind == "linear":
    weights = np.arange(1, n + 1) / (n * (n + 1) / 2)
  elif kind == "minus-sqrt":
    weights = np.diff(np.sqrt(np.linspace(0, 1, n + 1)))
  else:
    decay = check_share("decay", decay, zero=True)
    weights = (1 - decay) * decay ** np.arange(n - 1, -1, -1.0)
    weights[0] = decay ** (n - 1)
  return [0.0] * (count - n) + weights.tolist()


@RULES.register
def lerp(alpha: coefficients.Coefficient) -> Rule:
  """Interpolates base and mean of the ingredients (arXiv 2109.01903).

  Args:
    alpha: share of the ingredients; 0 gives the base and 1 their mean, bit for
      bit. Values outside [0, 1] extrapolate. One number, or one per leaf: see
      `soupjax.soups.rules.coefficients`.

  Returns:
    The rule `(1 - alpha) * base + alpha * mean_k t_k`; it needs a base.

  Raises:
    ValueError: if alpha is not finite.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> base = make("base", {"w": jnp.zeros(4)})
    >>> models = [make("a", {"w": jnp.array([4.0, 1.0, -2.0, 0.1])}),
    ...           make("b", {"w": jnp.array([2.0, -3.0, -4.0, 0.3])})]
    >>> rule = sj.rules.lerp(0.5)
    >>> sj.mix(rule, models, base=base).params["w"]
    Array([ 1.5, -0.5, -1.5,  0.1], dtype=float32)
  """

  def numbers(alpha, weights, count):
    del weights
    weights = np.full(count + 1, alpha / count)
    weights[0] = 1 - alpha
    return compensated.share_coefficients(weights)

  rule = rule_base.scaled_rule(
    "interpolate",
    _lerp,
    numbers,
    alpha,
    coefficient="alpha",
    needs_base=True,
    affine=True,
  )
  if rule.settings["alpha"] != 1:
    return rule
  uniform = linear()
  return dataclasses.replace(
    rule, combine=uniform.combine, values=uniform.values
  )


# More names for configs.


@RULES.register(name="uniform")
def _uniform_rule() -> Rule:
  """Averages the ingredients with equal weights."""
  return linear()


@RULES.register(name="weighted")
def _weighted_rule(
  weights: coefficients.Weights, *, normalize: bool = True
) -> Rule:
  """Averages the ingredients with given weights."""
  return linear(weights, normalize=normalize)


@RULES.register(name="interpolate")
def _interpolate_rule(alpha: coefficients.Coefficient = 0.5) -> Rule:
  """Interpolates base and mean of the ingredients, halfway by default."""
  return lerp(alpha)


@RULES.register(name="schedule")
def _schedule_rule(
  kind: str, count: int, *, last: int | None = None, decay: float | None = None
) -> Rule:
  """Averages checkpoints of one run with the weights of `schedule`."""
  return linear(schedule(kind, count, last=last, decay=decay))
