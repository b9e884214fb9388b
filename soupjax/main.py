# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The command line: `soupjax --config=FILE.py --workdir=DIR`."""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A Python file with get_config().", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of the run; started again, it goes on there."
)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Check everything, print what would be done, and stop."
)


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
  if config.get("task") in ("soup", "search"):
    if not _WORKDIR.value:
      raise app.UsageError("Give --workdir, a directory for the results.")
    if config.task == "soup":
      from soupjax.tasks import soup as task
    else:
      from soupjax.tasks import search as task

    task.run(config, _WORKDIR.value, dry_run=dry_run)
  elif config.get("task") == "mix":
    from soupjax.tasks import mix

    mix.mix(config, dry_run=dry_run)
  else:
    raise app.UsageError(
      "config.task must be 'soup', 'search' or 'mix', got "
      f"{config.get('task')!r}."
    )


def run() -> None:
  """Entry point of the console script."""
  # Orbax logs a page a checkpoint at level info; --verbosity=0 shows it.
  logging.set_verbosity(logging.WARNING)
  flags.mark_flag_as_required("config")
  # --help shows the flags of the script, which is not this module.
  for flag in (_CONFIG, _WORKDIR, _DRY_RUN):
    flags.FLAGS.register_key_flag_for_module(
      sys.argv[0], flags.FLAGS[flag.name]
    )
  app.run(main)


if __name__ == "__main__":
  run()
