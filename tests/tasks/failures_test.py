# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Errors of users and of the system end with a line or two."""

import errno
import os

import helpers
import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax.tasks import failures

MIX = str(helpers.ROOT / "configs" / "mix.py")


@pytest.mark.parametrize(
  "error,words",
  [
    (OSError(errno.ENOSPC, "No space left", "a/b"), ("a/b: No", "Free some")),
    (OSError(errno.EMFILE, "Too many open files"), ("open", "ulimit -n")),
    (OSError(errno.ENAMETOOLONG, "File name too long", "x"), ("shorter",)),
    (OSError(errno.EIO, "Input/output error", "x"), ("x:", "disk")),
    (OSError(errno.EXDEV, "Invalid link", "a", None, "b"), ("a -> b: Inv",)),
    (OSError("told by a library"), ("told by a library",)),
    (MemoryError("Unable to allocate 9 TiB"), ("9 TiB", "batch_size")),
    (
      jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory, 9 TB"),
      ("9 TB", "batch_size"),
    ),
    (RuntimeError("can't start new thread"), ("ulimit -u",)),
    (ValueError("data.name is empty"), ("data.name is empty",)),
    (KeyboardInterrupt(), ("Interrupted", "start again to go on")),
    (failures.Terminated(), ("Terminated", "start again to go on")),
  ],
)
def test_messages_name_the_culprit_and_the_fix(error, words):
  text = failures.message(error)
  assert len(text.splitlines()) == 1
  for word in words:
    assert word in text


@pytest.mark.parametrize(
  "error", [TypeError("x"), RuntimeError("x"), AssertionError(), KeyError("x")]
)
def test_errors_of_the_program_keep_their_traceback(error):
  assert failures.message(error) is None


def test_a_working_directory_that_is_gone(tmp_path, monkeypatch):
  (tmp_path / "gone").mkdir()
  monkeypatch.chdir(tmp_path / "gone")
  os.rmdir(tmp_path / "gone")
  error = FileNotFoundError(errno.ENOENT, "No such file or directory")
  assert "working directory was deleted" in failures.message(error)


CODE = """
import os, signal, sys, warnings
from absl import flags, logging
from soupjax.tasks import failures
flags.FLAGS(["soupjax"]), logging.use_absl_handler()
if "verbose" in sys.argv: logging.set_verbosity(1)
with failures.reported():
  {}
"""


@pytest.mark.parametrize(
  "statement,code,words",
  [
    ("raise OSError(28, 'No space left on device', 'x')", 1, "x: No space"),
    ("signal.raise_signal(signal.SIGINT)", 130, "Interrupted"),
    ("signal.raise_signal(signal.SIGTERM)", 143, "Terminated"),
    ("sys.exit('soupjax: told')", 1, "soupjax: told"),
  ],
)
def test_an_error_ends_with_a_line_or_two(statement, code, words):
  done = helpers.soupjax(code=CODE.format(statement))
  assert done.returncode == code
  assert words in done.stderr and len(done.stderr.splitlines()) <= 2


def test_verbosity_shows_the_traceback():
  done = helpers.soupjax("verbose", code=CODE.format("int('x')"))
  assert done.returncode == 1 and "Traceback" in done.stderr


def test_a_bug_shows_its_traceback():
  done = helpers.soupjax(code=CODE.format("{}['leaf']"))
  assert done.returncode == 1 and "KeyError: 'leaf'" in done.stderr


@pytest.mark.parametrize(
  "where,reason",
  [
    ("os.dup2(os.open('/dev/full', 1), 1)", "No space left"),
    ("sys.stdout = None", "Bad file descriptor"),
    ("r, w = os.pipe(); os.close(r); os.dup2(w, 1)", "Broken pipe"),
  ],
)
def test_work_goes_on_if_its_text_cannot_be_written(tmp_path, where, reason):
  for k in range(2):
    sj.save_params(tmp_path / f"m{k}.npz", {"w": np.full(3, k, "f")})
  arguments = (
    f"--config={MIX}",
    f"--config.ingredients={tmp_path}/m?.npz",
    f"--config.out={tmp_path}/soup.npz",
  )
  code = f"import os, sys, soupjax.main; {where}; soupjax.main.run()"
  done = helpers.soupjax(*arguments, code=code)
  assert done.returncode == 1 and reason in done.stderr
  assert len(done.stderr.splitlines()) == 1
  np.testing.assert_array_equal(sj.load_params(tmp_path / "soup.npz")["w"], 0.5)


def test_warnings_are_shown_once_a_kind_without_source_lines():
  statement = (
    "[warnings.warn(f\"'m{k}.npz' has {k} leaves.\") for k in range(5)]; "
    "warnings.warn('another'); logging.warning('logged %d', 3)"
  )
  done = helpers.soupjax(code=CODE.format(statement))
  assert done.returncode == 0
  assert sorted(done.stderr.splitlines()) == [
    "soupjax: 4 more of these warnings (--verbosity=1 shows all).",
    "soupjax: Warning: 'm0.npz' has 0 leaves.",
    "soupjax: Warning: another",
    "soupjax: Warning: logged 3",
  ]
  done = helpers.soupjax("verbose", code=CODE.format(statement))
  assert "'m4.npz' has 4 leaves." in done.stderr


def test_names_that_a_terminal_cannot_show(tmp_path):
  sj.save_params(tmp_path / "\u00e9.npz", {"w": np.ones(3, "f")})
  code = (
    "import sys, soupjax.main; sys.stdout.reconfigure(encoding='ascii'); "
    "soupjax.main.run()"
  )
  done = helpers.soupjax(
    f"--config={MIX}",
    f"--config.ingredients={tmp_path}/\u00e9.npz",
    f"--config.out={tmp_path}/\u00fc.npz",
    code=code,
  )
  assert done.returncode == 0, done.stderr
  assert "\\xfc.npz" in done.stdout and (tmp_path / "\u00fc.npz").exists()
