# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Short messages for errors of the user or the system, and for signals."""

import _thread
from collections.abc import Iterator
import contextlib
import errno
import logging
import os
import re
import signal
import sys
import threading
from typing import Any, TextIO
import warnings

from absl import logging as absl_logging
import jax

# Error number -> advice.
_FIXES = {
  errno.EACCES: "Change its permissions or choose another path.",
  errno.EPERM: "Change its permissions or choose another path.",
  errno.EROFS: "Choose a path that can be written to.",
  errno.ENOENT: "If it was deleted or renamed during the run, start again.",
  errno.ENOTDIR: "Choose another path.",
  errno.EISDIR: "Choose another path.",
  errno.EEXIST: "Choose another path.",
  errno.ENOSPC: "Free some space; the same command then continues.",
  errno.EDQUOT: "Free some space; the same command then continues.",
  errno.EFBIG: "Raise the limit (ulimit -f) or choose another disk.",
  errno.ENAMETOOLONG: "Choose a shorter name.",
  errno.EMFILE: "Raise the limit of open files (ulimit -n).",
  errno.ENFILE: "Close other programs, which have too many files open.",
  errno.ENOMEM: "Close other programs or use smaller blocks and batches.",
}
_MEMORY = re.compile("RESOURCE_EXHAUSTED|[Oo]ut of memory")
_PEER = re.compile(
  "[Cc]onnection (closed|reset|refused)|coordination service|heartbeat|Gloo|"
  "DEADLINE_EXCEEDED|UNAVAILABLE|preempt"
)


class Terminated(KeyboardInterrupt):
  """Raised on SIGTERM, for example from a scheduler."""


def message(error: BaseException) -> str | None:
  """Returns the message for the user; None if the error looks like a bug.

  Examples:
    >>> message(ValueError("data.name is empty."))
    'data.name is empty.'
    >>> message(PermissionError(13, "Permission denied", "a.npz"))
    'a.npz: Permission denied. Change its permissions or choose another path.'
    >>> message(AssertionError())
  """
  if isinstance(error, KeyboardInterrupt):
    word = "Terminated" if isinstance(error, Terminated) else "Interrupted"
    notes = getattr(error, "__notes__", None)
    notes = notes or ["What was finished is kept: start again to go on."]
    return " ".join([f"{word}.", *notes])
  if isinstance(error, OSError):
    return _of_system(error)
  text = str(error)
  if isinstance(error, MemoryError) or _is_of_jax(error, _MEMORY):
    return (
      f"Out of memory: {text.splitlines()[0] if text else 'no reason given'}. "
      "Use smaller batches (data.batch_size, data.cache_gb) or blocks "
      "(block_bytes, threads), more devices, or close other programs."
    )
  if _is_of_jax(error, _PEER) and _is_one_of_several():
    return (
      "Another process of this run has ended: see its output for the reason. "
      "To go on, start all processes again."
    )
  if isinstance(error, RuntimeError) and "start new thread" in text:
    return "No more threads can be started: raise their limit (ulimit -u)."
  if isinstance(error, ValueError):
    return text or "A value is wrong."
  return None


def _of_system(error: OSError) -> str:
  try:
    os.getcwd()
  except OSError:
    return "The working directory was deleted: change to another one (cd)."
  names = [str(x) for x in (error.filename, error.filename2) if x is not None]
  reason = error.strerror or str(error)
  advice = _FIXES.get(error.errno or 0, "Check the disk and start again.")
  return f"{': '.join([' -> '.join(names)] * bool(names) + [reason])}. {advice}"


def _is_of_jax(error, pattern) -> bool:
  kinds = (jax.errors.JaxRuntimeError, RuntimeError)
  return isinstance(error, kinds) and bool(pattern.search(str(error)))


def _is_one_of_several() -> bool:
  return jax.distributed.is_initialized()


@contextlib.contextmanager
def reported() -> Iterator[None]:
  """Ends the process with a short message and an exit code if a block fails.

  The code is 1 for an error, 130 for Ctrl-C and 143 for SIGTERM. With
  --verbosity=1, the traceback is shown. Warnings are shown without source
  lines. If standard output fails, for example a closed pipe, the work goes on;
  the lost text is reported as an error at the end.
  """
  output, shown = _prepared(), _Warnings()
  try:
    with shown:
      yield
    output.flush()
  except SystemExit:
    output.flush()
    raise
  except BaseException as e:
    output.flush()
    text = message(e)
    if absl_logging.vlog_is_on(1) or text is None:
      if isinstance(e, Exception) and _is_one_of_several():
        sys.excepthook(type(e), e, e.__traceback__)
        _exit(1)
      raise
    where = "" if isinstance(e, KeyboardInterrupt) else _WHERE
    _say(f"{text}{where}")
    _exit(
      {Terminated: 143, KeyboardInterrupt: 130}.get(type(e), 1)  # type: ignore
    )
  if output.error is not None:
    _say(
      f"Standard output cannot be written to ({output.error.strerror}). The "
      "command has finished, but part of its output is lost: redirect it "
      "elsewhere."
    )
    _exit(1)


