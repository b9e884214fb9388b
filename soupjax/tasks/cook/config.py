# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Settings of cooking: defaults, values recorded by a sweep, checks."""

from collections.abc import Sequence
import dataclasses
import fnmatch
import itertools
import math
import os
import re
from typing import Any

from absl import logging
import flax.linen as nn
import ml_collections

from soupjax import config as config_lib
from soupjax import data, evaluators, files, models, registry
from soupjax.evaluators import label_spaces
from soupjax.models.pretrained import mappings
from soupjax.tasks import zeroshot
from soupjax.tasks.finetune import config as finetune_config

LEARNED = ("model", "layer", "tensor")
# Names that reports use for other sets, so that test sets cannot have them.
SHIFTS = "shifts"
_RESERVED = ("minival", SHIFTS)

# Options of our models that may differ between checkpoints of other libraries,
# or that control the computation.
_OPTIONS = (
  *("patch_size", "width", "depth", "mlp_dim", "num_heads", "posemb"),
  *("pool_type", "class_token", "rep_size", "proj_size", "act", "norm_eps"),
  *("pre_norm", "post_norm", "final_norm", "fc_norm", "patch_bias"),
  *("qkv_bias", "qk_norm", "attention_norm", "gated", "mlp_norm"),
  *("layer_scale", "registers", "distilled", "distilled_head", "normalize"),
  *("pool_prefix", "pool_heads", "pool_mlp_dim", "rope", "rope_grid"),
  *("attention", "scan", "dtype_mm"),
  *("tokens_dim", "channels_dim", "depths", "conv_eps"),
)
# Types of options that may be None, and their types when set.
_KINDS = {
  int | None: int,
  str | None: str,
  bool | None: bool,
  tuple[int, ...]: tuple,
}


