# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Settings of the task "evaluate"."""

from collections.abc import Sequence
import dataclasses
import glob
import os

import ml_collections

from soupjax import config as config_lib
from soupjax import files
from soupjax.checkpoints import open as open_lib
from soupjax.soups.core.ingredient import Ingredient
from soupjax.tasks.cook import config as cook_config
from soupjax.tasks.cook import inputs
from soupjax.tasks.evaluate import transfer


def default_config() -> ml_collections.ConfigDict:
  """Returns the settings of this task: those of cooking and its own."""
  c = cook_config.default_config()
  c.task = "evaluate"
  # The model that all others are compared with; "" for the first.
  c.reference = ""
  # Whether to write the logits of every model on every set to logits/.
  c.save_logits = False
  # Name -> "DATASET:train=SPLIT:test=SPLIT:minival=SPLIT|OPS", of which only
  # DATASET is required, or a dict with "data" and these keys. Probes of frozen
  # features are fitted on these datasets (docs/evaluate.md).
  c.transfer = config_lib.NamedTexts()
  for key, options in transfer.default_options().items():
    c[key] = ml_collections.ConfigDict(options)
  # Held-out images only serve to fit temperatures; by default there are none.
  c.data.train = ""
  return c


def of_soups(config: ml_collections.ConfigDict, directory: str) -> None:
  """Fills in the settings, soups and ingredients of a cooking run.

  The ingredients are left out if the run set `prefix`.

  Args:
    config: from `default_config`; changed in place.
    directory: the `--workdir` of the cooking run.

  Raises:
    ValueError: if the directory does not contain such a run.
  """
  root = files.path_of(directory)
  record = root / "config.json"
  recorded = files.read_json(record) if record.exists() else {}
  if recorded.get("task") != "cook" or recorded.get("evaluate_command"):
    raise ValueError(
      f"{root} is not the --workdir of a cooking run with images: set soups= "
      "to that of one, or sweep= to that of a fine-tuning sweep."
    )
  config.model = ml_collections.ConfigDict(recorded["model"])
  for part in ("data", "sharding", "zeroshot"):
    config[part] = ml_collections.ConfigDict(recorded[part])
  for key in ("base", "initial", "initial_head", "family", "skip"):
    config[key] = recorded[key]
  for key in ("tests", "means"):
    config[key] = config_lib.NamedTexts(recorded[key])
  soups = os.path.join(root, "soups", "*")
  if recorded.get("prefix"):  # Soups have no prefix.
    config.ingredients = soups
    return
  if (root / "export").exists():  # Soups with the ingredients' leaf names.
    soups = os.path.join(root, "export", "*")
  config.ingredients = f"{soups},{recorded['ingredients']}"


def plainly_named(
  config: ml_collections.ConfigDict, ingredients: Sequence[Ingredient]
) -> list[Ingredient]:
  """Gives models the short names within their own pattern, if these are unique.

  The soups and ingredients of a run are thus called "greedy" and "member_001",
  although they are in different directories.

  Args:
    config: as in configs/evaluate.py.
    ingredients: the models, with names from all patterns together.

  Returns:
    The ingredients with their new names, in the same order.
  """
  given = open_lib.split_patterns(config.ingredients)
  names: dict[str, str] = {}
  for pattern in given if len(given) > 1 else ():
    if glob.has_magic(pattern):
      paths = open_lib.paths_of([pattern])
      places = [os.path.abspath(os.path.expanduser(path)) for path in paths]
      names |= dict(zip(places, open_lib.short_names(places)))

  def plain(ingredient):
    inside = [p for p in names if f"{ingredient.path}/".startswith(f"{p}/")]
    if not inside or "#" in ingredient.name:
      return ingredient.name
    return inputs.safe_name(names[max(inside, key=len)], config.task)

  found = list(map(plain, ingredients))
  return [
    i if found.count(name) > 1 else dataclasses.replace(i, name=name)
    for i, name in zip(ingredients, found)
  ]


def with_dataset(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """Returns the config with `data.name`, the name of the results, filled in."""
  if config.data.name:
    return config
  full = ml_collections.ConfigDict(config.to_dict())
  tests = list(cook_config.tests(config).values())
  full.data.name = tests[0].dataset if tests else "logits"
  return full


def check(config: ml_collections.ConfigDict) -> None:
  """Checks values that would otherwise fail after minutes of work.

  Raises:
    ValueError: listing every key with an invalid value.
  """
  cook_config.check(config)
  problems = config_lib.Problems(config)
  problems.attempt(_check_sets, config)
  problems.attempt(transfer.specs, config)
  problems.raise_if_any()


def _check_sets(config) -> None:
  if config.tests or config.data.minival or config.data.train:
    return
  if config.transfer:  # Classes and image size come from the models' own sets.
    raise ValueError(
      "transfer needs at least one test set with the models' own classes: add "
      "tests="
    )
  raise ValueError(
    "tests is empty: give the sets to evaluate on, such as "
    "--config.tests=test=folder:photos/val"
  )
