# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Runs a program that evaluates one checkpoint, and reads its metrics."""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import time
from typing import Any

CHECKPOINT = "{checkpoint}"
# Seconds between SIGTERM and SIGKILL.
_GRACE = 2.0
# Seconds between checks on a running program.
_POLL = 0.05
# Bytes read from the end of the output, and characters that errors quote.
_MOST = 1 << 20
_QUOTED = 600


class Stopped(Exception):
  """The evaluation was stopped because its result is not needed."""


class _Failed(ValueError):
  """The program failed, but another attempt may succeed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
  """A command line that evaluates a checkpoint.

  Attributes:
    text: the command, split as a POSIX shell does; no shell runs it. Every
      "{checkpoint}" stands for the path of the checkpoint.
    timeout: time limit of one attempt in seconds; 0 for none.
    retries: number of further attempts after a failure.
  """

  text: str
  timeout: float = 0.0
  retries: int = 1

  def arguments(self, checkpoint: str | os.PathLike) -> list[str]:
    """Returns the program and its arguments for a checkpoint.

    Raises:
      ValueError: if the text cannot be split, lacks "{checkpoint}", or its
        program does not exist.
    """
    try:
      words = shlex.split(self.text)
    except ValueError as e:
      raise ValueError(f"evaluate_command={self.text!r}: {e}.") from e
    if not any(CHECKPOINT in word for word in words[1:]):
      raise ValueError(
        f"evaluate_command={self.text!r} must contain {CHECKPOINT} after the "
        "program, in place of the path of the checkpoint, such as "
        f"'python my_eval.py {CHECKPOINT}'."
      )
    if shutil.which(words[0]) is None:
      raise ValueError(
        f"evaluate_command: the program {words[0]!r} does not exist or cannot "
        "be run. No shell runs the command: put pipes and variables into a "
        "script."
      )
    return [word.replace(CHECKPOINT, os.fspath(checkpoint)) for word in words]

  def run(
    self,
    checkpoint: pathlib.Path,
    output: pathlib.Path,
    *,
    stop: Any = None,
    environment: Mapping[str, str] | None = None,
  ) -> dict[str, float]:
    """Evaluates a checkpoint.

    Args:
      checkpoint: path of the checkpoint.
      output: path without suffix: with ".out" and ".err" appended, these files
        get standard output and standard error of the last attempt.
      stop: a `threading.Event` that ends the program when it is set.
      environment: environment variables to add to those of this process.

    Returns:
      Metric -> value, such as {"minival/acc": 0.9}; see `read_metrics`.

    Raises:
      ValueError: as for `arguments`, or if in all attempts the program fails or
        prints no metrics.
      Stopped: if `stop` was set.
    """
    for attempt in range(self.retries + 1):
      try:
        return self._attempt(checkpoint, output, stop, environment)
      except _Failed as e:
        if attempt == self.retries:
          tried = f" (attempt {attempt + 1})" * (attempt > 0)
          raise ValueError(f"{e}{tried}") from None
    raise AssertionError

  def _attempt(self, checkpoint, output, stop, environment):
    arguments = self.arguments(checkpoint)
    out, err = output.with_name(f"{output.name}.out"), output.with_name(
      f"{output.name}.err"
    )  # fmt: skip
    with out.open("wb") as stdout, err.open("wb") as stderr:
      process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **(environment or {})},
        # In a process group of its own, so that its children can be ended, too.
        start_new_session=True,
      )
      try:
        code = self._wait(process, stop)
      finally:
        if process.poll() is None:
          _end(process)
    if code is None:
      raise _Failed(
        f"{shlex.join(arguments)} did not end within evaluate_timeout="
        f"{self.timeout:g} seconds and was killed.{_quoted(out, err)}"
      )
    if code:
      how = f"with exit code {code}" if code > 0 else f"by signal {-code}"
      raise _Failed(f"{shlex.join(arguments)} ended {how}.{_quoted(out, err)}")
    try:
      return read_metrics(_tail(out))
    except ValueError as e:
      raise _Failed(
        f"{shlex.join(arguments)}: {e}{_quoted(out, err)}"
      ) from None

  def _wait(self, process, stop) -> int | None:
    """Returns the exit code, or None after the time limit."""
    began = time.monotonic()
    while True:
      with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(_POLL)
      if stop is not None and stop.is_set():
        raise Stopped
      if self.timeout and time.monotonic() - began > self.timeout:
        return None


def _end(process: subprocess.Popen) -> None:
  """Ends a program and its process group.

  SIGKILL is always sent: children that ignore SIGTERM outlive their parent.
  """
  for number, seconds in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, None)):
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, number)
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(seconds)


def _tail(path: pathlib.Path) -> str:
  """Returns the end of a text file."""
  with path.open("rb") as f:
    f.seek(max(0, path.stat().st_size - _MOST))
    return f.read().decode("utf-8", "replace")


def _quoted(*paths: pathlib.Path) -> str:
  """Quotes the end of the last file that is not empty, for an error."""
  for path in reversed(paths):
    if text := _tail(path).strip():
      return f" Its output, in {path}, ends with:\n{text[-_QUOTED:]}"
  return " It printed nothing."


def read_metrics(output: str) -> dict[str, float]:
  """Reads the metrics that a program has printed.

  Args:
    output: standard output. Its last line that is not empty is a JSON object,
      or the path of a file that contains one. Keys of nested objects are joined
      by slashes: {"test": {"acc": 0.9}} is "test/acc". Names without a slash
      are metrics on minival. Values that are not numbers are left out.

  Returns:
    "SET/METRIC" -> value, which may be NaN.

  Raises:
    ValueError: if there is no such object, or it has no numbers.

  Examples:
    >>> from soupjax.evaluators import command
    >>> command.read_metrics('loading ...\\n{"acc": 0.9, "test": {"acc": 0.8}}')
    {'minival/acc': 0.9, 'test/acc': 0.8}
  """
  lines = [line.strip() for line in output.splitlines() if line.strip()]
  last = lines[-1] if lines else ""
  value = _json(last)
  if not isinstance(value, dict) and last and os.path.isfile(last):
    value = _json(pathlib.Path(last).read_text("utf-8", "replace"))
  if not isinstance(value, dict):
    raise ValueError(
      "the last line of its standard output must be a JSON object of metrics, "
      'such as {"acc": 0.9}, or the path of a file with one, but is '
      f"{last!r:.200}."
    )
  metrics = dict(_numbers(value, ()))
  if not metrics:
    raise ValueError(f"its JSON object has no numbers: {last!r:.200}.")
  return metrics


def _json(text: str):
  try:
    return json.loads(text)
  except ValueError:
    return None


def _numbers(value: Mapping, path: Sequence[str]):
  """Yields the name and value of every number in nested objects."""
  for key, item in value.items():
    name = "/".join([*path, str(key)])
    if isinstance(item, Mapping):
      yield from _numbers(item, (*path, str(key)))
    elif isinstance(item, int | float) and not isinstance(item, bool):
      yield full_name(name), float(item)


def full_name(metric: str) -> str:
  """Returns "SET/METRIC"; a name without a set is a metric on minival."""
  return metric if "/" in metric else f"minival/{metric}"


def value_of(
  metrics: Mapping[str, float], metric: str, key: str = "cook.metric"
) -> float:
  """Returns the value of a metric that decisions use.

  Args:
    metrics: from `read_metrics`.
    metric: its name, with or without the set.
    key: the config key that names the metric, for errors.

  Raises:
    ValueError: if the program did not print it, or it is not finite.
  """
  name = full_name(metric)
  if name not in metrics:
    raise ValueError(
      f"{key}={metric!r} is not among the metrics that evaluate_command "
      f"printed: {', '.join(sorted(metrics))}."
    )
  if not math.isfinite(metrics[name]):
    raise ValueError(
      f"evaluate_command printed {metrics[name]} for {name}, a metric that "
      "decisions use: it must be a finite number."
    )
  return metrics[name]
