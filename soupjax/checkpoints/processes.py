# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Several processes that write one checkpoint."""

import json
from typing import Any

import jax
import numpy as np


def barrier(name: str) -> None:
  """Waits until all processes are here."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(f"soupjax {name}")


def gather(value: Any) -> list[Any]:
  """Returns what every process passed here, in their order.

  Args:
    value: JSON. Every process must call this.
  """
  if jax.process_count() == 1:
    return [value]
  from jax.experimental import multihost_utils

  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.array([data.size]))[:, 0]
  row = np.pad(data, (0, int(sizes.max()) - data.size))
  rows = multihost_utils.process_allgather(row)
  return [json.loads(one[:n].tobytes()) for one, n in zip(rows, sizes)]
