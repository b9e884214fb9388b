# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import json
import sys
import types

import jax
import jax.numpy as jnp

from soupjax import metric_writers


def read(path):
  lines = (path / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_lines_are_appended_after_a_kill(tmp_path):
  writer = metric_writers.MetricWriter(tmp_path, "pretrain", done=-1)
  writer.write(0, {"loss": jnp.float32(2.5)})
  writer.close()
  with open(tmp_path / "metrics.jsonl", "a") as f:
    f.write('{"run": "pre')
  writer = metric_writers.MetricWriter(tmp_path, "ft", done=-1)
  writer.write(50, {"loss": 1.0, "learning_rate": 0.1})
  writer.close()
  assert read(tmp_path) == [
    {"run": "pretrain", "step": 0, "loss": 2.5},
    {"run": "ft", "step": 50, "loss": 1.0, "learning_rate": 0.1},
  ]


def test_what_a_killed_run_will_write_again_is_taken_out(tmp_path):
  for run, steps in {"a": (10, 20, 30), "b": (10, 20)}.items():
    writer = metric_writers.MetricWriter(tmp_path, run, done=-1)
    for step in steps:
      writer.write(step, {"loss": 1.0})
    writer.close()
  writer = metric_writers.MetricWriter(tmp_path, "a", done=20)
  writer.write(30, {"loss": 1.0})
  writer.close()
  seen = [(line["run"], line["step"]) for line in read(tmp_path)]
  assert seen == [("a", 10), ("a", 20), ("b", 10), ("b", 20), ("a", 30)]
  # With done=-1, all lines of the run are removed.
  metric_writers.MetricWriter(tmp_path, "b", done=-1).close()
  assert [line["run"] for line in read(tmp_path)] == ["a", "a", "a"]


def test_other_processes_write_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  writer = metric_writers.MetricWriter(tmp_path, "ft", done=-1)
  writer.write(0, {"loss": 1.0})
  writer.close()
  assert not list(tmp_path.iterdir())


def test_tensorboard_gets_the_same_numbers(tmp_path, monkeypatch):
  seen = []

  class SummaryWriter:
    def __init__(self, path, purge_step):
      self.path = path
      seen.append(purge_step)

    def add_scalar(self, *args):
      seen.append((self.path, *args))

    def close(self):
      seen.append("closed")

  module = types.ModuleType("tensorboardX")
  module.SummaryWriter = SummaryWriter
  monkeypatch.setitem(sys.modules, "tensorboardX", module)
  monkeypatch.setattr(
    metric_writers.importlib.util, "find_spec", lambda name: True
  )
  writer = metric_writers.MetricWriter(tmp_path, "ft", done=2)
  writer.write(3, {"loss": 1.5})
  writer.close()
  path = str(tmp_path / "tensorboard" / "ft")
  assert seen == [3, (path, "loss", 1.5, 3), "closed"]
