# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Config of a fine-tuning run: defaults, derived values, checks."""

from collections.abc import Sequence
import itertools
import json
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np

from soupjax import config as config_lib
from soupjax import files, models, sharding
from soupjax.data import batch_ops
from soupjax.models.pretrained import mappings
from soupjax.tasks import zeroshot
from soupjax.tasks.finetune import objective
from soupjax.train import adapters, optimizers, schedules
from soupjax.train import step as train_step

# Keys that all members of a sweep share, so that they start from the same
# weights and can be averaged.
SHARED = (
  *("task", "init", "zeroshot", "probe", "model", "population", "sharding"),
  "recipe",
  "tests",
  *("data.name", "data.data_dir", "data.train", "data.minival"),
  *("data.minival_per_class", "data.eval_ops", "data.image_size"),
  *("data.num_classes", "data.num_train"),
  *("adapter.kind", "adapter.family"),
)
# Exceptions among the keys below `SHARED`: they do not change the start.
FREE = ("model.dropout", "model.stochastic_depth")
# Options of a model that affect only speed, memory, precision and how leaves
# are stacked.
_SPEED = ("dtype_mm", "scan", "remat_policy", "attention")


def default_config() -> ml_collections.ConfigDict:
  """Returns the settings that all configs of this task have."""
  c = ml_collections.ConfigDict()
  c.task = "finetune"
  c.seed = 0  # For data order, augmentation and dropout, but not for the start.
  # Test sets by name, "SPLIT" or "DATASET/SPLIT". Fine-tuning records them for
  # cooking and never opens them.
  c.tests = ml_collections.ConfigDict()

  c.data = ml_collections.ConfigDict()
  c.data.name = ""
  c.data.data_dir = ""
  c.data.train = "train"
  c.data.minival = ""  # A split; empty takes minival_per_class from train.
  c.data.minival_per_class = 26
  c.data.num_classes = 1000
  c.data.num_train = 0  # For --dry_run, which opens no data; 0: unknown.
  c.data.image_size = 224
  c.data.batch_size = 512
  c.data.eval_batch_size = 0  # 0: same as batch_size.
  c.data.num_workers = 0
  # Whether to keep the decoded train set in memory, which needs train_ops
  # without random numbers. If unset, it is kept if it takes at most cache_gb.
  c.data.in_memory = ml_collections.config_dict.placeholder(bool)
  c.data.cache_gb = 8.0
  c.data.train_ops = (
    "inception_crop({image_size}, {crop_min})|flip_lr|"
    "randaug({randaug_layers}, {randaug_magnitude})|value_range(-1, 1)"
  )
  c.data.eval_ops = "resize({image_size})|value_range(-1, 1)"
  # Augmentation of batches, on the devices. A name in braces is a key of hyper
  # and is traced. An operation whose names are 0 in all members is left out.
  c.data.batch_ops = "erasing({erasing})|mixup({mixup})|cutmix({cutmix})"
  # Values of the names in train_ops.
  c.data.augment = ml_collections.ConfigDict()
  c.data.augment.crop_min = 8.0  # Percent of the image's area.
  c.data.augment.randaug_layers = 0
  c.data.augment.randaug_magnitude = 0.0

  c.model = ml_collections.ConfigDict()
  # Or "mixer", "resnet", or "clip" for recipes that compare images with texts.
  c.model.name = "vit"
  # As for `models.variant`. "init" takes all options, including the model's
  # name, from init.path.
  c.model.variant = "B/16"
  c.model.dropout = 0.0
  c.model.stochastic_depth = 0.0

  c.init = ml_collections.ConfigDict()
  c.init.path = ""  # A checkpoint; empty starts from random weights.
  # See `models.pretrained.load_pretrained`; or "zeroshot": the names of the
  # classes, embedded by the checkpoint's text tower.
  c.init.head = "auto"
  # Regular expression of leaves of the checkpoint to leave out.
  c.init.skip = ""
  # Text tower for model.name="clip": that of the "checkpoint", or a "new" one
  # with the options model.text.
  c.init.text = "checkpoint"
  # Prefix of the model's leaf names if the checkpoint has several models, such
  # as "module.base_encoder." in those of MoCo v3.
  c.init.prefix = ""
  c.init.seed = 0
  c.zeroshot = zeroshot.default_config()

  c.probe = ml_collections.ConfigDict()
  c.probe.total = "0steps"  # Of L-BFGS; 0 keeps the initial head.
  c.probe.l2 = 1e-3
  c.probe.max_examples = 0  # Spread evenly over train; 0: all.

  # These are traced, so a sweep over them compiles once, except if it turns
  # sam_rho or context on or off, or varies the number of decays. A config may
  # add keys for the names in data.batch_ops.
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
  c.hyper.context = 0.0  # For recipe="car_ft".
  c.hyper.ema = ()  # Decays, such as (0.999, 0.9999999).

  # Or "flyp", "lit", "car_ft", or a registered or imported one; may have
  # arguments, as in "flyp(mask_same_class=True)".
  c.recipe = "plain"
  c.loss = "softmax"  # Or "sigmoid", or a registered or imported one.
  c.freeze = ()  # Regular expressions of leaves that are not trained.
  # Trains an adapter and the head, and writes PEFT files beside every
  # ingredient (docs/adapters.md).
  c.adapter = ml_collections.ConfigDict()
  c.adapter.kind = ""  # "lora" or "ia3"; "" trains all weights.
  c.adapter.rank = 8
  c.adapter.alpha = 8.0
  c.adapter.targets = ""  # Regular expression of kernels; "": attention.
  c.adapter.family = ""  # Whose leaf names the files have; "": as `init.path`.
  c.decay = "."  # Regular expression of the leaves with weight decay.
  c.accumulate = 1  # Parts of a batch, whose gradients are computed in turn.
  # Steps per call of the compiled step; more than one helps if a step takes
  # only milliseconds. Ingredients along the run are saved at multiples of it.
  c.steps_per_call = 1
  c.optimizer = ml_collections.ConfigDict()
  c.optimizer.name = "adamw"
  c.optimizer.clip_norm = 1.0

  c.log = "50steps"
  c.checkpoint = "1000steps"  # Interval of train states, to resume from.
  # Interval at which to save ingredients along the run, such as "1epochs"; "":
  # only at the end.
  c.ingredients = ""
  c.population = 0  # Members of a sweep that are trained at once; 0: one.

  c.sharding = ml_collections.ConfigDict()
  c.sharding.mesh = {"data": -1}
  c.sharding.preset = "replicated"  # Or "fsdp", "tensor".
  # Pairs of a regular expression and a rule, tried before the preset's; see
  # `sharding.of_state`.
  c.sharding.rules = ()
  c.sharding.fsdp_min_size = 2**20
  return c


