# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Mixes checkpoint files into one, without data or evaluation."""

import ast
from collections.abc import Callable, Mapping, Sequence
import inspect
from typing import Any

import jax
import ml_collections
from ml_collections import config_dict

from soupjax import buckets, files, sharding
from soupjax.checkpoints import mix as mix_lib
from soupjax.checkpoints import open as open_lib
from soupjax.checkpoints.adapters import combined
from soupjax.registry import parse_call, suggestion
from soupjax.soups import rules
from soupjax.soups.core.ingredient import Ingredient
from soupjax.soups.engine import plan
from soupjax.tasks import estimate
from soupjax.tasks.programs import averaging
from soupjax.tasks.programs.report import Program

# Bytes of host memory that compilation takes and leaves in use, as measured.
_COMPILING = 30_000_000


def default_config(rule: str = "uniform") -> ml_collections.ConfigDict:
  """Returns all settings of this task for one rule; empty means unset.

  Args:
    rule: a name or a call, such as "ties" or "ties(density=0.2)". The arguments
      of the rule become the keys of `config.rule`.

  Raises:
    ValueError: if the rule is unknown or does not take the arguments.
  """
  # Mappings stay dicts, since their keys are regular expressions in order.
  c = ml_collections.ConfigDict(convert_dict=False)
  c.task = "mix"
  c.rule = config_dict.FieldReference(_rule_keys(rule), field_type=object)
  # A path or pattern, or several joined by commas; each may end in #ENTRY.
  c.ingredients = ""
  # The model that some rules and actions of `select` need, and that PEFT
  # adapters are added to.
  c.base = ""
  c.out = ""
  # {"head": "keep", "pos_embedding": [0, 1], "": 0.5} or, as a string,
  # "head=keep,pos_embedding=[0, 1],=0.5"; the actions are those of `sj.mix`.
  c.select = config_dict.placeholder(object)
  c.dtype = ""
  # "adapter" writes a PEFT adapter. Its rank is the sum of the ranks, which is
  # exact, or `rank`.
  c.format = ""
  c.rank = 0
  c.shard_bytes = 0
  c.overwrite = False
  c.hash_inputs = True
  c.check_finite = True
  c.block_bytes = plan.BLOCK_BYTES
  c.threads = 0
  c.max_host_bytes = 0
  return c


def _rule_keys(text):
  """Returns the name of a rule and all its arguments, defaults included."""
  name, parameters, given = _parts(text)
  keys = ml_collections.ConfigDict({"name": name}, convert_dict=False)
  for key, parameter in parameters.items():
    required = parameter.default is inspect.Parameter.empty
    value = given.get(key, None if required else parameter.default)
    # An argument may be a number, a list or a dict, whatever its default is.
    keys[key] = config_dict.FieldReference(value, field_type=object)
  return keys


def _parts(rule):
  """Splits a rule into its name, its parameters, and the arguments given."""
  if isinstance(rule, str):
    name, positional, given = parse_call(rule)
  elif isinstance(rule, Mapping) and isinstance(rule.get("name"), str):
    given = dict(rule)
    name, positional = given.pop("name"), []
    if "(" in name:
      raise ValueError(
        f"rule.name={name!r} has arguments, but rule also has the keys "
        f"{sorted(given)}. Write either the string or the dict."
      )
  else:
    raise ValueError(
      "rule must be a string such as 'ties(density=0.2)' or a dict such as "
      f"{{'name': 'ties', 'density': 0.2}}, got {rule!r}."
    )
  signature = rules.RULES.signature(name)
  parameters = {
    k: p
    for k, p in signature.parameters.items()
    if k not in ("count", "name")
    and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
  }
  takes = ", ".join(map(str, parameters.values())) or "no arguments"
  for key in given:
    if key not in parameters:
      raise ValueError(
        f"The rule {name!r} has no argument {key!r}"
        + (suggestion(key, parameters) if parameters else ".")
      )
  try:
    bound = inspect.Signature(list(parameters.values())).bind_partial(
      *positional, **given
    )
  except TypeError as e:
    raise ValueError(f"rule={rule!r}: {e}. It takes {takes}.") from e
  return name, parameters, bound.arguments


