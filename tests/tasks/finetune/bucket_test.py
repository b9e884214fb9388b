# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Runs whose directory is in a bucket: killed, resumed, and locked."""

import fnmatch
import json
import os
import time

import helpers
import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax import buckets, files
from soupjax.checkpoints import train_state
from soupjax.tasks import workdir
from soupjax.tasks.finetune import run as finetune

ARGUMENTS = [
  f"--config={helpers.DIGITS}",
  *(
    f"--config.{key}={value}"
    for key, value in (
      helpers.FINETUNE
      | {"hyper.total": "60steps", "hyper.ema": (), "checkpoint": "10steps"}
    ).items()
  ),
]


class Names:
  """The names in a bucket, as a directory with `glob`."""

  def __init__(self, store, bucket):
    self._store, self._bucket = store, bucket[5:]

  def glob(self, pattern):
    return fnmatch.filter(self._store.names(self._bucket), pattern)


def test_a_killed_run_ends_as_one_on_disk(store, bucket, tmp_path):
  local, remote = tmp_path / "run", f"{bucket}/run"
  done = helpers.soupjax(*ARGUMENTS, f"--workdir={local}")
  assert done.returncode == 0, done.stderr
  helpers.kill_soupjax_when(
    Names(store, bucket),
    "run/state_00000020/record.json",
    *(*ARGUMENTS, f"--workdir={remote}"),
  )
  assert not Names(store, bucket).glob("run/done.json")
  done = helpers.soupjax(*ARGUMENTS, f"--workdir={remote}")
  assert done.returncode == 0, done.stderr
  expected = sj.load_params(local / "ingredients" / "last")
  models = sj.find_ingredients(f"{remote}/ingredients/*")
  assert [model.name for model in models] == ["last"]
  assert models[0].metrics and models[0].hyperparameters["steps"] == 60
  equal(models[0].load(), expected)
  names = Names(store, bucket).glob("run/*")
  assert not [name for name in names if "state_" in name or ".lock" in name]
  text = buckets.read(f"{remote}/metrics.jsonl").decode()
  assert text == (local / "metrics.jsonl").read_text()
  assert json.loads(buckets.read(f"{remote}/done.json")).keys() == {"last"}


def test_gs(google_bucket):
  """Models and train states; whole runs are tested in s3://."""
  run = f"{google_bucket}/run"
  params = {"w": np.arange(6.0, dtype=np.float32), "b": np.ones(())}
  workdir.save_model(files.path_of(f"{run}/last"), params)
  equal(sj.load_params(f"{run}/last"), params)
  saver = train_state.StateSaver(run)
  saver.save(1, params, {"step": 1})
  saver.wait()
  restored, record = train_state.restore(run, params)
  assert record == {"step": 1}
  equal(restored, params)
  saver.remove()
  saver.close()
  assert not [name for name in buckets.find(run) if "state_" in name]


def test_a_lock_in_gs_excludes_others(google_bucket, quick):
  path = f"{google_bucket}/run/.lock"
  with buckets.locked(path, "busy"):
    with pytest.raises(ValueError, match="busy"):
      with buckets.locked(path, "busy"):
        pass
  assert not buckets.exists(path)


def test_the_marker_that_orbax_asks_for_comes_last(store, bucket):
  begin = len(store.proxy.seen)
  model, params = files.path_of(f"{bucket}/run/last"), {"w": np.arange(6.0)}
  workdir.save_model(model, params)
  puts = [line for line in store.proxy.seen[begin:] if line.startswith("PUT")]
  assert puts[-1].split()[1].endswith("/last/params/commit_success.txt")
  # A run that was killed just before it writes the model again.
  name, key = bucket.removeprefix("s3://"), "run/last/params"
  store.client.delete_object(Bucket=name, Key=f"{key}/commit_success.txt")
  marker = f"{key}/.soupjax_upload"
  store.client.put_object(Bucket=name, Key=marker, Body=b"")
  assert not workdir.has_model(model)
  workdir.save_model(model, params)
  assert workdir.has_model(model)
  equal(sj.load_params(f"{bucket}/run/last/params"), params)


def equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    np.testing.assert_array_equal(x, y)


