# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The command line: `soupjax --config=FILE.py --workdir=DIR`."""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from soupjax import config as config_lib

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A Python file with get_config().", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of the run; started again, it goes on there."
)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Check everything, print what would be done, and stop."
)
_SWEEP = flags.DEFINE_bool(
  "sweep", False, "Run all members of the config's get_sweep(), one by one."
)
_SWEEP_INDEX = flags.DEFINE_integer(
  "sweep_index", None, "Run this member of get_sweep(), from 0: in a job array."
)
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "One of several processes: on a pod, or under Slurm."
)
_FAKE_DEVICES = flags.DEFINE_integer(
  "fake_devices", 0, "With --dry_run: plan for that many devices."
)
_FLAGS = (
  (_CONFIG, _WORKDIR, _DRY_RUN, _SWEEP, _SWEEP_INDEX)
  + (_DISTRIBUTED, _FAKE_DEVICES)
)  # fmt: skip


def main(argv: list[str]) -> None:
  """Dispatches on `config.task`."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
  try:
    _dispatch(_CONFIG.value, _DRY_RUN.value)
  except ValueError as e:
    if logging.vlog_is_on(1):
      raise
    sys.exit(f"soupjax: {e}\n(--verbosity=1 shows where.)")


def _dispatch(config, dry_run):
  # Tasks are imported when asked for: each knows what it needs.
  if config.get("task") == "finetune":
    _finetune(config, dry_run)
  elif config.get("task") in ("soup", "cook", "diagnose", "search"):
    if not _WORKDIR.value and not dry_run:
      raise app.UsageError("Give --workdir, a directory for the results.")
    if config.task == "soup":
      from soupjax.tasks import soup as task
    elif config.task == "cook":
      _distribute()
      from soupjax.tasks import cook_sweep as task
    elif config.task == "diagnose":
      from soupjax.tasks import diagnose as task
    else:
      from soupjax.tasks import search as task

    task.run(config, _WORKDIR.value, dry_run=dry_run)
  elif config.get("task") == "mix":
    from soupjax.tasks import mix

    mix.mix(config, dry_run=dry_run)
  else:
    raise app.UsageError(
      "config.task must be 'soup', 'cook', 'diagnose', 'search', 'mix' or "
      f"'finetune', got {config.get('task')!r}."
    )


def _finetune(config, dry_run):
  import jax

  from soupjax.tasks.finetune import dry_run as plan_lib
  from soupjax.tasks.finetune import run

  sweep = None
  if _SWEEP.value or _SWEEP_INDEX.value is not None or dry_run:
    sweep = _sweep(required=not dry_run)
  if _SWEEP.value or _SWEEP_INDEX.value is not None:
    _check_overrides(sweep)
  if dry_run:
    if _FAKE_DEVICES.value:
      jax.config.update("jax_platforms", "cpu")
      jax.config.update("jax_num_cpu_devices", _FAKE_DEVICES.value)
    print(plan_lib.plan(config, sweep))
    return
  if not _WORKDIR.value:
    raise app.UsageError("Give --workdir, a directory for the results.")
  _distribute()
  run.run(config, _WORKDIR.value, sweep=sweep, index=_SWEEP_INDEX.value)


def _distribute():
  if _DISTRIBUTED.value:
    import jax

    jax.distributed.initialize()


def _sweep(required):
  """Returns the members of the config file's get_sweep()."""
  path, _, arg = config_flags.get_config_filename(
    flags.FLAGS["config"]
  ).partition(":")
  try:
    return config_lib.load_sweep(path, arg)
  except ValueError:
    if required:
      raise
    return None


def _check_overrides(sweep):
  """Raises a ValueError where the sweep would undo what was asked for."""
  for key in flags.FLAGS["config"].override_values:
    if all(key in member for member in sweep):
      raise ValueError(
        f"get_sweep() sets {key} in all members, so --config.{key} would be "
        "without effect: edit get_sweep(), or leave --sweep out."
      )


def _parse(argv):
  """Parses flags as absl does; ml_collections has no word for a wrong key."""
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError) as e:
    sys.exit(
      f"soupjax: The config has no key {str(e).strip(chr(34))}, so no flag can "
      "set it. A key that is left to its default, as an option of the model or "
      "of the optimizer, has to be set in a config file."
    )


def run() -> None:
  """Entry point of the console script."""
  # Orbax logs a page a checkpoint at level info; --verbosity=0 shows it.
  logging.set_verbosity(logging.WARNING)
  flags.mark_flag_as_required("config")
  # --help shows the flags of the script, which is not this module.
  for flag in _FLAGS:
    flags.FLAGS.register_key_flag_for_module(
      sys.argv[0], flags.FLAGS[flag.name]
    )
  app.run(main, flags_parser=_parse)


if __name__ == "__main__":
  run()
