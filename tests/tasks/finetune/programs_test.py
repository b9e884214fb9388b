# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""What is compiled for other devices is what a run calls."""

import dataclasses

import helpers
import jax
import numpy as np
import pytest

from soupjax import evaluators, sharding
from soupjax.tasks.finetune import programs, run, step


def of(config, sweep=None, index=None):
  return list(programs.programs(config, sweep, index, jax.devices()))


def described(args):
  """Shapes, dtypes and shards of arguments, present or planned."""
  return jax.tree.map(
    lambda x: (x.shape, str(x.dtype), x.sharding.shard_shape(x.shape)), args
  )


class StoppedError(Exception):
  """The first step was called."""


@pytest.mark.parametrize(
  "changes,sweep",
  [
    ({"sharding.preset": "fsdp", "sharding.fsdp_min_size": 64}, None),
    ({"steps_per_call": 2, "accumulate": 2, "hyper.l2_sp": 0.1}, None),
    ({"population": 4}, [{"seed": k} for k in range(4)]),
  ],
  ids=["fsdp", "calls", "population"],
)
def test_a_run_calls_the_step_that_was_planned(
  tmp_path, monkeypatch, changes, sweep
):
  config = helpers.finetune_config(**changes)
  planned = of(config, sweep)[0]
  called = []

  def stop(*args):
    called.append(described(args))
    raise StoppedError

  def compiled(*args, compile_step=step.compile_step, **options):
    return dataclasses.replace(compile_step(*args, **options), step=stop)

  monkeypatch.setattr(step, "compile_step", compiled)
  with pytest.raises(StoppedError):
    run.run(config, tmp_path / "run", sweep=sweep)
  assert described(planned.args) == called[0]


def test_an_evaluator_calls_its_program_with_the_batch_that_was_planned():
  mesh = sharding.make_mesh({"data": 8})
  images, rows = np.zeros((16, 4, 4, 3), np.float32), np.arange(16)
  batches = [{"images": images, "labels": rows, "mask": rows < 15}]
  evaluator = evaluators.Evaluator(None, batches, mesh=mesh)
  (batch,) = evaluator._batches
  assert described(evaluator.abstract_batch(16, (4, 4, 3))) == described(batch)


def test_a_program_for_each_kind_of_step():
  config = helpers.finetune_config()
  sweep = [{"seed": 0}, {"seed": 1}, {"hyper.sam_rho": 0.05, "seed": 2}]
  names = [program.name for program in of(config, sweep)]
  assert names == [
    "train step of member_000 and 1 more",
    "train step of member_002",
    "evaluation of 160 images",
  ]
  names = [program.name for program in of(config, sweep, index=2)]
  assert names[0] == "train step of member_002" and len(names) == 2
  assert of(config)[0].name == "train step"


def test_advice_for_a_step_that_is_too_large():
  """What depends on the batch is lowered in proportion."""
  config = helpers.finetune_config(**{"data.batch_size": 512})
  program = of(config)[0]
  fixed = 3 * sum(
    program.beside.values()
  )  # Start, state and gradient, or more.
  room = fixed * 10
  said = program.advice(fixed * 40, room)
  assert "accumulate=8 (now 1)" in said  # 512 / 8 images of about 512 / 4.3.
  assert "data.batch_size=" in said and "(now 512)" in said
  for setting in (
    "sharding.preset='fsdp'", "remat_policy='nothing_saveable'",
    "dtype_mm='bfloat16'", "moving averages (now 1)", "4 times as many devices",
  ):  # fmt: skip
    assert setting in said
  config = helpers.finetune_config(
    **{"data.batch_size": 512, "accumulate": 8, "sharding.preset": "fsdp"}
  )
  said = of(config)[0].advice(fixed * 40, room)
  assert "(now 8)" in said and "fsdp" not in said


def test_advice_for_a_state_that_is_too_large_names_no_batch():
  program = of(helpers.finetune_config())[0]
  said = program.advice(10**6, 10**4)
  assert "accumulate" not in said and "sharding.preset='fsdp'" in said
  assert "100 times as many devices" in said


def test_advice_for_an_evaluation_that_is_too_large():
  *_, program = of(helpers.finetune_config())
  said = program.advice(10**9, 11 * 10**7)
  assert "data.eval_batch_size to about 16 (now 160)" in said
  assert "state alone" in program.advice(10**9, 10**3)


def test_a_batch_that_does_not_fit_the_mesh():
  config = helpers.finetune_config(**{"data.batch_size": 18})
  with pytest.raises(
    ValueError, match="batch_size is 18.* 8 devices.*16 or 24"
  ):
    of(config)
