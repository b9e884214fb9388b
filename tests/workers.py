# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Starts several processes of `jax.distributed` on one machine, for tests."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]


def run(
  worker: pathlib.Path,
  logs: pathlib.Path,
  *arguments: str,
  count: int = 2,
  seconds: float = 280,
  **variables: str,
) -> None:
  """Runs a script in several processes; kills all if one fails.

  Args:
    worker: the script; finds ADDRESS, COUNT and INDEX in its environment, and
      the variables that `soupjax --distributed` reads.
    logs: a directory for what they print.
    *arguments: of the script.
    count: of processes.
    seconds: they may take.
    **variables: more of the environment.
  """
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  workers, deadline = [], time.monotonic() + seconds
  for index in range(count):
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env |= {"ADDRESS": f"localhost:{port}", "COUNT": str(count)}
    # As in setup.cfg: workers import the helpers of tests, too.
    paths = (ROOT, ROOT / "tests", ROOT / "tests" / "tasks")
    env |= {"INDEX": str(index)}
    env |= {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    env |= {"JAX_COORDINATOR_ADDRESS": env["ADDRESS"]}
    env |= {"JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
    env |= variables
    # Never a pipe: one that is full stops the worker.
    with open(logs / f"log_{index}", "wb") as log:
      workers.append(
        subprocess.Popen(
          [sys.executable, str(worker), *arguments],
          env=env,
          stdout=log,
          stderr=log,
          start_new_session=True,
        )
      )
  try:
    while any(w.poll() is None for w in workers):
      if any(w.poll() not in (None, 0) for w in workers):
        time.sleep(1)
        break
      assert time.monotonic() < deadline, "timeout"
      time.sleep(0.05)
  finally:
    for w in workers:
      if w.poll() is None:
        os.killpg(w.pid, signal.SIGKILL)
      w.wait()
  texts = [(logs / f"log_{i}").read_text()[-3000:] for i in range(count)]
  assert [w.returncode for w in workers] == [0] * count, "\n".join(texts)
