# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Sums of task vectors, the changes that fine-tuning made to a base."""

from soupjax.soups.core import compensated
from soupjax.soups.rules import base as rule_base
from soupjax.soups.rules import coefficients
from soupjax.soups.rules.base import RULES, Rule


def combine_deltas(stack, base, values):
  """Returns `base + scale * sum_k w_k (t_k - base)`, to 1 ulp."""
  return compensated.linear(
    stack, values["weights"], values["scale"], first=base
  )


@RULES.register
def task_arithmetic(
  scale: coefficients.Coefficient = 1.0, *, weights: coefficients.Weights = None
) -> Rule:
  """Adds task vectors to the base (arXiv 2212.04089).

  `base + scale * sum_k w_k (t_k - base)`.

  Args:
    scale: one number, or one per leaf; negative to forget. See
      `soupjax.soups.rules.coefficients`.
    weights: one number per ingredient, not normalised, or a mapping from
      regular expressions to such sequences; None is 1 for each.

  Returns:
    The rule; it needs a base. With one ingredient and scale 1 the result is
    that ingredient, bit for bit.

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

  def numbers(scale, weights, count):
    return compensated.delta_coefficients(
      rule_base.per_model(weights, count), scale
    )

  return rule_base.scaled_rule(
    "task_arithmetic",
    combine_deltas,
    numbers,
    scale,
    weights=weights,
    needs_base=True,
    affine=True,
  )
