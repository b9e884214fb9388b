# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""One of several processes that cook together; no test by itself."""

import os
import sys

import jax


def main(sweep: str, workdir: str) -> None:
  """Cooks a sweep under FSDP."""
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 2)
  jax.config.update("jax_disable_most_optimizations", True)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(
    os.environ["ADDRESS"],
    num_processes=int(os.environ["COUNT"]),
    process_id=int(os.environ["INDEX"]),
  )
  from cook_sweep_test import config_of

  from soupjax.tasks import cook_sweep

  config = config_of(
    sweep, **{"sharding.preset": "fsdp", "sharding.fsdp_min_size": 64}
  )
  cook_sweep.run(config, workdir)


if __name__ == "__main__":
  main(*sys.argv[1:])
