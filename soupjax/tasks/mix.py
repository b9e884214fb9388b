# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Mixes checkpoint files into one, from a config: no data, no evaluation."""

import inspect
import json
from typing import Any

import ml_collections
from ml_collections import config_dict

from soupjax.checkpoints import mix as mix_lib
from soupjax.checkpoints import open as open_lib
from soupjax.soups import rules
from soupjax.soups.engine import plan

# Those of `soupjax.rules` that take their arguments from `config.arguments`.
NAMED = (
  "breadcrumbs",
  "dare",
  "della",
  "fisher",
  "geometric_median",
  "iso_c",
  "karcher",
  "lerp",
  "linear",
  "model_stock",
  "regmean",
  "sce",
  "slerp",
  "task_arithmetic",
  "ties",
  "tsv",
)


def default_config() -> ml_collections.ConfigDict:
  """The settings that all configs of this task have; empty means unset."""
  c = ml_collections.ConfigDict()
  c.task = "mix"
  c.rule = "uniform"
  c.ingredients = ""  # A path or pattern, or several with commas between.
  c.base = ""
  c.out = ""
  c.weights = ()  # For rule "weighted".
  # Instead of weights: "uniform", "linear", "minus-sqrt" or "ema", for
  # checkpoints of one run, oldest first; `arguments` are those of
  # `rules.schedule`: '{"last": 5}'.
  c.schedule = ""
  c.alpha = config_dict.placeholder(float)  # For rule "interpolate".
  # For `schedule` and all other rules, as JSON: '{"density": 0.2}'.
  c.arguments = ""
  # Pairs of a regular expression and "keep", "skip", a number or K numbers.
  c.select = ()
  c.dtype = ""
  c.format = ""
  c.shard_bytes = 0
  c.overwrite = False
  c.hash_inputs = True
  c.check_finite = True
  c.block_bytes = plan.BLOCK_BYTES
  c.threads = 0
  c.max_host_bytes = 0
  return c


def rule_of(config: ml_collections.ConfigDict, count: int) -> rules.Rule:
  """Makes the rule that a config names.

  Args:
    config: with the keys of `default_config`.
    count: of the ingredients.

  Raises:
    ValueError: if there is no such rule, its numbers make no sense, or one of
      the settings is set that it does not use.
  """
  used = {"uniform": set(), "interpolate": {"alpha"}}
  used["weighted"] = (
    {"schedule", "arguments"} if config.schedule else {"weights"}
  )
  used |= {name: {"arguments"} for name in NAMED}
  if config.rule not in used:
    raise ValueError(
      f"rule={config.rule!r} is none of {', '.join(map(repr, used))}."
    )
  for key in ("weights", "schedule", "alpha", "arguments"):
    unset = config[key] is None or config[key] in ("", ())
    if not unset and key not in used[config.rule]:
      takes = " and ".join(sorted(used[config.rule])) or "no settings"
      raise ValueError(
        f"--config.{key}={config[key]!r} would be ignored: the rule "
        f"{config.rule!r} takes {takes} here."
      )
  if config.rule == "uniform":
    return rules.linear()
  if config.rule == "weighted" and config.schedule:
    weights = _called(
      rules.schedule, config.arguments, kind=config.schedule, count=count
    )
    return rules.linear(weights)
  if config.rule == "weighted":
    if not config.weights:
      raise ValueError(
        "rule='weighted' needs --config.weights, one number an ingredient, or "
        "--config.schedule."
      )
    return rules.linear(list(config.weights))
  if config.rule == "interpolate":
    return rules.lerp(0.5 if config.alpha is None else config.alpha)
  return _called(getattr(rules, config.rule), config.arguments)


def _called(make, text, **more):
  """Calls a function with arguments in JSON, and more."""
  name = make.__name__
  try:
    arguments = {**json.loads(text or "{}"), **more}
    inspect.signature(make).bind(**arguments)
  except (json.JSONDecodeError, TypeError) as e:
    raise ValueError(
      f"arguments={text!r} do not fit {name}"
      f"{inspect.signature(make)}: {e}. Write them as JSON, "
      "as '{\"scale\": 0.3}'."
    ) from e
  return make(**arguments)


def mix(
  config: ml_collections.ConfigDict, *, dry_run: bool = False
) -> mix_lib.Mixed:
  """Runs a config of this task; prints the plan and what came of it.

  Args:
    config: with the keys of `default_config`.
    dry_run: checks, prints the plan and stops.

  Returns:
    What `soupjax.mix` returns.

  Raises:
    ValueError: if something is missing or does not fit.
  """
  for key in ("ingredients", "out"):
    if not config[key]:
      raise ValueError(f"Nothing is given for --config.{key}.")
  settings: dict[str, Any] = {
    key: config[key] or None
    for key in (
      "base",
      "dtype",
      "format",
      "shard_bytes",
      "threads",
      "max_host_bytes",
    )
  }
  settings |= {
    key: config[key]
    for key in ("overwrite", "hash_inputs", "check_finite", "block_bytes")
  }
  ingredients = open_lib.find_ingredients(
    [p.strip() for p in str(config.ingredients).split(",") if p.strip()]
  )
  mixed = mix_lib.mix(
    rule_of(config, len(ingredients)),
    ingredients,
    out=config.out,
    select={regex: action for regex, action in config.select},
    dry_run=dry_run,
    **settings,
  )
  print(mixed.table)
  if mixed.report is not None:
    seconds = max(mixed.report.seconds, 1e-9)
    print(
      f"Wrote {mixed.path}: read {mixed.report.bytes_read / 1e9:.3f} GB in "
      f"{seconds:.2f} s ({mixed.report.bytes_read / seconds / 1e9:.2f} GB/s)."
    )
  return mixed
