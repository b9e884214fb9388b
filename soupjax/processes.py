# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Barriers and gathers among the processes of one run."""

import json
from typing import Any

import jax
import numpy as np

from soupjax.soups.engine import first_pass


def barrier(name: str) -> None:
  """Waits until all processes have reached this call."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(f"soupjax {name}")


def gather(data: bytes) -> list[bytes]:
  """Returns the data of all processes, in their order.

  Args:
    data: of this process, of any length. Every process must call this.
  """
  if jax.process_count() == 1:
    return [data]
  from jax.experimental import multihost_utils

  sizes = multihost_utils.process_allgather(np.array([len(data)]))[:, 0]
  padded = np.frombuffer(data.ljust(sizes.max(), b"\0"), np.uint8)
  rows = multihost_utils.process_allgather(padded)
  return [row[:n].tobytes() for row, n in zip(rows, sizes)]


def gather_json(value: Any) -> list[Any]:
  """Gathers a JSON value from every process."""
  return [json.loads(data) for data in gather(json.dumps(value).encode())]


def all_of_them() -> first_pass.Processes:
  """Returns the processes of `jax.distributed` for the engine."""
  return first_pass.Processes(jax.process_index(), jax.process_count(), gather)
