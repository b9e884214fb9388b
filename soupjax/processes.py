# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Barriers and gathers of several processes that write one output."""

import json
from typing import Any

import jax
import numpy as np

from soupjax.soups.engine import first_pass


def barrier(name: str) -> None:
  """Waits until all processes are here."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(f"soupjax {name}")


def gather(data: bytes) -> list[bytes]:
  """Returns what every process passed here, in their order.

  Args:
    data: of any length. Every process must call this.
  """
  if jax.process_count() == 1:
    return [data]
  from jax.experimental import multihost_utils

  mine = np.frombuffer(data, np.uint8)
  sizes = multihost_utils.process_allgather(np.array([mine.size]))[:, 0]
  row = np.pad(mine, (0, int(sizes.max()) - mine.size))
  rows = multihost_utils.process_allgather(row)
  return [one[:n].tobytes() for one, n in zip(rows, sizes)]


def gather_json(value: Any) -> list[Any]:
  """As `gather`, for JSON."""
  return [json.loads(data) for data in gather(json.dumps(value).encode())]


def all_of_them() -> first_pass.Processes:
  """The processes of `jax.distributed`, for the engine."""
  return first_pass.Processes(jax.process_index(), jax.process_count(), gather)
