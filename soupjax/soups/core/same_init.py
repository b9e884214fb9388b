# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The recorded initial weights of ingredients, compared."""

from collections.abc import Iterable
import warnings

from soupjax.soups.core.ingredient import Ingredient


def recorded_inits(ingredients: Iterable[Ingredient]) -> dict[str, list[str]]:
  """Groups ingredients by the start that they record.

  Args:
    ingredients: those whose hyperparameters have no "init_hash" are left out:
      nothing is known of them.

  Returns:
    Hash of the initial weights -> names, in order.
  """
  inits: dict[str, list[str]] = {}
  for ingredient in ingredients:
    found = ingredient.hyperparameters.get("init_hash")
    if found:
      inits.setdefault(str(found), []).append(ingredient.name)
  return inits


def warn_of_other_inits(ingredients: Iterable[Ingredient]) -> None:
  """Warns if ingredients record that they started elsewhere."""
  inits = recorded_inits(ingredients)
  if len(inits) > 1:
    (a, ours), (b, others) = list(inits.items())[:2]
    warnings.warn(
      f"{ours[0]!r} and {others[0]!r} were fine-tuned from different weights "
      f"(init_hash {a[:8]} and {b[:8]}): unless these are close, the average "
      "means nothing. sj.diagnose looks for barriers.",
      stacklevel=3,
    )


def check_same_init(ingredients: Iterable[Ingredient]) -> None:
  """Raises a ValueError if ingredients record that they started elsewhere."""
  inits = recorded_inits(ingredients)
  if len(inits) > 1:
    (a, ours), (b, others) = list(inits.items())[:2]
    raise ValueError(
      f"{ours[0]!r} and {others[0]!r} were fine-tuned from different weights "
      f"(init_hash {a[:8]} and {b[:8]}): their average means nothing. Take "
      "ingredients of one sweep."
    )
