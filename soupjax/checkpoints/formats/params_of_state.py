# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Extracts the model from a train state, with one rule for all formats."""

from collections.abc import Collection
import dataclasses
import re
from typing import Any
import warnings

import jax

from soupjax.soups.core import crc32, tree
from soupjax.soups.core.ingredient import Ingredient

PyTree = Any

# Entries of a train state that are not part of the model. If any other entry is
# left out, the user is warned.
_TRAINING = re.compile(
  r"opt(im\w*|_\w+)?|(lr_?)?schedulers?|lr|\w*rngs?(_\w+)?|\w*steps?|epochs?|"
  r"iter(ation)?s?|(grad_?)?scaler|loss(_scale)?|loops|callbacks"
)


def of_state(path: str, state: PyTree) -> tuple[PyTree, str]:
  """Returns the weights in a train state.

  These are its entry `params`, or the entries `params` and `batch_stats`, since
  a model needs both. A tree without other entries or without `params` is
  returned unchanged.

  Args:
    path: of the checkpoint, for the warning.
    state: nested containers with leaves of any type.

  Returns:
    The weights, and the name of their entry, "" if it is not a single one.
  """
  if not (isinstance(state, dict) and len(state) > 1):
    return state, ""
  if not isinstance(state.get("params"), (dict, list, tuple)):
    return state, ""
  keys = [key for key in ("params", "batch_stats") if key in state]
  rest = [k for k in state if k not in keys and jax.tree.leaves(state[k])]
  warn_of_rest(path, keys, rest)
  if len(keys) > 1:
    return {key: state[key] for key in keys}, ""
  return state["params"], "params"


def warn_of_rest(
  path: str, keys: Collection[str], rest: Collection[str]
) -> None:
  """Warns of ignored entries with arrays that may belong to the model."""
  rest = [key for key in map(str, rest) if not _TRAINING.fullmatch(key)]
  if rest:
    warnings.warn(
      f"{path}: only {' and '.join(keys)} is read from this train state. Its "
      f"arrays in {rest[:10]} are ignored. If they belong to the model, save "
      "them together with it in a tree without the training state.",
      stacklevel=5,
    )


def of(ingredient: Ingredient) -> Ingredient:
  """Cuts an ingredient whose file holds a train state to its weights."""
  names = jax.tree.unflatten(ingredient.treedef, list(ingredient.specs))
  weights, _ = of_state(ingredient.path, names)
  if weights is names:
    return ingredient
  # New name -> name in the file.
  old, treedef = tree.flatten(weights)
  new = {stored: leaf for leaf, stored in old.items()}
  storage = ingredient.storage

  def renamed(values):
    return {leaf: values[k] for leaf, k in old.items() if k in values}

  return dataclasses.replace(
    ingredient,
    specs=renamed(ingredient.specs),
    treedef=treedef,
    reader=lambda leaf, index: ingredient.reader(old[leaf], index),
    storage=dataclasses.replace(
      storage,
      read_box=lambda leaf, box, out: storage.read_box(old[leaf], box, out),
      order=tuple(new[stored] for stored in storage.order if stored in new),
      chunks=renamed(storage.chunks),
      checksums=renamed(storage.checksums),
      # Leaves that share a checksum with one left out cannot be compared.
      shared=[
        crc32.Shared(part.checksum, {new[k]: n for k, n in part.sizes.items()})
        for part in storage.shared
        if part.sizes.keys() <= new.keys()
      ],
      self_checked={new[k] for k in storage.self_checked if k in new},
    ),
  )