def test_a_damaged_state_is_passed_over(store, bucket):
  state = {"w": np.arange(6.0, dtype=np.float32)}
  saver = train_state.StateSaver(f"{bucket}/run")
  for step in (1, 2, 3):
    saver.save(step, {"w": state["w"] + step}, {"step": step})
  saver.wait()
  names = store.names(bucket[5:])
  assert {name.split("/")[1] for name in names} == {
    "state_00000002",
    "state_00000003",
  }
  assert train_state.restore(f"{bucket}/run", state)[1] == {"step": 3}
  (chunk,) = [n for n in names if "00003/" in n and n.endswith("c/0")]
  store.client.put_object(Bucket=bucket[5:], Key=chunk, Body=b"damaged")
  restored, record = train_state.restore(f"{bucket}/run", state)
  assert record == {"step": 2} and restored["w"][0] == 2
  # A state without its record is one whose save was interrupted.
  store.client.delete_object(
    Bucket=bucket[5:], Key="run/state_00000003/record.json"
  )
  assert train_state.restore(f"{bucket}/run", state)[1] == {"step": 2}
  saver.remove()
  saver.close()
  assert store.names(bucket[5:]) == []


def test_adapters_are_not_written_into_a_bucket(store, bucket):
  config = helpers.finetune_config(**{"adapter.kind": "lora"})
  with pytest.raises(ValueError, match="/run: adapters .* local disks"):
    finetune.run(config, f"{bucket}/run")


# --- Locks --------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr(buckets, "RENEW", 0.05)
  monkeypatch.setattr(buckets, "EXPIRES", 0.5)


def test_a_lock_excludes_others_and_ends(store, bucket, quick):
  path = f"{bucket}/run/.lock"
  with buckets.locked(path, "busy"):
    with pytest.raises(ValueError, match="busy"):
      with buckets.locked(path, "busy"):
        pass
  assert store.names(bucket[5:]) == []
  with buckets.locked(path, "busy"):
    pass


def test_a_lock_of_a_dead_process(store, bucket, quick):
  path = f"{bucket}/run/.lock"
  for owner in ({"host": "elsewhere", "pid": 1}, {"host": None}):
    buckets.write(path, json.dumps(owner).encode())
    with buckets.locked(path, "busy"):
      assert json.loads(buckets.read(path))["pid"] == os.getpid()


def test_a_renewal_whose_answer_was_lost(store, bucket, quick, monkeypatch):
  killed = []
  monkeypatch.setattr(buckets.os, "kill", lambda *args: killed.append(args))
  path = f"{bucket}/run/.lock"
  with buckets.locked(path, "busy"):
    mine = json.loads(buckets.read(path))
    buckets.write(path, json.dumps(mine | {"id": "another try"}).encode())
    wait_for(lambda: b"another try" not in buckets.read(path))
  assert not killed and store.names(bucket[5:]) == []


def test_a_lost_lock_ends_the_run(store, bucket, quick, monkeypatch):
  killed = []
  monkeypatch.setattr(buckets.os, "kill", lambda *args: killed.append(args))
  path = f"{bucket}/run/.lock"
  with buckets.locked(path, "busy"):
    buckets.write(path, b"{}")
    wait_for(lambda: killed)
  assert store.names(bucket[5:]) == ["run/.lock"]


def wait_for(ready):
  deadline = time.monotonic() + 20
  while not ready() and time.monotonic() < deadline:
    time.sleep(0.01)
  assert ready()


def test_a_workdir_that_cannot_be_reached():
  config = helpers.finetune_config()
  with pytest.raises(ValueError, match="ftp://"):
    finetune.run(config, "ftp://b/run")


def test_another_config_is_refused(store, bucket):
  config = helpers.finetune_config()
  path = workdir.open_workdir(f"{bucket}/run", config)
  assert str(path) == f"{bucket}/run"
  workdir.open_workdir(path, config)
  with pytest.raises(ValueError, match=f"{bucket}/run holds a run of another"):
    workdir.open_workdir(path, helpers.finetune_config(seed=7))
  buckets.write(f"{bucket}/other/x", b"")
  with pytest.raises(ValueError, match="has no config.json but other files"):
    workdir.open_workdir(f"{bucket}/other", config)
