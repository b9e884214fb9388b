# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Programs that evaluate a checkpoint, and fail in many ways."""

import os
import sys
import threading
import time

import pytest

from soupjax.evaluators import command

PYTHON = f"{sys.executable} -I -S -c"


def run(text, tmp_path, **settings):
  made = command.Command(text=text, **{"retries": 0, **settings})
  return made.run(tmp_path / "model x.npz", tmp_path / "out")


def script(tmp_path, text):
  path = tmp_path / "eval.sh"
  path.write_text(text)
  return f"sh {path} {{checkpoint}}"


def test_no_shell_reads_the_command(tmp_path):
  text = (
    "printf '{\"acc\": 1, \"%s\": 2, \"%s\": 3}' ';touch $(x)' '{checkpoint}|&'"
  )
  metrics = run(text, tmp_path)
  assert metrics["minival/acc"] == 1
  assert list(metrics.values()) == [1, 2, 3]
  assert any(key.endswith(";touch $(x)") for key in metrics)
  arguments = command.Command(text=text).arguments("/a b/$(c)")
  assert arguments[-1] == "/a b/$(c)|&"


def test_metrics_in_a_file_that_the_program_names(tmp_path):
  (tmp_path / "scores.json").write_text('{"test": {"mAP": {"small": 0.5}}}')
  metrics = run(f"printf '%.0s{tmp_path}/scores.json' {{checkpoint}}", tmp_path)
  assert metrics == {"test/mAP/small": 0.5}


@pytest.mark.parametrize(
  "text, message",
  [
    ("echo wrong path >&2; exit 3", "code 3.*out.err, ends with:\nwrong"),
    ("kill -9 $$", "by signal 9.*printed nothing"),
    ("", "must be a JSON object.*printed nothing"),
    ("echo 0.9", "'0.9'"),
    ('echo \'{"acc": "0.9", "ok": true}\'', "no numbers"),
    ("echo '{\"acc\": 0.9'", "must be a JSON object"),
  ],
)
def test_programs_that_fail(tmp_path, text, message):
  with pytest.raises(ValueError, match=f"(?s){message}"):
    run(script(tmp_path, text), tmp_path)


def test_what_does_not_decide_may_be_nan(tmp_path):
  metrics = command.read_metrics('{"acc": 1, "f1": NaN}')
  assert command.value_of(metrics, "acc") == 1
  with pytest.raises(ValueError, match="nan for minival/f1"):
    command.value_of(metrics, "minival/f1")


def test_a_second_attempt(tmp_path):
  again = tmp_path / "again"
  text = script(
    tmp_path,
    f"[ -e {again} ] || {{ touch {again}; exit 1; }}\necho '{{\"acc\": 2}}'",
  )
  with pytest.raises(ValueError, match="ended with exit code 1"):
    run(text, tmp_path)
  (tmp_path / "again").unlink()
  assert run(text, tmp_path, retries=1) == {"minival/acc": 2}


def is_alive(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  with open(f"/proc/{pid}/stat") as f:
    return f.read().split()[2] != "Z"


@pytest.mark.parametrize("by", ["timeout", "stop"])
def test_what_hangs_is_killed_with_its_children(tmp_path, by):
  text = script(
    tmp_path, f"sleep 60 & echo $! > {tmp_path}/pid; trap '' TERM\nwait; wait"
  )
  made, stop = command.Command(text=text, timeout=60.0, retries=0), None
  expected: type = ValueError
  if by == "timeout":
    made = command.Command(text=text, timeout=0.3, retries=0)
  else:
    stop, expected = threading.Event(), command.Stopped
    threading.Timer(0.3, stop.set).start()
  with pytest.raises(
    expected, match="0.3 seconds" if by == "timeout" else None
  ):
    made.run(tmp_path / "x", tmp_path / "out", stop=stop)
  child = int((tmp_path / "pid").read_text())
  for _ in range(50):
    if not is_alive(child):
      break
    time.sleep(0.05)
  assert not is_alive(child)
