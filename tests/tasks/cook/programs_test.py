# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""What is compiled for other devices is what cooking calls."""

import helpers
import jax
import numpy as np
import pytest

from soupjax.soups import average
from soupjax.soups.learned import soup as learned_lib
from soupjax.tasks.cook import inputs, programs, run
from soupjax.tasks.programs import report, topology


def described(args):
  """Shapes, dtypes and shards of arguments, present or planned."""
  return jax.tree.map(
    lambda x: (
      x.shape,
      str(x.dtype),
      x.sharding.shard_shape(x.shape) if hasattr(x, "sharding") else None,
    ),
    args,
  )


class StoppedError(Exception):
  """The function of interest was called."""


@pytest.fixture(scope="module")
def config():
  return helpers.cook_config(
    helpers.three_members(),
    **{"sharding.preset": "fsdp", "sharding.fsdp_min_size": 64},
  )


@pytest.fixture(scope="module")
def planned(config):
  return list(programs.programs(inputs.open_inputs(config, jax.devices())))


def test_evaluation_mean_and_learned_step(planned):
  evaluation, mean, learned = (program.name for program in planned)
  assert evaluation == "evaluation of 160 images"
  assert mean.startswith("mean of 3 x ") and "kernel" in mean
  assert learned == "learned soup, gradient on 96 images"
  tpu = topology.Topology("x", "v0:8", tuple(jax.devices()), 10**9)
  assert report.run(planned, tpu).count(", on each device") == 3


def test_a_run_calls_the_programs_that_were_planned(
  tmp_path, monkeypatch, config, planned
):
  calls = {}
  sum_of = average._sum_and_check

  def recorded(total, first, *args, **options):
    values = described((total, first, *args)), options
    calls.setdefault(first.shape, values)
    return sum_of(total, first, *args, **options)

  def stop(*args):
    calls["learned"] = described(args)
    raise StoppedError

  init = learned_lib._Problem.__init__

  def patched(self, *args):
    init(self, *args)
    self.value_and_grad = stop

  monkeypatch.setattr(average, "_sum_and_check", recorded)
  monkeypatch.setattr(learned_lib._Problem, "__init__", patched)
  with pytest.raises(StoppedError):
    run.run(config, tmp_path / "soups")
  _, mean, learned = planned
  assert (described(mean.args), mean.options) == calls[mean.args[1].shape]
  assert described(learned.args) == calls["learned"]


def test_more_ingredients_than_are_summed_at_once():
  """The largest part holds the sum so far, the first model and 16 others."""
  models = [
    average.Ingredient.from_params(f"m{k}", {"w": np.ones((4, 2), np.float32)})
    for k in range(40)
  ]
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  _, (total, first, leaves, numbers, *_), _ = average.abstract_sum(
    models, "w", place
  )
  assert total.dtype == "complex64" and total.shape == first.shape
  assert len(leaves) == 16 and "scale" not in numbers


def test_advice_for_programs_that_are_too_large(planned):
  evaluation, mean, learned = planned
  assert "data.batch_size to about " in evaluation.advice(10**8, 10**7)
  assert "fsdp" in mean.advice(10**8, 10**7)
  assert "cook.learned.batch_size to about" in learned.advice(10**8, 10**7)
  assert "10 times as many devices" in learned.advice(10**4, 10**3)
