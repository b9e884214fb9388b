# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The command line: `soupjax --config=FILE.py --workdir=DIR`."""

import importlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

# config.task -> module and function; imported when asked for.
TASKS = {"soup": ("soupjax.tasks.soup", "run")}

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A Python file with get_config().", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of the run; started again, it goes on there."
)


def main(argv: list[str]) -> None:
  """Dispatches on `config.task`."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
  config = _CONFIG.value
  if config.get("task") not in TASKS:
    raise app.UsageError(
      f"config.task must be one of {sorted(TASKS)}, got {config.get('task')!r}."
    )
  if not _WORKDIR.value:
    raise app.UsageError("Give --workdir, a directory for the results.")
  module, function = TASKS[config.task]
  getattr(importlib.import_module(module), function)(config, _WORKDIR.value)


def run() -> None:
  """Entry point of the console script."""
  # Orbax logs a page a checkpoint at level info; --verbosity=0 shows it.
  logging.set_verbosity(logging.WARNING)
  flags.mark_flag_as_required("config")
  # --help shows the flags of the script, which is not this module.
  for flag in (_CONFIG, _WORKDIR):
    flags.FLAGS.register_key_flag_for_module(
      sys.argv[0], flags.FLAGS[flag.name]
    )
  app.run(main)


if __name__ == "__main__":
  run()
