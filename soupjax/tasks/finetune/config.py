# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Settings of a fine-tuning run: defaults, checks, derived values."""

from collections.abc import Sequence
import json
import math
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np

from soupjax import config as config_lib
from soupjax import models, sharding
from soupjax.data import batch_ops
from soupjax.train import losses, optimizers, schedules
from soupjax.train import step as train_step

# Keys that all members of a sweep share: they start from the same weights, or
# they cannot be averaged.
SHARED = ("task", "init", "probe", "model", "population", "sharding", "tests")
SHARED += tuple(
  f"data.{name}"
  for name in (
    "name",
    "data_dir",
    "train",
    "minival",
    "minival_per_class",
    "eval_ops",
    "image_size",
    "num_classes",
    "num_train",
  )  # fmt: skip
)
# Exceptions, which change no weights of the start.
FREE = ("model.dropout", "model.stochastic_depth")


def default_config() -> ml_collections.ConfigDict:
  """Returns the settings that all configs of this task have."""
  c = ml_collections.ConfigDict()
  c.task = "finetune"
  c.seed = 0  # Of data order, augmentation and dropout; not of the start.
  # Test sets by name, "SPLIT" or "DATASET/SPLIT". Fine-tuning records them for
  # cooking and never opens them.
  c.tests = ml_collections.ConfigDict()

  c.data = ml_collections.ConfigDict()
  c.data.name = ""
  c.data.data_dir = ""
  c.data.train = "train"
  c.data.minival = ""  # A split, or empty for a part of train:
  c.data.minival_per_class = 26
  c.data.num_classes = 1000
  c.data.num_train = 0  # For --dry_run; 0 is unknown before data is opened.
  c.data.image_size = 224
  c.data.batch_size = 512
  c.data.eval_batch_size = 0  # 0 is batch_size.
  c.data.num_workers = 0
  # Hold the decoded train set in memory, where train_ops draw no random
  # numbers: True, False, or unset for "if it takes at most cache_gb".
  c.data.in_memory = ml_collections.config_dict.placeholder(bool)
  c.data.cache_gb = 8.0
  c.data.train_ops = (
    "inception_crop({image_size}, {crop_min})|flip_lr|"
    "randaug({randaug_layers}, {randaug_magnitude})|value_range(-1, 1)"
  )
  c.data.eval_ops = "resize({image_size})|value_range(-1, 1)"
  # Augmentation of batches on the devices. A name in braces is a key of hyper,
  # and traced; an operation whose names are 0 in all members is left out.
  c.data.batch_ops = "erasing({erasing})|mixup({mixup})|cutmix({cutmix})"
  # Values of the names in train_ops.
  c.data.augment = ml_collections.ConfigDict()
  c.data.augment.crop_min = 8.0  # Percent of the image's area.
  c.data.augment.randaug_layers = 0
  c.data.augment.randaug_magnitude = 0.0

  c.model = ml_collections.ConfigDict()
  c.model.name = "vit"  # Or "mixer".
  c.model.variant = "B/16"
  c.model.dropout = 0.0
  c.model.stochastic_depth = 0.0

  c.init = ml_collections.ConfigDict()
  c.init.path = ""  # A checkpoint; empty starts from random weights.
  c.init.head = "auto"  # See `models.pretrained.load_pretrained`.
  c.init.seed = 0

  c.probe = ml_collections.ConfigDict()
  c.probe.total = "0steps"  # Of L-BFGS; 0 keeps the head as it is.
  c.probe.l2 = 1e-3
  c.probe.max_examples = 0  # Evenly spread over train; 0 is all.

  # All of these are traced: a sweep over them compiles once. A config may add
  # keys of its own for the names in data.batch_ops.
  c.hyper = ml_collections.ConfigDict()
  c.hyper.learning_rate = 3e-5
  c.hyper.weight_decay = 0.1
  c.hyper.total = "10epochs"
  c.hyper.warmup = "500steps"
  c.hyper.cooldown = "0steps"
  c.hyper.schedule = "cosine"
  c.hyper.label_smoothing = 0.0
  c.hyper.mixup = 0.0
  c.hyper.cutmix = 0.0
  c.hyper.erasing = 0.0
  c.hyper.layer_decay = 1.0
  c.hyper.l2_sp = 0.0
  c.hyper.sam_rho = 0.0
  c.hyper.ema = ()  # Decays, as (0.999, 0.9999999).

  c.loss = "softmax"  # Or "sigmoid", or a registered or imported one.
  c.freeze = ()  # Regular expressions of leaves.
  c.decay = (
    "."  # Regular expression of the leaves that weight decay applies to.
  )
  c.accumulate = 1  # Parts of a batch, one after another.
  # Steps in one call of the devices: worth it where a step takes milliseconds.
  # Ingredients along the run are saved at multiples of it.
  c.steps_per_call = 1
  c.optimizer = ml_collections.ConfigDict()
  c.optimizer.name = "adamw"
  c.optimizer.clip_norm = 1.0

  c.log = "50steps"
  c.checkpoint = "1000steps"  # To go on from after a kill.
  c.ingredients = ""  # Also along the run, every "1epochs"; empty: at the end.
  c.population = 0  # Members of a sweep trained at once; 0 one by one.

  c.sharding = ml_collections.ConfigDict()
  c.sharding.mesh = {"data": -1}
  c.sharding.preset = "replicated"  # Or "fsdp", "tensor".
  # Pairs of a regular expression and a rule that come before the preset's; see
  # `sharding.of_state`.
  c.sharding.rules = ()
  c.sharding.fsdp_min_size = 2**20
  return c


