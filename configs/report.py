# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Compares finished runs of configs/cook.py, such as those of several seeds.

  soupjax --config=configs/report.py --workdir=runs/seed0,runs/seed1,runs/seed2

Writes one page, --config.out=comparison.html, and prints its main table: the
accuracy of each soup, ensemble and best ingredient on each set, averaged over
the runs that have it, and the gain over the best ingredient of the same run
with its interval over runs. Runs on different datasets get separate tables.
Nothing is written to the runs.
"""

from soupjax.tasks import compare


def get_config(arg=None):
  if arg:
    raise ValueError(f"configs/report.py takes no argument, got {arg!r}.")
  return compare.default_config().lock()
