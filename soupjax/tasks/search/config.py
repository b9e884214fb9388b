# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Settings of searches: defaults, tasks with frozen heads, checks."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import re
from typing import Any

import ml_collections

from soupjax import config as config_lib
from soupjax import data
from soupjax.evaluators import command
from soupjax.models.pretrained import mappings
from soupjax.registry import suggestion
from soupjax.tasks import zeroshot
from soupjax.tasks.cook import config as cook_config
from soupjax.tasks.finetune import config as finetune_config

# "merged" heads are averaged like other leaves; all others are frozen.
HEADS = ("merged", "own", "initial", "probe", "zeroshot")
_KEYS = ("train", "minival", "test", "head", "model", "ops")
# Keys of tasks that a command evaluates.
_JUDGED_KEYS = ("test", "model")
# Keys shared with the config of cooking.
_SHARED = (
  *("seed", "ingredients", "base", "initial", "family"),
  *(
    "skip",
    "prefix",
    "data",
    "model",
    "sharding",
    "select",
  ),
  *(f"evaluate_{key}" for key in ("command", "timeout", "retries", "jobs")),
  "evaluate_lower",
)
_UNUSED_DATA = ("name", "train", "minival")
_LEARNED = {"granularity": "layer", "steps": 200, "learning_rate": 0.0}
_LEARNED |= {"batch_size": 64, "memory_gb": -1.0, "choose_on": ""}
_PATCHING = {"points": 11, "patching": "", "supported": ""}
_CURVE = {"points": 11, "most": 1.0, "show": ""}
_POOL = {"average": "greedy", "choose_on": ""}
# Method -> the options under `config.search`; docs/search.md explains them.
OPTIONS: dict[str, dict[str, Any]] = {
  "wise_ft": {"points": 11, "choose_on": "", "show": ""},
  "addition": {**_CURVE, "points": 21},
  "negation": {
    **{**_CURVE, "points": 21, "forget": "", "control": "", "keep": 0.95},
  },
  "analogy": {**_CURVE, "a": "", "b": "", "c": "", "choose_on": ""},
  "paint": {**_PATCHING, "show": ""},
  "paint_sequential": _PATCHING,
  "paint_parallel": {**_PATCHING, "budget": 50},
  "diwa": _POOL,
  "ratatouille": _POOL,
  "depth": {
    **{"knots": 3, "most": 1.0, "points": 6, "budget": 40, "choose_on": ""},
  },
  "window": {"kinds": "uniform", "choose_on": ""},
  "schedule": {
    "kinds": "uniform+linear+minus-sqrt+ema:0.9",
    "choose_on": "",
  },
  "signed": _LEARNED,
  "entropy": _LEARNED,
  "ties": {
    "rule": "ties",
    "ranges": "density=0.05..1,scale=0..2",
    "budget": 30,
    "choose_on": "",
  },
  "dare": {
    "rule": "dare",
    "ranges": "density=0.05..1,scale=0..2",
    "budget": 30,
    "choose_on": "",
  },
  "rule": {"rule": "", "ranges": "", "budget": 30, "choose_on": ""},
}
# Options that name tasks.
_NAMING = {"choose_on", "forget", "patching", "supported"}


def default_config(method: str = "wise_ft") -> ml_collections.ConfigDict:
  """Returns all settings of a search.

  Args:
    method: a key of `OPTIONS`, whose options become the keys of `c.search`.

  Raises:
    ValueError: if the method is unknown.
  """
  if method not in OPTIONS:
    raise ValueError(
      f"There is no search {method!r}{suggestion(method, OPTIONS)}"
    )
  cook = cook_config.default_config()
  c = ml_collections.ConfigDict()
  c.task = "search"
  c.method = method
  for key in _SHARED:
    c[key] = cook[key]
  for key in _UNUSED_DATA:
    del c.data[key]
  c.cook = {key: cook.cook[key] for key in ("metric", "greedy")}
  # Name -> "DATASET:minival=SPLIT:test=SPLIT:head=HEAD|OPS", of which only
  # DATASET is needed; or a dict with the keys "data", "train", "minival",
  # "test", "head", "model" and "ops". By default, minival is a part of train.
  # The head is one of `HEADS` or "file:PATH"; "own" is the head of the
  # ingredient `model`, by default the one named like the task (docs/search.md).
  # With `evaluate_command`, a task is the name of a metric that the command
  # prints: "METRIC:test=METRIC:model=INGREDIENT", or a dict with "metric"
  # (docs/judge.md); `cook.metric`, `data`, `model`, `zeroshot` and `probe` are
  # not used.
  c.tasks = config_lib.NamedTexts()
  # Keep all models in memory; otherwise, every candidate reads them again.
  c.in_memory = True
  c.zeroshot = zeroshot.default_config()
  c.probe = {"l2": 1e-3, "steps": 200, "max_examples": 0}
  c.search = ml_collections.ConfigDict(OPTIONS[method])
  return c


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSpec:
  """An entry of `config.tasks`.

  Attributes:
    name: the name of the task.
    dataset: the name for `data.open_source`; with `evaluate_command`, the
      metric by which choices are made.
    train: the split on which probes are fitted; minival is a part of it if
      `minival` is "".
    minival: the split on which choices are made.
    test: the split, or with `evaluate_command` the metric, that is only
      reported; "" for none.
    head: one of `HEADS`, or "file:PATH".
    model: name of the ingredient that was fine-tuned on the task; "" for the
      one named like the task, if there is one.
    ops: image operations before `data.eval_ops`.
  """

  name: str
  dataset: str
  train: str = "train"
  minival: str = ""
  test: str = ""
  head: str = "merged"
  model: str = ""
  ops: str = ""