def rule_of(rule: str | Mapping[str, Any], count: int) -> rules.Rule:
  """Makes the rule that a config names.

  Args:
    rule: a string such as "ties(density=0.2)", or a dict such as {"name":
      "ties", "density": 0.2}. The name is a registered one, or the import path
      of a function that returns a `Rule`. An argument of None has its default.
    count: number of ingredients, for rules with a parameter called `count`.

  Raises:
    ValueError: if the rule is unknown, or an argument is missing, unknown or
      out of range.
  """
  if isinstance(rule, ml_collections.ConfigDict):
    rule = rule.to_dict()
  name, parameters, given = _parts(rule)
  given = {k: v for k, v in given.items() if v is not None}
  for key, parameter in parameters.items():
    if parameter.default is inspect.Parameter.empty and key not in given:
      raise ValueError(
        f"The rule {name!r} needs {key}: set --config.rule.{key}."
      )
  if "count" in rules.RULES.signature(name).parameters:
    given["count"] = count
  made = rules.RULES.get(name)(**given)
  if not isinstance(made, rules.Rule):
    raise ValueError(
      f"{name!r} must return a soupjax.rules.Rule, got {made!r}."
    )
  return made


def merger(
  models: Sequence[Ingredient],
  *,
  base: Ingredient | None = None,
  select: Mapping[str, Any] | None = None,
  sharding: Any = None,
  in_memory: bool = False,
) -> Callable[[Mapping[str, Any]], Any]:
  """Returns a function that merges models by a rule, given as for `rule_of`.

  Args:
    models: the ingredients.
    base: the base model, for rules and selections that need one.
    select: as for `soupjax.mix`.
    sharding: as for `soupjax.mix`.
    in_memory: whether to read the models once and keep them on the host;
      otherwise, every call reads them.
  """
  if in_memory:
    # On the host: the engine reads any part of a leaf in every process.
    models = [Ingredient.from_params(m.name, m.load()) for m in models]
    base = base and Ingredient.from_params(base.name, base.load())

  def merge(rule: Mapping[str, Any]):
    made = rule_of(rule, len(models))
    return mix_lib.mix(
      made,
      models,
      base=base if made.needs_base or select else None,
      select=select or None,
      sharding=sharding,
      progress=False,
    ).params

  return merge


def selection_of(select: str | Mapping[str, Any] | None) -> dict[str, Any]:
  """Parses `config.select`, a dict or a string.

  Args:
    select: a dict, pairs, or a string such as "head=keep,pos_embedding=[0, 1]".
      For a regular expression with a comma outside of brackets, use a dict.

  Returns:
    Regular expression -> action.

  Raises:
    ValueError: if it cannot be parsed, or an expression occurs twice.
  """
  if isinstance(select, ml_collections.ConfigDict):
    select = select.to_dict()
  if isinstance(select, str):
    pairs = [_select_pair(part) for part in _split_at_commas(select)]
  else:
    try:
      pairs = list(dict(select or {}).items())
    except (TypeError, ValueError) as e:
      raise ValueError(
        "select must be a dict {regex: action} or a string "
        f"'regex=action,...', got {select!r}."
      ) from e
  selection: dict[str, Any] = {}
  for regex, action in pairs:
    if regex in selection:
      raise ValueError(f"select has {regex!r} twice.")
    selection[regex] = action
  return selection


def _split_at_commas(text):
  """Splits a string at commas outside of brackets."""
  parts, depth = [""], 0
  for character in text:
    depth += (character in "([{") - (character in ")]}")
    if character == "," and depth == 0:
      parts.append("")
    else:
      parts[-1] += character
  return [part.strip() for part in parts if part.strip()]


def _select_pair(part):
  regex, separator, action = part.rpartition("=")
  if not separator:
    raise ValueError(f"select has {part!r}: write regex=action.")
  try:
    return regex, ast.literal_eval(action)
  except (SyntaxError, ValueError):
    return regex, action  # "keep" or "skip"; `mix` rejects other strings.


