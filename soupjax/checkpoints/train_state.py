# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Train states, saved during training and restored after an interruption.

A state is a directory `state_STEP` with the Orbax checkpoint `arrays/` and
`record.json`, which holds other state of the run and a checksum of every file.
The directory gets this name when it is complete.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import shutil
from typing import Any

from absl import logging
import jax
import numpy as np

from soupjax import buckets, files
from soupjax.checkpoints import bucket_writer
from soupjax.checkpoints import open as open_lib
from soupjax.soups.core import crc32

PyTree = Any
_PREFIX = "state_"


class StateSaver:
  """Writes states in the background, one at a time, and keeps the newest two.

  The older one is a fallback if the newest is damaged.
  """

  def __init__(self, directory: str | os.PathLike):
    self._directory = files.path_of(directory)
    self._executor = concurrent.futures.ThreadPoolExecutor(1)
    self._pending: concurrent.futures.Future[None] | None = None

  def save(self, step: int, state: PyTree, record: dict[str, Any]) -> None:
    """Waits for the previous state, then starts writing this one.

    Args:
      step: number of the step.
      state: a tree of arrays; may be donated after the call.
      record: JSON to store with it, such as the position in the data.

    Raises:
      ValueError: if the previous state could not be written.
    """
    from soupjax.checkpoints.formats import orbax

    self.wait()
    final = self._directory / f"{_PREFIX}{step:08d}"
    if buckets.is_remote(final):
      self._save_object(final, state, record)
      return
    temporary = files.temporary_name(final)
    if jax.process_index() == 0:
      shutil.rmtree(temporary, ignore_errors=True)
      temporary.mkdir(parents=True)
    leaves = dict(_numbered(jax.tree.leaves(state)))
    with contextlib.ExitStack() as stack:
      stack.enter_context(orbax.quiet())
      # Orbax writes in threads, which `_finish` waits for.
      with files.uninterrupted():
        response = orbax.save_async(str(temporary / "arrays"), leaves)
        self._pending = self._executor.submit(
          self._finish, response, temporary, final, record, stack.pop_all()
        )

  def _save_object(self, final, state, record):
    """Writes a state to a bucket; `record.json` is last and completes it."""
    leaves = dict(_numbered(jax.tree.leaves(state)))
    finish = bucket_writer.start(f"{final}/arrays", leaves)

    def complete():
      finish()
      if jax.process_index() == 0:
        arrays = buckets.objects(final / "arrays")
        files.write_json(
          final / "record.json", {"run": record, "objects": arrays}
        )
        names = [path.name for path in _candidates(self._directory)]
        names = [name for name in names if name <= final.name][:2]
        for path in self._directory.glob(f"{_PREFIX}*"):
          if path.name not in names:
            _remove_object(path)

    if jax.process_count() > 1:  # Processes wait for one another.
      complete()
    else:
      self._pending = self._executor.submit(complete)

  def _finish(self, response, temporary, final, record, stack):
    with stack:
      try:
        response.result()
        if jax.process_index() == 0:
          self._publish(temporary, final, record)
      except Exception:
        if jax.process_index() == 0:
          shutil.rmtree(temporary, ignore_errors=True)
        raise

  def _publish(self, temporary, final, record):
    checksums = {
      str(path.relative_to(temporary)): _checksum(path)
      for path in sorted(temporary.rglob("*"))
      if path.is_file()
    }
    files.write_json(
      temporary / "record.json", {"run": record, "crc32": checksums}
    )
    # States of this step or later were skipped as damaged. They must not hide
    # this one.
    for newer in _candidates(self._directory):
      if newer.name >= final.name:
        shutil.rmtree(newer, ignore_errors=True)
    os.rename(temporary, final)
    for old in _candidates(self._directory)[2:]:
      shutil.rmtree(old, ignore_errors=True)

  def wait(self) -> None:
    """Waits until the last state is on disk.

    Raises:
      ValueError: if it could not be written.
    """
    pending, self._pending = self._pending, None
    if pending is not None:
      try:
        pending.result()
      except Exception as e:
        from soupjax.checkpoints.formats import orbax_writer

        path = f"a train state in {self._directory}"
        orbax_writer.explain(e, path)
        raise ValueError(f"Cannot write {path}: {e}") from e

  def close(self) -> None:
    """Waits for the last state and ignores a failure to write it."""
    with contextlib.suppress(ValueError):
      self.wait()
    self._executor.shutdown()

  def remove(self) -> None:
    """Removes all states after a run is finished.

    Raises:
      ValueError: if the last state could not be written.
    """
    self.wait()
    if jax.process_index() == 0:
      for pattern in (f".{_PREFIX}*.tmp", f"{_PREFIX}*"):
        for path in self._directory.glob(pattern):
          if buckets.is_remote(path):
            _remove_object(path)
            continue
          shutil.rmtree(path, ignore_errors=True)


