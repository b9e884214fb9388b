# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Sums of task vectors: what fine-tuning added to a base."""

from soupjax.soups.core import compensated
from soupjax.soups.rules import base as rule_base
from soupjax.soups.rules import coefficients
from soupjax.soups.rules.base import RULES, Rule


def combine_deltas(stack, base, values):
  """Returns `base + scale * sum_k w_k (t_k - base)`, to 1 ulp."""
  ends = [base, *(stack[k] for k in range(len(stack)))]
  return compensated.linear(ends, values["weights"], values["scale"])


@RULES.register
def task_arithmetic(
  scale: coefficients.Coefficient = 1.0,
  *,
  weights: coefficients.Weights = None,
) -> Rule:
  """`base + scale * sum_k w_k (t_k - base)` (arXiv 2212.04089).

  Args:
    scale: one for all, or for every leaf; negative to forget. See
      `soupjax.soups.rules.coefficients`.
    weights: one number an ingredient, not normalised, or a mapping from regular
      expressions to such; None is 1 for each.

  Returns:
    The rule; it needs a base. One ingredient, scale 1, gives that ingredient
    bit for bit.

  Raises:
    ValueError: if a number is not finite.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> base = make("base", {"w": jnp.zeros(4)})
    >>> models = [make("a", {"w": jnp.array([4.0, 1.0, -2.0, 0.1])}),
    ...           make("b", {"w": jnp.array([2.0, -3.0, -4.0, 0.3])})]
    >>> rule = sj.rules.task_arithmetic(0.5)
    >>> sj.mix(rule, models, base=base).params["w"]
    Array([ 3. , -1. , -3. ,  0.2], dtype=float32)
  """
  weights = rule_base.check_weights(weights)

  def numbers(scale, weights, count):
    return compensated.delta_coefficients(
      rule_base.per_model(weights, count), scale
    )

  values, leaf_values = coefficients.split_weighted(
    "scale", scale, weights, numbers
  )
  return Rule(
    name="task_arithmetic",
    combine=combine_deltas,
    values=values,
    leaf_values=leaf_values,
    settings={
      "scale": coefficients.check("scale", scale),
      **({} if weights is None else {"weights": weights}),
    },
    needs_base=True,
  )
