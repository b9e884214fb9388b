# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Finds the model in a train state, by one rule for every format."""

from collections.abc import Collection
import dataclasses
import re
from typing import Any
import warnings

import jax

from soupjax.soups.core import tree
from soupjax.soups.core.ingredient import Ingredient

PyTree = Any

# What a training run keeps beside the model. Of anything else that is left out
# the user is told.
_TRAINING = re.compile(
  r"opt(im\w*|_\w+)?|(lr_?)?schedulers?|lr|\w*rngs?(_\w+)?|\w*steps?|epochs?|"
  r"iter(ation)?s?|(grad_?)?scaler|loss(_scale)?|loops|callbacks"
)


def of_state(path: str, state: PyTree) -> tuple[PyTree, str]:
  """Cuts a train state to its weights.

  They are its entry `params`, or `params` and `batch_stats`, which are worth
  nothing without each other. A tree that has nothing else stays as it is, and
  so does one without `params`.

  Args:
    path: of the checkpoint, for the warning.
    state: nested containers; of the leaves nothing is asked.

  Returns:
    The part, and the name of the entry that it was, "" for more than one.
  """
  if not (isinstance(state, dict) and len(state) > 1):
    return state, ""
  if not isinstance(state.get("params"), (dict, list, tuple)):
    return state, ""
  kept = [key for key in ("params", "batch_stats") if key in state]
  others = [k for k in state if k not in kept and jax.tree.leaves(state[k])]
  warn_of_others(path, kept, others)
  if len(kept) > 1:
    return {key: state[key] for key in kept}, ""
  return state["params"], "params"


def warn_of_others(
  path: str, kept: Collection[str], others: Collection[str]
) -> None:
  """Warns of entries with arrays in them that may belong to the model."""
  others = [key for key in map(str, others) if not _TRAINING.fullmatch(key)]
  if others:
    warnings.warn(
      f"{path}: of this train state only {' and '.join(kept)} is read. It also "
      f"has arrays in {others[:10]}, which are left out. If they belong to the "
      "model, save them together with it, in one tree without the rest.",
      stacklevel=5,
    )


def of(found: Ingredient) -> Ingredient:
  """Cuts an ingredient whose file holds a train state to its weights."""
  names = jax.tree.unflatten(found.treedef, list(found.specs))
  part, _ = of_state(found.path, names)
  if part is names:
    return found
  # New name -> name in the file.
  old, treedef = tree.flatten(part)
  storage = found.storage
  checksums, chunks = storage.checksums, storage.chunks
  new = {name: leaf for leaf, name in old.items()}
  return dataclasses.replace(
    found,
    specs={leaf: found.specs[name] for leaf, name in old.items()},
    treedef=treedef,
    reader=lambda leaf, index: found.reader(old[leaf], index),
    storage=dataclasses.replace(
      storage,
      read_box=lambda leaf, box, out: storage.read_box(old[leaf], box, out),
      order=tuple(new[name] for name in storage.order if name in new),
      chunks={k: chunks[v] for k, v in old.items() if v in chunks},
      checksums={k: checksums[v] for k, v in old.items() if v in checksums},
    ),
  )
