# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Configs: loading, overriding and checking.

A config is an `ml_collections.ConfigDict` that a Python file returns from
`get_config(arg)`; the file may also define `get_sweep()`.

A duration in a config is a number with a unit: "10epochs", "500steps" or
"1000examples" (see `steps`). Its key is named after the event, such as
`hyper.total`, `hyper.warmup`, `log` and `checkpoint`. Integers called
`..._steps` occur only in Python functions, after the conversion.
"""

from collections.abc import Callable
import copy
import importlib.util
import inspect
import json
import math
import os
import re
from typing import Any

from absl import flags
import ml_collections
from ml_collections import config_flags

from soupjax.sweeps import extreme_grid as extreme_grid
from soupjax.sweeps import random_search as random_search
from soupjax.sweeps import seeds as seeds
from soupjax.sweeps import standard_grid as standard_grid


def parse_arg(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
  """Parses the part after the colon of `--config=file.py:name=value,flag`.

  Args:
    arg: comma-separated `name=value`; a bare `name` means True. None and ""
      leave all defaults.
    **defaults: every allowed name and its default value, which sets the type.

  Returns:
    A locked ConfigDict with a value for every name.

  Raises:
    ValueError: if a name has no default, or a value has the wrong type.

  Examples:
    >>> arg = parse_arg("size=4,quick", size=16, quick=False, name="digits")
    >>> arg.size, arg.quick, arg.name
    (4, True, 'digits')
  """
  values = dict(defaults)
  for part in filter(None, (arg or "").split(",")):
    name, is_pair, text = part.partition("=")
    if name not in defaults:
      raise ValueError(
        f"Unknown config argument {name!r}: it must be one of "
        f"{sorted(defaults)}."
      )
    values[name] = _cast(name, text if is_pair else "true", defaults[name])
  return ml_collections.ConfigDict(values).lock()


def _cast(name: str, text: str, default: Any) -> Any:
  if isinstance(default, bool):
    if text.lower() not in ("true", "false"):
      raise ValueError(
        f"Config argument {name} must be true or false, got {text!r}."
      )
    return text.lower() == "true"
  try:
    return type(default)(text)
  except ValueError as e:
    kind = type(default).__name__
    raise ValueError(
      f"Config argument {name} must be of type {kind}, got {text!r}."
    ) from e


class _NamedTextsParser(flags.ArgumentParser):
  """Parses a flag in the short form of `NamedTexts`."""

  def parse(self, argument: Any) -> "NamedTexts":
    if isinstance(argument, str):
      argument = parse_named(argument)
    return NamedTexts(argument)


@config_flags.register_flag_parser(parser=_NamedTextsParser())
class NamedTexts(ml_collections.ConfigDict):
  """A dict of strings that a flag can set in a short form, such as `a=x,b=y`.

  In a config file, set entries as usual: `c.tests.sketch = "sketch/test"`.
  """


def parse_named(text: str) -> dict[str, str]:
  """Parses the short form of a dict of strings.

  Examples:
    >>> parse_named("test=validation, sketch=imagenet_sketch/test")
    {'test': 'validation', 'sketch': 'imagenet_sketch/test'}
    >>> parse_named('fog=test|corrupt("fog", 3),test=test')
    {'fog': 'test|corrupt("fog", 3)', 'test': 'test'}

  Raises:
    ValueError: if a part is not NAME=VALUE, or a name occurs twice.
  """
  values: dict[str, str] = {}
  # A comma inside parentheses separates arguments, not parts.
  parts = re.split(r",(?![^()]*\))", text)
  for part in filter(None, (p.strip() for p in parts)):
    name, is_pair, value = part.partition("=")
    if not (is_pair and value and re.fullmatch(r"[\w-]+", name)):
      raise ValueError(f"Cannot read {part!r} of {text!r}: write NAME=VALUE.")
    if name in values:
      raise ValueError(f"{name!r} occurs twice in {text!r}.")
    values[name] = value
  return values


def load(path: str, arg: str | None = None, **overrides: Any):
  """Loads a config file from Python, as `--config` does from the shell.

  Args:
    path: a file that defines `get_config(arg)`.
    arg: the text that would follow the colon.
    **overrides: values by dotted key, such as `**{"sweep.size": 4}`.

  Returns:
    A locked ConfigDict.

  Raises:
    ValueError: if the file or a key does not exist.
  """
  config = _module(path).get_config(arg)
  return updated(config, overrides, what=path)


def _module(path: str) -> Any:
  if not os.path.exists(path):
    raise ValueError(f"The config file {path} does not exist.")
  spec = importlib.util.spec_from_file_location("soupjax_config", path)
  if spec is None or spec.loader is None:
    raise ValueError(f"{path} is not a Python file: its name must end in .py.")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def load_sweep(
  path: str, arg: str | None = None, *, required: bool = True
) -> list[dict[str, Any]]:
  """Returns the members of a config's sweep.

  Args:
    path: a file that defines `get_sweep()`, or `get_sweep(arg)`, a generator of
      dicts of dotted overrides.
    arg: the text that would follow the colon.
    required: whether the file must define a sweep with at least one member.

  Returns:
    One dict of overrides per member; [] if there is no sweep.

  Raises:
    ValueError: if the file does not exist, or a required sweep is missing or
      empty.
  """
  module = _module(path)
  if not hasattr(module, "get_sweep"):
    if not required:
      return []
    raise ValueError(f"{path} has no get_sweep(), which --sweep needs.")
  takes_arg = inspect.signature(module.get_sweep).parameters
  members = list(module.get_sweep(arg) if takes_arg else module.get_sweep())
  if required and not members:
    raise ValueError(f"get_sweep() of {path} yields nothing.")
  return members


def updated(
  config: ml_collections.ConfigDict,
  overrides: dict[str, Any],
  what: str = "The config",
) -> ml_collections.ConfigDict:
  """Returns a locked copy of a config with some values replaced.

  Args:
    config: any config.
    overrides: values by dotted key.
    what: the subject of error messages.

  Raises:
    ValueError: if a key does not exist, or a value has the wrong type or cannot
      be parsed.

  Examples:
    >>> config = ml_collections.ConfigDict({"hyper": {"rate": 0.1}})
    >>> updated(config, {"hyper.rate": 0.3}).hyper.rate
    0.3
  """
  config, overrides = copy.deepcopy(config).unlock(), dict(overrides)
  for key in list(overrides):
    if not _has(config, key):
      raise ValueError(f"{what} has no config key {key!r}.")
    if isinstance(value_of(config, key), NamedTexts):  # Replaced, not updated.
      parent, _, leaf = key.rpartition(".")
      parent = value_of(config, parent) if parent else config
      parent[leaf] = _NamedTextsParser().parse(overrides.pop(key))
  try:
    config.update_from_flattened_dict(overrides)
  except TypeError as e:
    raise ValueError(f"{what}: an override has the wrong type: {e}") from e
  return config.lock()


def _has(config, dotted):
  for part in dotted.split("."):
    if not isinstance(config, ml_collections.ConfigDict) or part not in config:
      return False
    config = config[part]
  return True


def value_of(config: ml_collections.ConfigDict, key: str) -> Any:
  """Returns the value of a dotted key."""
  for part in key.split("."):
    config = config[part]
  return config


def to_dict(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns the config as JSON values: dicts, lists, numbers and strings.

  Raises:
    ValueError: if a value is NaN or infinite.
    TypeError: if a value cannot be written as JSON.
  """
  return json.loads(json.dumps(config.to_dict(), allow_nan=False))


