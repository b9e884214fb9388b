# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""What the files of ingredients contain besides weights: entries and texts."""

from collections.abc import Mapping, Sequence

from soupjax.soups.core.ingredient import Ingredient

_MOST_SHOWN = 10


def ignored(ingredients: Sequence[Ingredient]) -> list[str]:
  """Returns one sentence for each set of entries that are not read.

  Args:
    ingredients: those with the same set share a sentence.
  """
  owners: dict[tuple[tuple[str, str], ...], list[Ingredient]] = {}
  for ingredient in ingredients:
    if ingredient.ignored:
      key = tuple(sorted(ingredient.ignored.items()))
      owners.setdefault(key, []).append(ingredient)
  return [
    f"{_named([str(i.path or i.name) for i in group])}: not read, and not in a "
    f"soup: {_shortened([f'{name!r} ({why})' for name, why in entries])}."
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
  """Returns sentences on what a soup of ingredients will lack."""
  shared = shared_text(ingredients)
  keys: Mapping[str, None] = dict.fromkeys(
    key for i in ingredients for key in i.text if key not in shared
  )
  differ = [
    "The soup lacks texts (__metadata__) that are not equal in all "
    f"ingredients: {_shortened([repr(key) for key in keys])}."
  ]
  return [*ignored(ingredients), *(differ if keys else [])]
