# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes the members of a sweep as tasks of a Ray cluster.

  python launch/ray_sweep.py --config=FILE.py[:ARGUMENT] --workdir=DIR
    [--gpus=N] [--cpus=N] [--resource=TPU=4] [--config.KEY=VALUE ...]

Ray schedules members on free workers. If a worker dies, its member is restarted
and continues from its last train state. Finished members stop at once, so the
same command completes an interrupted sweep. A member that raises an error, such
as for a wrong setting, is not retried; the others continue.

Without --address it joins the cluster of RAY_ADDRESS or of this machine
(`ray start --head`), or else starts a temporary one on this machine. All
machines need soupjax with the extra `ray`, the config file under the same path,
and a shared --workdir.
"""

import contextlib
import dataclasses
import os
import pathlib
import socket
import sys

from absl import app, flags, logging

from soupjax import config as config_lib
from soupjax import files
from soupjax import main as soupjax_main
from soupjax.tasks import command, failures

_ADDRESS = flags.DEFINE_string("address", None, "host:port of a Ray cluster.")
_CPUS = flags.DEFINE_float("cpus", 1, "CPU cores for each member.")
_GPUS = flags.DEFINE_float("gpus", 0, "GPUs for each member.")
_RESOURCES = flags.DEFINE_multi_string(
  "resource", [], "NAME=AMOUNT of another Ray resource, such as TPU=4."
)
_RETRIES = flags.DEFINE_integer(
  "retries",
  20,
  "How often a member is restarted after its worker has died.",
  lower_bound=0,
)


def train(member: command.Command, mark: pathlib.Path | None) -> None:
  """Fine-tunes one member, in the process of a Ray worker.

  Args:
    member: the command, with `sweep_index`.
    mark: a file that the driver has written to the workdir; None for a bucket.

  Raises:
    ValueError: if the member cannot be trained; a one-line message for the
      driver.
  """
  if mark is not None and not mark.exists():
    raise ValueError(
      f"--workdir={mark.parent} is not shared: {os.uname().nodename} does "
      "not see what the driver writes there. Choose a directory on a disk "
      "that all machines mount."
    )
  logging.set_verbosity(logging.WARNING)
  if not flags.FLAGS.is_parsed():  # Libraries read their flags.
    flags.FLAGS.mark_as_parsed()
  try:
    command.run(member)
  except Exception as e:
    # Ray would show a traceback, and could not always pickle the error.
    text = failures.message(e)
    if text is None:
      raise
    raise ValueError(text) from None


def needs() -> dict[str, float]:
  """Returns the amounts that a member needs, by Ray's names of resources."""
  amounts = {"CPU": _CPUS.value, "GPU": _GPUS.value}
  for text in _RESOURCES.value:
    name, _, amount = text.partition("=")
    try:
      amounts[name] = float(amount)
    except ValueError:
      raise ValueError(
        f"--resource={text}: write NAME=AMOUNT, such as TPU=4."
      ) from None
  return amounts


def check(given: command.Command) -> list[dict]:
  """Checks the command and returns the members of the sweep.

  Raises:
    ValueError: if the command does not fine-tune a sweep.
  """
  if given.config.get("task") != "finetune":
    raise ValueError(
      f"config.task={given.config.get('task')!r} has no sweep: run it with "
      "soupjax."
    )
  for flag in ("sweep_index", "distributed", "fake_devices"):
    value = given.flags.get(flag)
    if value is not None and value is not False:  # An index may be 0.
      raise ValueError(
        f"--{flag} is not for ray_sweep.py, which runs every member by itself: "
        "leave it out."
      )
  if not given.flags.get("workdir") and not given.flags.get("dry_run"):
    raise ValueError("Give --workdir, a directory that all machines share.")
  path, _, argument = given.config_file.partition(":")
  return config_lib.load_sweep(path, argument, required=True)


def member_of(given: command.Command, index: int) -> command.Command:
  """Returns the command of one member, wherever it runs."""
  chosen = {k: v for k, v in given.flags.items() if k != "sweep"}
  if "://" not in (workdir := chosen["workdir"]):
    chosen["workdir"] = str(pathlib.Path(workdir).expanduser().absolute())
  path, colon, argument = given.config_file.partition(":")
  return command.Command(
    config=given.config,
    config_file=f"{os.path.abspath(path)}{colon}{argument}",
    overrides=given.overrides,
    flags={**chosen, "sweep_index": index},
  )