def build_model(config: ml_collections.ConfigDict) -> nn.Module:
  """Builds the model that a config names.

  Raises:
    ValueError: if there is no such model, variant or option.
  """
  options = config.model.to_dict()
  return models.build(
    options.pop("name"), num_classes=config.data.num_classes, **options
  )


def build_tx(config: ml_collections.ConfigDict):
  """Builds the optimizer that a config names; see `optimizers.make`."""
  options = config.optimizer.to_dict()
  return optimizers.make(options.pop("name"), **options)


def sharding_rules(config: ml_collections.ConfigDict) -> list[tuple[str, Any]]:
  """Returns the (regex, rule) list that a config names."""
  presets = {
    "replicated": [],
    "fsdp": [(".", "fsdp")],
    "tensor": list(sharding.TENSOR_PARALLEL),
  }
  preset = config.sharding.preset
  if preset not in presets:
    raise ValueError(
      f"sharding.preset={preset!r} is none of {', '.join(presets)}."
    )
  return [*(tuple(pair) for pair in config.sharding.rules), *presets[preset]]


def ops(config: ml_collections.ConfigDict, which: str) -> str:
  """Fills in the numbers of `data.train_ops` or `data.eval_ops`."""
  values = {"image_size": config.data.image_size}
  values |= config.data.augment.to_dict()
  try:
    return config.data[which].format(**values)
  except (KeyError, IndexError, ValueError) as e:
    raise ValueError(
      f"data.{which}={config.data[which]!r} has a place for {e}; there are "
      f"only {', '.join(values)}."
    ) from e


def op_values(config: ml_collections.ConfigDict) -> dict[str, float]:
  """Returns the hyperparameters that `data.batch_ops` may name."""
  known = {"total", "warmup", "cooldown", "ema"}
  known |= set(train_step.Hyper.__dataclass_fields__)
  return {k: v for k, v in config.hyper.to_dict().items() if k not in known}


def off(configs: Sequence[ml_collections.ConfigDict]) -> tuple[str, ...]:
  """Names the hyperparameters of `data.batch_ops` that are 0 in all configs."""
  values = [op_values(config) for config in configs]
  return tuple(sorted(k for k in values[0] if not any(v[k] for v in values)))


def build_augment(config: ml_collections.ConfigDict, off: Sequence[str] = ()):
  """Builds the augmentation of `data.batch_ops`; see `batch_ops.batch_augment`.

  Args:
    config: of one member.
    off: from `off`.

  Raises:
    ValueError: if an operation or a name in braces does not exist.
  """
  return batch_ops.batch_augment(
    config.data.batch_ops, names=tuple(op_values(config)), off=tuple(off)
  )


def eval_batch_size(config, devices: int) -> int:
  """Returns the batch size of evaluation, a multiple of the devices."""
  size = config.data.eval_batch_size or config.data.batch_size
  return rounded_up(size, devices)


