# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Command line: parses flags and runs the task that a config names."""

from collections.abc import Collection
import dataclasses
import os
import sys
import traceback
from typing import Any

from absl import flags
import jax
import ml_collections
from ml_collections import config_flags

from soupjax import config as config_lib
from soupjax import processes
from soupjax.registry import suggestion
from soupjax.tasks import compilation_cache
from soupjax.tasks.programs import report, topology

# Flags of every task, besides --config.
SHARED = ("dry_run", "distributed", "compilation_cache")
# Task -> its other flags.
TASKS = {
  "finetune": ("workdir", "sweep", "sweep_index", "fake_devices", "topology"),
  "cook": ("workdir", "topology"),
  "diagnose": ("workdir",),
  "evaluate": ("workdir",),
  "search": ("workdir",),
  "statistics": ("workdir",),
  "mix": ("topology",),
  "report": ("workdir",),
}

# Task -> keys that its config inherits from another task and that it ignores.
UNUSED = {
  "diagnose": (
    "cook.learned",
    "cook.wise_ft_points",
    "cook.window",
    "cook.ensembles_gb",
    "cook.calibration",
    "initial_head",
    "seed",
  ),
  "statistics": (
    "cook",
    "evaluate_command",
    "initial",
    "initial_head",
    "means",
    "select",
    "tests",
    "zeroshot",
  ),
  "evaluate": (
    "cook.greedy",
    "cook.learned",
    "cook.wise_ft_points",
    "cook.window",
    "cook.ensembles_gb",
    "cook.baselines",
    "select",
    "evaluate_command",
    "evaluate_timeout",
    "evaluate_retries",
    "evaluate_jobs",
    "evaluate_lower",
  ),
}


@dataclasses.dataclass(frozen=True)
class Command:
  """A command line.

  Attributes:
    config: the config, with the overrides applied.
    config_file: path of the config file, with ":ARGUMENT" if given.
    overrides: dotted keys that flags set.
    flags: name -> value of the other flags that were given.
  """

  config: ml_collections.ConfigDict
  config_file: str
  overrides: Collection[str]
  flags: dict[str, Any]


def parse(argv: list[str]) -> list[str]:
  """Parses flags as absl does; exits with one short message on an error.

  Args:
    argv: the command line, with the name of the program.

  Returns:
    The remaining arguments.
  """
  keys = [a.lstrip("-").partition("=")[0] for a in argv if a[:2] == "--"]
  for key in keys:
    below = [k for k in keys if k.startswith(f"{key}.") and key != "config"]
    if below:
      sys.exit(
        f"soupjax: --{key} and --{below[0]} exclude each other: give either "
        "the whole text or single keys."
      )
  try:
    rest = flags.FLAGS(argv)
  except flags.Error as e:
    # For an error in a config, the message of ml_collections has a traceback.
    wrapped = e.__context__
    cause = wrapped.__context__ if wrapped else None
    in_config = isinstance(cause, ValueError) and "config file" in str(wrapped)
    sys.exit(f"soupjax: {cause if in_config else e}\n(--help lists the flags.)")
  except Exception as e:
    if where := _line_of_config(e, argv):
      if "--verbosity=1" in argv:
        raise
      sys.exit(f"soupjax: {where}: {e}\n(--verbosity=1 shows where.)")
    if not isinstance(e, AttributeError | KeyError):
      raise
    # The text is a repr of the key and, on a second line, a similar key.
    text = str(e).replace("\\n", "\n").replace("\\", "")
    key, *similar = [line.strip("\"'") for line in text.splitlines()]
    hint = "".join(f" {line}" for line in similar)
    if any(k.startswith("config.tests.") for k in keys):
      hint += " Give all tests at once, --config.tests=NAME=SPLIT,NAME=SPLIT."
    sys.exit(
      f"soupjax: The config has no key {key!r}, so flags cannot "
      f"set it.{hint} Other options of the model or the optimizer can only be "
      "set in a config file."
    )
  path, _, _ = config_flags.get_config_filename(
    flags.FLAGS["config"]
  ).partition(":")
  if not os.path.exists(path):
    sys.exit(f"soupjax: The config file {path} does not exist.")
  if not os.path.isfile(path) or not os.access(path, os.R_OK):
    sys.exit(f"soupjax: {path} is not a file that can be read.")
  return rest


def _line_of_config(error: Exception, argv: list[str]) -> str | None:
  """Returns the line of the config file that raised an error, if one did."""
  values = [a.partition("=")[2] for a in argv if a.startswith("--config=")]
  paths = {os.path.abspath(value.partition(":")[0]) for value in values}
  if isinstance(error, SyntaxError) and error.filename:
    if os.path.abspath(error.filename) in paths:
      return f"{error.filename}, line {error.lineno}, SyntaxError"
  for frame in reversed(traceback.extract_tb(error.__traceback__)):
    if os.path.abspath(frame.filename) in paths:
      return f"{frame.filename}, line {frame.lineno}, {type(error).__name__}"
  return None


def given() -> Command:
  """Returns the command line that `parse` has parsed."""
  config = flags.FLAGS["config"]
  names = {*SHARED, *(name for task in TASKS.values() for name in task)}
  values = {name: flags.FLAGS[name].value for name in sorted(names)}
  return Command(
    config=config.value,
    config_file=config_flags.get_config_filename(config),
    overrides=tuple(config.override_values),
    flags={k: v for k, v in values.items() if v is not None},
  )


