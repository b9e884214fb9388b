# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The interface of training objectives, and plain supervised training."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax

from soupjax import registry

PyTree = Any
# Functions that return a `Recipe`; `@RECIPES.register` makes one available to
# configs.
RECIPES = registry.Registry("recipe")


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A training objective.

  Attributes:
    objective: `objective(params, batch, key, *, model, loss, hyper, shared)`
      returns a scalar. A batch has "images", "labels" and "targets" (batch,
      classes), or for pairs "tokens" (batch, tokens) instead of targets. The
      key is for dropout. `loss` is the function that the config names, `hyper`
      the `train.step.Hyper`, and `shared` the arrays named below.
    pairs: whether images are compared with texts. Then the model is a
      `models.CLIP`, and the loss one of `losses.PAIR_LOSSES`.
    embedded: whether "images" are embeddings, computed once by the initial
      image tower.
    frozen: regular expressions of leaves that are not trained.
    shared: names of the arrays that the objective reads: "start" (initial
      parameters) or "context" (embedding size, templates).
    weight: name of the hyperparameter that multiplies the term added to the
      plain objective. If its value is 0, the plain objective is used.
  """

  objective: Callable[..., jax.Array]
  pairs: bool = False
  embedded: bool = False
  frozen: tuple[str, ...] = ()
  shared: tuple[str, ...] = ()
  weight: str = ""


def of(text: str) -> Recipe:
  """Returns the recipe for a text such as "flyp(mask_same_class=True)".

  Raises:
    ValueError: if there is no such recipe or argument.

  Examples:
    >>> of("lit").frozen
    ('^img/',)
  """
  name, args, kwargs = registry.parse_call(text)
  make = RECIPES.get(name)
  try:
    recipe = make(*args, **kwargs)
  except TypeError as e:
    raise ValueError(f"recipe={text!r}: {e}") from e
  if not isinstance(recipe, Recipe):
    raise ValueError(
      f"recipe={text!r} must return a train.recipes.Recipe, got {recipe!r:.80}."
    )
  return recipe


def _plain(params, batch, key, *, model, loss, hyper, shared):
  del hyper, shared
  logits, _ = model.apply(
    {"params": params}, batch["images"], train=True, rngs={"dropout": key}
  )
  return loss(logits, batch["targets"])


PLAIN = Recipe(_plain)


@RECIPES.register
def plain() -> Recipe:
  """Trains with the plain loss of logits and targets."""
  return PLAIN
