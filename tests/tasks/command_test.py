# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import json
import pathlib
import socket

import helpers
import ml_collections
import numpy as np
import pytest

import soupjax as sj
from soupjax import processes
from soupjax.tasks import command, estimate, mix

MIX = str(helpers.ROOT / "configs" / "mix.py")
COOK = str(helpers.ROOT / "configs" / "cook.py")


def test_main_is_short():
  assert len((helpers.ROOT / "soupjax/main.py").read_text().splitlines()) <= 80


def test_help_lists_tasks_and_flags():
  text = helpers.soupjax("--help").stdout
  for word in ("--config", "--workdir", "--sweep_index", "fine-tuning"):
    assert word in text


@pytest.mark.parametrize(
  "task,flag",
  [
    ("mix", "workdir"),
    ("mix", "sweep"),
    ("mix", "sweep_index"),
    ("mix", "fake_devices"),
    ("cook", "sweep"),
    ("cook", "fake_devices"),
    ("diagnose", "sweep_index"),
    ("diagnose", "topology"),
    ("evaluate", "topology"),
  ],
)
def test_a_flag_that_the_task_does_not_use_is_an_error(task, flag):
  with pytest.raises(ValueError, match=f"'{task}'.*--{flag}"):
    run(task, **{flag: 1, "dry_run": True})


@pytest.mark.parametrize("index", [-1, 2, 99])
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_member_that_the_sweep_lacks(tmp_path, index, dry_run):
  flags = {"sweep_index": index, "workdir": str(tmp_path / "x")}
  if dry_run:
    flags["dry_run"] = True
  file = f"{helpers.DIGITS}:runlocal"
  config = sj.config.load(helpers.DIGITS, "runlocal")
  with pytest.raises(ValueError, match=f"--sweep_index={index}.*0 to 1"):
    command.run(command.Command(config, file, (), flags))
  assert not (tmp_path / "x").exists()


def test_a_dry_run_of_one_member_shows_that_member(capsys, monkeypatch):
  monkeypatch.setattr(estimate, "can_compile", lambda *args: False)
  config = sj.config.load(helpers.DIGITS, "runlocal")
  flags = {"sweep_index": 1, "dry_run": True}
  file = f"{helpers.DIGITS}:runlocal"
  command.run(command.Command(config, file, (), flags))
  text = capsys.readouterr().out
  assert "member_001" in text and "member_000" not in text
  assert "not counted    all device memory" in text


def test_a_key_that_the_task_ignores_is_an_error():
  config = ml_collections.ConfigDict({"task": "diagnose"})
  keys = ("seed", "cook.learned.steps", "cook.wise_ft_points")
  for key in keys:
    with pytest.raises(ValueError, match=f"'diagnose'.*--config.{key}"):
      command.run(command.Command(config, "x.py", (key,), {"dry_run": True}))


def run(task, **flags):
  config = ml_collections.ConfigDict({"task": task})
  command.run(command.Command(config, "x.py", (), flags))


@pytest.mark.parametrize(
  "task,flags,culprit",
  [
    ("mixx", {}, "'mixx'.*'mix'"),
    (None, {}, "None"),
    ("cook", {}, "--workdir"),
    ("finetune", {"workdir": "x", "fake_devices": 8}, "--fake_devices"),
    ("finetune", {"dry_run": True, "fake_devices": -1}, "--fake_devices=-1"),
    (
      "finetune",
      {"dry_run": True, "fake_devices": 2, "distributed": True},
      "--fake_devices and --distributed",
    ),
    (
      "finetune",
      {"workdir": "x", "topology": "v5e:4x4"},
      "--topology only works",
    ),
    (
      "finetune",
      {"dry_run": True, "fake_devices": 2, "topology": "v5e:4x4"},
      "--topology and --fake_devices",
    ),
    (
      "finetune",
      {"dry_run": True, "distributed": True, "topology": "v5e:4x4"},
      "--topology and --distributed",
    ),
    (
      "finetune",
      {"workdir": "x", "sweep": True, "sweep_index": 0},
      "--sweep and --sweep_index",
    ),
  ],
)
def test_bad_commands_are_named(task, flags, culprit):
  with pytest.raises(ValueError, match=culprit):
    run(task, **flags)


@pytest.mark.parametrize(
  "arguments,culprit",
  [
    ([f"--config={MIX}:tie"], "'ties'"),
    ([f"--config={MIX}:ties", "--config.rule.dense=1"], "'dense'"),
    ([f"--config={MIX}:ties", "--config.threads=x"], "threads=x"),
    ([f"--config={MIX}:ties", "--workdirs=x"], "workdirs"),
    ([f"--config={MIX}:ties", "--config.thread=x"], "no key 'thread', so"),
    ([f"--config={COOK}", "--config.tests.a=test"], "--config.tests=NAME="),
    (["--config=nowhere.py:ties"], "nowhere.py"),
    ([], "--config"),
  ],
)
def test_bad_flags_end_with_one_message(arguments, culprit):
  done = helpers.soupjax(*arguments)
  assert done.returncode == 1 and culprit in done.stderr, done.stderr
  assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
  "line,culprit",
  [
    ("def get_config(arg=None): return 1 / 0", "line 1, ZeroDivisionError"),
    ("def get_config(arg=None): return arg.x", "line 1, AttributeError"),
    ("import no_such_package", "line 1, ModuleNotFoundError"),
    ("def get_config(arg=None) return arg", "line 1, SyntaxError"),
  ],
)
def test_an_error_in_a_config_file_is_told_with_its_line(
  tmp_path, line, culprit
):
  (tmp_path / "mine.py").write_text(f"{line}\n")
  done = helpers.soupjax("--config=mine.py", cwd=tmp_path)
  assert done.returncode == 1 and f"mine.py, {culprit}" in done.stderr
  assert len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize("keys_first", [False, True])