def run(
  config: ml_collections.ConfigDict, *, dry_run: bool = False
) -> mix_lib.Mixed | combined.AdapterMix | None:
  """Mixes checkpoints by a config; prints the plan and the throughput.

  Several processes each read and write a share of one output; the first one
  prints.

  Args:
    config: with the keys of `default_config`.
    dry_run: checks, prints the plan and stops.

  Returns:
    The result of `soupjax.mix`. For `format="adapter"`, that of
    `soupjax.mix_adapters`; None after a dry run, and outside the first process.

  Raises:
    ValueError: if a setting is missing, or checkpoints do not fit together.
  """
  for key in ("ingredients", "out"):
    if not config[key]:
      raise ValueError(f"--config.{key} is missing.")
  if config.rank and config.format != "adapter":
    raise ValueError(
      f"rank={config.rank} is for adapters: add --config.format=adapter."
    )
  if config.format == "adapter":
    return _mix_adapters(config, dry_run)
  settings: dict[str, Any] = {
    key: config[key]
    for key in ("overwrite", "hash_inputs", "check_finite", "block_bytes")
  }
  optional = ("base", "dtype", "format", "shard_bytes", "threads")
  for key in (*optional, "max_host_bytes"):
    settings[key] = config[key] or None
  program = estimate.program_bytes()
  ingredients = open_lib.find_ingredients(
    open_lib.split_patterns(str(config.ingredients)), base=config.base or None
  )
  mixed = mix_lib.mix(
    rule_of(config.rule, len(ingredients)),
    ingredients,
    out=config.out,
    select=selection_of(config.select),
    dry_run=dry_run,
    **settings,
  )
  if jax.process_index() > 0:
    return mixed
  print(mixed.table)
  if dry_run:
    print(_estimate(mixed, program, str(config.out)))
  if mixed.report is not None:
    seconds = max(mixed.report.seconds, 1e-9)
    gigabytes = mixed.report.bytes_read / 1e9
    print(
      f"Wrote {mixed.path}: read {gigabytes:.3f} GB in {seconds:.2f} s "
      f"({gigabytes / seconds:.2f} GB/s)."
    )
  return mixed


def _estimate(mixed, program: int, out: str) -> estimate.Estimate:
  """Estimates memory and disk space from the plan of a mix."""
  return estimate.Estimate(
    host={
      "the program": program,
      "buffers": mixed.host_bytes,
      "temporary arrays": mixed.temporary_bytes,
      "compiling": _COMPILING,
    },
    device={},
    disk={"the soup": mixed.disk_bytes},
    free=None if buckets.is_remote(out) else files.free_bytes(out),
  )


def programs(
  config: ml_collections.ConfigDict, devices: Sequence[jax.Device]
) -> list[Program]:
  """Prints the plan, and returns the program that averages onto a mesh.

  `sj.mix` into a file runs on the hosts' CPUs. `sj.uniform_soup` with a
  sharding computes the same mean on the devices, with this program.

  Args:
    config: with the keys of `default_config`.
    devices: the devices to split leaves over; they need not exist.

  Raises:
    ValueError: as in `run`, or if the rule has no program for devices.
  """
  if config.rule.name not in ("uniform", "linear"):
    raise ValueError(
      f"The rule {config.rule.name!r} runs on the CPUs of hosts: leave "
      "--topology out. Only the mean (configs/mix.py:uniform) has a program "
      "for devices."
    )
  run(config, dry_run=True)
  ingredients = open_lib.find_ingredients(
    open_lib.split_patterns(str(config.ingredients))
  )
  mesh = sharding.make_mesh({"data": -1}, devices)
  return [averaging.program(ingredients, sharding.fsdp(mesh))]


def _mix_adapters(config, dry_run: bool) -> combined.AdapterMix | None:
  """Writes the mean of adapters as an adapter; prints its ranks and errors."""
  for key in ("select", "dtype", "shard_bytes", "overwrite"):
    if config[key]:
      raise ValueError(
        f"{key}={config[key]!r} does not apply to format='adapter': leave it "
        "out."
      )
  paths = open_lib.paths_of(open_lib.split_patterns(str(config.ingredients)))
  rule = rule_of(config.rule, len(paths))
  settings = dict(rule.settings)
  weights = settings.pop("weights", None)
  normalize = settings.pop("normalize", True)
  if rule.name not in ("uniform", "weighted") or isinstance(weights, dict):
    raise ValueError(
      f"The rule {rule.name!r} gives no adapter: format='adapter' takes "
      "'uniform', or 'weighted' with one number per ingredient. For a merged "
      "model, leave format out and set --config.base."
    )
  print("\n".join(paths))
  if dry_run or jax.process_index() > 0:
    return None
  mixed = combined.mix_adapters(
    paths,
    config.out,
    weights=weights,
    normalize=normalize,
    rank=config.rank or None,
  )
  for module, error in mixed.errors.items():
    print(f"{module}  rank {mixed.ranks[module]}  error {error:.2%}")
  print(f"Wrote {mixed.path}: relative error of all weights {mixed.error:.2%}.")
  return mixed