def rounded_up(size: int, devices: int) -> int:
  """Returns the next multiple of the number of devices."""
  return -(-size // devices) * devices


def steps(config, key: str, num_train: int | None) -> int:
  """Returns a duration of the config, as "hyper.total", in steps."""
  value = config
  for part in key.split("."):
    value = value[part]
  return config_lib.steps(
    value,
    batch_size=config.data.batch_size,
    num_examples=num_train,
    name=key,
  )


def total_steps(config, num_train: int | None) -> int:
  """Returns the length of a run in steps."""
  return steps(config, "hyper.total", num_train)


def check_lengths(config, num_train: int, name: str) -> None:
  """Checks that durations fit together.

  Raises:
    ValueError: if warmup and cooldown exceed the run, so that the peak rate
      would never be reached, or ingredients are due within a call.
  """
  if config.ingredients:
    every = steps(config, "ingredients", num_train)
    if every % config.steps_per_call:
      raise ValueError(
        f"{name}: ingredients={config.ingredients!r} is {every} steps, not a "
        f"multiple of steps_per_call={config.steps_per_call}: change one."
      )
  total, warmup, cooldown = (
    steps(config, f"hyper.{key}", num_train)
    for key in ("total", "warmup", "cooldown")
  )
  if 0 < total < warmup + cooldown:
    raise ValueError(
      f"{name}: hyper.warmup is {warmup} steps and hyper.cooldown {cooldown}, "
      f"longer than hyper.total, {total} steps: the rate would never be "
      f"hyper.learning_rate. Shorten them ({num_train} images to train on)."
    )


def hyper(config, num_train: int) -> train_step.Hyper:
  """Turns `config.hyper` into numpy arrays, durations into steps."""
  for_ops = op_values(config)
  values = {k: v for k, v in config.hyper.to_dict().items() if k not in for_ops}
  total = total_steps(config, num_train)
  for name in ("total", "warmup", "cooldown"):
    count = steps(config, f"hyper.{name}", num_train)
    values[f"{name}_steps"] = min(count, total)  # Of 0 steps, all are 0.
    del values[name]
  return jax.tree.map(
    np.asarray, train_step.Hyper.of(op_values=for_ops, **values)
  )


def static(config, *, off: Sequence[str], l2_sp: bool) -> str:
  """Serialises what a compiled step depends on: equal text, same step."""
  return json.dumps(
    {
      "model": config.model.to_dict(),
      "optimizer": config.optimizer.to_dict(),
      "loss": config.loss,
      "freeze": list(config.freeze),
      "decay": config.decay,
      "accumulate": config.accumulate,
      "batch_size": config.data.batch_size,
      "batch_ops": config.data.batch_ops,
      "steps_per_call": config.steps_per_call,
      "sam": config.hyper.sam_rho > 0,
      "num_ema": len(config.hyper.ema),
      "off": list(off),
      "l2_sp": l2_sp,
    },
    sort_keys=True,
  )


def member_config(
  config: ml_collections.ConfigDict, overrides: dict[str, Any], k: int
) -> ml_collections.ConfigDict:
  """Applies the overrides of one member of a sweep.

  Raises:
    ValueError: if one changes what all members must share.
  """
  for key in overrides:
    shared = any(key == s or key.startswith(f"{s}.") for s in SHARED)
    if shared and key not in FREE:
      raise ValueError(
        f"Member {k} of the sweep changes {key}: members must share their "
        "start, or their weights cannot be averaged. Use another --workdir."
      )
  return config_lib.updated(config, overrides, what=f"Member {k} of the sweep")


def _loss(config):
  return losses.LOSSES.get(config.loss)


def check(config: ml_collections.ConfigDict) -> None:
  """Checks values that would otherwise fail after minutes of work.

  Raises:
    ValueError: listing every key whose value cannot work.
  """
  problems = config_lib.Problems(config)
  expect = problems.expect

  def number(value):
    return 0 <= value < math.inf

  def count(value):
    return value >= 1 and value == int(value)

  expect("data.name", "the name of a dataset", bool)
  for key in ("batch_size", "num_classes", "image_size"):
    expect(f"data.{key}", "a positive whole number", count)
  for key in ("accumulate", "steps_per_call"):
    expect(key, "a positive whole number", count)
  expect("data.cache_gb", "a finite number from 0", number)
  ranged = ("learning_rate", "weight_decay", "l2_sp", "sam_rho")
  for key in (*ranged, *op_values(config)):
    expect(f"hyper.{key}", "a finite number from 0", number)
  expect("hyper.label_smoothing", "in [0, 1)", lambda v: 0 <= v < 1)
  if "erasing" in config.hyper:
    expect("hyper.erasing", "in [0, 1]", lambda v: 0 <= v <= 1)
  expect("hyper.layer_decay", "in (0, 1]", lambda v: 0 < v <= 1)
  expect("hyper.ema", "decays in [0, 1)", lambda v: all(0 <= d < 1 for d in v))
  expect(
    "hyper.schedule",
    f"one of {', '.join(schedules.NAMES)}",
    lambda v: v in schedules.NAMES,
  )
  expect("probe.l2", "a finite number from 0", number)
  for key in ("hyper.total", "hyper.warmup", "hyper.cooldown", "log") + (
    ("checkpoint", "probe.total")
    + (("ingredients",) * bool(config.ingredients))
  ):
    problems.attempt(steps, config, key, 1)
  if config.data.batch_size % max(config.accumulate, 1):
    problems.errors.append(
      f"accumulate={config.accumulate} does not divide data.batch_size="
      f"{config.data.batch_size}"
    )
  builders = (build_model, build_tx, build_augment, sharding_rules, _loss)
  for build in builders:
    problems.attempt(build, config)
  problems.raise_if_any()
