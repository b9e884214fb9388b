# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Compiles a task's programs for a TPU slice and reports what they need."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import math
import time
from typing import Any

from absl import logging
import jax

from soupjax.tasks.programs import collectives, cost, topology

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """A program that a task runs on its devices.

  Attributes:
    name: heading in the table.
    function: a function of `jax.jit`, as the task calls it.
    args: shapes, dtypes and shardings of its arguments.
    options: name -> value of its static arguments.
    beside: name -> bytes on each device of other arrays that are in memory
      during a call.
    advice: maps the bytes that a device needs, and those that it has, to a text
      on which settings to change.
  """

  name: str
  function: Any
  args: tuple[Any, ...]
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  beside: Mapping[str, int] = dataclasses.field(default_factory=dict)
  advice: Callable[[int, int], str] = lambda needed, room: ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """A program after compilation.

  Attributes:
    program: the program.
    memory: its memory on each device; None if it does not fit.
    needed: bytes on each device, including the arrays beside the program.
    flops: floating-point operations in matrix products, on each device.
    collectives: its communication, on each device.
    seconds: duration of the compilation.
  """

  program: Program
  memory: cost.Memory | None
  needed: int
  flops: float
  collectives: list[collectives.Collective]
  seconds: float


def on_mesh(specs: PyTree, places: PyTree) -> PyTree:
  """Adds shardings to shapes and dtypes.

  Args:
    specs: tree of shapes and dtypes.
    places: one sharding for all of them, or a tree of shardings.
  """
  if isinstance(places, jax.sharding.Sharding):
    places = jax.tree.map(lambda _: places, specs)
  return jax.tree.map(
    lambda spec, place: jax.ShapeDtypeStruct(
      spec.shape, spec.dtype, sharding=place
    ),
    specs,
    places,
  )


def bytes_on_each(specs: PyTree) -> int:
  """Returns the bytes that arrays with shardings take on each device."""
  return sum(
    math.prod(spec.sharding.shard_shape(spec.shape)) * spec.dtype.itemsize
    for spec in jax.tree.leaves(specs)
  )


def compile_program(program: Program, slice_: topology.Topology) -> Result:
  """Compiles a program for a TPU slice, without running it."""
  start = time.perf_counter()
  traced = program.function.trace(*program.args, **program.options)
  flops = cost.flops(traced.jaxpr) / len(slice_.devices)
  beside = sum(program.beside.values())
  memory, parts, needed = None, [], 0
  try:
    compiled = traced.lower().compile()
  except jax.errors.JaxRuntimeError as e:
    sizes = topology.needed(str(e))
    if sizes is None:
      raise
    needed = sizes[0] + beside
  else:
    memory = cost.memory(compiled)
    parts = collectives.collectives(compiled.as_text())
    needed = memory.peak + beside
  return Result(
    program=program,
    memory=memory,
    needed=needed,
    flops=flops,
    collectives=parts,
    seconds=time.perf_counter() - start,
  )


def run(programs: Iterable[Program], slice_: topology.Topology) -> str:
  """Compiles programs one after another and describes them.

  Args:
    programs: the programs of a task.
    slice_: the TPU slice that they run on.

  Returns:
    The text of `table`.

  Raises:
    ValueError: if a program does not fit. The message has the table, the
      missing bytes and advice.
  """
  results = []
  for program in programs:
    logging.info("Compiling %s for %s.", program.name, slice_.layout)
    results.append(compile_program(program, slice_))
  text = table(results, slice_)
  problems = [
    _problem(result, slice_)
    for result in results
    if slice_.memory is not None and result.needed > slice_.memory
  ]
  if problems:
    raise ValueError("\n".join([text, "", *problems]))
  return text


def table(results: Iterable[Result], slice_: topology.Topology) -> str:
  """Returns a table of programs' bytes, operations and communication."""
  room = slice_.memory
  lines = [
    f"Compiled for {slice_.layout}: {len(slice_.devices)} devices "
    f"({slice_.kind}) of "
    + ("unknown memory" if room is None else f"{_size(room)} for programs")
  ]
  for result in results:
    lines += ["", f"{result.program.name}, on each device"]
    lines += [f"  {size:>9}  {what}" for size, what in _rows(result, room)]
    lines.append(f"  ({result.seconds:.0f} s to compile)")
  return "\n".join(lines)


def _rows(result: Result, room: int | None) -> Iterator[tuple[str, str]]:
  """Yields (amount, meaning) for each line about one program."""
  memory, parts = result.memory, {}
  if memory is not None:
    parts = {
      "arguments": memory.arguments,
      "outputs": memory.outputs,
      "of them in the memory of arguments": -memory.aliased,
      "temporaries": memory.temporaries,
      "code": memory.code,
    }
  for name, size in result.program.beside.items():
    parts[f"beside the program: {name}"] = size
  for what, size in parts.items():
    if size or what in ("outputs", "temporaries"):
      yield _size(size), what
  share = "" if room is None else f": {result.needed / room:.1%} of the memory"
  yield _size(result.needed), f"needed{share}"
  yield _size(result.flops, "FLOP"), "in matrix products"
  for part in result.collectives:
    yield _size(part.num_bytes), f"in {part.count:,} {part.kind}"
  if memory is not None and not result.collectives:
    yield "0 B", "to other devices"


def _problem(result: Result, slice_: topology.Topology) -> str:
  lacks = result.needed - slice_.memory
  advice = result.program.advice(result.needed, slice_.memory)
  return (
    f"{result.program.name} does not fit {slice_.layout}: it needs "
    f"{_size(result.needed)} on each device, {_size(lacks)} too much. "
    f"{advice}"
  ).rstrip()


def _size(count: float, unit: str = "B") -> str:
  """Formats an amount with three significant digits, such as "1.23 GB"."""
  names = {1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k", 1: ""}
  scale = next(s for s in names if abs(count) >= s or s == 1)
  value = count / scale
  digits = 2 - min(int(math.log10(abs(value))), 2) if scale > 1 else 0
  return f"{value:.{digits}f} {names[scale]}{unit}"


def fewer(count: int, needed: int, room: int, fixed: int, step: int) -> int:
  """Estimates how many images fit, assuming that bytes grow in proportion.

  Args:
    count: a number of images that does not fit.
    needed: bytes that they need on each device.
    room: bytes available on each device.
    fixed: bytes on each device that do not depend on the images.
    step: the result is a multiple of it.

  Returns:
    The number of images; 0 if not even `step` images fit.
  """
  share = max(room - fixed, 0) / max(needed - fixed, 1)
  return int(count * min(share, 1.0)) // step * step