def default_config() -> ml_collections.ConfigDict:
  """Returns all settings of the task "cook" with their defaults."""
  c = ml_collections.ConfigDict()
  c.task = "cook"
  c.seed = 0  # For the order of held-out images in learned soups.
  c.ingredients = ""  # A pattern, or several joined by commas.
  # The base model, if ingredients are PEFT adapters; "" is `initial`.
  c.base = ""
  # The model, with a head, from which all were fine-tuned, for WiSE-FT; or "".
  c.initial = ""
  # Describes the head of `initial`, such as "linear probe"; "" is unknown.
  c.initial_head = ""
  c.family = ""  # Of the checkpoints, see docs/pretrained.md; "" detects it.
  # Regular expression for leaves of the files to leave out, such as a decoder.
  c.skip = ""
  # Prefix of the model's leaf names in files with several models, such as
  # "module.base_encoder." of MoCo v3. Also used for `initial`, if it occurs.
  c.prefix = ""
  # Name -> "SPLIT" of data.name, or "DATASET/SPLIT". "test" is the test set,
  # and all others are shifts; nothing is chosen on them. From the shell:
  # --config.tests=test=validation,sketch=imagenet_sketch/test
  # A value may end in ":classes=" and "all", "present" (those that occur), a
  # file with one class per line, or names such as "cat+dog": metrics are taken
  # over these outputs only. Image operations may follow, to apply before
  # eval_ops:
  # --config.tests='test=test,fog=test|corrupt("fog", 3)'
  # ":map=FILE" maps several outputs to one class, and ":labels=FILE" gives
  # several right labels (docs/cook.md). ":names=NAMES" evaluates classes that
  # the models lack with a zero-shot head; NAMES is a file, names such as
  # "cat+dog", or "own" for those of the dataset (docs/clip.md). A dict has the
  # keys "split", "classes", "map", "labels", "names" and "ops".
  c.tests = config_lib.NamedTexts()
  # Name -> test sets joined by "+", or a pattern such as "c_*", to report their
  # unweighted mean. "shifts" replaces the mean over all sets but test:
  # --config.means=shifts=v2+r+sketch+objectnet+a
  # For sets with names such as c_fog_3, 15 corruptions at five severities, the
  # mean corruption error (mCE) is also reported.
  c.means = config_lib.NamedTexts()

  c.data = ml_collections.ConfigDict()
  c.data.name = ""
  c.data.data_dir = ""
  c.data.train = "train"  # Minival is a part of it if data.minival is "".
  c.data.minival = ""
  c.data.minival_per_class = 26
  # 0 and "" stand for the value found in the checkpoints or files beside them.
  c.data.num_classes = 0
  c.data.image_size = 0
  c.data.eval_ops = ""
  # The order of the models' outputs: "text", "natural" (as timm sorts folders),
  # or a file with one class per line. "": as in config.json, or else "text".
  c.data.classes = ""
  c.data.augment = ml_collections.ConfigDict()
  c.data.batch_size = 256
  # Decoded images are kept in memory, minival first, up to this size; sets that
  # do not fit are decoded again for every model.
  c.data.cache_gb = 8.0

  # Options of `models.ViT`, `Mixer` or `ResNet`. The class and all options that
  # are not set are detected (docs/cook.md).
  c.model = ml_collections.ConfigDict({"name": "vit", "variant": ""})
  classes = (models.ViT, models.Mixer, models.ResNet)
  for field in itertools.chain(*map(dataclasses.fields, classes)):
    if field.name in _OPTIONS and field.name not in c.model:
      kind = _KINDS.get(field.type, field.type)
      c.model[field.name] = ml_collections.config_dict.placeholder(kind)
  c.sharding = finetune_config.default_config().sharding
  # Class names and prompts for whole CLIPs, which have no head (docs/clip.md).
  c.zeroshot = zeroshot.cooking_config()

  # Leaves that soups do not average like the others, as in configs/mix.py, such
  # as "head/kernel=keep,head/bias=[0, 1, 0]"; the base is `initial`.
  c.select = ""

  # Your own program in place of a dataset, such as
  # "python my_eval.py {checkpoint}" (docs/judge.md): its last line of output is
  # a JSON object of metrics, or names a file with one. Then cook.metric is one
  # of these metrics, and `data`, `tests` and `model` are not used.
  c.evaluate_command = ""
  c.evaluate_timeout = 0.0  # Seconds for one checkpoint; 0 is no limit.
  c.evaluate_retries = 1  # Further attempts after a failure.
  c.evaluate_jobs = 1  # Programs that run in parallel.
  # Words that mark metrics where lower is better, such as "val_loss".
  c.evaluate_lower = (
    "loss,error,nll,perplexity,ppl,mse,rmse,mae,fid,wer,cer,ece"
  )

  c.cook = ml_collections.ConfigDict()
  # On minival: "prec@1", "loss", a registered metric or an import path. With
  # "loss,prec@1", the first ranks the ingredients and makes the soup "greedy";
  # each further metric makes another greedy soup, here "greedy_prec1".
  c.cook.metric = "prec@1"
  c.cook.greedy = {"accept": "ge", "min_delta": 0.0, "early_reject": True}
  c.cook.learned = {
    "granularities": ("layer",),
    "steps": 100,
    "learning_rate": 0.1,
    "batch_size": 256,
    # Ingredients are kept in memory up to this size; 0 reads all of them in
    # every step, and -1 allows half of the free memory.
    "memory_gb": -1.0,
  }
  c.cook.wise_ft_points = 5  # Values of alpha from 0 to 1; 0 for none.
  # Checkpoints along one run, as paths and patterns joined by commas. The soup
  # "window" averages the last of them, as many as are best on minival. "{run}"
  # is the directory of the best ingredient:
  # --config.cook.window='{run}/step_*,{run}/last'
  c.cook.window = ""
  # Ensembles are made if the logits of all ingredients fit into this size.
  c.cook.ensembles_gb = 8.0
  # Calibration errors of all models, with and without a temperature fitted on
  # minival. Holds the logits of one set at a time in memory.
  c.cook.calibration = True
  # A JSON or CSV file with accuracies of other models on test and shifts, for
  # effective robustness (docs/cook.md); "" uses the ingredients.
  c.cook.baselines = ""
  return c


