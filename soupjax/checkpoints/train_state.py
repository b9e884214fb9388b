# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Train states, saved during training and restored after a kill.

A state is a directory `state_STEP` with `arrays/`, an Orbax checkpoint, and
`record.json`: what else the run needs, and a checksum of every file. It gets
its name when all of it is on disk.
"""

import os
import pathlib
import shutil
import threading
from typing import Any
import zlib

from absl import logging
import jax

from soupjax import files
from soupjax.checkpoints import open as open_lib

PyTree = Any
_PREFIX = "state_"


class StateSaver:
  """Writes states in the background, one at a time; keeps the newest two.

  Two, so that one is left if the newest is damaged.
  """

  def __init__(self, directory: str | os.PathLike, keep: int = 2):
    self._directory = pathlib.Path(directory)
    self._keep = keep
    self._thread: threading.Thread | None = None
    self._error: BaseException | None = None

  def save(self, step: int, state: PyTree, record: dict[str, Any]) -> None:
    """Begins to write a state; waits for the one before it.

    Args:
      step: its number.
      state: a tree of arrays; may be donated after the call.
      record: JSON to keep with it, as the state of the data.

    Raises:
      ValueError: if the state before this one could not be written.
    """
    from soupjax.checkpoints.formats import orbax

    self.wait()
    final = self._directory / f"{_PREFIX}{step:08d}"
    temporary = files.temporary_name(final)
    if jax.process_index() == 0:
      shutil.rmtree(temporary, ignore_errors=True)
      temporary.mkdir(parents=True)
    leaves = dict(_numbered(jax.tree.leaves(state)))
    response = orbax.save_async(str(temporary / "arrays"), leaves)
    self._thread = threading.Thread(
      target=self._finish, args=(response, temporary, final, record)
    )
    self._thread.start()

  def _finish(self, response, temporary, final, record):
    try:
      response.result()
      if jax.process_index() == 0:
        sums = {
          str(path.relative_to(temporary)): _checksum(path)
          for path in sorted(temporary.rglob("*"))
          if path.is_file()
        }
        files.write_json(
          temporary / "record.json", {"run": record, "crc32": sums}
        )
        # This run passed over what is as new as this one, or newer: it is
        # damaged, and must not take the place of one that is whole.
        for newer in _candidates(self._directory):
          if newer.name >= final.name:
            shutil.rmtree(newer, ignore_errors=True)
        os.rename(temporary, final)
        for old in _candidates(self._directory)[self._keep :]:
          shutil.rmtree(old, ignore_errors=True)
    except BaseException as e:  # Raised where someone waits.
      self._error = e

  def wait(self) -> None:
    """Waits until what was saved last is on disk.

    Raises:
      ValueError: if it could not be written.
    """
    if self._thread is not None:
      self._thread.join()
      self._thread = None
    if self._error is not None:
      error, self._error = self._error, None
      raise ValueError(
        f"A train state could not be written to {self._directory}: {error}"
      ) from error

  def remove(self) -> None:
    """Removes all states: the run is done."""
    self.wait()
    if jax.process_index() == 0:
      for path in self._directory.glob(f".{_PREFIX}*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
      for path in _candidates(self._directory):
        shutil.rmtree(path, ignore_errors=True)


def restore(
  directory: str | os.PathLike, like: PyTree, shardings: PyTree = None
) -> tuple[PyTree, dict[str, Any]] | None:
  """Reads the newest state that is whole; says in the log which were not.

  Args:
    directory: as given to `StateSaver`.
    like: a tree of arrays or specs of the same structure.
    shardings: where its leaves go, a tree like it; None for the first device.

  Returns:
    The state and its record; None if there is no state at all.

  Raises:
    ValueError: if there are states but none is whole, or the state is of
      another model or optimizer.
  """
  candidates = _candidates(pathlib.Path(directory))
  for path in candidates:
    try:
      record = _checked(path)
    except (ValueError, OSError) as e:
      logging.warning("%s is damaged, trying the one before: %s", path, e)
      continue
    return _read(path, like, shardings), record
  if candidates:
    raise ValueError(
      f"All train states in {directory} are damaged: delete {_PREFIX}* there "
      "to start this run again."
    )
  return None


def _candidates(directory: pathlib.Path) -> list[pathlib.Path]:
  """Newest first."""
  return sorted(directory.glob(f"{_PREFIX}*"), reverse=True)


def _numbered(leaves):
  # Names of leaves of a state are long, and may clash where Orbax joins them.
  return ((f"{k:05d}", leaf) for k, leaf in enumerate(leaves))


def _checksum(path: pathlib.Path) -> str:
  value = 0
  with open(path, "rb") as f:
    while block := f.read(1 << 22):
      value = zlib.crc32(block, value)
  return f"{value:08x}"


def _checked(path: pathlib.Path) -> dict[str, Any]:
  """Returns a state's record; a ValueError if a file is not what it was."""
  record = files.read_json(path / "record.json")
  for name, expected in record["crc32"].items():
    file = path / name
    if not file.exists():
      raise ValueError(f"{name} is missing")
    if _checksum(file) != expected:
      raise ValueError(f"{name} is not what was written")
  return record["run"]


def _read(path, like, shardings):
  source = open_lib.open_ingredient(path / "arrays")
  leaves, treedef = jax.tree.flatten(like)
  if shardings is None:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    places = [device] * len(leaves)
  else:
    places = treedef.flatten_up_to(shardings)
  wanted = {
    name: (tuple(leaf.shape), str(leaf.dtype))
    for name, leaf in _numbered(leaves)
  }
  found = {
    name: (tuple(spec.shape), str(spec.dtype))
    for name, spec in source.specs.items()
  }
  if wanted != found:
    raise ValueError(
      f"{path} is the state of another model or optimizer: it has "
      f"{len(found)} leaves, this run {len(wanted)}, or their shapes differ. "
      "Choose another --workdir."
    )
  arrays = [
    source.read(name, sharding=place)
    for (name, _), place in zip(_numbered(leaves), places)
  ]
  return treedef.unflatten(arrays)