def tasks(config: ml_collections.ConfigDict) -> dict[str, TaskSpec]:
  """Returns name -> entry of `config.tasks`.

  Raises:
    ValueError: if a value cannot be parsed, a head is unknown, or two tasks
      have the same images and head, or the same metric of a command.
  """
  if config.evaluate_command:
    return _judged_tasks(config)
  specs: dict[str, TaskSpec] = {}
  first: dict[TaskSpec, str] = {}
  for name, value in config.tasks.items():
    spec = _parse(name, value)
    kind, _, path = spec.head.partition(":")
    if kind not in (*HEADS, "file") or (kind == "file") != bool(path):
      raise ValueError(
        f"tasks.{name}: head={spec.head!r} must be file:PATH or one of "
        f"{', '.join(HEADS)}"
      )
    _check_ops(spec)
    other = first.setdefault(dataclasses.replace(spec, name=""), name)
    if other != name:
      raise ValueError(
        f"tasks.{other} and tasks.{name} have the same images and head, "
        f"{spec.dataset}: remove one of them, or they count twice"
      )
    specs[name] = spec
  return specs


def _judged_tasks(config: ml_collections.ConfigDict) -> dict[str, TaskSpec]:
  """Returns name -> task that `evaluate_command` evaluates."""
  specs = {
    name: _parse(name, value, "metric", _JUDGED_KEYS)
    for name, value in config.tasks.items()
  }
  chosen: dict[str, str] = {}
  for name, spec in specs.items():
    metric = command.full_name(spec.dataset)
    if metric.startswith("test/"):
      raise ValueError(
        f"tasks.{name}={spec.dataset!r}: test must not decide. Give a metric "
        "on held-out images, without the prefix test/"
      )
    if metric in chosen:
      raise ValueError(
        f"tasks.{chosen[metric]} and tasks.{name} have the same metric, "
        f"{spec.dataset}: remove one of them, or it counts twice"
      )
    chosen[metric] = name
  for name, spec in specs.items():
    if spec.test and (other := chosen.get(command.full_name(spec.test))):
      raise ValueError(
        f"tasks.{name}: test={spec.test!r} is the metric by which choices are "
        f"made for {other}, but must not be one: give another metric"
      )
  modes = {
    s.dataset: cook_config.mode(config, s.dataset) for s in specs.values()
  }
  if len(set(modes.values())) > 1:
    low, high = ([k for k in modes if modes[k] == m][0] for m in ("min", "max"))
    raise ValueError(
      f"tasks: lower is better for {low!r} and higher for {high!r}, but the "
      "mean over tasks decides. Give metrics with the same direction, or "
      "correct evaluate_lower"
    )
  return specs


def _parse(
  name: str, value: Any, kind: str = "data", keys: Sequence[str] = _KEYS
) -> TaskSpec:
  """Parses an entry of `config.tasks`.

  Args:
    name: the name of the task.
    value: a string or a dict.
    kind: the dict key of the dataset or metric, which comes first in a string.
    keys: all other allowed keys.

  Raises:
    ValueError: if the name or a key is not allowed, or the dataset is missing.
  """
  if not re.fullmatch(r"[\w-]+", name):
    raise ValueError(
      f"tasks has the name {name!r}: use letters, digits, - and _"
    )
  if name == "mean":
    raise ValueError("tasks.mean: this name is reserved; choose another")
  if isinstance(value, Mapping | ml_collections.ConfigDict):
    options = {k: str(v) for k, v in dict(value).items()}
    dataset = options.pop(kind, "")
  else:
    text, _, ops = str(value).partition("|")
    dataset, *given = re.split(f":(?=(?:{'|'.join(_KEYS)})=)", text)
    options = dict(part.split("=", 1) for part in given)
    if ops:
      options["ops"] = "|".join(filter(None, [options.get("ops"), ops]))
  unknown = sorted(set(options) - set(keys))
  if not dataset or unknown:
    what, example = "DATASET", "folder:cars:minival=val:test=test:head=probe"
    if kind == "metric":
      what, example = "METRIC of evaluate_command", "cars/acc:model=cars_lr3e-5"
    raise ValueError(
      f"tasks.{name}={value!r:.80}: give {what} and any of "
      f"{', '.join(keys)}, such as {example!r}"
      + (f"; {unknown[0]!r} is not one of them" if unknown else "")
    )
  return TaskSpec(name=name, dataset=dataset, **options)


