# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Bytes and floating-point operations of a program, without running it."""

import dataclasses
import math
from typing import Any

import jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
  """Bytes of a compiled program on each device, as XLA plans its buffers.

  Attributes:
    arguments: bytes of all arguments.
    outputs: bytes of all results.
    temporaries: peak bytes of intermediate values.
    aliased: bytes of results that reuse the memory of donated arguments.
    code: bytes of the program itself.
  """

  arguments: int
  outputs: int
  temporaries: int
  aliased: int
  code: int

  @property
  def peak(self) -> int:
    """Bytes that a call needs, including its arguments."""
    kept = self.arguments + self.outputs - self.aliased
    return kept + self.temporaries + self.code


def memory(compiled: jax.stages.Compiled) -> Memory:
  """Returns the memory of a compiled program.

  The `peak_memory_in_bytes` of XLA is not used: it leaves out temporaries on
  CPUs and adds on-chip memory on TPUs.
  """
  stats = compiled.memory_analysis()
  return Memory(
    arguments=stats.argument_size_in_bytes,
    outputs=stats.output_size_in_bytes,
    temporaries=stats.temp_size_in_bytes,
    aliased=stats.alias_size_in_bytes,
    code=stats.generated_code_size_in_bytes,
  )


def flops(jaxpr: Any) -> int:
  """Counts the floating-point operations of matrix products and convolutions.

  A multiplication and an addition count as two. Unlike in XLA's own analysis,
  every iteration of a scan counts. So do repetitions by rematerialisation.
  Loops of unknown length count as one iteration, and a conditional as its most
  expensive branch.

  Args:
    jaxpr: such as `jax.jit(f).trace(*args).jaxpr`.

  Returns:
    The number of operations, of all devices together.
  """
  total = 0
  for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
    out = math.prod(eqn.outvars[0].aval.shape) if eqn.outvars else 0
    if eqn.primitive.name == "dot_general":
      (contracted, _), _ = eqn.params["dimension_numbers"]
      shape = eqn.invars[0].aval.shape
      total += 2 * out * math.prod(shape[k] for k in contracted)
    elif eqn.primitive.name == "conv_general_dilated":
      kernel = eqn.invars[1].aval.shape
      of_outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
      total += 2 * out * math.prod(kernel) // of_outputs
    else:
      inner = list(map(flops, _inner(eqn.params)))
      if eqn.primitive.name == "cond":
        total += max(inner, default=0)
      else:
        total += _rounds(eqn) * sum(inner)
  return total


def _rounds(eqn) -> int:
  """Returns how often an equation runs its inner jaxprs, over all devices."""
  if eqn.primitive.name == "scan":
    return eqn.params["length"]
  if eqn.primitive.name == "shard_map":  # Inner shapes are those on a device.
    mesh = eqn.params["mesh"]
    return math.prod(
      mesh.shape[axis] for axis in eqn.params.get("manual_axes", mesh.shape)
    )
  return 1


def _inner(params) -> list[Any]:
  """Returns the jaxprs among the parameters of an equation."""
  values = []
  for value in params.values():
    values += value if isinstance(value, tuple | list) else [value]
  return [v for v in values if hasattr(v, "eqns") or hasattr(v, "jaxpr")]
