# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Training curves as JSON lines, and in TensorBoard if it is installed."""

from collections.abc import Mapping
import contextlib
import importlib.util
import json
import os
import time

import jax

from soupjax import buckets, files

_UPLOAD_SECONDS = 60


class MetricWriter:
  """Appends scalars to `metrics.jsonl`, in process 0 only.

  Lines are `{"run", "step", NAME: value, ...}`. With tensorboardX installed
  (the extra `tensorboard`), event files go to `tensorboard/RUN/`, if the
  directory is not in a bucket.
  """

  def __init__(self, workdir: str | os.PathLike, run: str, *, done: int):
    """Opens the files.

    Args:
      workdir: an existing directory.
      run: "pretrain" or the name of an ingredient.
      done: last step of the checkpoint that the run continues from, -1 without
        one; lines of later steps, from before a kill, are removed.
    """
    self.run, self._file, self._board = run, None, None
    if jax.process_index() != 0:
      return
    path = files.path_of(workdir) / "metrics.jsonl"
    if path.exists():
      lines = path.read_text(encoding="utf-8").splitlines()
      valid = [line for line in lines if _is_valid(line, run, done)]
      if valid != lines:
        files.write_text(path, "".join(f"{line}\n" for line in valid))
    if buckets.is_remote(path):
      self._file = _Object(path)
      return
    self._file = open(path, "a", encoding="utf-8")
    if importlib.util.find_spec("tensorboardX"):
      from tensorboardX import SummaryWriter

      self._board = SummaryWriter(
        str(path.parent / "tensorboard" / run), purge_step=done + 1
      )

  def write(
    self, step: int, scalars: Mapping[str, jax.typing.ArrayLike]
  ) -> None:
    """Writes scalars of one step; waits for them if they are on a device."""
    if self._file is None:
      return
    values = {name: float(value) for name, value in scalars.items()}
    line = {"run": self.run, "step": step, **values}
    try:
      self._file.write(json.dumps(line) + "\n")
      self._file.flush()  # So that a kill loses nothing.
    except OSError as e:
      files.explain(e, self._file.name)
      raise
    if self._board is not None:
      for name, value in values.items():
        self._board.add_scalar(name, value, step)

  def sync(self) -> None:
    """Uploads what was written, if the file is in a bucket."""
    if isinstance(self._file, _Object):
      self._file.sync()

  def close(self) -> None:
    """Closes the files."""
    for file in (self._file, self._board):
      if file is not None:
        with contextlib.suppress(
          OSError
        ):  # From an earlier write to a full disk.
          file.close()


class _Object:
  """A text in a bucket, uploaded as a whole at intervals.

  Objects cannot be appended to. A kill loses the lines since the last upload; a
  train state comes after an upload, so that a resumed run has them all.
  """

  def __init__(self, path):
    self.name = path
    self._text = path.read_text() if path.exists() else ""
    self._stored, self._time = self._text, time.monotonic()

  def write(self, text: str) -> None:
    """Appends a text."""
    self._text += text

  def flush(self) -> None:
    """Uploads the text if the last upload was some time ago."""
    if time.monotonic() - self._time > _UPLOAD_SECONDS:
      self.sync()

  def sync(self) -> None:
    """Uploads the text if it has changed."""
    if self._text != self._stored:
      files.write_text(self.name, self._text)
    self._stored, self._time = self._text, time.monotonic()

  close = sync


def _is_valid(line: str, run: str, done: int) -> bool:
  """Tells whether a line is complete, and of another run or an earlier step."""
  try:
    entry = json.loads(line)
  except ValueError:
    return False  # Truncated by a kill.
  return entry["run"] != run or entry["step"] <= done
