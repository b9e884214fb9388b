# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""One of several processes that cook and diagnose; not a test by itself."""

import sys

import helpers


def main(sweep: str, workdir: str, why: str) -> None:
  """Cooks and diagnoses a sweep under FSDP."""
  helpers.join_workers()

  from soupjax.tasks import diagnose
  from soupjax.tasks.cook import run as cook

  config = helpers.cook_config(
    sweep, **{"sharding.preset": "fsdp", "sharding.fsdp_min_size": 64}
  )
  cook.run(config, workdir)
  config = helpers.diagnose_config(
    sweep, **{"sharding.preset": "fsdp", "sharding.fsdp_min_size": 64}
  )
  diagnose.run(config, why)
  diagnose.run(config, why)  # Prints the diagnosis again.


if __name__ == "__main__":
  main(*sys.argv[1:])
