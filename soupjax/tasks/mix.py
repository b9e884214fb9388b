# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Mixes checkpoint files into one, from a config: no data, no evaluation."""

import inspect
import json
from typing import Any

import ml_collections

from soupjax.checkpoints import stream
from soupjax.soups import plan, rules

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
  c.alpha = 0.5  # For rule "interpolate".
  c.arguments = ""  # For all other rules, as JSON: '{"density": 0.2}'.
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


def rule_of(config: ml_collections.ConfigDict) -> rules.Rule:
  """Makes the rule that a config names.

  Raises:
    ValueError: if there is no such rule, or its numbers make no sense.
  """
  if config.rule == "uniform":
    return rules.linear()
  if config.rule == "weighted":
    if not config.weights:
      raise ValueError(
        "rule='weighted' needs --config.weights, one number an ingredient."
      )
    return rules.linear(list(config.weights))
  if config.rule == "interpolate":
    return rules.lerp(config.alpha)
  if config.rule in NAMED:
    return _named(config.rule, config.arguments)
  raise ValueError(
    f"rule={config.rule!r} is none of 'uniform', 'weighted', 'interpolate', "
    f"{', '.join(map(repr, NAMED))}."
  )


def _named(name, text):
  make = getattr(rules, name)
  try:
    arguments = json.loads(text or "{}")
    inspect.signature(make).bind(**arguments)
  except (json.JSONDecodeError, TypeError) as e:
    raise ValueError(
      f"arguments={text!r} do not fit the rule {name}"
      f"{inspect.signature(make)}: {e}. Write them as JSON, "
      "as '{\"scale\": 0.3}'."
    ) from e
  return make(**arguments)


def mix(
  config: ml_collections.ConfigDict, *, dry_run: bool = False
) -> stream.Mixed:
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
  mixed = stream.mix(
    rule_of(config),
    [
      part.strip()
      for part in str(config.ingredients).split(",")
      if part.strip()
    ],
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
