# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Joining the processes of one run; barriers and gathers among them."""

import contextlib
import faulthandler
import json
import os
import pathlib
import signal
import socket
import threading
import time
from typing import Any

from absl import logging
import jax
import numpy as np

from soupjax import files
from soupjax.soups.engine import first_pass

# Seconds that JAX waits for all processes, and this module for the first one.
_SECONDS = 300
_VARIABLES = (
  "JAX_COORDINATOR_ADDRESS",
  "JAX_NUM_PROCESSES",
  "JAX_PROCESS_ID",
)
# Cluster -> the variables by which JAX recognises it.
_CLUSTERS = {
  "Slurm (srun)": (
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
  ),
  "Open MPI (mpirun)": ("OMPI_MCA_orte_hnp_uri",),
  "Kubernetes (with the package kubernetes)": ("KUBERNETES_SERVICE_HOST",),
  "Cloud TPU": ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"),
}


def join() -> None:
  """Connects this process to those that were started with it.

  Slurm, Open MPI, Kubernetes and Cloud TPU are recognised. Elsewhere, set
  JAX_COORDINATOR_ADDRESS (host:port of the first process), JAX_NUM_PROCESSES
  and JAX_PROCESS_ID (from 0) in the environment of each process.

  Raises:
    ValueError: if the environment does not describe the processes, the first
      one does not answer, or its port is in use.
  """
  numbers: dict[str, Any] = {}
  for name in ("num_processes", "process_id"):
    variable = f"JAX_{name.upper()}"
    text = os.environ.get(variable)
    if text is None:
      continue
    if not text.isdigit():
      raise ValueError(f"{variable}={text!r} must be a whole number.")
    numbers[name] = int(text)
  address = os.environ.get("JAX_COORDINATOR_ADDRESS")
  if numbers and not address:
    raise ValueError(
      f"JAX_{next(iter(numbers)).upper()} is set, but not "
      "JAX_COORDINATOR_ADDRESS=host:port of the first process."
    )
  if len(numbers) == 2 and "KUBERNETES_SERVICE_HOST" in os.environ:
    # The environment is complete. JAX would need a package to query Kubernetes.
    numbers["cluster_detection_method"] = "deactivate"
  terminate = signal.getsignal(signal.SIGTERM)
  # If the first process dies, JAX aborts the others with a message, which their
  # stack traces would bury.
  if not logging.vlog_is_on(1):
    faulthandler.disable()
  late = threading.Timer(_SECONDS / 10, _say_who_is_late, (address,))
  late.daemon = True
  late.start()
  try:
    if address:
      _check_coordinator(address, numbers.get("process_id", 0))
    _initialize(numbers, address)
  finally:
    late.cancel()
  # JAX's handler only records SIGTERM; the process would run until killed.
  signal.signal(signal.SIGTERM, terminate)


def _initialize(numbers: dict[str, Any], address: str | None) -> None:
  try:
    jax.distributed.initialize(**numbers, initialization_timeout=_SECONDS)
  except ValueError as e:
    raise ValueError(f"--distributed: {e} {_looked_for()}") from e


def _looked_for() -> str:
  """Lists the variables that describe processes, and those that are set."""
  every = [*_VARIABLES, *(v for names in _CLUSTERS.values() for v in names)]
  given = [v for v in every if v in os.environ]
  clusters = "; ".join(f"{k}: {', '.join(v)}" for k, v in _CLUSTERS.items())
  return (
    f"It looked for {', '.join(_VARIABLES)} in the environment, and for those "
    f"of clusters ({clusters}). Set: {', '.join(given) or 'none of them'}. "
    "Set the first three in each process, start it with the cluster's launcher "
    "or launch/local_processes.sh, or leave --distributed out."
  )


def _check_coordinator(address: str, index: int) -> None:
  """Waits for the first process at the address that the user gave.

  JAX would abort with a stack trace if the first process did not answer in time
  or could not listen at the address.

  Raises:
    ValueError: if the address is malformed, nothing answers there, or the port
      is in use.
  """
  host, _, port = address.rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 65536:
    raise ValueError(
      f"JAX_COORDINATOR_ADDRESS={address!r} must be host:port of the first "
      "process."
    )
  if index == 0 and "JAX_COORDINATOR_BIND_ADDRESS" not in os.environ:
    try:
      socket.create_server(("", int(port))).close()
    except OSError as e:
      raise ValueError(
        f"--distributed: the first process cannot listen at {address} "
        f"({e.strerror}). If another run uses the port, set "
        "JAX_COORDINATOR_ADDRESS to another one in all processes."
      ) from e
  deadline = time.monotonic() + _SECONDS
  while index > 0:
    try:
      socket.create_connection((host.strip("[]"), int(port)), 5).close()
      return
    except OSError as e:
      if time.monotonic() > deadline:
        raise ValueError(
          f"--distributed: process {index} waited {_SECONDS} s for the first "
          f"one, but nothing answers at JAX_COORDINATOR_ADDRESS={address} "
          f"({e.strerror or e}). Start the process with JAX_PROCESS_ID=0 on "
          "that host, and make its port reachable for the others."
        ) from e
    time.sleep(0.1)


def _say_who_is_late(address: str | None) -> None:
  logging.warning(
    "Some processes of this run have not joined yet (coordinator: %s). Start "
    "all of them; the waiting ones are aborted after %s s.",
    address or "that of the cluster",
    _SECONDS,
  )


def is_first() -> bool:
  """Returns whether this is the process that prints and writes."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits until all processes have reached this call."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(f"soupjax {name}")


def gather(data: bytes) -> list[bytes]:
  """Gathers bytes from every process; all processes must call this.

  Args:
    data: the bytes of this process; lengths may differ.

  Returns:
    The bytes of all processes, by process index.
  """
  if jax.process_count() == 1:
    return [data]
  from jax.experimental import multihost_utils

  sizes = multihost_utils.process_allgather(np.array([len(data)]))[:, 0]
  padded = np.frombuffer(data.ljust(sizes.max(), b"\0"), np.uint8)
  rows = multihost_utils.process_allgather(padded)
  return [row[:n].tobytes() for row, n in zip(rows, sizes)]


def gather_json(value: Any) -> list[Any]:
  """Gathers a JSON value from every process, as `gather` does bytes."""
  return [json.loads(data) for data in gather(json.dumps(value).encode())]


def check_shared(directory: str | os.PathLike) -> None:
  """Checks that all processes see the same directory; also a barrier.

  Args:
    directory: a directory that the first process sees. A bucket (`gs://...`) is
      assumed to be shared.

  Raises:
    ValueError: in every process, if some do not see a file that the first one
      creates there. The message lists their indices.
  """
  if jax.process_count() == 1:
    return
  remote = "://" in str(directory)
  with contextlib.ExitStack() as stack:
    name = ""
    if jax.process_index() == 0 and not remote:
      name = stack.enter_context(files.mark(directory)).name
    mark = pathlib.Path(directory, gather_json(name)[0])
    seen = gather_json(remote or mark.exists())
  if not all(seen):
    blind = [str(k) for k, sees in enumerate(seen) if not sees]
    raise ValueError(
      f"{directory} is not shared: of {len(seen)} processes, number "
      f"{', '.join(blind)} cannot see files that the first one writes there. "
      "Choose a directory on a disk that all hosts mount."
    )


def all_of_them() -> first_pass.Processes:
  """Describes the processes of `jax.distributed` to the averaging engine."""
  return first_pass.Processes(jax.process_index(), jax.process_count(), gather)