def restore(
  directory: str | os.PathLike, like: PyTree, shardings: PyTree = None
) -> tuple[PyTree, dict[str, Any]] | None:
  """Reads the newest undamaged state and logs those that it skips.

  Args:
    directory: the directory of the `StateSaver`.
    like: a tree of arrays or specs of the same structure.
    shardings: a tree of shardings, one per leaf; None for the first device.

  Returns:
    The state and its record; None if there is no state at all.

  Raises:
    ValueError: if all states are damaged, or the state belongs to another model
      or optimizer.
  """
  candidates = _candidates(files.path_of(directory))
  for path in candidates:
    try:
      record = _checked(path)
    except (ValueError, OSError) as e:
      logging.warning("%s is damaged, trying the previous one: %s", path, e)
      continue
    return _read(path, like, shardings), record
  if candidates:
    raise ValueError(
      f"All train states in {directory} are damaged: delete {_PREFIX}* there "
      "to start this run again."
    )
  return None


def _candidates(directory: pathlib.Path) -> list[pathlib.Path]:
  """Returns the directories of all states, newest first."""
  paths = sorted(directory.glob(f"{_PREFIX}*"), reverse=True)
  if buckets.is_remote(directory):  # Without a record, it is incomplete.
    paths = [path for path in paths if (path / "record.json").exists()]
  return paths


def _remove_object(path) -> None:
  """Removes a state from a bucket, starting with its record."""
  buckets.remove(path / "record.json")
  buckets.remove(path)


def _numbered(leaves):
  # Real leaf names are long and may clash when Orbax joins their keys.
  return ((f"{k:05d}", leaf) for k, leaf in enumerate(leaves))


def _checksum(path: pathlib.Path) -> str:
  value = 0
  with open(path, "rb") as f:
    while block := f.read(1 << 22):
      value = crc32.extend(value, np.frombuffer(block, np.uint8))
  return f"{value:08x}"


def _checked(path: pathlib.Path) -> dict[str, Any]:
  """Returns the record of a state after verifying all checksums."""
  record = files.read_json(path / "record.json")
  if buckets.is_remote(path):
    if record["objects"] != buckets.objects(path / "arrays"):
      raise ValueError("its objects are not those that were written")
    return record["run"]
  for name, expected in record["crc32"].items():
    file = path / name
    if not file.exists():
      raise ValueError(f"{name} is missing")
    if _checksum(file) != expected:
      raise ValueError(f"{name} differs from its checksum")
  return record["run"]


def _read(path, like, shardings):
  source = open_lib.open_ingredient(path / "arrays")
  leaves, treedef = jax.tree.flatten(like)
  if shardings is None:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    places = [device] * len(leaves)
  else:
    places = treedef.flatten_up_to(shardings)
  expected = dict(_numbered([_signature(leaf) for leaf in leaves]))
  stored = {name: _signature(spec) for name, spec in source.specs.items()}
  if expected != stored:
    raise ValueError(
      f"{path} is the state of another model or optimizer: it has "
      f"{len(stored)} leaves, this run {len(expected)}, or their shapes "
      "differ. Choose another --workdir."
    )
  arrays = [
    source.read(name, sharding=place) for name, place in _numbered(places)
  ]
  return treedef.unflatten(arrays)


def _signature(leaf) -> tuple[tuple[int, ...], str]:
  return tuple(leaf.shape), str(leaf.dtype)
