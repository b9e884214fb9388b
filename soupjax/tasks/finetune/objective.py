# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The training objective of a config, and settings that conflict with it."""

from collections.abc import Iterator, Sequence
from typing import Any

from soupjax import config as config_lib
from soupjax import data
from soupjax.data import batch_ops
from soupjax.models import clip
from soupjax.tasks import zeroshot
from soupjax.train import losses, recipes


def recipe_of(config) -> recipes.Recipe:
  """Returns the recipe of a config, or the plain one if its weight is 0.

  Raises:
    ValueError: if there is no such recipe.
  """
  recipe = recipes.of(config.recipe)
  if recipe.weight and not config.hyper[recipe.weight]:
    return recipes.PLAIN
  return recipe


def problems(
  config, model: Any, train_ops: str, off: Sequence[str]
) -> Iterator[str]:
  """Yields an error message for each setting that conflicts with the recipe.

  Args:
    config: the config of a member.
    model: the model that it names.
    train_ops: `data.train_ops`, with names in braces filled in.
    off: hyperparameters of `data.batch_ops` that are 0.
  """
  recipe, name = recipes.of(config.recipe), f"recipe={config.recipe!r}"
  known = losses.PAIR_LOSSES if recipe.pairs else losses.LOSSES
  try:
    known.get(config.loss)
  except ValueError as e:
    yield str(e)
  if config.hyper.context and recipe.weight != "context":
    yield (
      f"hyper.context={config.hyper.context:g} needs recipe='car_ft', not "
      f"{config.recipe!r}"
    )
  if "context" in recipe.shared:
    yield from _context(config, name)
  is_clip = isinstance(model, clip.CLIP)
  if recipe.pairs and not is_clip:
    yield (
      f"{name} trains an image tower and a text tower: set model.name='clip' "
      "and model.variant='init'"
    )
  elif is_clip and not recipe.pairs:
    yield f"model.name='clip' needs recipe='flyp' or 'lit', not {name}"
  elif recipe.pairs:
    yield from _pairs(config, name)
    yield from _operations(config, recipe, name, train_ops, off)


def _context(config, name: str) -> Iterator[str]:
  if config.init.head != "zeroshot":
    yield (
      f"{name} needs init.head='zeroshot': contexts are embedded by the text "
      "tower of init.path"
    )
    return
  try:
    count = len(zeroshot.parse_templates(config.zeroshot.templates))
  except ValueError:
    return  # `zeroshot.check` reports it.
  if count < 2:
    yield (
      f"{name} compares contexts, but zeroshot.templates="
      f"{config.zeroshot.templates!r} has {count}: give several prompts, such "
      "as open_clip:openai"
    )


def _pairs(config, name: str) -> Iterator[str]:
  needed = {
    "accumulate": (1, "images are compared with all texts of the batch"),
    "hyper.label_smoothing": (0, "there are no labels to smooth"),
    "adapter.kind": ("", "it trains whole towers"),
    "init.head": ("auto", "the text tower makes the head during training"),
  }
  for key, (value, reason) in needed.items():
    given = config_lib.value_of(config, key)
    if given != value:
      yield f"{name} needs {key}={value!r}, got {given!r}: {reason}"
  if config_lib.steps(config.probe.total, batch_size=1, num_examples=1):
    yield f"{name} needs probe.total='0steps': no head is trained"
  if config.data.batch_size == 1:
    yield (
      f"{name} compares the images of a batch with each other's texts, but "
      "data.batch_size=1 leaves nothing to compare: raise it"
    )
  if config.data.num_classes == 1:
    yield (
      f"{name} tells texts apart, but data.num_classes=1 gives all images the "
      "same prompts: use data of several classes"
    )


def _operations(config, recipe, name, train_ops, off) -> Iterator[str]:
  ops = batch_ops.active(config.data.batch_ops, off, config.hyper)
  for op in sorted(op for op, mixes in ops.items() if mixes):
    yield (
      f"{name} cannot mix the texts of images, but data.batch_ops has {op}: "
      f"remove it, or set hyper.{op}=0"
    )
  if not recipe.embedded:
    return
  for op in sorted(op for op, mixes in ops.items() if not mixes):
    yield (
      f"{name} embeds every image once, so data.batch_ops cannot change it: "
      f"remove {op}, or set hyper.{op}=0"
    )
  if random_ops := data.Preprocess(train_ops).random_ops:
    yield (
      f"{name} embeds every image once, but data.train_ops draws random "
      f"numbers in {', '.join(random_ops)}: set it to data.eval_ops"
    )
  if config.data.in_memory is False:
    yield f"{name} keeps embeddings in memory: leave data.in_memory unset"
