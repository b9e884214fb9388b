# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Turns many fine-tuned models into one better model.

  soupjax --config=FILE.py[:ARGUMENT] [--config.KEY=VALUE ...] [--workdir=DIR]

The config names the task: fine-tuning, cooking soups of fine-tuned models,
searching for coefficients, evaluating checkpoints, comparing runs, diagnosis,
statistics for rules, or mixing files. Each key of the config is a flag.
--dry_run checks the inputs and prints the plan. A command that is started again
continues where it stopped.
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from soupjax.tasks import command, failures

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Python file with get_config(arg).", lock_config=True
)
_FLAGS = (
  flags.DEFINE_string("workdir", None, "Directory for the results."),
  flags.DEFINE_bool("dry_run", None, "Check, print the plan, and stop."),
  flags.DEFINE_bool("sweep", None, "Fine-tune all members of get_sweep()."),
  flags.DEFINE_integer(
    "sweep_index", None, "Fine-tune this member of get_sweep(), from 0."
  ),
  flags.DEFINE_integer(
    "fake_devices", None, "With --dry_run: plan for that many devices."
  ),
  flags.DEFINE_string("topology", None, "With --dry_run: TPUs, e.g. v5e:4x4."),
  flags.DEFINE_bool(
    "distributed",
    None,
    "Join other processes: on Cloud TPU, Slurm, Open MPI or Kubernetes, or by "
    "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
  ),
  flags.DEFINE_bool("compilation_cache", None, "Keep compiled programs."),
)


def main(argv: list[str]) -> None:
  """Runs the task of the config."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
  command.run(command.given())


def run() -> None:
  """Runs the console script; on an error, prints one message and exits."""
  # At level INFO, Orbax logs a page per checkpoint; --verbosity=0 shows it.
  logging.set_verbosity(logging.WARNING)
  flags.mark_flag_as_required("config")
  # --help shows the docstring and flags of the script, not of this module.
  sys.modules["__main__"].__doc__ = __doc__
  for flag in (_CONFIG, *_FLAGS):
    flags.FLAGS.register_key_flag_for_module(
      sys.argv[0], flags.FLAGS[flag.name]
    )
  with failures.reported():
    try:
      app.run(main, flags_parser=command.parse)
    except SystemExit as e:
      if e.code:
        raise


if __name__ == "__main__":
  run()
