# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The settings of cooking a folder of checkpoints: defaults, checks."""

import dataclasses
import math
import os
import pathlib
import re

from absl import logging
import flax.linen as nn
import ml_collections

from soupjax import config as config_lib
from soupjax import files, models
from soupjax.models.pretrained import mappings
from soupjax.tasks.finetune import config as finetune_config

LEARNED = ("model", "layer", "tensor")
# What a sweep of `tasks.finetune` recorded, and cooking goes by.
_OF_SWEEP = ("data", "model", "sharding")


# Those of `models.ViT` that checkpoints from elsewhere differ in, or that say
# how it is computed.
_OPTIONS = (
  *("patch_size", "width", "depth", "mlp_dim", "num_heads", "posemb"),
  *("pool_type", "class_token", "rep_size", "proj_size", "act", "norm_eps"),
  *("pre_norm", "patch_bias", "fc_norm", "attention", "scan", "dtype_mm"),
)
# Of those that can be None.
_KINDS = {int | None: int, str | None: str}


def default_config() -> ml_collections.ConfigDict:
  """The settings that all configs of this task have."""
  theirs = finetune_config.default_config()
  c = ml_collections.ConfigDict()
  c.task = "cook"
  c.seed = 0  # Of the order of held-out images in learned soups.
  c.ingredients = ""  # A pattern, or several joined by commas.
  # The model that all were fine-tuned from, with a head: for WiSE-FT. Or empty.
  c.initial = ""
  c.family = ""  # Of the checkpoints, see docs/pretrained.md; empty finds out.
  # "NAME=SPLIT" of data.name or "NAME=DATASET/SPLIT", joined by commas. "test"
  # is the test set, all others are shifts. No choice is made on any.
  c.tests = ""

  c.data = ml_collections.ConfigDict()
  c.data.name = ""
  c.data.data_dir = ""
  c.data.train = "train"  # Minival is a part of it where data.minival is empty.
  c.data.minival = ""
  c.data.minival_per_class = 26
  # 0 and empty: as the checkpoints, or files beside them, say.
  c.data.num_classes = 0
  c.data.image_size = 0
  c.data.eval_ops = ""
  # The order of the models' outputs: "text", "natural" (as timm sorts folders),
  # or a file with a class a line. Empty: as a config.json says, else "text".
  c.data.classes = ""
  c.data.augment = ml_collections.ConfigDict()
  c.data.batch_size = 256
  # Minival is decoded once if it takes no more; else for every candidate.
  c.data.cache_gb = 8.0

  # Options of `models.ViT`; what is not set is found out (docs/cook.md).
  c.model = ml_collections.ConfigDict({"name": "vit", "variant": ""})
  for field in dataclasses.fields(models.ViT):
    if field.name in _OPTIONS:
      kind = _KINDS.get(field.type, field.type)
      c.model[field.name] = ml_collections.config_dict.placeholder(kind)
  c.sharding = theirs.sharding

  c.cook = ml_collections.ConfigDict()
  c.cook.accept = "ge"
  c.cook.min_delta = 0.0
  c.cook.early_reject = True
  c.cook.learned_granularities = ("layer",)
  c.cook.learned_steps = 100
  c.cook.learned_learning_rate = 0.1
  c.cook.learned_batch_size = 256
  c.cook.wise_ft_points = 5  # From 0 to 1; 0 is none.
  # For ensembles the logits of all ingredients are kept, unless they take more.
  c.cook.ensembles_gb = 8.0
  return c


