# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Run directories: finished outputs are skipped on restart."""

from collections.abc import Iterator
import contextlib
import dataclasses
import os
import pathlib
from typing import Any

import jax
import ml_collections

from soupjax import buckets, files, processes
from soupjax import config as config_lib
from soupjax.checkpoints.save import save_params
from soupjax.progress import Progress

PyTree = Any


def open_workdir(
  path: str | os.PathLike, config: ml_collections.ConfigDict
) -> pathlib.Path:
  """Makes the directory of a run, or continues an earlier run in it.

  Args:
    path: a new or empty directory, or that of an earlier run with this config.
    config: written to `config.json` at the first start.

  Returns:
    The absolute path.

  Raises:
    ValueError: if the directory has a run with another config or other files,
      or cannot be written to.
  """
  if buckets.is_remote(path):
    buckets.check_output(path)
  workdir = files.path_of(path)
  record = workdir / "config.json"
  values = config_lib.to_dict(config)
  if record.exists():
    try:
      recorded = files.read_json(record)
    except ValueError as e:
      raise ValueError(
        f"{record} is damaged. Restore it, or choose another --workdir."
      ) from e
    if changes := config_lib.differences(recorded, values):
      raise ValueError(
        f"{workdir} holds a run of another config. Choose another --workdir, "
        "or undo:\n  " + "\n  ".join(changes)
      )
    return workdir
  if set("*?[]") & set(str(workdir)):
    raise ValueError(
      f"{workdir}: Orbax reads * ? [ ] as a pattern. Choose another name."
    )
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(f"{workdir} is a file: choose a directory.")
  # A run that was killed early leaves only its hidden temporary record.
  if names := _visible(workdir):
    raise ValueError(
      f"{workdir} has no config.json but other files, such as {min(names)}: "
      "choose a new or empty directory."
    )
  try:
    files.make_directory(workdir)
    files.write_json(record, values)
  except OSError as e:
    raise ValueError(f"{workdir} cannot be written: {e}.") from e
  return workdir


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """Locks a directory for one run during a block, or until the process ends.

  Raises:
    ValueError: if another run has locked it.
  """
  busy = (
    f"Another run uses {workdir}: wait for it, or choose another --workdir."
  )
  if buckets.is_remote(workdir):
    with buckets.locked(workdir / ".lock", busy):
      yield
    return
  lock = files.lock(workdir / ".lock", busy)
  try:
    yield
  finally:
    os.close(lock)


@contextlib.contextmanager
def waiting(lock: pathlib.Path) -> Iterator[None]:
  """Locks a file during a block, after waiting for processes that hold it."""
  if buckets.is_remote(lock):
    with buckets.locked(lock):
      yield
    return
  lock.parent.mkdir(parents=True, exist_ok=True)
  fd = files.lock(lock)
  try:
    yield
  finally:
    os.close(fd)


def save_model(
  path: pathlib.Path,
  params: PyTree,
  *,
  metadata: dict[str, Any] | None = None,
  **sidecars: Any,
) -> None:
  """Writes a model's directory completely or not at all.

  All processes must call this.

  Args:
    path: the directory to create; gets `params/`, an Orbax checkpoint.
    params: the weights.
    metadata: JSON values to store inside the checkpoint.
    **sidecars: `name=value` is written to `name.json`, beside `params/`.
  """
  if buckets.is_remote(path):
    if jax.process_index() == 0:
      for name, value in sidecars.items():
        files.write_json(path / f"{name}.json", value)
    # Written last: the last object of the weights completes the model.
    save_params(path / "params", params, metadata=metadata)
    return
  with contextlib.ExitStack() as stack:
    directory = files.temporary_name(path)
    if jax.process_index() == 0:
      directory = stack.enter_context(files.new_directory(path))
    processes.barrier(f"making {path.name}")
    save_params(directory / "params", params, metadata=metadata)
    processes.barrier(f"saved {path.name}")
    if jax.process_index() == 0:
      for name, value in sidecars.items():
        files.write_json(directory / f"{name}.json", value)
  processes.barrier(f"named {path.name}")


def has_model(path: pathlib.Path) -> bool:
  """Whether `save_model` has completed a model; the first process decides."""
  if buckets.is_remote(path):
    path = path / "params" / "commit_success.txt"
  return agreed(path.exists())


def forget(workdir: pathlib.Path) -> None:
  """Removes the record of a run that failed before it wrote other files."""
  if _visible(workdir) == ["config.json"]:
    (workdir / "config.json").unlink()


def _visible(workdir: pathlib.Path) -> list[str]:
  return [p.name for p in workdir.glob("*") if not p.name.startswith(".")]


def agreed(value: Any) -> Any:
  """Returns the JSON value of the first process in all processes."""
  return processes.gather_json(value)[0]


def exists(path: pathlib.Path) -> bool:
  """Whether a path exists for the first process."""
  return agreed(path.exists())


def read(path: pathlib.Path, default: Any = None) -> Any:
  """Returns a JSON file as the first process sees it, or the default."""
  return agreed(files.read_json(path) if path.exists() else default)


def resumed_search(
  path: pathlib.Path, progress: Progress, title: str
) -> dict[str, Any]:
  """Returns the arguments that record a search in a file and resume it.

  Args:
    path: the JSON file that every candidate is added to.
    progress: counts one step for every candidate.
    title: start of the note in lines of progress.

  Returns:
    The arguments `resume` and `on_candidate` of searches.

  Raises:
    ValueError: if the file is not a list.
  """
  history = read(path, [])
  if not isinstance(history, list):
    raise ValueError(f"{path} is not a list of candidates: delete it.")

  def save(candidate):
    history.append(dataclasses.asdict(candidate))
    if jax.process_index() == 0:
      files.write_json(path, history)
    values = ", ".join(f"{c:.3g}" for c in candidate.coefficients)
    shown = ", ".join(f"{k} {v:.4f}" for k, v in candidate.scores.items())
    progress.step(note=f"{title} at {values}: {shown}")

  return {"resume": list(history), "on_candidate": save}
