# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Helpers for `ml_collections` configs."""

import importlib.util
import json
import os
from typing import Any

import ml_collections


def parse_arg(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
  """Parses the part behind the colon of `--config=file.py:name=value,flag`.

  Args:
    arg: comma-separated `name=value`; a bare `name` means True. None or empty
      means all defaults.
    **defaults: every name that is allowed, with its default; the type of the
      default is that of the value.

  Returns:
    A locked ConfigDict with a value for every name.

  Raises:
    ValueError: for a name without a default, or a value of another type.
  """
  values = dict(defaults)
  for part in filter(None, (arg or "").split(",")):
    name, is_pair, text = part.partition("=")
    if name not in defaults:
      raise ValueError(
        f"Unknown config argument {name!r}: allowed are {sorted(defaults)}."
      )
    values[name] = _cast(name, text if is_pair else "true", defaults[name])
  return ml_collections.ConfigDict(values).lock()


def _cast(name: str, text: str, default: Any) -> Any:
  if isinstance(default, bool):
    if text.lower() not in ("true", "false"):
      raise ValueError(
        f"Config argument {name} is true or false, not {text!r}."
      )
    return text.lower() == "true"
  try:
    return type(default)(text)
  except ValueError as e:
    kind = type(default).__name__
    raise ValueError(f"Config argument {name}={text} is not {kind}.") from e


def load(path: str, arg: str | None = None, **overrides: Any):
  """Loads a config file from Python, as `--config` does from the shell.

  Args:
    path: a file that defines `get_config(arg)`.
    arg: what would stand behind the colon.
    **overrides: dotted keys in a dict do not fit keywords, so pass
      `**{"sweep.size": 4}`.

  Returns:
    A locked ConfigDict.

  Raises:
    ValueError: if the file is not there or a key does not exist.
  """
  if not os.path.exists(path):
    raise ValueError(f"There is no config file {path}.")
  spec = importlib.util.spec_from_file_location("soupjax_config", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(arg)
  for key in overrides:
    parent, _, leaf = key.rpartition(".")
    try:
      found = leaf in (_at(config, parent) if parent else config)
    except (KeyError, AttributeError, TypeError):
      found = False
    if not found:
      raise ValueError(f"{path} has no config key {key!r}.")
  config.update_from_flattened_dict(overrides)
  return config.lock()


def _at(config, dotted):
  for part in dotted.split("."):
    config = config[part]
  return config


def to_dict(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns the config as plain JSON: dicts, lists, numbers and strings."""
  return json.loads(json.dumps(config.to_dict(), allow_nan=False))


def differences(old: Any, new: Any, path: str = "") -> list[str]:
  """Lists where two configs (from `to_dict`) differ, one line a key."""
  if isinstance(old, dict) and isinstance(new, dict):
    lines = []
    for key in sorted({*old, *new}):
      here = f"{path}.{key}" if path else key
      if key not in old:
        lines.append(f"{here}: not there before, now {new[key]!r}")
      elif key not in new:
        lines.append(f"{here}: {old[key]!r} before, not there now")
      else:
        lines += differences(old[key], new[key], here)
    return lines
  return [] if old == new else [f"{path}: {old!r} before, {new!r} now"]