def test_a_text_and_keys_for_one_rule_are_an_error(keys_first):
  flags = ["--config.rule=ties(0.2)", "--config.rule.density=0.3"]
  if keys_first:
    flags.reverse()
  with pytest.raises(SystemExit, match="config.rule and .*config.rule.density"):
    command.parse(["soupjax", f"--config={MIX}:ties", *flags])


@pytest.mark.parametrize(
  "variables,culprit",
  [
    ({"JAX_PROCESS_ID": "first"}, "'first'"),
    ({"JAX_NUM_PROCESSES": "2"}, "JAX_COORDINATOR_ADDRESS"),
    ({"JAX_COORDINATOR_ADDRESS": "here"}, "'here' must be host:port"),
    ({"JAX_COORDINATOR_ADDRESS": "here:99999"}, "'here:99999' must be"),
  ],
)
def test_processes_that_cannot_be_told_are_named(
  monkeypatch, variables, culprit
):
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match=culprit):
    processes.join()


@pytest.mark.parametrize(
  "variables,given",
  [({}, "none of them"), ({"SLURM_JOB_ID": "7"}, "SLURM_JOB_ID")],
)
def test_outside_a_cluster_what_was_looked_for_is_named(variables, given):
  code = f"""
from soupjax import processes
for names in processes._CLUSTERS.values():
  for name in names:
    os.environ.pop(name, None)
os.environ |= {variables}
soupjax.main.run()
"""
  flags = (f"--config={MIX}:linear", "--distributed")
  done = helpers.soupjax(*flags, code=code)
  assert done.returncode == 1
  for name in ("JAX_PROCESS_ID", "SLURM_PROCID", "TPU_WORKER_HOSTNAMES"):
    assert name in done.stderr
  assert f"Set: {given}." in done.stderr
  assert len(done.stderr.splitlines()) <= 2


def test_a_coordinator_that_does_not_answer_is_named(monkeypatch):
  with socket.socket() as s:
    s.bind(("localhost", 0))
    address = f"localhost:{s.getsockname()[1]}"
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
  monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
  monkeypatch.setenv("JAX_PROCESS_ID", "1")
  monkeypatch.setattr(processes, "_SECONDS", 0.2)
  with pytest.raises(ValueError, match=f"process 1 .*{address}.*refused"):
    processes.join()


def test_a_port_that_another_run_uses_is_named(monkeypatch):
  with socket.create_server(("", 0)) as s:
    address = f"localhost:{s.getsockname()[1]}"
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(ValueError, match=f"cannot listen at {address}"):
      processes.join()


def test_two_processes_mix_into_one_file(tmp_path):
  for k in range(2):
    rng = np.random.default_rng(k)
    tree = {f"leaf_{i}": rng.normal(size=2**19).astype("f") for i in range(4)}
    sj.save_params(tmp_path / f"m{k}.safetensors", tree)
  flags = [
    f"--config={MIX}:ties(0.5)",
    f"--config.base={tmp_path}/m0.safetensors",
    f"--config.ingredients={tmp_path}/m?.safetensors",
    "--config.block_bytes=65536",
  ]
  helpers.run_workers(
    pathlib.Path(__file__).with_name("command_worker.py"),
    tmp_path,
    *flags,
    f"--config.out={tmp_path}/soup.safetensors",
    "--distributed",
    seconds=120,
    LOGS=str(tmp_path),
  )
  alone = mix.run(
    sj.config.load(
      MIX,
      "ties(0.5)",
      base=f"{tmp_path}/m0.safetensors",
      ingredients=f"{tmp_path}/m?.safetensors",
      out=f"{tmp_path}/alone.safetensors",
    )
  )
  total = alone.report.bytes_read
  for index in range(2):
    read = json.loads((tmp_path / f"read_{index}.json").read_text())
    assert 0.4 * total < read < 0.6 * total
  soups = [tmp_path / f"{name}.safetensors" for name in ("soup", "alone")]
  assert soups[0].read_bytes() == soups[1].read_bytes()
  # The first process prints.
  assert "Wrote" in (tmp_path / "log_0").read_text()
  assert "Wrote" not in (tmp_path / "log_1").read_text()


@pytest.mark.parametrize("task", ["mix", "finetune"])
def test_a_directory_that_is_not_shared_is_an_error(tmp_path, task):
  rng = np.random.default_rng(0)
  tree = {"leaf": rng.normal(size=2**10).astype("f")}
  sj.save_params(tmp_path / "m0.safetensors", tree)
  for home in ("home_0", "home_1"):
    (tmp_path / home / "soups").mkdir(parents=True)
  flags = {
    "mix": [
      f"--config={MIX}:linear",
      f"--config.ingredients={tmp_path}/m0.safetensors",
      "--config.out=~/soups/soup.safetensors",
    ],
    "finetune": [f"--config={helpers.DIGITS}:runlocal", "--workdir=~/soups"],
  }
  with pytest.raises(AssertionError, match="2 processes, number 1 cannot see"):
    helpers.run_workers(
      pathlib.Path(__file__).with_name("command_worker.py"),
      tmp_path,
      *flags[task],
      "--distributed",
      seconds=120,
      LOGS=str(tmp_path),
      HOMES=str(tmp_path),
    )
  # Nothing is published, and the mark is removed.
  assert not list(tmp_path.glob("home_?/soups/*.safetensors"))
  assert not list(tmp_path.glob("home_?/soups/.mark*"))
