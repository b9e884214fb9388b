# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Batches from memory and from Grain; several steps a call."""

import chex
import helpers
import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax import sharding
from soupjax.tasks.finetune import batches
from soupjax.tasks.finetune import job as job_lib
from soupjax.tasks.finetune import run as finetune_run

PLAIN = {"data.train_ops": "value_range(-1, 1)", "hyper.ema": ()}


def job_of(config, axes):
  train, _ = job_lib.open_data(config)
  mesh = sharding.make_mesh(axes)
  return job_lib.Job(
    config=config, mesh=mesh, model=None, train=train, minival=None,
    params=None, init_hashes={}, off=(), l2_sp=False,
  )  # fmt: skip


def three_calls(axes, members=1, **changes):
  config = helpers.finetune_config(**PLAIN, **{"steps_per_call": 2, **changes})
  configs = []
  for seed in range(members):
    member = config.copy_and_resolve_references()
    member.seed = seed
    configs.append(member)
  opened = batches.open_batches(job_of(config, axes), configs)
  first = opened.next()
  state = opened.get_state()
  second = opened.next()
  opened.set_state(state)
  again = opened.next()
  opened.close()
  chex.assert_trees_all_equal(second, again)
  return jax.device_get((first, second))


@pytest.mark.parametrize(
  "axes,members", [({"data": 8}, 1), ({"member": 2, "data": 4}, 2)]
)
def test_memory_and_grain_give_the_same_batches(axes, members):
  held = three_calls(axes, members, **{"data.in_memory": True})
  read = three_calls(axes, members, **{"data.in_memory": False})
  automatic = three_calls(axes, members)
  chex.assert_trees_all_equal(held, read, automatic)
  images, labels = held[0]["images"], held[0]["labels"]
  beside = (members,) * (members > 1)
  assert images.shape == (2, *beside, 16, 16, 16, 3)
  assert labels.shape == (2, *beside, 16)


def test_a_set_too_large_for_the_devices_is_gathered_on_the_host(monkeypatch):
  on_devices = three_calls({"data": 8}, **{"data.in_memory": True})
  make = batches.HeldOnDevices
  monkeypatch.setattr(
    batches, "HeldOnDevices", lambda mesh, held, room: make(mesh, held, 0)
  )
  on_host = three_calls({"data": 8}, **{"data.in_memory": True})
  chex.assert_trees_all_equal(on_devices, on_host)


def test_random_operations_leave_the_set_to_grain():
  config = helpers.finetune_config()
  assert batches.hold(config, *args_of(config)) is None


def args_of(config):
  job = job_of(config, {"data": 8})
  return job.train, job.mesh


@pytest.fixture
def one_device(monkeypatch):
  make = sharding.make_mesh

  def one(axes, devices=None):
    return make(axes, jax.devices()[:1])

  monkeypatch.setattr(sharding, "make_mesh", one)


def test_several_steps_a_call_give_the_numbers_of_single_steps(
  tmp_path, one_device
):
  runs = {}
  for count in (1, 5):
    config = helpers.finetune_config(
      **PLAIN, steps_per_call=count, **{"hyper.mixup": 0.2, "log": "4steps"}
    )
    finetune_run.run(config, tmp_path / str(count))
    # 12 steps are two calls and a part of a third.
    runs[count] = sj.open_ingredient(
      tmp_path / str(count) / "ingredients" / "last"
    )
  single, several = runs[1], runs[5]
  chex.assert_trees_all_close(single.load(), several.load(), atol=2e-5)
  assert single.hyperparameters == several.hyperparameters
  lines = [
    (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    for name in ("1", "5")
  ]
  assert [line.split(",")[1] for line in lines[0]] == [
    line.split(",")[1] for line in lines[1]
  ]
  assert len(lines[0]) == 3


def test_members_of_different_length_stop_within_a_call(tmp_path, one_device):
  config = helpers.finetune_config(**PLAIN, steps_per_call=5, population=3)
  sweep = [{"hyper.total": f"{n}steps", "seed": n} for n in (12, 7, 5)]
  finetune_run.run(config, tmp_path / "both", sweep=sweep)
  alone = helpers.finetune_config(**PLAIN, steps_per_call=5)
  finetune_run.run(alone, tmp_path / "alone", sweep=sweep, index=1)
  name = "member_001/ingredients/last"
  ours, theirs = (
    sj.open_ingredient(tmp_path / run / name) for run in ("both", "alone")
  )
  assert ours.hyperparameters["steps"] == 7
  leaves = np.concatenate([np.ravel(x) for x in jax.tree.leaves(ours.load())])
  expected = np.concatenate(
    [np.ravel(x) for x in jax.tree.leaves(theirs.load())]
  )
  np.testing.assert_allclose(leaves, expected, atol=2e-4)
