# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The compiled programs of cooking, with shapes in place of arrays."""

from collections.abc import Iterator
import pathlib

import jax
import numpy as np

from soupjax import sharding
from soupjax.soups.core.ingredient import sharding_of
from soupjax.soups.learned import soup as learned_lib
from soupjax.tasks.cook import evaluate, soups
from soupjax.tasks.cook.inputs import CookInputs
from soupjax.tasks.finetune import config as finetune_config
from soupjax.tasks.programs import averaging
from soupjax.tasks.programs.report import Program, bytes_on_each, fewer, on_mesh


def programs(inputs: CookInputs) -> Iterator[Program]:
  """Yields evaluation, the uniform soup and a step of a learned soup.

  Args:
    inputs: the inputs, opened for devices that need not exist.
  """
  first = inputs.ingredients[0]
  leaves = [
    on_mesh(spec, sharding_of(inputs.place, leaf, spec))
    for leaf, spec in first.specs.items()
  ]
  yield _evaluation(inputs, jax.tree.unflatten(first.treedef, leaves))
  if len(inputs.ingredients) > 1:
    yield averaging.program(inputs.ingredients, inputs.place)
  if inputs.learned and not inputs.config.select:
    yield _learned_step(inputs, bytes_on_each(leaves))


def _evaluation(inputs: CookInputs, params) -> Program:
  config, devices = inputs.config, inputs.mesh.shape["data"]
  size = config.data.image_size
  count = finetune_config.rounded_up(config.data.batch_size, devices)
  evaluations = evaluate.Evaluations(inputs, pathlib.Path())
  evaluator = evaluations.minival(inputs.metrics[0])
  head = inputs.heads.get("minival")
  if head is not None:
    params = head.abstract(params, inputs.mesh)
  return Program(
    name=f"evaluation of {count} images",
    function=evaluator.program(inputs.ensembles),
    args=(params, evaluator.abstract_batch(count, (size, size, 3))),
    advice=lambda needed, room: _fewer(
      inputs, "data.batch_size", count, needed, room, bytes_on_each(params)
    ),
  )


def _learned_step(inputs: CookInputs, num_bytes: int) -> Program:
  """Returns the program for the loss and gradient of a learned soup.

  Args:
    inputs: as above.
    num_bytes: bytes of a model on each device.
  """
  config, model = inputs.config, inputs.model
  count, size = config.cook.learned.batch_size, config.data.image_size
  place = sharding.along(inputs.mesh, "data")

  def batch(dtype, *shape):
    return jax.ShapeDtypeStruct((count, *shape), dtype, sharding=place)

  function, args = learned_lib.abstract_step(
    inputs.ingredients,
    soups.learned_loss(model, inputs.heads.get("minival")),
    (batch(np.float32, size, size, 3), batch(np.int32)),
    granularity=soups.granularity_of(
      model, config.cook.learned.granularities[0]
    ),
    sharding=inputs.place,
  )
  return Program(
    name=f"learned soup, gradient on {count} images",
    function=function,
    args=args,
    # Further ingredients stay on the devices only if there is room.
    beside={"first ingredient": num_bytes, "a block of others": num_bytes},
    advice=lambda needed, room: _fewer(
      inputs,
      "cook.learned.batch_size",
      count,
      needed,
      room,
      2 * num_bytes + 2 * bytes_on_each(args[0]),
    ),
  )


def _fewer(inputs, key: str, count: int, needed, room, fixed) -> str:
  """Advises on a smaller batch, or on more devices if no batch fits."""
  fits = fewer(count, needed, room, fixed, inputs.mesh.shape["data"])
  if fits:
    return f"Set {key} to about {fits} (now {count})."
  advice = "The weights alone leave no room: "
  if inputs.config.sharding.preset == "replicated":
    advice += "set sharding.preset='fsdp', or "
  return f"{advice}use a slice with {-(-needed // room)} times as many devices."