def check_address() -> None:
  """Raises a ValueError if nothing answers; Ray would retry for minutes."""
  address = _ADDRESS.value or os.environ.get("RAY_ADDRESS") or ""
  host, _, port = address.rpartition("://")[2].rpartition(":")
  if not port.isdigit():  # Such as "auto".
    return
  try:
    socket.create_connection((host, int(port)), 10).close()
  except OSError as e:
    raise ValueError(
      f"No Ray cluster answers at {address} ({e.strerror or e}). Start one by "
      "`ray start --head`, correct --address or RAY_ADDRESS, or leave both out "
      "to use this machine alone."
    ) from e


def check_room(ray) -> None:
  """Raises a ValueError if no machine could ever run a member."""
  nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
  for name, amount in needs().items():
    most = max((node.get(name, 0) for node in nodes), default=0)
    if amount > most:
      raise ValueError(
        f"A member needs {amount:g} {name}, but no machine of the cluster has "
        f"more than {most:g}: lower the flag, or add machines."
      )


def run(ray, given: command.Command, count: int) -> dict[int, str]:
  """Trains all members; returns why members failed, by index."""
  amounts = needs()
  task = ray.remote(
    num_cpus=amounts.pop("CPU"),
    num_gpus=amounts.pop("GPU"),
    resources=amounts,
    max_retries=_RETRIES.value,
    retry_exceptions=False,
  )(train)
  failed: dict[int, str] = {}
  with shared_mark(given.flags["workdir"]) as mark:
    tasks = {
      task.options(name=f"member_{k:03d}").remote(member_of(given, k), mark): k
      for k in range(count)
    }
    left = list(tasks)
    while left:
      (ended,), left = ray.wait(left)
      name = f"member_{tasks[ended]:03d}"
      try:
        ray.get(ended)
        print(f"{name} is done; {len(left)} of {count} left", flush=True)
        continue
      except ray.exceptions.RayTaskError as e:
        reason = str(e.cause)
      except ray.exceptions.RayError as e:
        reason = f"{type(e).__name__}, even after {_RETRIES.value} retries"
      failed[tasks[ended]] = reason
      print(f"{name} failed: {reason}", file=sys.stderr, flush=True)
  return failed


def shared_mark(workdir: str):
  """Marks the workdir, so that workers can check that it is shared."""
  if "://" in workdir:  # A bucket.
    return contextlib.nullcontext()
  path = pathlib.Path(workdir).expanduser().absolute()
  path.mkdir(parents=True, exist_ok=True)
  return files.mark(path)


def main(argv: list[str]) -> None:
  """Runs the sweep."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
  given = command.given()
  members = check(given)
  if given.flags.get("dry_run"):
    command.run(
      dataclasses.replace(given, flags={**given.flags, "sweep": True})
    )
    amounts = ", ".join(f"{v:g} {k}" for k, v in needs().items())
    print(f"{len(members)} Ray tasks of {amounts} each")
    return
  needs()
  check_address()
  # Ray would drop progress lines of members, which differ only in numbers.
  os.environ.setdefault("RAY_DEDUP_LOGS", "0")
  try:
    import ray
  except ImportError as e:
    raise ValueError(
      "Ray is missing: pip install 'soupjax[ray]' on all machines."
    ) from e
  try:
    ray.init(address=_ADDRESS.value, include_dashboard=False)
    check_room(ray)
    failed = run(ray, given, len(members))
  finally:
    ray.shutdown()
  if failed:
    raise ValueError(
      f"{len(failed)} of {len(members)} members failed. The same command runs "
      "only these again:\n  "
      + "\n  ".join(f"member_{k:03d}: {r}" for k, r in sorted(failed.items()))
    )


if __name__ == "__main__":
  logging.set_verbosity(logging.WARNING)
  flags.mark_flag_as_required("config")
  flags.adopt_module_key_flags(soupjax_main)
  with failures.reported():
    app.run(main, flags_parser=command.parse)
