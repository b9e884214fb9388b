# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Comparison of the initial weights that ingredients record."""

from collections.abc import Iterable
import warnings

from soupjax.soups.core.ingredient import Ingredient


def recorded_inits(ingredients: Iterable[Ingredient]) -> dict[str, list[str]]:
  """Groups ingredients by the initial weights that they record.

  Args:
    ingredients: those without "init_hash" in their hyperparameters are left
      out.

  Returns:
    Hash of the initial weights -> names, in order.
  """
  inits: dict[str, list[str]] = {}
  for ingredient in ingredients:
    init_hash = ingredient.hyperparameters.get("init_hash")
    if init_hash:
      inits.setdefault(str(init_hash), []).append(ingredient.name)
  return inits


def _mismatch(ingredients: Iterable[Ingredient]) -> str | None:
  """Describes the first two initial weights that differ; None if none do."""
  inits = list(recorded_inits(ingredients).items())
  if len(inits) < 2:
    return None
  (a, (first, *_)), (b, (second, *_)) = inits[:2]
  return (
    f"{first!r} and {second!r} were fine-tuned from different weights "
    f"(init_hash {a[:8]} and {b[:8]}): "
  )


def warn_of_other_inits(ingredients: Iterable[Ingredient]) -> None:
  """Warns if ingredients record different initial weights."""
  mismatch = _mismatch(ingredients)
  if mismatch:
    warnings.warn(
      mismatch + "unless these are close, the average means nothing. "
      "sj.diagnose looks for barriers.",
      stacklevel=3,
    )


def check_same_init(ingredients: Iterable[Ingredient]) -> None:
  """Raises a ValueError if ingredients record different initial weights."""
  mismatch = _mismatch(ingredients)
  if mismatch:
    raise ValueError(
      mismatch + "their average means nothing. Take ingredients of one sweep."
    )