def differences(old: Any, new: Any, path: str = "") -> list[str]:
  """Lists the differences between two configs, one line per key.

  Args:
    old: from `to_dict`.
    new: from `to_dict`.
    path: dotted key of `old` and `new`, if they are parts of configs.

  Examples:
    >>> differences({"hyper": {"rate": 0.1}}, {"hyper": {"rate": 0.3}})
    ['hyper.rate: 0.1 before, 0.3 now']
  """
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


def steps(
  duration: str, *, batch_size: int, num_examples: int | None, name: str = ""
) -> int:
  """Converts a duration to a number of steps, rounded to the nearest.

  Args:
    duration: a number with a unit, such as "10epochs", "0.5epochs", "500steps"
      or "1000examples".
    batch_size: number of examples in a step.
    num_examples: number of examples in an epoch; None if unknown.
    name: the config key, for error messages.

  Raises:
    ValueError: if the number or the unit is missing, or the duration is in
      epochs of unknown length.

  Examples:
    >>> steps("10epochs", batch_size=32, num_examples=1000)
    312
    >>> steps("500steps", batch_size=32, num_examples=None)
    500
  """
  match = re.fullmatch(
    r"\s*([0-9.]+(?:e[0-9]+)?)\s*(steps?|epochs?|examples?)\s*", str(duration)
  )
  try:
    if match is None:
      raise ValueError(duration)
    number, unit = float(match[1]), match[2].rstrip("s")
  except ValueError:
    raise ValueError(
      f"{name or 'A duration'} must have a unit, such as '10epochs', "
      f"'500steps' or '1000examples', got {duration!r}."
    ) from None
  if unit == "step":
    return round(number)
  if unit == "example":
    return round(number / batch_size)
  if num_examples is None:
    raise ValueError(
      f"{name or 'A duration'}={duration!r} needs the number of examples in an "
      "epoch, which is unknown."
    )
  return round(number * num_examples / batch_size)


class Problems:
  """Collects the errors of a config and raises them together.

  Attributes:
    errors: the messages so far.
  """

  def __init__(self, config: ml_collections.ConfigDict):
    self._config = config
    self.errors: list[str] = []

  def expect(self, key: str, what: str, holds: Callable[[Any], bool]) -> None:
    """Adds an error unless the value of a dotted key passes a test.

    Args:
      key: the dotted key.
      what: completes the message "KEY must be ...".
      holds: the test. A TypeError or ValueError in it counts as a failure.
    """
    value = value_of(self._config, key)
    try:
      ok = holds(value)
    except (TypeError, ValueError):
      ok = False
    if not ok:
      self.errors.append(f"{key} must be {what}, got {value!r}")

  def expect_counts(self, *keys: str, least: int = 1) -> None:
    """Adds an error for each key that is not a whole number >= `least`."""
    for key in keys:
      what = f"a whole number >= {least}"
      self.expect(key, what, lambda v: v >= least and v == int(v))

  def expect_numbers(self, *keys: str) -> None:
    """Adds an error for each key that is not a finite number >= 0."""
    for key in keys:
      self.expect(key, "a finite number >= 0", lambda v: 0 <= v < math.inf)

  def attempt(self, function: Callable, *arguments: Any) -> None:
    """Calls a function and, if it raises a ValueError, adds its message."""
    try:
      function(*arguments)
    except ValueError as e:
      self.errors.append(str(e))

  def raise_if_any(self) -> None:
    """Raises a ValueError that lists all errors."""
    if self.errors:
      lines = "\n  ".join(self.errors)
      raise ValueError(f"The config cannot work:\n  {lines}")