def _check_ops(spec: TaskSpec) -> None:
  try:
    prepared = data.Preprocess(spec.ops)
  except ValueError as e:
    raise ValueError(f"tasks.{spec.name}: {e}") from e
  if prepared.random_ops or prepared.values.dtype != "uint8":
    raise ValueError(
      f"tasks.{spec.name}: {spec.ops!r} comes before data.eval_ops, so it must "
      "neither draw random numbers nor set a value range"
    )


def names_of(config: ml_collections.ConfigDict, key: str) -> list[str]:
  """Returns the tasks named by an option of the search, joined by "+".

  Raises:
    ValueError: if one is not a task, or given twice.
  """
  names = [n.strip() for n in str(config.search[key]).split("+") if n.strip()]
  for name in names:
    if name not in config.tasks:
      raise ValueError(
        f"search.{key}: {name!r} is not a task"
        f"{suggestion(name, list(config.tasks))}"
      )
  if len(set(names)) < len(names):
    raise ValueError(f"search.{key}={config.search[key]!r} repeats a task")
  return names


def grid(config: ml_collections.ConfigDict) -> list[float]:
  """Returns the grid of coefficients from 0 to `most`."""
  c = config.search
  count, most = c.points, c.get("most", 1.0)
  return [most * k / (count - 1) for k in range(count)]


def shown(config: ml_collections.ConfigDict) -> list[float]:
  """Returns the numbers of `search.show`, joined by "+"; [] if there are none.

  Raises:
    ValueError: if one is not a finite number.
  """
  values = []
  for part in str(config.search.get("show", "")).split("+"):
    try:
      values += [float(part)] if part.strip() else []
    except ValueError:
      values.append(math.nan)
    if not all(map(math.isfinite, values)):
      raise ValueError(
        f"search.show has {part!r}: give coefficients joined by +, such as 0.5"
      )
  return list(dict.fromkeys(values))


def check(config: ml_collections.ConfigDict) -> None:
  """Checks values that would otherwise fail after minutes of work.

  Raises:
    ValueError: listing every key with an invalid value.
  """
  problems = config_lib.Problems(config)
  expect, options = problems.expect, config.search
  judged = bool(config.evaluate_command)
  expect("ingredients", "a path with *, or several paths", bool)
  expect(
    "tasks",
    "at least one metric that evaluate_command prints, NAME=METRIC"
    if judged
    else "at least one dataset, NAME=DATASET:test=SPLIT",
    len,
  )
  problems.expect_counts("evaluate_jobs")
  problems.expect_counts("evaluate_retries", least=0)
  problems.expect_numbers("evaluate_timeout")
  problems.expect_counts("data.num_classes", "data.image_size", least=0)
  problems.expect_counts("data.batch_size", "probe.steps")
  problems.expect_counts("probe.max_examples", least=0)
  expect("probe.l2", "at least 0 and finite", lambda v: 0 <= v < math.inf)
  expect("data.cache_gb", "at least 0", lambda v: v >= 0)
  expect("cook.greedy.accept", "'ge' or 'gt'", lambda v: v in ("ge", "gt"))
  expect("cook.greedy.min_delta", "a finite number", math.isfinite)
  expect(
    "family",
    f"one of {', '.join(mappings.FAMILIES)}, or empty",
    lambda v: not v or v in mappings.FAMILIES,
  )
  tests = {
    "points": ("at least 2", lambda v: v >= 2),
    "knots": ("at least 2", lambda v: v >= 2),
    "budget": ("at least 1", lambda v: v >= 1),
    "steps": ("at least 1", lambda v: v >= 1),
    "batch_size": ("at least 1", lambda v: v >= 1),
    "most": ("positive and finite", lambda v: 0 < v < math.inf),
    "keep": ("from 0 to 1", lambda v: 0 <= v <= 1),
    "learning_rate": ("positive, or 0", lambda v: 0 <= v < math.inf),
    "memory_gb": ("at least 0, or -1", lambda v: v >= 0 or v == -1),
  }
  for key, (what, holds) in tests.items():
    if key in options:
      expect(f"search.{key}", what, holds)
  parts = (cook_config.metrics, cook_config.eval_ops, tasks, _one_metric)
  parts = (tasks, _default_metric) if judged else parts
  for part in (*parts, shown):
    problems.attempt(part, config)
  problems.attempt(lambda c: zeroshot.check(c.zeroshot), config)
  problems.attempt(finetune_config.sharding_rules, config)
  for key in _NAMING & set(options):
    problems.attempt(lambda c, key=key: names_of(c, key), config)
  problems.raise_if_any()


def _default_metric(config) -> None:
  metric = config.cook.metric
  if metric != cook_config.default_config().cook.metric:
    raise ValueError(
      f"cook.metric={metric!r} is not used with evaluate_command: give "
      f"--config.tasks=NAME={metric} instead"
    )


def _one_metric(config) -> None:
  names: Sequence[str] = cook_config.metrics(config)
  if len(names) > 1:
    raise ValueError(
      f"cook.metric={config.cook.metric!r}: a search takes only one metric"
    )
