# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Compiles the function of a group for the CPU, and runs it on blocks."""

from collections.abc import MutableMapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups.core import compensated, precision
from soupjax.soups.engine import blocks, groups
from soupjax.soups.rules import rule_inputs

# Uses 512-bit vectors if the CPU has them, and no threads besides ours. Neither
# changes the bits of elementwise functions.
_OPTIONS = {
  "xla_cpu_prefer_vector_width": 512,
  "xla_cpu_multi_thread_eigen": False,
}


def _combine(old, stack, base, values, *, combine, dtype):
  # Only one output: a second one, such as a flag for finite results, doubles
  # the time and memory of compilation and slows the sums by a fifth.
  del old
  base = None if base is None else _widened(base)
  if len(stack) <= compensated.UNROLLED:
    stack = _widened(stack)  # For a loop, all of it would be in memory.
  result = combine(stack, base, values)
  return _as_bfloat16(result) if dtype == jnp.bfloat16 else result.astype(dtype)


# Conversions from and to bfloat16 by integer operations. They give the same
# bits as XLA's conversions, with which a mean takes a third longer.


def _widened(array):
  if array.dtype != jnp.bfloat16:
    return array
  bits = jax.lax.bitcast_convert_type(array, jnp.uint16).astype(jnp.uint32)
  return jax.lax.bitcast_convert_type(bits << 16, jnp.float32)


def _as_bfloat16(array):
  array = array.astype(jnp.float32)
  bits = jax.lax.bitcast_convert_type(array, jnp.uint32)
  # Rounds to the nearest, ties to even.
  rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
  nan = ((bits >> 16) & 0x8000) | 0x7FC0
  bits = jnp.where(jnp.isnan(array), nan, rounded).astype(jnp.uint16)
  return jax.lax.bitcast_convert_type(bits, jnp.bfloat16)


class Program:
  """Runs the functions of groups, compiling each once per shape."""

  def __init__(self, options: dict[str, Any] | None = None):
    """Compiles nothing yet.

    Args:
      options: compiler options for elementwise functions; dropped if XLA does
        not know them.
    """
    settings = {
      "static_argnames": ("combine", "dtype"),
      # The result of the previous block, whose memory is reused.
      "donate_argnames": "old",
      "keep_unused": True,
    }
    self._plain = jax.jit(_combine, **settings)
    self._tuned = jax.jit(_combine, **settings, compiler_options=options)
    self._is_tuned = bool(options)

  def __call__(
    self,
    group: groups.Group,
    stack: np.ndarray,
    base: np.ndarray | None,
    values: Any,
    results: MutableMapping[Any, jax.Array] | None,
  ) -> jax.Array:
    """Returns `group.combine` of a block, in the dtype of the group.

    Args:
      group: of the block.
      stack: (K, ...).
      base: (...), or None.
      values: for `combine`.
      results: (shape, dtype) -> an earlier result, whose memory is reused for
        the new one, which takes its place; None allocates.
    """
    shape, dtype = stack.shape[1:], group.out_dtype
    inputs = [stack, *([] if base is None else [base])]
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.default_device(cpu), precision.kept(inputs):
      old = results.pop((shape, dtype), None) if results else None
      if old is None:
        # `jnp.empty` would be compiled.
        old = jax.device_put(np.empty(shape, dtype))
      static = {"combine": group.combine, "dtype": dtype}
      run = self._tuned if self._is_tuned and not group.whole else self._plain
      try:
        result = run(old, stack, base, values, **static)
      except jax.errors.JaxRuntimeError as e:
        if run is self._plain or "compile option" not in str(e):
          raise
        self._is_tuned = False
        result = self._plain(old, stack, base, values, **static)
    if results is not None:
      results[shape, dtype] = result
    return result

  def temporary_bytes(
    self,
    group: groups.Group,
    stack: jax.ShapeDtypeStruct,
    base: jax.ShapeDtypeStruct | None,
    values: Any,
  ) -> int:
    """Compiles `group.combine` and returns the bytes of its temporary arrays.

    Args:
      group: of the block.
      stack: shape and dtype of the (K, ...) models.
      base: those of the base, or None.
      values: for `combine`, arrays or their shapes and dtypes.
    """
    inputs = [stack, *([] if base is None else [base])]
    old = jax.ShapeDtypeStruct(stack.shape[1:], group.out_dtype)
    program = self._tuned if self._is_tuned and not group.whole else self._plain
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.default_device(cpu), precision.kept(inputs):
      lowered = program.lower(
        old,
        stack,
        base,
        values,
        combine=group.combine,
        dtype=group.out_dtype,
      )
      analysis = lowered.compile().memory_analysis()
    return analysis.temp_size_in_bytes if analysis else 0


run = Program(_OPTIONS)


def temporary_bytes(plan, pieces) -> int:
  """Returns the compiler's figure for the temporary bytes of all threads.

  It is 0 for rules that measure values first or read statistics, since the
  shapes of their values are not known yet.
  """
  if plan.rule.measure is not None:
    return 0
  largest: dict[groups.Group, blocks.Block] = {}
  for block in blocks.pack(plan, pieces):
    before = largest.get(block.group)
    if before is None or block.capacity > before.capacity:
      largest[block.group] = block
  return plan.threads * max(map(_temporary_bytes, largest.values()), default=0)


def _temporary_bytes(block) -> int:
  group, shape = block.group, block.shape
  if group.combine is None or group.extra:
    return 0
  values = rule_inputs.spread(group.values, block.spans[0].box, len(shape))
  if group.indexed:
    values["index"] = jax.ShapeDtypeStruct((2, *shape), np.uint32)
  stack = jax.ShapeDtypeStruct((len(group.sources), *shape), group.stack_dtype)
  base = None
  if group.base is not None:
    base = jax.ShapeDtypeStruct(shape, group.base_dtype)
  return run.temporary_bytes(group, stack, base, values)
