# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Loads weights of models defined outside soupjax, under their own leaf names.

See docs/finetune.md for how a config names such a model.
"""

from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import numpy as np

from soupjax.models.pretrained import mismatch
from soupjax.soups.core import tree
from soupjax.soups.core.ingredient import Ingredient
from soupjax.soups.core.tree import PyTree

# Start of the names of the head's leaves; a new head may replace them.
_HEAD = "head/"


def is_own(model: nn.Module | Callable) -> bool:
  """Whether a model, or the function that makes it, is not from soupjax."""
  return not model.__module__.startswith("soupjax.")


def load(
  source: Ingredient,
  model: nn.Module,
  image_size: int | tuple[int, int] | None,
  *,
  head: str = "auto",
  skip: Sequence[str] = (),
  init: PyTree | None = None,
) -> PyTree:
  """Reads the parameters of a model from a checkpoint of the same model.

  Args:
    source: a checkpoint with the names and shapes of the model's leaves.
    model: a model defined outside soupjax.
    image_size: side of the images in pixels, or (height, width).
    head: as for `pretrained.load_pretrained`; the leaves of a head begin with
      "head/".
    skip: regular expressions of leaves to take from `init` instead.
    init: parameters of the model, with the leaves that `skip` matches.

  Returns:
    Nested dicts of NumPy arrays, with the structure of the model's parameters.

  Raises:
    ValueError: if leaves are missing, unexpected or misshapen, listing them; or
      if `image_size`, or `init` for skipped leaves, is not given.
  """
  specs, treedef = _specs(model, image_size)
  new = {leaf for leaf in specs if leaf.startswith(_HEAD)}
  shapes = {leaf: spec.shape for leaf, spec in source.specs.items()}
  if head == "keep" or (
    head == "auto" and all(shapes.get(k) == specs[k].shape for k in new)
  ):
    new = set()
  skipped = {
    leaf
    for _, leaves in tree.matches("skip", skip, list({**specs, **shapes}))
    for leaf in leaves
  }
  first = {} if init is None else tree.flatten(init)[0]
  if lost := sorted(skipped & {*specs} - {*first}):
    raise ValueError(
      f"skip= leaves out {lost[0]} of the model: give init=, parameters that "
      "contain it."
    )
  read = {leaf: s for leaf, s in specs.items() if leaf not in new | skipped}
  old = {leaf for leaf in shapes if new and leaf.startswith(_HEAD)}
  _check(source, read, model, skipped | old)
  leaves = {
    leaf: np.zeros(spec.shape, spec.dtype)
    if leaf in new
    else np.asarray(first[leaf] if leaf in skipped else source.read(leaf))
    for leaf, spec in specs.items()
  }
  return jax.tree.unflatten(treedef, list(leaves.values()))


def check(
  source: Ingredient, model: nn.Module, image_size: int | tuple[int, int] | None
) -> None:
  """Raises a ValueError unless a checkpoint has exactly the model's leaves."""
  _check(source, _specs(model, image_size)[0], model, set())


def _specs(model, image_size):
  if image_size is None:
    raise ValueError(
      f"Give image_size=, the size of the images of {type(model).__name__}."
    )
  sides = (image_size,) * 2 if isinstance(image_size, int) else image_size
  images = jax.ShapeDtypeStruct((1, *sides, 3), np.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  specs, treedef = tree.flatten(variables["params"])
  return specs, treedef


def _check(
  source: Ingredient,
  specs: Mapping[str, jax.ShapeDtypeStruct],
  model: nn.Module,
  optional: set[str],
) -> None:
  given = {leaf: spec.shape for leaf, spec in source.specs.items()}
  problems = mismatch.describe(
    {leaf: "" for leaf in specs if leaf not in given},
    {leaf: None for leaf in given if leaf not in {*specs, *optional}},
    {
      leaf: (given[leaf], spec.shape)
      for leaf, spec in specs.items()
      if leaf in given and given[leaf] != spec.shape
    },
  )
  if problems:
    raise ValueError(
      f"{source.path or source.name} does not fit this "
      f"{type(model).__name__}:\n  {problems}"
    )
