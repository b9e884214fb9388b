# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Several processes that write one checkpoint."""

import jax


def barrier(name: str) -> None:
  """Waits until all processes are here."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(f"soupjax {name}")
