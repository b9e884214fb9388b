# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Interrupts runs, kills processes and fills disks at random moments.

  python benchmarks/kills.py                    # all of it, about 40 minutes
  python benchmarks/kills.py --only=calls --count=5

There are four kinds of trials:

- calls: Ctrl-C in `sj.mix`, `sj.save_params`, `sj.load_params`, greedy and
  learned soups, as in a notebook. No thread may be left running, and no
  half-written output.
- commands: Ctrl-C or SIGTERM to a mix and a fine-tuning from the shell. They
  must end with one line, leave nothing half written, and succeed when started
  again.
- disks: a mix, a save and a fine-tuning on a disk that fills up (a tmpfs, which
  needs permission to mount it). They must end with one line that reports the
  full disk.
- peers: one of two processes of a mix, a cook or a fine-tuning is killed. The
  other must end within two minutes with a line that says so.
"""

import argparse
import collections
import contextlib
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

import soupjax as sj

ROOT = pathlib.Path(__file__).parents[1]
MIX, COOK = ROOT / "configs" / "mix.py", ROOT / "configs" / "cook.py"
DIGITS = ROOT / "configs" / "finetune" / "digits.py"
SHORT = (
  *("--config.model.depth=1", "--config.steps_per_call=5"),
  "--config.checkpoint=5steps",
)
OUTPUTS = ("soup.safetensors", "soup.npz", "soup")
KINDS = ("calls", "commands", "disks", "peers")


def write_models(folder: pathlib.Path, megabytes: float, count: int = 3):
  """Writes models m0.npz, m1.npz and so on; all values of model k are k."""
  rows = max(1, int(megabytes * 2**20 / 4 / 1024 / 8))
  for k in range(count):
    tree = {f"leaf_{i}": np.full((rows, 1024), k, "f") for i in range(8)}
    sj.save_params(folder / f"m{k}.npz", tree)


def problems_of(folder: pathlib.Path, out: pathlib.Path, value: float | None):
  """Returns the problems after a run: leftovers or a bad output.

  Args:
    folder: the directory of the run.
    out: the output, which may be missing.
    value: what all values of the output must be; None for any.
  """
  problems = [
    f"left {path.name}"
    for path in folder.iterdir()
    if path != out and not path.name.startswith(("m", "log"))
  ]
  if os.path.lexists(out):
    params = sj.load_params(out)
    if value is not None and not all(
      (x == value).all() for x in params.values()
    ):
      problems.append("wrong values")
  return problems


# --- Ctrl-C in calls ----------------------------------------------------------


def _call(name: str, folder: pathlib.Path, out: pathlib.Path):
  """Returns a call, and the value that its output must have, None if none."""
  models = folder / "m?.npz"

  def evaluate(params):
    return float(params["leaf_0"][0, 0])

  def loss(params, beta):
    return beta * sum((x**2).mean() for x in params.values())

  if name == "mix":
    return lambda: sj.mix(sj.rules.linear(), models, out=out), 1.0
  if name == "save":
    params = sj.load_params(folder / "m1.npz")
    return lambda: sj.save_params(out, params), 1.0
  if name == "load":
    return lambda: sj.load_params(folder / "m1.npz"), None
  if name == "greedy":
    return lambda: sj.greedy_soup(models, evaluate), None
  return lambda: sj.learned_soup(models, loss, steps=3, residency="disk"), None


def at_work(prefix: str) -> list[str]:
  """Returns the names of the running threads that begin with a prefix."""
  return [t.name for t in threading.enumerate() if t.name.startswith(prefix)]


def interrupt_calls(name, count, folder, rng, megabytes=64.0):
  """Interrupts a call again and again; returns outcomes and problems."""
  write_models(folder, megabytes)
  outcomes, problems = collections.Counter(), []
  seconds, took = float("inf"), 0.0
  for trial in range(-4, count):  # The first one compiles.
    out = folder / OUTPUTS[trial % 3]
    call, value = _call(name, folder, out)
    began, timer = time.monotonic(), None
    if trial >= 0:
      delay = rng.uniform(0, seconds)
      timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
      timer.start()
    outcome = "interrupted"
    try:
      call()
      outcome, took = "finished", time.monotonic() - began
      if timer is not None:
        timer.join()
        time.sleep(0.1)
    except KeyboardInterrupt:
      pass
    if trial >= 0:
      outcomes[outcome] += 1
    else:
      seconds = min(seconds, took)
    if at_work("soupjax"):
      # A thread that was created but has not begun ends without doing work.
      time.sleep(0.02)
    busy = at_work("soupjax")
    if at_work("ThreadPool"):
      time.sleep(0.5)  # A read-ahead thread ends after one model.
      busy += at_work("ThreadPool")
    problems += [f"{name} {trial}: {thread} is at work" for thread in busy]
    problems += [
      f"{name} {trial}: {p}" for p in problems_of(folder, out, value)
    ]
    if os.path.lexists(out):
      shutil.rmtree(out) if out.is_dir() else out.unlink()
  return outcomes, problems


# --- Commands -----------------------------------------------------------------


def start(arguments, log: pathlib.Path, **variables) -> subprocess.Popen:
  """Starts soupjax in a new process; its output goes to a file."""
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  env |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **variables}
  command = [sys.executable, "-m", "soupjax.main", *map(str, arguments)]
  with open(log, "wb") as f:
    return subprocess.Popen(
      command, env=env, stdout=f, stderr=f, start_new_session=True
    )


def command_of(task: str, folder: pathlib.Path, out: pathlib.Path) -> list[str]:
  """Returns the arguments of a mix or a fine-tuning."""
  if task == "mix":
    inputs = f"--config.ingredients={folder}/m?.npz"
    return [f"--config={MIX}", inputs, f"--config.out={out}"]
  return [
    f"--config={DIGITS}:runlocal",
    f"--workdir={out}",
    *SHORT,
    "--config.hyper.total=100steps",
  ]


def stop_commands(task, number, count, folder, rng, megabytes=128.0):
  """Sends a signal at random moments; returns outcomes and problems."""
  write_models(folder, megabytes)
  outcomes, problems = collections.Counter(), []
  log, code = folder / "log", {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
  seconds = None
  for trial in range(-1, count):
    out = folder / (OUTPUTS[trial % 3] if task == "mix" else "model_run")
    began = time.monotonic()
    process = start(command_of(task, folder, out), log)
    if seconds is None:
      assert process.wait() == 0, log.read_text()[-2000:]
      seconds = time.monotonic() - began
    else:
      time.sleep(rng.uniform(0.3 * seconds, seconds))
      process.send_signal(number)
      status = process.wait(120)
      text = log.read_text()
      if "Traceback" in text and "soupjax: " not in text and "step" not in text:
        status = "during imports"
      elif status in (-number, 0):
        status = {0: "finished"}.get(status, "during imports")
      elif status == code and text.count("start again to go on") == 1:
        status = "one line"
        if "Traceback" in text:
          problems.append(f"{task} {trial}: {text[-2000:]}")
      else:
        problems.append(f"{task} {trial}: {status} {text[-2000:]}")
      outcomes[str(status)] += 1
      if task == "mix":
        problems += [
          f"{task} {trial}: {p}" for p in problems_of(folder, out, 1)
        ]
      else:
        left = [p.name for p in out.glob("**/*.tmp")] if out.exists() else []
        problems += [f"{task} {trial}: left {name}" for name in left]
        again = start(command_of(task, folder, out), log)
        if again.wait(300) != 0:
          problems.append(f"{task} {trial}, again: {log.read_text()[-2000:]}")
    if out.exists():
      shutil.rmtree(out) if out.is_dir() else out.unlink()
  return outcomes, problems


# --- Disks that fill up -------------------------------------------------------


@contextlib.contextmanager
def small_disk(path: pathlib.Path, kilobytes: int):
  """Mounts a small tmpfs at a path while the block runs."""
  path.mkdir()
  options = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", path]
  subprocess.run(options, check=True)
  try:
    yield
  finally:
    subprocess.run(["umount", "-l", path], check=True)
    path.rmdir()


def fill_disks(task, count, folder, rng):
  """Runs on disks that are too small; returns outcomes and problems."""
  outcomes, problems, log = collections.Counter(), [], folder / "log"
  if task != "fine-tuning":
    write_models(folder, 1.0)
  for trial in range(count):
    largest = {"mix": 1200, "save": 1200, "fine-tuning": 300}[task]
    disk = folder / "model_disk"
    with small_disk(disk, rng.randrange(8, largest)):
      out = disk / OUTPUTS[trial % 3]
      # As if another program filled the disk after the check of free space.
      code = (
        "from soupjax import files; import sys; "
        "files.free_bytes = lambda path: 1 << 50; "
        "import soupjax as sj, soupjax.main; "
        + (
          f"sj.save_params({str(out)!r}, {str(folder / 'm1.npz')!r})"
          if task == "save"
          else "soupjax.main.run()"
        )
      )
      if task == "save":
        code = code.replace(
          "sj.save",
          "\nfrom soupjax.tasks import failures\n"
          "with failures.reported(): sj.save",
        )
      kind = "mix" if task == "mix" else "fine-tuning"
      env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
      with open(log, "wb") as f:
        status = subprocess.run(
          [sys.executable, "-c", code, *command_of(kind, folder, out)],
          env=env,
          stdout=f,
          stderr=f,
          check=False,
          timeout=300,
        ).returncode
      text = log.read_text()
      said = [line for line in text.splitlines() if "No space left" in line]
      if status == 0:
        outcomes["fitted"] += 1
      elif status == 1 and len(said) == 1 and "Traceback" not in text:
        outcomes["one line"] += 1
      else:
        problems.append(f"{task} {trial}: {status} {text[-2000:]}")
      if task != "fine-tuning":
        left = [p for p in os.listdir(disk) if p != out.name]
        problems += [f"{task} {trial}: left {name}" for name in left]
        if status and out.exists():
          problems.append(f"{task} {trial}: published")
  return outcomes, problems


# --- One of two processes dies ------------------------------------------------


def kill_peers(task, count, folder, rng):
  """Kills one of two processes; returns outcomes and problems."""
  outcomes, problems = collections.Counter(), []
  if task == "mix":
    write_models(folder, 512.0)
  elif task == "cook":
    sweep = [f"--workdir={folder}/model_sweep", "--sweep"]
    done = start(
      [f"--config={DIGITS}:runlocal", *SHORT, *sweep], folder / "log"
    )
    assert done.wait(300) == 0, (folder / "log").read_text()[-2000:]
  for trial in range(count):
    out = folder / f"out_{trial}"
    arguments = command_of("mix" if task == "mix" else "finetune", folder, out)
    arguments += {
      "mix": ["--config.block_bytes=1048576"],
      "fine-tuning": ["--config.hyper.total=100000steps"],
      "cook": [],
    }[task]
    if task == "cook":
      arguments = [
        f"--config={COOK}:sweep={folder}/model_sweep",
        f"--workdir={out}",
        "--config.cook.learned.steps=10000",
      ]
    with socket.socket() as s:
      s.bind(("localhost", 0))
      port = s.getsockname()[1]
    logs = [folder / f"log_{k}" for k in range(2)]
    pair = [
      start(
        [*arguments, "--distributed"],
        logs[k],
        JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
        JAX_NUM_PROCESSES="2",
        JAX_PROCESS_ID=str(k),
      )
      for k in range(2)
    ]
    mark = {
      "mix": f".{out.name}.tmp",
      "fine-tuning": f"{out.name}/state_*",
      "cook": f"{out.name}/soups/uniform",
    }[task]
    deadline = time.monotonic() + 300
    while not any(folder.glob(mark)) and time.monotonic() < deadline:
      assert all(p.poll() is None for p in pair), logs[0].read_text()[-3000:]
      time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.5))
    victim = trial % 2
    pair[victim].kill()
    began, other = time.monotonic(), pair[1 - victim]
    try:
      status = other.wait(120)
    except subprocess.TimeoutExpired:
      status = "hangs"
    for process in pair:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()
    text = logs[1 - victim].read_text()
    clear = "Another process of this run" in text or "another task died" in text
    if status in (1, -signal.SIGABRT) and clear:
      took = time.monotonic() - began
      outcomes[f"said so within {30 * (1 + int(took // 30))} s"] += 1
    elif status == 0:
      outcomes["had finished"] += 1
    else:
      problems.append(f"{task} {trial}: {status} {text[-3000:]}")
    shutil.rmtree(out, ignore_errors=True)
  return outcomes, problems


def trials(kind: str, count: int):
  """Yields the title, function and first arguments of each series of trials."""
  if kind == "calls":
    for name in ("mix", "save", "load", "greedy", "learned"):
      yield f"Ctrl-C in {name}()", interrupt_calls, (name, count)
  elif kind == "commands":
    for task in ("mix", "fine-tuning"):
      for number in (signal.SIGINT, signal.SIGTERM):
        yield f"{number.name}, {task}", stop_commands, (task, number, count)
  elif kind == "disks":
    for task in ("mix", "save", "fine-tuning"):
      yield f"full disk, {task}", fill_disks, (task, count)
  else:
    for task in ("mix", "cook", "fine-tuning"):
      yield f"peer dies, {task}", kill_peers, (task, min(count, 4))


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--only", choices=KINDS, action="append")
  parser.add_argument("--count", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  failed = 0
  for kind in args.only or KINDS:
    for title, function, arguments in trials(kind, args.count):
      rng = random.Random(args.seed)
      with tempfile.TemporaryDirectory() as folder:
        outcomes, problems = function(*arguments, pathlib.Path(folder), rng)
      counts = ", ".join(f"{n} {what}" for what, n in sorted(outcomes.items()))
      print(f"| {title} | {counts} | {len(problems)} problems |", flush=True)
      for problem in problems:
        print(problem, file=sys.stderr)
      failed += len(problems)
  sys.exit(bool(failed))


if __name__ == "__main__":
  main()
