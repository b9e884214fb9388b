# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Tests of soupjax.tasks.programs.collectives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soupjax import sharding
from soupjax.tasks.programs.collectives import Collective, collectives

# As compilers for TPUs write it: a gather in three parts with one channel, in a
# loop of nine rounds; a reduction followed by a slice; two arrays in one call.
TPU = """HloModule jit_f, is_scheduled=true, num_partitions=4

%body (p: (s32[], bf16[2,8])) -> (s32[], bf16[2,8]) {
  %p = (s32[]{:T(128)}, bf16[2,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[2,8]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %start = (bf16[2,8]{1,0}, /*index=1*/bf16[8,8]{1,0}) fusion(%x), kind=kCustom, calls=%begin
  %done = bf16[8,8]{1,0:T(8,128)(2,1)S(1)} fusion(%start), kind=kCustom, calls=%end
  %part = f32[2,8]{1,0} fusion(%done), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %t = (s32[]{:T(128)}, bf16[2,8]{1,0}) tuple(%p)
}

%begin (a: bf16[2,8]) -> bf16[8,8] {
  %a = bf16[2,8]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[8,8]{1,0} all-gather(%a), channel_id=5, replica_groups=[1,4]<=[4], dimensions={0}
}

%end (b: bf16[2,8]) -> bf16[8,8] {
  %b = bf16[2,8]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[8,8]{1,0} all-gather(%b), channel_id=5, dimensions={0}
}

%all-reduce-scatter.1 (c: f32[8,8]) -> f32[2,8] {
  %c = f32[8,8]{1,0} parameter(0)
  %all-reduce.1 = f32[8,8]{1,0} all-reduce(%c), channel_id=6, to_apply=%add
  ROOT %slice = f32[2,8]{1,0} dynamic-slice(%all-reduce.1, %c), dynamic_slice_sizes={2,8}
}

%add (d: f32[], e: f32[]) -> f32[] {
  %d = f32[] parameter(0)
  %e = f32[] parameter(1)
  ROOT %sum = f32[] add(%d, %e)
}

%condition (q: (s32[], bf16[2,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(9)
  %q = (s32[]{:T(128)}, bf16[2,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%unused (u: f32[8]) -> f32[8] {
  %u = f32[8]{0} parameter(0)
  ROOT %all-reduce.7 = f32[8]{0} all-reduce(%u), channel_id=9, to_apply=%add
}

ENTRY %main (in.0: bf16[2,8], in.1: f32[4]) -> bf16[2,8] {
  %in.0 = bf16[2,8]{1,0} parameter(0)
  %in.1 = f32[4]{0} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %init = (s32[]{:T(128)}, bf16[2,8]{1,0}) tuple(%zero, %in.0)
  %while.1 = (s32[]{:T(128)}, bf16[2,8]{1,0}) while(%init), condition=%condition, body=%body
  %all-reduce.2 = (f32[4]{0}, f32[4]{0}) all-reduce(%in.1, %in.1), channel_id=7, to_apply=%add
  %permute = (f32[4]{0}, f32[4]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%in.1), channel_id=8
  %permute.1 = f32[4]{0} collective-permute-done(%permute)
  ROOT %out = bf16[2,8]{1,0} get-tuple-element(%while.1), index=1
}
"""  # noqa: E501


def test_the_text_of_a_program_for_tpus():
  assert collectives(TPU) == [
    Collective("reduce-scatter", 9, 9 * 4 * 64),
    Collective("all-gather", 9, 9 * 2 * 64),
    Collective("all-reduce", 1, 2 * 4 * 4),
    Collective("collective-permute", 1, 4 * 4 + 8),
  ]


@pytest.mark.parametrize("text", ["", "HloModule x\n\nnonsense (", "ENTRY %"])
def test_a_text_without_a_program_has_none(text):
  assert collectives(text) == []


def test_a_loop_of_unknown_length_counts_once():
  text = TPU.replace("constant(9)", "parameter(1)")
  kinds = {c.kind: c.count for c in collectives(text)}
  assert kinds["all-gather"] == 1
  known = 'body=%body, backend_config={"known_trip_count":{"n":"5"}}'
  text = TPU.replace("body=%body", known)
  kinds = {c.kind: c.count for c in collectives(text)}
  assert kinds["all-gather"] == 5


def test_a_program_of_this_machine():
  """Split kernels are gathered in every round, and their gradients reduced."""
  mesh = sharding.make_mesh({"data": 8})

  def loss(kernels, x):
    def layer(x, kernel):
      return jnp.tanh(x @ kernel), None

    return jax.lax.scan(layer, x, kernels)[0].sum()

  split = sharding.along(mesh, None, "data")
  kernels = jax.ShapeDtypeStruct((5, 64, 64), np.float32, sharding=split)
  x = jax.ShapeDtypeStruct(
    (16, 64), np.float32, sharding=sharding.along(mesh, "data")
  )
  gradient = jax.jit(jax.value_and_grad(loss), out_shardings=(None, split))
  text = gradient.lower(kernels, x).compile().as_text()
  parts = {part.kind: part for part in collectives(text)}
  whole = 4 * 64 * 64
  assert parts["all-gather"].num_bytes % (5 * whole) == 0
  reduced = [parts[k] for k in ("all-reduce", "reduce-scatter") if k in parts]
  assert sum(part.num_bytes for part in reduced) >= 5 * whole
  assert collectives(jax.jit(jnp.tanh).lower(x).compile().as_text()) == []