def part_of_start(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns arguments for `pretrained` that select the start's leaves."""
  c = config.init
  return {"skip": [c.skip] if c.skip else [], "prefix": c.prefix}


def detect_start(
  config: ml_collections.ConfigDict, *, text: bool = False
) -> models.pretrained.Detected:
  """Detects the model of `init.path`; see `pretrained.detect`."""
  return models.pretrained.detect(
    config.init.path, **part_of_start(config), text=text
  )


def with_model_of_start(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """Replaces `model.variant="init"` by the options of the model of `init.path`.

  For a checkpoint that a soupjax run wrote, these are the options in the run's
  config, whose model may be user code; for others, they are detected. `config`
  sets the number of classes, and options that the checkpoint leaves open.

  Raises:
    ValueError: if `init.path` is empty, or `model.name` is neither that of its
      model nor the default, "vit".
  """
  if config.model.get("variant") != "init":
    return config
  c = config.init
  if not c.path:
    raise ValueError(
      "model.variant='init' is the model of init.path, which is empty: give "
      "--config.init.path, or a variant such as B/16."
    )
  recorded = None if c.text == "new" else _recorded_model(c.path)
  if recorded and config.model.name in ("vit", recorded["name"]):
    free = {
      k: v
      for k, v in config.model.to_dict().items()
      if k in recorded and (f"model.{k}" in FREE or k in _SPEED)
    }
    return _with_model(config, {**recorded, **free})
  is_clip = config.model.name == "clip"
  text = is_clip and c.text != "new"
  found = detect_start(config, text=text)
  name = "clip" if is_clip and found.model == "vit" else found.model
  if config.model.name not in ("vit", name):
    raise ValueError(
      f"model.variant='init' with model.name={config.model.name!r}, but "
      f"{c.path} is of {found.family!r}: leave model.name out."
    )
  known = dict(found.options)
  if is_clip:
    known = _towers(config, known if text else {"image": known})
  else:
    known.pop("num_classes", None)
    # A layer that the checkpoint lacks is absent, rather than left open.
    absent = {"proj_size", "rep_size"} & set(config.model) - set(known)
    known |= dict.fromkeys(absent if name == "vit" else (), 0)
  known = {k: v for k, v in known.items() if v is not None}
  given = config.model.to_dict()
  return _with_model(config, {**given, "name": name, "variant": "", **known})


def _with_model(config, model: dict[str, Any]) -> ml_collections.ConfigDict:
  resolved = ml_collections.ConfigDict(config.to_dict())
  resolved.model = ml_collections.ConfigDict(model)
  return resolved.lock()


def _recorded_model(path: str) -> dict[str, Any] | None:
  """Returns config.model of the run that wrote a checkpoint; None if unknown.

  Recognises RUN/ingredients/NAME/params and RUN/initial/params of fine-tuning
  runs, and the folders between RUN and `params`.
  """
  for folder in itertools.islice(files.path_of(path).parents, 3):
    record = folder / "config.json"
    if record.exists():
      recorded = files.read_json(record)
      if isinstance(recorded, dict) and recorded.get("task") == "finetune":
        return recorded["model"]
  return None


def _towers(config, known: dict[str, Any]) -> dict[str, Any]:
  """Merges known options of both towers with those of the config."""
  given = config.model.to_dict()
  for tower in ("image", "text"):
    own = {k: v for k, v in given.get(tower, {}).items() if v is not None}
    known[tower] = {**known.get(tower, {}), **own}
  if config.init.text == "new":
    image = known["image"]
    image.pop("num_classes", None)
    size = image.get("proj_size") or image.get("rep_size") or image["width"]
    known["text"].setdefault("proj_size", size)
  return known


def build_model(config: ml_collections.ConfigDict) -> nn.Module:
  """Builds the model that a config names.

  Raises:
    ValueError: if the model, its variant or an option is unknown.
  """
  options = config.model.to_dict()
  return models.build(
    options.pop("name"), num_classes=config.data.num_classes, **options
  )


def build_tx(config: ml_collections.ConfigDict):
  """Builds the optimizer that a config names; see `optimizers.make`."""
  options = config.optimizer.to_dict()
  return optimizers.make(options.pop("name"), **options)


def adapter_of(config: ml_collections.ConfigDict) -> adapters.Adapter | None:
  """Returns the adapter that a config trains; None if it trains the model."""
  options = config.adapter.to_dict()
  del options["family"]
  return adapters.Adapter(**options) if options["kind"] else None


def frozen(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """Returns regular expressions of the leaves that are not trained."""
  adapter = adapter_of(config)
  locked = objective.recipe_of(config).frozen
  return (*config.freeze, *locked, *([adapter.frozen] if adapter else []))


def sharding_rules(config: ml_collections.ConfigDict) -> list[tuple[str, Any]]:
  """Returns the (regex, rule) pairs of a config, its own before the preset's.

  Raises:
    ValueError: if the preset is unknown.
  """
  presets = {
    "replicated": [],
    "fsdp": [(".", "fsdp")],
    "tensor": list(sharding.TENSOR_PARALLEL),
  }
  preset = config.sharding.preset
  if preset not in presets:
    raise ValueError(
      f"sharding.preset={preset!r} must be one of {', '.join(presets)}."
    )
  return [*(tuple(pair) for pair in config.sharding.rules), *presets[preset]]


def ops(config: ml_collections.ConfigDict, which: str) -> str:
  """Fills in the names in braces of `data.train_ops` or `data.eval_ops`.

  Raises:
    ValueError: if a name is unknown.
  """
  values = {"image_size": config.data.image_size}
  values |= config.data.augment.to_dict()
  try:
    return config.data[which].format(**values)
  except (KeyError, IndexError, ValueError) as e:
    raise ValueError(
      f"data.{which}={config.data[which]!r} has {e} in braces. Valid names are "
      f"{', '.join(values)}."
    ) from e


def op_values(config: ml_collections.ConfigDict) -> dict[str, float]:
  """Returns the hyperparameters that `data.batch_ops` may name."""
  known = {"total", "warmup", "cooldown", "ema"}
  known |= set(train_step.Hyper.__dataclass_fields__)
  return {k: v for k, v in config.hyper.to_dict().items() if k not in known}


def off(configs: Sequence[ml_collections.ConfigDict]) -> tuple[str, ...]:
  """Lists the hyperparameters of `data.batch_ops` that are 0 in all configs."""
  values = [op_values(config) for config in configs]
  return tuple(sorted(k for k in values[0] if not any(v[k] for v in values)))


def shared_options(
  configs: Sequence[ml_collections.ConfigDict],
) -> dict[str, Any]:
  """Returns the options of `compile_step` that depend on all members."""
  l2_sp = any(config.hyper.l2_sp > 0 for config in configs)
  return {"off": off(configs), "l2_sp": l2_sp}


def build_augment(config: ml_collections.ConfigDict, off: Sequence[str] = ()):
  """Builds the augmentation of `data.batch_ops`; see `batch_ops.batch_augment`.

  Args:
    config: the config of one member.
    off: hyperparameters that are 0 in all members, from `off`.

  Raises:
    ValueError: if an operation or a name in braces does not exist.
  """
  return batch_ops.batch_augment(
    config.data.batch_ops, names=tuple(op_values(config)), off=tuple(off)
  )


def eval_batch_size(config, devices: int) -> int:
  """Returns the evaluation batch size, rounded up for a number of devices."""
  size = config.data.eval_batch_size or config.data.batch_size
  return rounded_up(size, devices)


def rounded_up(size: int, devices: int) -> int:
  """Rounds a size up to a multiple of `devices`."""
  return -(-size // devices) * devices


def steps(config, key: str, num_train: int | None) -> int:
  """Returns a duration of the config, such as "hyper.total", in steps."""
  return config_lib.steps(
    config_lib.value_of(config, key),
    batch_size=config.data.batch_size,
    num_examples=num_train,
    name=key,
  )


def check_lengths(config, num_train: int, name: str) -> None:
  """Checks that durations fit together.

  Args:
    config: the config of a member.
    num_train: number of images to train on.
    name: name of the member, for errors.

  Raises:
    ValueError: if warmup and cooldown exceed the run, or the interval of
      ingredients is not a multiple of `steps_per_call`.
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
      f"together more than hyper.total, {total} steps: the rate would never "
      f"reach hyper.learning_rate. Shorten them ({num_train} images to train "
      "on)."
    )


def hyper(config, num_train: int) -> train_step.Hyper:
  """Converts `config.hyper` to numpy arrays, and its durations to steps."""
  for_ops = op_values(config)
  values = {k: v for k, v in config.hyper.to_dict().items() if k not in for_ops}
  total = steps(config, "hyper.total", num_train)
  for name in ("total", "warmup", "cooldown"):
    del values[name]
    count = steps(config, f"hyper.{name}", num_train)
    values[f"{name}_steps"] = min(count, total)
  hyper = train_step.Hyper.of(op_values=for_ops, **values)
  return jax.tree.map(np.asarray, hyper)


def static(config, *, off: Sequence[str], l2_sp: bool) -> str:
  """Serialises the settings that a compiled step depends on.

  Members with equal strings share one compiled step.
  """
  keys = (
    "model",
    "optimizer",
    "recipe",
    "loss",
    "freeze",
    "adapter",
    "decay",
    "accumulate",
  )
  keys += ("data.batch_size", "data.batch_ops", "steps_per_call")
  values = config_lib.to_dict(config)
  parts = [
    *(config_lib.value_of(values, key) for key in keys),
    *(config.hyper.sam_rho > 0, len(config.hyper.ema), list(off), l2_sp),
    config.hyper.context > 0,
  ]
  return json.dumps(parts, sort_keys=True)


def member_config(
  config: ml_collections.ConfigDict, overrides: dict[str, Any], k: int
) -> ml_collections.ConfigDict:
  """Applies the overrides of one member of a sweep.

  Raises:
    ValueError: if an override changes a key that all members must share, does
      not exist, or has the wrong type.
  """
  for key in overrides:
    shared = any(key == s or key.startswith(f"{s}.") for s in SHARED)
    if shared and key not in FREE:
      raise ValueError(
        f"Member {k} of the sweep changes {key}, but members must start from "
        "the same weights to be averaged. Use another --workdir."
      )
  return config_lib.updated(config, overrides, what=f"Member {k} of the sweep")


def _check_zeroshot(config: ml_collections.ConfigDict) -> None:
  """Raises a ValueError if the model cannot start from a zero-shot head."""
  if not config.init.path:
    raise ValueError(
      "init.head='zeroshot' needs init.path, a checkpoint with a text tower"
    )
  if not config.model.get("normalize"):
    raise ValueError(
      "init.head='zeroshot' needs model.normalize=True: the features of CLIP "
      "are scaled to length 1 before the head"
    )


def _check_recipe(config, problems: config_lib.Problems) -> None:
  """Adds settings that do not work with `recipe`; raises if it is unknown."""
  if config.model.name == "clip":
    problems.attempt(zeroshot.check, config.zeroshot)
  objective.recipe_of(config)
  if problems.errors:
    return  # The model might not build.
  problems.errors += objective.problems(
    config, build_model(config), ops(config, "train_ops"), off([config])
  )


def check(config: ml_collections.ConfigDict) -> None:
  """Checks values that would otherwise fail after minutes of work.

  Raises:
    ValueError: if a value is invalid. The message lists all invalid keys.
  """
  problems = config_lib.Problems(config)
  expect = problems.expect
  expect("data.name", "the name of a dataset", bool)
  problems.expect_counts("data.batch_size", "data.num_classes")
  problems.expect_counts("data.image_size", "accumulate", "steps_per_call")
  problems.expect_numbers("data.cache_gb", "probe.l2")
  ranged = ("learning_rate", "weight_decay", "l2_sp", "sam_rho", "context")
  problems.expect_numbers(
    *(f"hyper.{k}" for k in (*ranged, *op_values(config)))
  )
  expect("hyper.label_smoothing", "in [0, 1)", lambda v: 0 <= v < 1)
  if "erasing" in config.hyper:
    expect("hyper.erasing", "in [0, 1]", lambda v: 0 <= v <= 1)
  expect("hyper.layer_decay", "in (0, 1]", lambda v: 0 < v <= 1)
  expect("hyper.ema", "decays in [0, 1)", lambda v: all(0 <= d < 1 for d in v))
  names = ", ".join(schedules.NAMES)
  expect("hyper.schedule", f"one of {names}", lambda v: v in schedules.NAMES)
  durations = ["hyper.total", "hyper.warmup", "hyper.cooldown"]
  durations += ["log", "checkpoint", "probe.total"]
  for key in durations + ["ingredients"] * bool(config.ingredients):
    problems.attempt(steps, config, key, 1)
  if config.adapter.kind:
    kinds = adapters.KINDS
    expect("adapter.kind", f"one of {', '.join(kinds)}", lambda v: v in kinds)
    problems.expect_counts("adapter.rank")
    expect("adapter.alpha", "a positive number", lambda v: v > 0)
    expect("hyper.l2_sp", "0 with an adapter", lambda v: v == 0)
    families = sorted(mappings.FAMILIES)
    expect(
      "adapter.family",
      f"one of {', '.join(families)}",
      lambda v: not v or v in families,
    )
  if config.data.batch_size % max(config.accumulate, 1):
    problems.errors.append(
      f"accumulate={config.accumulate} does not divide data.batch_size="
      f"{config.data.batch_size}"
    )
  for build in (build_model, build_tx, build_augment, sharding_rules):
    problems.attempt(build, config)
  texts = ("checkpoint", "new")
  expect("init.text", f"one of {', '.join(texts)}", lambda v: v in texts)
  problems.attempt(_check_recipe, config, problems)
  if config.init.head == "zeroshot":
    problems.attempt(zeroshot.check, config.zeroshot)
    problems.attempt(_check_zeroshot, config)
  problems.raise_if_any()