def of_sweep(
  config: ml_collections.ConfigDict, directory: str, which: str = "last"
) -> None:
  """Fills in the settings that a sweep of task "finetune" recorded.

  Args:
    config: from `default_config`; changed in place.
    directory: the sweep's `--workdir`.
    which: the name of each member's ingredient, such as "last" or
      "last_ema_0.999".

  Raises:
    ValueError: if the directory is not that of a fine-tuning run.
  """
  root = files.path_of(directory)
  record = root / "config.json"
  if not record.exists():
    raise ValueError(
      f"{root} has no config.json: give the --workdir of a fine-tuning sweep, "
      "or describe the checkpoints with --config.ingredients, --config.model "
      "and --config.data."
    )
  recorded = files.read_json(record)
  task = recorded.get("task") if isinstance(recorded, dict) else None
  if task != "finetune":
    raise ValueError(
      f"{root} is a run of task {task!r}, but sweep= needs task 'finetune'."
    )
  config.model = ml_collections.ConfigDict(recorded["model"])
  for part in ("data", "sharding"):
    known = set(config[part]) - {"augment"}
    values = {k: v for k, v in recorded[part].items() if k in known}
    config[part].update(values)
  if recorded["data"].get("eval_batch_size"):
    config.data.batch_size = recorded["data"]["eval_batch_size"]
  config.tests = config_lib.NamedTexts(recorded.get("tests") or {})
  probed = float(re.match(r"[\d.]*", recorded["probe"]["total"])[0] or 0) > 0
  init = recorded.get("init", {})
  named = init.get("head") == "zeroshot"
  whole = recorded["model"]["name"] == "clip"
  if named or whole:
    config.zeroshot.update(recorded["zeroshot"])
  zero_shot = named or (whole and init["text"] != "new")
  if zero_shot and not (whole and init.get("prefix")):
    config.zeroshot.text, config.zeroshot.skip = init["path"], init["skip"]
  if whole:
    config.zeroshot.vocabulary = config.zeroshot.vocabulary or init["path"]
  config.initial_head = "zero-shot" if zero_shot else ""
  if probed:
    config.initial_head = "linear probe"
  missing = [
    member.name
    for member in sorted(root.glob("member_*"))
    if not (member / "ingredients" / which).exists()
  ]
  if missing:
    logging.warning(
      "%s: the soups leave out %s (no ingredients/%s yet).",
      root,
      ", ".join(missing),
      which,
    )
  config.ingredients = os.path.join(root, "member_*", "ingredients", which)
  config.initial = os.path.join(root, "initial")


def means(config: ml_collections.ConfigDict) -> dict[str, tuple[str, ...]]:
  """Returns name -> test sets of `config.means`, including "shifts".

  If `config.means` does not define "shifts", these are all sets except "test",
  those of other means, and those with class names of their own.

  Raises:
    ValueError: if a set is unknown or a name is that of a set.
  """
  sets = list(config.tests)
  result: dict[str, tuple[str, ...]] = {}
  for name, text in config.means.items():
    if name in sets or name == "minival":
      raise ValueError(
        f"means.{name}: this is the name of a set; choose another"
      )
    members: dict[str, None] = {}
    for part in map(str.strip, str(text).split("+")):
      matches = [s for s in sets if fnmatch.fnmatchcase(s, part)]
      if not matches:
        raise ValueError(
          f"means.{name}: {part!r} is not a test set"
          f"{registry.suggestion(part, sets)}"
        )
      members |= dict.fromkeys(matches)
    result[name] = tuple(members)
  if SHIFTS not in result:
    used = {"test", *_with_names(config)}.union(*result.values())
    if rest := tuple(s for s in sets if s not in used):
      result[SHIFTS] = rest
  return result


def _with_names(config: ml_collections.ConfigDict) -> list[str]:
  """Returns the test sets with class names of their own."""
  return [
    name
    for name, value in config.tests.items()
    if (
      value.get("names")
      if isinstance(value, (dict, ml_collections.ConfigDict))
      else ":names=" in str(value).partition("|")[0]
    )
  ]


def corruptions_of(sets: Sequence[str]) -> dict[tuple[str, int], str]:
  """Returns (corruption, severity) -> set, for names such as "c_fog_3".

  Returns {} unless the sets are exactly the 75 of the mCE.
  """
  found = {}
  for name in sets:
    for corruption in label_spaces.ALEXNET:
      match = re.fullmatch(rf"(?:.*_)?{corruption}_([1-5])", name)
      if match:
        found[corruption, int(match[1])] = name
  full = 5 * len(label_spaces.ALEXNET)
  return found if len(found) == full == len(sets) else {}