def run(command: Command) -> None:
  """Runs the task that `config.task` names.

  Raises:
    ValueError: if the task is unknown, a flag is missing or not used by the
      task, or the config cannot work.
  """
  task = command.config.get("task")
  # --nosweep means no flag. `is not` keeps --sweep_index=0, since 0 == False.
  given = {k: v for k, v in command.flags.items() if v is not False}
  if task not in TASKS:
    raise ValueError(
      f"Unknown config.task {task!r}{suggestion(str(task), TASKS)}"
    )
  for flag in given:
    if flag not in (*SHARED, *TASKS[task]):
      uses = ", ".join(f"--{flag}" for flag in (*SHARED, *TASKS[task]))
      raise ValueError(
        f"The task {task!r} does not use --{flag}: leave it out. It takes "
        f"{uses}."
      )
  for key in command.overrides:
    if any(f"{key}.".startswith(f"{k}.") for k in UNUSED.get(task, ())):
      raise ValueError(
        f"The task {task!r} does not use --config.{key}; leave it out."
      )
  dry_run = given.get("dry_run", False)
  if "workdir" in TASKS[task] and not (given.get("workdir") or dry_run):
    what = "a directory for the results"
    if task == "report":
      what = "the directories of finished runs, joined by commas"
    raise ValueError(f"Give --workdir, {what}.")
  for flag in ("fake_devices", "topology"):
    if flag in given and not dry_run:
      raise ValueError(f"--{flag} only works with --dry_run: add it.")
  if given.get("fake_devices", 1) < 1:
    raise ValueError(
      f"--fake_devices={given['fake_devices']} must be positive."
    )
  for one, other in (
    ("fake_devices", "distributed"),
    ("topology", "distributed"),
    ("topology", "fake_devices"),
    ("sweep", "sweep_index"),
  ):
    if one in given and other in given:
      raise ValueError(
        f"--{one} and --{other} exclude each other: leave one out."
      )
  if given.get("distributed"):
    processes.join()
  if "topology" in given:
    # Cached programs cannot be loaded for devices that do not exist here.
    compilation_cache.use(False)
    _compile(task, command, topology.get(given["topology"]))
    return
  compilation_cache.use(command.flags.get("compilation_cache", True))
  _run(task, command, dry_run)


def _compile(task, command, tpu: topology.Topology):
  """Prints the plan of a task, and the resources it needs on a TPU slice."""
  with topology.explained(tpu):
    programs = list(_programs(task, command, tpu.devices))
  print()
  print(report.run(programs, tpu))


def _programs(task, command, devices):
  """Prints the plan of a task on some devices; returns its programs."""
  config = command.config
  if task == "finetune":
    from soupjax.tasks.finetune import dry_run as plan_lib
    from soupjax.tasks.finetune import programs as finetune

    members, index, in_sweep = _members(command, True)
    print(plan_lib.plan(config, members, index, devices))
    members = members if in_sweep else None
    return finetune.programs(config, members, index, devices)
  if task == "cook":
    from soupjax.tasks.cook import programs as cook
    from soupjax.tasks.cook import run as cook_run

    workdir = command.flags.get("workdir")
    return cook.programs(cook_run.planned(config, workdir, devices))
  from soupjax.tasks import mix

  return mix.programs(config, devices)


def _run(task, command, dry_run):
  # Tasks are imported on demand, since some need optional packages.
  workdir = command.flags.get("workdir")
  if task == "finetune":
    _finetune(command, dry_run)
  elif task == "cook":
    from soupjax.tasks.cook import run as cook

    cook.run(command.config, workdir, dry_run=dry_run)
  elif task == "diagnose":
    from soupjax.tasks import diagnose

    diagnose.run(command.config, workdir, dry_run=dry_run)
  elif task == "evaluate":
    from soupjax.tasks.evaluate import run as evaluate

    evaluate.run(command.config, workdir, dry_run=dry_run)
  elif task == "search":
    from soupjax.tasks.search import run as search

    search.run(command.config, workdir, dry_run=dry_run)
  elif task == "statistics":
    from soupjax.tasks import statistics

    statistics.run(command.config, workdir, dry_run=dry_run)
  elif task == "report":
    from soupjax.tasks import compare

    compare.run(command.config, workdir, dry_run=dry_run)
  else:
    from soupjax.tasks import mix

    mix.run(command.config, dry_run=dry_run)


def _finetune(command, dry_run):
  from soupjax.tasks.finetune import dry_run as plan_lib
  from soupjax.tasks.finetune import run as finetune

  members, index, in_sweep = _members(command, dry_run)
  if dry_run:
    from soupjax.tasks.finetune import needs

    devices = command.flags.get("fake_devices")
    if devices:
      jax.config.update("jax_platforms", "cpu")
      jax.config.update("jax_num_cpu_devices", devices)
    text = plan_lib.plan(command.config, members, index)
    if not devices:  # Fake devices have no memory to report.
      runs = members if in_sweep else None
      workdir = command.flags.get("workdir")
      text += f"\n\n{needs.needs(command.config, runs, index, workdir)}"
    if jax.process_index() == 0:
      print(text)
    return
  finetune.run(
    command.config, command.flags["workdir"], sweep=members, index=index
  )


def _members(command, dry_run):
  """Returns the sweep, the given index, and whether flags ask for members."""
  index = command.flags.get("sweep_index")
  in_sweep = bool(command.flags.get("sweep") or index is not None)
  members = None
  if in_sweep or dry_run:
    path, _, arg = command.config_file.partition(":")
    members = config_lib.load_sweep(path, arg, required=in_sweep) or None
  if in_sweep:
    _check_overrides(command.overrides, members)
  return members, index, in_sweep


def _check_overrides(overrides, members):
  """Raises a ValueError if all members of the sweep replace an override."""
  for key in overrides:
    if all(key in member for member in members or ()):
      raise ValueError(
        f"get_sweep() sets {key} in all members, so --config.{key} would have "
        "no effect: edit get_sweep(), or leave --sweep out."
      )
