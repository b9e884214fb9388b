# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Compiled programs on disk, so that repeated commands need not compile again.

Sets up JAX's persistent compilation cache in the user's cache folder. Commands
do so by default; importing the library does not.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import re
import stat
import tempfile
import warnings

from absl import logging
import jax
import jaxlib

_MAX_BYTES = 2**30
# Keep small programs too: a command runs hundreds that compile in 10 to 50 ms
# each, and reading one takes 2 ms.
_SETTINGS = {
  "jax_persistent_cache_min_compile_time_secs": 0.0,
  "jax_persistent_cache_min_entry_size_bytes": -1,
}
# Lines of /proc/cpuinfo that determine which machine code runs, on x86 and ARM.
_CPU = re.compile(
  r"(vendor_id|cpu family|model|model name|flags|Features|CPU \w+)\s*:"
)
_FAILED = re.compile(
  r"Error (reading|writing) persistent compilation cache entry for '(.+?)': "
)


def use(enabled: bool = True) -> pathlib.Path | None:
  """Makes JAX keep compiled programs in the user's cache folder.

  A cache that the user has set up, for instance by JAX_COMPILATION_CACHE_DIR,
  is left alone. If the folder cannot be used, a warning says so, and the
  command continues without a cache. Call this before anything is compiled.

  Args:
    enabled: False turns off all caches of compiled programs.

  Returns:
    The folder, or None if it is not used.
  """
  if not enabled:
    jax.config.update("jax_enable_compilation_cache", False)
    return None
  if jax.config.jax_compilation_cache_dir:
    return None
  if not jax.config.jax_enable_compilation_cache:
    return None
  # Processes with GPUs compile each program together. One that found it on disk
  # would leave the others waiting.
  if jax.distributed.is_initialized():
    return None
  root = _root()
  folder = root / f"jaxlib-{jaxlib.__version__}-{_machine()}"
  try:
    _make_private(root, folder)
    _remove_oldest(root)
  except OSError as e:
    logging.warning(
      "Compiled programs are not kept for later runs, since %s cannot be used "
      "(%s). Set XDG_CACHE_HOME to another folder, or --nocompilation_cache.",
      folder,
      e.strerror or e,
    )
    return None
  for name, value in _SETTINGS.items():
    if name.upper() not in os.environ:
      jax.config.update(name, value)
  jax.config.update("jax_compilation_cache_dir", str(folder))
  warnings.showwarning = _removes_damaged(folder, warnings.showwarning)
  return folder


def _root() -> pathlib.Path:
  """Returns the folder for all versions of jaxlib and kinds of CPUs."""
  cache = os.environ.get("XDG_CACHE_HOME", "")
  if not os.path.isabs(cache):  # The XDG specification ignores these.
    cache = os.path.expanduser("~/.cache")
  return pathlib.Path(cache) / "soupjax" / "compiled"


def _machine() -> str:
  """Returns a hash of properties of the CPU that JAX's cache key leaves out.

  Machines with different CPUs may share a home directory; the program of
  another CPU could die of SIGILL. XLA also splits loops by the number of cores
  that the process may use.
  """
  cores = os.cpu_count()
  if hasattr(os, "sched_getaffinity"):
    cores = len(os.sched_getaffinity(0))
  lines = [platform.machine(), platform.processor(), str(cores)]
  with contextlib.suppress(OSError):
    text = pathlib.Path("/proc/cpuinfo").read_text(errors="replace")
    first = text.partition("\n\n")[0]
    lines += [line for line in first.splitlines() if _CPU.match(line)]
  return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _make_private(root: pathlib.Path, folder: pathlib.Path) -> None:
  """Makes folders that only this user can write to, since programs are run.

  Raises:
    OSError: if a folder cannot be written to, or others can write to it.
  """
  root.parent.mkdir(parents=True, exist_ok=True)
  for path in (root, folder):
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.stat()
    others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if others or status.st_uid != os.geteuid():
      raise PermissionError(f"other users can write to {path}")
  with tempfile.TemporaryFile(dir=folder):
    pass


def _remove_oldest(root: pathlib.Path) -> None:
  """Removes the least recently used programs beyond `_MAX_BYTES` in total.

  JAX can do this too, but needs the package filelock for it, and reads the time
  of every entry whenever it writes one.
  """
  entries = []
  for path in root.rglob("*"):
    with contextlib.suppress(FileNotFoundError):
      status = path.lstat()
      if stat.S_ISREG(status.st_mode):
        used = max(status.st_atime_ns, status.st_mtime_ns)
        entries.append((used, status.st_size, path))
  excess = sum(size for _, size, _ in entries) - _MAX_BYTES
  for _, size, path in sorted(entries):
    if excess <= 0:
      break
    path.unlink(missing_ok=True)
    excess -= size


def _removes_damaged(folder: pathlib.Path, show):
  """Wraps `warnings.showwarning`: removes entries that JAX could not read.

  JAX compiles such a program again, but would not replace its entry. Only the
  first failure to read and the first to write are shown.
  """
  shown = set()

  def show_and_remove(message, *args, **kwargs):
    match = _FAILED.match(str(message))
    if not match:
      show(message, *args, **kwargs)
      return
    with contextlib.suppress(OSError):
      for path in folder.glob(f"{match[2]}-*-cache"):
        path.unlink(missing_ok=True)
    if match[1] not in shown:
      shown.add(match[1])
      done = "read" if match[1] == "reading" else "written"
      message = (
        f"Compiled programs in {folder} cannot be {done} "
        f"({str(message)[match.end() :]}). They are compiled again."
      )
      show(UserWarning(message), *args, **kwargs)

  return show_and_remove