@dataclasses.dataclass(frozen=True)
class TestSet:
  """An entry of `config.tests`.

  Attributes:
    dataset: the name for `data.open_source`.
    split: the split of the dataset.
    classes: the `option` of `classes.evaluated`; "" if it is not given.
    ops: image operations before `data.eval_ops`; "" for none.
    map: a file with the outputs of each class, see `label_spaces.read_map`; ""
      for none.
    labels: a file with the right labels of each image, see
      `label_spaces.read_answers`; "" for none.
    names: class names, as in `heads.unseen_head`; "" if the set has the models'
      classes.
  """

  __test__ = False  # Not a test for pytest.

  dataset: str
  split: str
  classes: str | tuple[str, ...] = ""
  ops: str = ""
  map: str = ""
  labels: str = ""
  names: str | tuple[str, ...] = ""


def tests(config: ml_collections.ConfigDict) -> dict[str, TestSet]:
  """Returns name -> entry of `config.tests`.

  Raises:
    ValueError: if a name is reserved, a value is not a split, an operation is
      unknown or random, or two names stand for the same set.
  """
  sets: dict[str, TestSet] = {}
  names: dict[TestSet, str] = {}
  for name, value in config.tests.items():
    if name in _RESERVED:
      raise ValueError(f"tests.{name}: this name is reserved; choose another")
    place, options = _parse_test(name, value)
    dataset, _, split = place.rpartition("/")
    if not (dataset or config.data.name):
      raise ValueError(
        f"tests.{name}={place!r} has no dataset: write DATASET/{split}, or "
        "give data.name"
      )
    if not split or not re.fullmatch(r"[\w-]+", name):
      raise ValueError(
        f"tests.{name}={place!r}: use letters, digits, - and _ for the name, "
        "and as value SPLIT or DATASET/SPLIT, such as 'imagenet_sketch/test'"
      )
    sets[name] = TestSet(dataset or config.data.name, split, **options)
    other = names.setdefault(sets[name], name)
    if other != name:
      raise ValueError(
        f"tests.{other} and tests.{name} are the same set, {place!r}, which "
        "would count twice in means: remove one of them"
      )
  return sets


def _parse_test(name: str, value: Any) -> tuple[str, dict[str, Any]]:
  """Returns "SPLIT" or "DATASET/SPLIT", and the other fields of a `TestSet`.

  Args:
    name: the name of the set, for errors.
    value: "SPLIT:classes=CLASSES|OPS", of which only SPLIT is needed, or SPLIT
      with ":map=FILE", ":labels=FILE" or ":names=NAMES"; or a dict with "split"
      and fields of `TestSet`.

  Raises:
    ValueError: if a dict has other keys, fields exclude each other, or an
      operation is unknown or random.
  """
  exclusive = ("classes", "map", "labels", "names")
  keys = (*exclusive, "ops")
  if isinstance(value, (dict, ml_collections.ConfigDict)):
    options = dict(value)
    place = str(options.pop("split", ""))
    if not place or set(options) - set(keys):
      raise ValueError(
        f"tests.{name} has the keys {sorted(value)}: give 'split', such as "
        f"'imagenet_a/test', and any of {', '.join(keys)}"
      )
  else:
    text, _, ops = str(value).partition("|")
    place, *given = re.split(f":(?=(?:{'|'.join(keys)})=)", text)
    options = dict(part.split("=", 1) for part in given)
    options["ops"] = "|".join(filter(None, [options.get("ops"), ops]))
    for key in ("classes", "names"):
      if "+" in options.get(key, ""):
        options[key] = [p.strip() for p in options[key].split("+")]
  if sum(bool(options.get(key)) for key in exclusive) > 1:
    raise ValueError(
      f"tests.{name} has {', '.join(sorted(options))}: classes, map, labels "
      "and names exclude each other"
    )
  for key in ("classes", "names"):
    if not isinstance(options.get(key, ""), str):
      options[key] = tuple(map(str, options[key]))
  try:
    prepared = data.Preprocess(options.get("ops", ""))
  except ValueError as e:
    raise ValueError(f"tests.{name}: {e}") from e
  if prepared.random_ops or prepared.values.dtype != "uint8":
    raise ValueError(
      f"tests.{name}: {options['ops']!r} comes before data.eval_ops, so it "
      "must neither draw random numbers nor set a value range"
    )
  return place, options


