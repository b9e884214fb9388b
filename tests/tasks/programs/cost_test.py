# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Tests of soupjax.tasks.programs.cost."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from soupjax import sharding
from soupjax.tasks.programs import cost

F32 = np.float32


def test_memory_of_a_program():
  """Arguments, results, temporaries and donated arguments are told apart."""
  spec = jax.ShapeDtypeStruct((256, 256), F32)
  size = 4 * 256 * 256

  def program(a, b):
    return a + 1, jnp.linalg.norm(a @ b)

  donated = jax.jit(program, donate_argnums=0).lower(spec, spec).compile()
  used = cost.memory(donated)
  assert used.arguments == 2 * size
  assert size < used.outputs < size + 100
  assert used.aliased == size
  assert used.temporaries >= size
  held = used.arguments + used.outputs - used.aliased
  assert used.peak == held + used.temporaries + used.code


def test_memory_is_that_of_each_device():
  mesh = sharding.make_mesh({"data": 8})
  spec = jax.ShapeDtypeStruct(
    (8, 1024), F32, sharding=sharding.along(mesh, "data")
  )
  compiled = jax.jit(lambda x: x * 2).lower(spec).compile()
  assert cost.memory(compiled).arguments == 4 * 1024


def _flops(function, *shapes):
  specs = [jax.ShapeDtypeStruct(shape, F32) for shape in shapes]
  return cost.flops(jax.jit(function).trace(*specs).jaxpr)


def test_flops_of_products():
  assert _flops(jnp.matmul, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
  assert _flops(jnp.matmul, (11, 3, 5), (11, 5, 7)) == 11 * 2 * 3 * 5 * 7

  def patches(images, kernel):
    return jax.lax.conv_general_dilated(
      images,
      kernel,
      (4, 4),
      "VALID",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

  assert _flops(patches, (2, 8, 12, 3), (4, 4, 3, 10)) == (
    2 * (2 * 2 * 3 * 10) * (4 * 4 * 3)
  )


def test_flops_count_every_round_and_repetition():
  """Scans count by their length, and rematerialisation counts again."""
  one = 2 * 4 * 6 * 6

  def layers(x, kernels):
    body = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
    return jax.lax.scan(body, x, kernels)[0].sum()

  assert _flops(layers, (4, 6), (9, 6, 6)) == 9 * one
  # Forward, again for the gradient, and two products backward.
  assert _flops(jax.grad(layers, argnums=1), (4, 6), (9, 6, 6)) == 4 * 9 * one


def test_flops_of_a_condition_are_those_of_its_longer_branch():
  def either(x, w):
    return jax.lax.cond(
      x[0, 0] > 0, lambda: x @ w, lambda: (x @ w) @ jnp.ones((6, 6))
    )

  assert _flops(either, (4, 6), (6, 6)) == 2 * (2 * 4 * 6 * 6)


def test_flops_of_manual_shards_are_those_of_all_devices():
  mesh = sharding.make_mesh({"data": 8})
  data, whole = PartitionSpec("data"), PartitionSpec()
  product = jax.shard_map(
    jnp.matmul, mesh=mesh, in_specs=(data, whole), out_specs=data
  )
  assert _flops(product, (16, 6), (6, 5)) == 2 * 16 * 6 * 5
