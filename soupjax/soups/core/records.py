# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Metadata beside the weights: initial weights, unread entries and texts."""

from collections.abc import Iterable, Mapping, Sequence
import warnings

from soupjax.soups.core.ingredient import Ingredient

# The reason given for entries that are certainly not part of the model.
TRAINING = "training state"
_MOST_SHOWN = 10


def recorded_inits(ingredients: Iterable[Ingredient]) -> dict[str, list[str]]:
  """Groups ingredients by the initial weights that they record.

  Args:
    ingredients: those without "init_hash" in their hyperparameters are left
      out.

  Returns:
    Hash of the initial weights -> names of ingredients, in the order given.
  """
  inits: dict[str, list[str]] = {}
  for ingredient in ingredients:
    init_hash = ingredient.hyperparameters.get("init_hash")
    if init_hash:
      inits.setdefault(str(init_hash), []).append(ingredient.name)
  return inits


def _mismatch(ingredients: Iterable[Ingredient]) -> str | None:
  """Describes two ingredients with different initial weights, else None."""
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
      mismatch + "unless these are close, the average is meaningless. "
      "sj.diagnose looks for barriers.",
      stacklevel=3,
    )


def check_same_init(ingredients: Iterable[Ingredient]) -> None:
  """Raises a ValueError if ingredients record different initial weights."""
  mismatch = _mismatch(ingredients)
  if mismatch:
    raise ValueError(
      mismatch + "their average is meaningless. Use ingredients of one sweep."
    )


def ignored(
  ingredients: Sequence[Ingredient], *, training: bool = False
) -> list[str]:
  """Returns one sentence for each set of entries that are not read.

  Args:
    ingredients: those with the same set share a sentence.
    training: whether to include the state of optimizers and scripts.
  """
  owners: dict[tuple[tuple[str, str], ...], list[Ingredient]] = {}
  for ingredient in ingredients:
    key = tuple(
      (name, why)
      for name, why in sorted(ingredient.ignored.items())
      if training or why != TRAINING
    )
    if key:
      owners.setdefault(key, []).append(ingredient)
  return [
    f"{_named([str(i.path or i.name) for i in group])}: not read, so left out "
    f"of soups: {_shortened([f'{name!r} ({why})' for name, why in entries])}."
    + _advice(group[0], entries)
    for entries, group in owners.items()
  ]


def _advice(ingredient, entries) -> str:
  entry = next(
    (name for name, why in entries if why.startswith("beside")), None
  )
  if entry is None:
    return ""
  place = f"{ingredient.path}#{entry}"
  return f" To read one of them, add its name to the path: {place}."


def _named(names: Sequence[str]) -> str:
  if len(names) == 1:
    return names[0]
  return f"{names[0]} and {len(names) - 1} more"


def _shortened(items: Sequence[str]) -> str:
  more = len(items) - _MOST_SHOWN
  text = ", ".join(items[:_MOST_SHOWN])
  return f"{text} and {more} more" if more > 0 else text


def shared_text(ingredients: Sequence[Ingredient]) -> dict[str, str]:
  """Returns the texts that all ingredients store with the same content."""
  first, *others = [ingredient.text for ingredient in ingredients]
  return {
    key: value
    for key, value in first.items()
    if all(text.get(key) == value for text in others)
  }


def notes(ingredients: Sequence[Ingredient]) -> list[str]:
  """Returns sentences about the entries and texts that a soup will lack."""
  shared = shared_text(ingredients)
  keys: Mapping[str, None] = dict.fromkeys(
    key for i in ingredients for key in i.text if key not in shared
  )
  differ = [
    "The soup lacks texts (__metadata__) that are not the same in all "
    f"ingredients: {_shortened([repr(key) for key in keys])}."
  ]
  return [*ignored(ingredients, training=True), *(differ if keys else [])]
