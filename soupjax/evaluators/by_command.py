# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""An evaluator that scores checkpoints with the user's own program."""

from collections.abc import Callable, Hashable, Mapping, Sequence
import concurrent.futures
import contextlib
import copy
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import tempfile
import threading
from typing import Any

import numpy as np

from soupjax import files
from soupjax.evaluators import command as command_lib
from soupjax.soups.core import tree

PyTree = Any
# Environment variable with the index of the job, from 0, e.g. to choose a GPU.
JOB = "SOUPJAX_EVALUATE_JOB"


def weights_digest(params: PyTree) -> str:
  """Returns the SHA-256 of all leaves with their names, shapes and dtypes."""
  leaves, _ = tree.flatten(params)
  digest = hashlib.sha256()
  for name in sorted(leaves):
    array = np.asarray(leaves[name])
    digest.update(f"{name}\t{array.dtype}\t{list(array.shape)}\n".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
  return digest.hexdigest()


class CommandEvaluator:
  r"""Scores models with a command, each model only once.

  Each model is written to a directory of its own, which is removed after the
  evaluation. Scores are cached on disk by the digest of the weights, so no
  model is evaluated twice, even after a restart. Calls may come from several
  threads. Use it as a context manager, which terminates all programs on exit.

  Examples:
    >>> import pathlib
    >>> from soupjax.evaluators import CommandEvaluator, command
    >>> _ = pathlib.Path("my_eval.py").write_text(
    ...   "import sys, numpy\n"
    ...   "print('{\"acc\": %f}' % numpy.load(sys.argv[1])['w'])")
    >>> def write(params, directory):
    ...   sj.save_params(directory / "model.npz", params)
    ...   return directory / "model.npz"
    >>> mine = command.Command(text="python my_eval.py {checkpoint}")
    >>> with CommandEvaluator(mine, write, "scores", metric="acc") as evaluate:
    ...   evaluate({"w": jnp.array(0.5)})
    0.5
  """

  mode = "max"  # Higher scores are better.

  def __init__(
    self,
    command: command_lib.Command,
    write: Callable[[PyTree, pathlib.Path], pathlib.Path],
    folder: str | os.PathLike,
    *,
    metric: str,
    lower_is_better: bool = False,
    also: Sequence[str] = (),
    jobs: int = 1,
  ):
    """Opens the folder, and reads the scores of an earlier run.

    Args:
      command: the command that evaluates a checkpoint.
      write: `write(params, directory)` writes a checkpoint into a new
        directory, and returns the path to pass to the command.
      folder: a local directory that no other evaluator uses, for `scores.json`,
        the output of the programs and, temporarily, `candidates/`.
      metric: the printed metric that calls return as the score.
      lower_is_better: whether lower values of this metric are better; calls
        then return its negative.
      also: other metrics that must be finite. A model whose stored scores lack
        one is evaluated again, as the program may have been corrected.
      jobs: number of programs to run in parallel; see `ahead`.

    Raises:
      ValueError: if `scores.json` is damaged.
    """
    self.metric, self._sign = metric, -1 if lower_is_better else 1
    self._command, self._write, self._jobs = command, write, jobs
    self._folder = pathlib.Path(folder).absolute()
    self._candidates = self._folder / "candidates"
    # A killed run leaves its candidates behind.
    shutil.rmtree(self._candidates, ignore_errors=True)
    self._candidates.mkdir(parents=True)
    self._scores = self._folder / "scores.json"
    self._known: dict[str, dict[str, float]] = {}
    if self._scores.exists():
      needed = {command_lib.full_name(name) for name in (metric, *also)}
      self._known = {
        digest: values
        for digest, values in files.read_json(self._scores).items()
        if all(math.isfinite(values.get(name, math.nan)) for name in needed)
      }
    self._pool = concurrent.futures.ThreadPoolExecutor(
      jobs, initializer=self._number_thread
    )
    self._lock, self._building = threading.Lock(), threading.Lock()
    self._running: dict[str, concurrent.futures.Future] = {}
    self._tasks: dict[Hashable, tuple[threading.Event, Any]] = {}
    self._local, self._numbers = threading.local(), iter(range(jobs))
    self._shared = _Counts()

  def __enter__(self) -> "CommandEvaluator":
    return self

  def __exit__(self, *exception) -> None:
    self.ahead({})
    self._shared.stop.set()
    self._pool.shutdown(cancel_futures=True)
    shutil.rmtree(self._candidates, ignore_errors=True)

  def for_metric(
    self, metric: str, *, lower_is_better: bool = False
  ) -> "CommandEvaluator":
    """Returns an evaluator for another metric that shares all scores."""
    other = copy.copy(self)
    other.metric, other._sign = metric, -1 if lower_is_better else 1
    return other

  @property
  def count(self) -> int:
    """Number of models that the command evaluated, not counting cached ones."""
    return self._shared.evaluated

  def __call__(self, params: PyTree) -> float:
    """Returns the score of a model; higher is better.

    Raises:
      ValueError: as for `scores`, or if the metric is missing or not finite.
    """
    value = command_lib.value_of(self.scores(params), self.metric)
    return self._sign * value

  def scores(self, params: PyTree, name: str = "candidate") -> dict[str, float]:
    """Returns all metrics of a model, as "SET/METRIC" -> value.

    Args:
      params: the weights of the model.
      name: name of its output files.

    Raises:
      ValueError: if the command fails, prints no metrics, or changes the
        checkpoint.
    """
    if name in self._tasks:
      with contextlib.suppress(
        command_lib.Stopped, concurrent.futures.CancelledError
      ):
        self._tasks[name][1].result()
    stop = self._shared.stop
    future = self._pool.submit(self._evaluate, lambda: params, name, stop)
    return dict(future.result())

  def ahead(self, models: Mapping[Hashable, Callable[[], PyTree]]) -> None:
    """Evaluates models in the background, if several jobs are allowed.

    Cancels evaluations from earlier calls whose models are not among these. If
    an evaluation fails, the error is raised when its scores are requested.

    Args:
      models: key -> function that returns the parameters, in the order in which
        to evaluate them. A key must stand for the same weights in all calls. If
        it is a string, it is also the name of the model, as in `scores`.
    """
    if self._jobs == 1:
      return
    for key in [key for key in self._tasks if key not in models]:
      stop, future = self._tasks.pop(key)
      stop.set()
      future.cancel()
    for key, load in models.items():
      if key not in self._tasks:
        stop = threading.Event()
        name = key if isinstance(key, str) else "candidate"
        future = self._pool.submit(self._evaluate, load, name, stop)
        self._tasks[key] = stop, future

  # --- In the threads of the pool ---------------------------------------------

  def _number_thread(self) -> None:
    with self._lock:
      self._local.number = next(self._numbers)

  def _evaluate(self, load, name: str, stop) -> Mapping[str, float]:
    """Returns cached scores, those of another thread, or runs the command."""
    while True:
      if stop.is_set():
        raise command_lib.Stopped
      with contextlib.ExitStack() as stack:
        with self._building:  # One model in memory at a time.
          params = load()
          digest = weights_digest(params)
          with self._lock:
            if digest in self._known:
              return self._known[digest]
            other = self._running.get(digest)
            if other is None:
              ours = self._running[digest] = concurrent.futures.Future()
          if other is None:
            path = _safe(name, digest)
            directory = pathlib.Path(
              stack.enter_context(
                tempfile.TemporaryDirectory(
                  prefix=f"{path}.", dir=self._candidates,
                  ignore_cleanup_errors=True,
                )
              )
            )  # fmt: skip
            try:
              checkpoint = self._write(params, directory)
            except BaseException as e:
              self._finish(digest, ours, error=e)
              raise
          del params
        if other is None:
          return self._run(digest, ours, checkpoint, directory, path, stop)
      with contextlib.suppress(command_lib.Stopped):
        return other.result()  # If the other was stopped, try again.

  def _run(self, digest, ours, checkpoint, directory, name, stop):
    """Runs the command for a checkpoint in a directory."""
    try:
      before = _state(directory)
      metrics = self._command.run(
        checkpoint,
        self._folder / name,
        stop=_Either(stop, self._shared.stop),
        environment={JOB: str(self._local.number)},
      )
      if changed := [k for k, v in before.items() if v != _state_of(k)]:
        raise ValueError(
          f"evaluate_command changed the checkpoint that it was given: "
          f"{changed[0].name} of {name}. Its scores may belong to other "
          "weights: make it write elsewhere."
        )
    except BaseException as e:
      self._finish(digest, ours, error=e)
      raise
    self._finish(digest, ours, metrics)
    return metrics

  def _finish(self, digest, ours, metrics=None, error=None) -> None:
    """Stores the metrics, and passes them or the error to waiting threads."""
    with self._lock:
      self._running.pop(digest)
      if error is None:
        self._known[digest] = metrics
        self._shared.evaluated += 1
        # Metrics that no decision uses may be NaN, which `write_json` rejects.
        text = json.dumps(self._known, indent=1)
        files.write_text(self._scores, text + "\n")
    if error is None:
      ours.set_result(metrics)
    else:
      ours.set_exception(error)


class _Counts:
  """State shared by the evaluators for several metrics."""

  def __init__(self):
    self.evaluated, self.stop = 0, threading.Event()


class _Either:
  """An event that is set when any of several events is."""

  def __init__(self, *events: threading.Event):
    self._events = events

  def is_set(self) -> bool:
    return any(event.is_set() for event in self._events)


def _safe(name: str, digest: str) -> str:
  """Returns a file name for a model."""
  return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)[:80]}.{digest[:12]}"


def _state(directory: pathlib.Path) -> dict[pathlib.Path, Any]:
  """Returns path -> `_state_of` for every file in a directory."""
  paths = sorted(p for p in directory.rglob("*") if p.is_file())
  return {path: _state_of(path) for path in paths}


def _state_of(path: pathlib.Path) -> tuple[int, ...] | None:
  """Returns size, modification time and inode; None if the file is missing."""
  if not path.is_file():
    return None
  status = path.stat()
  return status.st_size, status.st_mtime_ns, status.st_ino