def of_sweep(
  config: ml_collections.ConfigDict, directory: str, which: str = "last"
) -> None:
  """Fills in what a sweep of `tasks.finetune` recorded.

  Args:
    config: from `default_config`; changed in place.
    directory: the sweep's `--workdir`.
    which: of each member's ingredients, as "last" or "last_ema_0.999".

  Raises:
    ValueError: if it is no such directory.
  """
  root = pathlib.Path(directory).expanduser().absolute()
  record = root / "config.json"
  if not record.exists():
    raise ValueError(
      f"{root} has no config.json: give the --workdir of a sweep that was "
      "fine-tuned, or say with --config.ingredients, --config.model and "
      "--config.data what there is."
    )
  found = files.read_json(record)
  if not isinstance(found, dict) or found.get("task") != "finetune":
    raise ValueError(
      f"{root} is no run of task 'finetune', but of {found.get('task')!r}."
    )
  for part in _OF_SWEEP:
    known = config[part]
    values = {k: v for k, v in found[part].items() if k != "augment"}
    if part == "model":  # Every option of the model is its own.
      config.model = ml_collections.ConfigDict(values)
    else:
      known.update({k: v for k, v in values.items() if k in known})
  if found["data"].get("eval_batch_size"):
    config.data.batch_size = found["data"]["eval_batch_size"]
  waiting = [
    member.name
    for member in sorted(root.glob("member_*"))
    if not (member / "ingredients" / which).exists()
  ]
  if waiting:
    logging.warning(
      "%s: %s have no ingredients/%s (yet): the soups are without them.",
      root,
      ", ".join(waiting),
      which,
    )
  config.ingredients = os.path.join(root, "member_*", "ingredients", which)
  config.initial = os.path.join(root, "initial")


def tests(config: ml_collections.ConfigDict) -> dict[str, tuple[str, str]]:
  """Returns name -> (dataset, split) of `config.tests`.

  Raises:
    ValueError: if it cannot be read.
  """
  found: dict[str, tuple[str, str]] = {}
  for part in filter(None, (p.strip() for p in config.tests.split(","))):
    name, is_pair, place = part.partition("=")
    dataset, _, split = place.rpartition("/")
    if not (is_pair and split and re.fullmatch(r"[\w.-]+", name)):
      raise ValueError(
        f"tests={config.tests!r}: write NAME=SPLIT or NAME=DATASET/SPLIT, as "
        "'test=validation,sketch=imagenet_sketch/test'"
      )
    if name in ("minival", "shifts", *found):
      raise ValueError(
        f"tests={config.tests!r}: the name {name!r} is taken, choose another"
      )
    found[name] = dataset or config.data.name, split
  return found


def eval_ops(config: ml_collections.ConfigDict) -> str:
  """What is done to every image."""
  return finetune_config.ops(config, "eval_ops")


def build_model(config: ml_collections.ConfigDict) -> nn.Module:
  """Builds the model, of those options that are set.

  Raises:
    ValueError: if there is no such model, variant or option.
  """
  given = {k: v for k, v in config.model.to_dict().items() if v is not None}
  if given["name"] == "mixer":
    given.setdefault("dropout", 0.0)
  return finetune_config.build_model(
    ml_collections.ConfigDict({"data": config.data, "model": given})
  )


def check(config: ml_collections.ConfigDict) -> None:
  """Checks values that would otherwise fail after minutes of work.

  Raises:
    ValueError: listing every key with a value that cannot work.
  """
  problems = config_lib.Problems(config)
  expect = problems.expect

  def count(value):
    return value >= 1 and value == int(value)

  expect("ingredients", "a path with * in it, or several", bool)
  expect("data.name", "the name of a dataset", bool)
  for key in ("data.num_classes", "data.image_size"):
    expect(key, "a whole number from 0", lambda v: v >= 0 and v == int(v))
  for key in (
    "data.batch_size",
    "cook.learned_steps",
    "cook.learned_batch_size",
  ):
    expect(key, "a positive whole number", count)
  for key in ("data.cache_gb", "cook.ensembles_gb"):
    expect(key, "a number from 0", lambda v: v >= 0)
  expect("cook.accept", "'ge' or 'gt'", lambda v: v in ("ge", "gt"))
  expect("cook.min_delta", "a finite number", math.isfinite)
  expect(
    "cook.learned_granularities",
    f"some of {', '.join(LEARNED)}",
    lambda v: set(v) <= set(LEARNED) and len(set(v)) == len(v),
  )
  expect(
    "cook.learned_learning_rate", "positive and finite",
    lambda v: 0 < v < math.inf,
  )  # fmt: skip
  expect("cook.wise_ft_points", "0, or at least 2", lambda v: v == 0 or v >= 2)
  expect(
    "family",
    f"one of {', '.join(mappings.FAMILIES)}, or empty",
    lambda v: not v or v in mappings.FAMILIES,
  )
  for build in (
    build_model,
    finetune_config.sharding_rules,
    tests,
    eval_ops,
  ):
    try:
      build(config)
    except ValueError as e:
      problems.found.append(str(e))
  problems.raise_if_any()
