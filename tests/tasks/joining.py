# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""How one of several processes of a test joins the others."""

import os

import jax


def join() -> None:
  """Takes two devices; who the others are is in the environment."""
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 2)
  jax.config.update("jax_disable_most_optimizations", True)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(
    os.environ["ADDRESS"],
    num_processes=int(os.environ["COUNT"]),
    process_id=int(os.environ["INDEX"]),
  )
