# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Weighted means of the ingredients, and of a base with them."""

import functools

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
  stack = [base, *(stack[k] for k in range(len(stack)))]
  return compensated.linear(stack, values["weights"], values["scale"])


def combine_sum(stack, base, values):
  """Returns `sum_k w_k t_k`, to 1 ulp; equal leaves stay as they are."""
  del base
  first = stack[0]
  total = compensated.zero(first)
  for k in range(1, len(stack)):
    total = compensated.add(total, first, stack[k], *values["weights"][:, k])
  # What the weights exceed 1 by goes to the first leaf itself.
  nothing = jnp.zeros_like(first)
  total = compensated.add(total, nothing, first, *values["excess"])
  return compensated.mean(total, first, values["scale"])


def sum_values(weights: np.ndarray) -> Values:
  """The numbers for `combine_sum`."""
  weights = np.asarray(weights, np.float64)
  excess = weights.sum() - 1
  return {
    "weights": compensated.pair(weights),
    "excess": compensated.pair([0 if abs(excess) < 1e-12 else excess])[:, 0],
    "scale": compensated.parts(1.0),
  }


@RULES.register
def linear(
  weights: coefficients.Weights = None, *, normalize: bool = True
) -> Rule:
  """The weighted mean, `sum_k w_k t_k / sum_k w_k`.

  Args:
    weights: one number an ingredient, such as those of `schedule`, or a mapping
      from regular expressions to such; None weighs all alike (the uniform soup
      of arXiv 2203.05482).
    normalize: whether to divide by the sum of the weights.

  Returns:
    The rule. It warns about negative weights when it meets the ingredients.

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
      raise ValueError("linear() without weights is a mean: normalize=True.")
    return Rule(
      name="uniform",
      combine=_uniform,
      values=lambda count: {"scale": compensated.reciprocal(count)},
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
    )
  return Rule(
    name="weighted",
    combine=_linear,
    values=lambda count: compensated.mean_coefficients(
      arguments.soup_weights(checked, count)
    ),
    weights=tuple(checked),
    settings={"weights": checked},
  )


def _by_leaf(weights, normalize) -> Rule:
  """`linear` with other weights for some leaves."""

  def numbers(number, weights, count):
    del number
    if normalize:
      return compensated.mean_coefficients(
        arguments.soup_weights(weights, count)
      )
    return sum_values(per_model(weights, count))

  values, leaf_values = coefficients.split_weighted("", 1.0, weights, numbers)
  return Rule(
    name="weighted",
    combine=_linear if normalize else combine_sum,
    values=values,
    leaf_values=leaf_values,
    settings={
      "weights": weights,
      **({} if normalize else {"normalize": False}),
    },
  )


def schedule(
  kind: str, count: int, *, last: int | None = None, decay: float | None = None
) -> list[float]:
  """Weights for averaging checkpoints along one run, oldest first.

  A mean of checkpoints imitates a learning rate that decays over them (arXiv
  2507.17634): the n weights are the steps by which the decay curve falls from 1
  to 0 over n stretches.

  Args:
    kind: "uniform", all alike, which imitates a linear decay; "minus-sqrt", the
      steps of 1 - sqrt(x); "linear", weights 1, 2, ..., n that grow towards the
      end; "ema", an exponential moving average that began at the oldest.
    count: of the ingredients.
    last: gives weight to that many at the end only; None to all.
    decay: of "ema", as 0.9.

  Returns:
    `count` weights that sum to 1.

  Raises:
    ValueError: if a number or a word makes no sense.

  Examples:
    >>> sj.rules.schedule("linear", 4)
    [0.1, 0.2, 0.3, 0.4]
    >>> sj.rules.schedule("uniform", 4, last=2)
    [0.0, 0.0, 0.5, 0.5]
  """
  count = arguments.count("count", count)
  n = count if last is None else arguments.whole("last", last)
  if not 1 <= n <= count:
    raise ValueError(f"Asked for the last {n} of {count} checkpoints.")
  if (kind == "ema") != (decay is not None):
    raise ValueError("decay= goes with kind='ema', and 'ema' needs it.")
  if kind == "uniform":
    found = np.full(n, 1 / n)
  elif kind == "linear":
    found = np.arange(1, n + 1) / (n * (n + 1) / 2)
  elif kind == "minus-sqrt":
    found = np.diff(np.sqrt(np.linspace(0, 1, n + 1)))
  elif kind == "ema":
    decay = check_share("decay", decay, zero=True)
    found = (1 - decay) * decay ** np.arange(n - 1, -1, -1.0)
    found[0] = decay ** (n - 1)
  else:
    raise ValueError(
      f"kind={kind!r} is none of 'uniform', 'linear', 'minus-sqrt', 'ema'."
    )
  return [0.0] * (count - n) + [float(w) for w in found]


@RULES.register
def lerp(alpha: coefficients.Coefficient) -> Rule:
  """From the base towards the mean of the ingredients (arXiv 2109.01903).

  Args:
    alpha: share of the ingredients; 0 gives the base and 1 their mean, bit for
      bit. Values outside [0, 1] extrapolate. One for all, or for every leaf:
      see `soupjax.soups.rules.coefficients`.

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
  alpha = coefficients.check("alpha", alpha)

  def numbers(alpha, count):
    weights = np.full(count + 1, alpha / count)
    weights[0] = 1 - alpha
    return compensated.mean_coefficients(weights)

  make = functools.partial(
    Rule, name="interpolate", settings={"alpha": alpha}, needs_base=True
  )
  if alpha == 1:
    uniform = linear()
    return make(combine=uniform.combine, values=uniform.values)
  values, leaf_values = coefficients.split("alpha", alpha, numbers)
  return make(combine=_lerp, values=values, leaf_values=leaf_values)


# More names for a config.


@RULES.register(name="uniform")
def _uniform_rule() -> Rule:
  """The mean of the ingredients."""
  return linear()


@RULES.register(name="weighted")
def _weighted_rule(
  weights: coefficients.Weights, *, normalize: bool = True
) -> Rule:
  """`linear`, which must have weights."""
  return linear(weights, normalize=normalize)


@RULES.register(name="interpolate")
def _interpolate_rule(alpha: coefficients.Coefficient = 0.5) -> Rule:
  """`lerp`, halfway by default."""
  return lerp(alpha)


@RULES.register(name="schedule")
def _schedule_rule(
  kind: str, count: int, *, last: int | None = None, decay: float | None = None
) -> Rule:
  """The mean of checkpoints of one run, weighted by `schedule`."""
  return linear(schedule(kind, count, last=last, decay=decay))