def metrics(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """Returns the metrics of `cook.metric`; the first one ranks ingredients.

  Raises:
    ValueError: if one is unknown, given twice, or not on minival.
  """
  names = [name.strip() for name in config.cook.metric.split(",")]
  if config.evaluate_command:
    names = [name.removeprefix("minival/") for name in names]
    for name in names:
      if not name or "/" in name:
        raise ValueError(
          f"cook.metric={config.cook.metric!r}: only metrics on minival can "
          "decide. Let the program print NAME or minival/NAME, and give NAME."
        )
  for name in names if not config.evaluate_command else ():
    evaluators.get_metric(name)
  safe = [greedy_name(names, name) for name in names]
  if len(set(safe)) < len(names):
    raise ValueError(f"cook.metric={config.cook.metric!r} has a metric twice")
  return tuple(names)


def mode(config: ml_collections.ConfigDict, metric: str) -> str:
  """Returns "max" if higher values of a metric are better, else "min"."""
  if not config.evaluate_command:
    return evaluators.get_metric(metric).mode
  lower = {word.strip() for word in config.evaluate_lower.split(",")}
  words = {metric, *re.split(r"[^a-z0-9@]+", metric.lower())}
  return "min" if words & lower else "max"


def record_of(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns a config to record, with default limits on running commands.

  These may change when a run is continued, since results do not depend on them.
  """
  record = ml_collections.ConfigDict(config.to_dict())
  default = default_config()
  for key in ("evaluate_timeout", "evaluate_retries", "evaluate_jobs"):
    record[key] = default[key]
  return record


def greedy_name(names: Sequence[str], name: str) -> str:
  """Returns the name of the greedy soup by a metric, safe as a file name."""
  if name == names[0]:
    return "greedy"
  return "greedy_" + re.sub(r"\W", "", name.rpartition(".")[2])


def eval_ops(config: ml_collections.ConfigDict, before: str = "") -> str:
  """Returns `data.eval_ops` with its numbers filled in.

  Args:
    config: the config of the run.
    before: operations of a test set to apply first; "" for none.
  """
  return "|".join(
    filter(None, [before, finetune_config.ops(config, "eval_ops")])
  )


def build_model(config: ml_collections.ConfigDict) -> nn.Module:
  """Builds the model from the options of `config.model` that are set.

  Raises:
    ValueError: if the model, the variant or an option is unknown.
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
    ValueError: listing every key with an invalid value.
  """
  problems = config_lib.Problems(config)
  expect = problems.expect

  expect("ingredients", "a path with *, or several paths", bool)
  if not config.evaluate_command and config.task != "evaluate":
    expect("data.name", "the name of a dataset", bool)
  problems.expect_counts("evaluate_jobs")
  problems.expect_counts("evaluate_retries", least=0)
  problems.expect_numbers("evaluate_timeout")
  problems.expect_counts("data.num_classes", "data.image_size", least=0)
  problems.expect_counts("data.batch_size", "cook.learned.steps")
  problems.expect_counts("cook.learned.batch_size")
  for key in ("data.cache_gb", "cook.ensembles_gb"):
    expect(key, "at least 0", lambda v: v >= 0)
  expect("cook.greedy.accept", "'ge' or 'gt'", lambda v: v in ("ge", "gt"))
  expect("cook.greedy.min_delta", "a finite number", math.isfinite)
  expect(
    "cook.learned.granularities",
    f"distinct values among {', '.join(LEARNED)}",
    lambda v: set(v) <= set(LEARNED) and len(set(v)) == len(v),
  )
  expect(
    "cook.learned.learning_rate", "positive and finite",
    lambda v: 0 < v < math.inf,
  )  # fmt: skip
  expect(
    "cook.learned.memory_gb", "at least 0, or -1",
    lambda v: v >= 0 or v == -1,
  )  # fmt: skip
  expect("cook.wise_ft_points", "0, or at least 2", lambda v: v == 0 or v >= 2)
  expect(
    "family",
    f"one of {', '.join(mappings.FAMILIES)}, or empty",
    lambda v: not v or v in mappings.FAMILIES,
  )
  parts = (build_model, tests, means, metrics, eval_ops)
  if config.evaluate_command:
    parts = (metrics,)
  for check_part in parts:
    problems.attempt(check_part, config)
  problems.attempt(finetune_config.sharding_rules, config)
  problems.raise_if_any()
