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

  Each line is `{"run": ..., "step": ..., NAME: value, ...}`. If tensorboardX
  (the extra `tensorboard`) is installed and the directory is not in a bucket,
  event files are written to `tensorboard/RUN/`, too.
  """

  def __init__(self, workdir: str | os.PathLike, run: str, *, done: int):
    """Opens the files.

    Args:
      workdir: an existing directory.
      run: name of the run, such as "member_003".
      done: number of steps of the train state that the run continues from, 0
        at its start. Lines of later steps, from before a kill, are removed.
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
    """Writes the scalars of one step; waits for those still being computed.

    Raises:
      ValueError: if the disk is full or the file cannot be written.
    """
    if self._file is None:
      return
    values = {name: float(value) for name, value in scalars.items()}
    line = {"run": self.run, "step": step, **values}
    try:
      self._file.write(json.dumps(line) + "\n")
      self._file.flush()  # A kill then loses nothing.
    except OSError as e:
      files.explain(e, self._file.name)
      raise
    if self._board is not None:
      for name, value in values.items():
        self._board.add_scalar(name, value, step)

  def sync(self) -> None:
    """Uploads the lines written so far, if the file is in a bucket."""
    if isinstance(self._file, _Object):
      self._file.sync()

  def close(self) -> None:
    """Closes the files."""
    for file in (self._file, self._board):
      if file is not None:
        # Closing may repeat the error of an earlier write to a full disk.
        with contextlib.suppress(OSError):
          file.close()


class _Object:
  """A text file in a bucket, uploaded as a whole at intervals.

  Objects cannot be appended to. A kill loses the lines since the last upload,
  but train states are saved after an upload, so a resumed run lacks no lines.
  """

  def __init__(self, path):
    self.name = path
    self._text = path.read_text() if path.exists() else ""
    self._stored, self._time = self._text, time.monotonic()

  def write(self, text: str) -> None:
    """Appends text, without uploading it."""
    self._text += text

  def flush(self) -> None:
    """Uploads the text if the last upload is over `_UPLOAD_SECONDS` ago."""
    if time.monotonic() - self._time > _UPLOAD_SECONDS:
      self.sync()

  def sync(self) -> None:
    """Uploads the text if it has changed."""
    if self._text != self._stored:
      files.write_text(self.name, self._text)
    self._stored, self._time = self._text, time.monotonic()

  close = sync


def _is_valid(line: str, run: str, done: int) -> bool:
  """Whether a line is complete, and of another run or a step up to `done`."""
  try:
    entry = json.loads(line)
  except ValueError:
    return False  # Truncated by a kill.
  return entry["run"] != run or entry["step"] <= done