_WHERE = "\n(--verbosity=1 shows where.)"


def _say(text: str) -> None:
  with contextlib.suppress(OSError):
    print(f"soupjax: {text}", file=sys.stderr, flush=True)


def _exit(code: int) -> None:
  if _is_one_of_several():
    # A normal exit would wait for the other processes, which wait for us.
    os._exit(code)
  sys.exit(code)


class _Output:
  """Standard output whose errors are kept until the end."""

  def __init__(self, stream: TextIO | None):
    self._stream: Any = stream
    self.error: OSError | None = None
    if stream is None:
      self._stream = open(os.devnull, "w", encoding="utf-8")
      self.error = OSError(errno.EBADF, os.strerror(errno.EBADF))

  def write(self, text: str) -> int:
    self._attempt(self._stream.write, text)
    return len(text)

  def flush(self) -> None:
    self._attempt(self._stream.flush)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def _attempt(self, function, *arguments):
    try:
      function(*arguments)
    except OSError as e:
      self.error = e
      # Flushing the buffer would fail again when the interpreter exits.
      null = os.open(os.devnull, os.O_WRONLY)
      os.dup2(null, self._stream.fileno())
      os.close(null)


def _prepared() -> _Output:
  """Sets up streams and signals."""
  # The next file that is opened would otherwise reuse a closed descriptor.
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)
  if sys.stderr is None:
    sys.stderr = open(os.devnull, "w", encoding="utf-8")
  if sys.stdout is not None:
    # File names may contain characters that the terminal cannot show.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore
  if not isinstance(sys.stdout, _Output):
    sys.stdout = _Output(sys.stdout)  # type: ignore
  signal.signal(signal.SIGTERM, _terminate)
  sys.excepthook = _show_uncaught
  sys.unraisablehook = _show_unraisable
  return sys.stdout  # type: ignore


def _show_uncaught(kind, error, trace):
  """Shows an uncaught error, unless it follows from an earlier one of Orbax."""
  # After Orbax has raised an error, its other tasks find the event loop closed.
  if "Event loop is closed" not in str(error) or absl_logging.vlog_is_on(1):
    sys.__excepthook__(kind, error, trace)


def _show_unraisable(unraisable):
  """Like `_show_uncaught`, for errors that Python cannot raise anywhere."""
  if isinstance(unraisable.exc_value, KeyboardInterrupt):
    # Python ignores errors in destructors and callbacks: send the signal again.
    threading.Timer(0.01, _thread.interrupt_main).start()
  elif "Event loop is closed" not in str(
    unraisable.exc_value
  ) or absl_logging.vlog_is_on(1):
    sys.__unraisablehook__(unraisable)


def _terminate(number, frame):
  raise Terminated


class _Warnings(warnings.catch_warnings):
  """Shows warnings and logs without source lines, each kind of warning once."""

  def __enter__(self):
    super().__enter__()
    self._kinds: dict[str, int] = {}
    warnings.showwarning = self._show
    absl_logging.get_absl_handler().python_handler.setFormatter(_Formatter())

  def __exit__(self, *error):
    super().__exit__(*error)
    more = sum(self._kinds.values()) - len(self._kinds)
    if more:
      _say(f"{more} more of these warnings (--verbosity=1 shows all).")

  def _show(self, message, category, filename, lineno, file=None, line=None):
    text = str(message)
    # The same warning for several ingredients differs in names and numbers.
    kind = re.sub(r"'[^']*'|\"[^\"]*\"|\S*/\S*|\d[\d.e+-]*", "_", text)
    self._kinds[kind] = self._kinds.get(kind, 0) + 1
    if self._kinds[kind] == 1 or absl_logging.vlog_is_on(1):
      _say(f"Warning: {text}")


class _Formatter(logging.Formatter):
  """Formats log messages like warnings."""

  def format(self, record):
    if absl_logging.vlog_is_on(1):
      return absl_logging.PythonFormatter().format(record)
    return f"soupjax: {record.levelname.capitalize()}: {record.getMessage()}"
