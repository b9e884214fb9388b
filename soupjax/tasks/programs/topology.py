# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""TPU slices to compile for, without the hardware."""

from collections.abc import Iterator
import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies
import jax.numpy as jnp

_ENVIRONMENT = {
  # Without these, libtpu queries Google Cloud's metadata server, and waits.
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  # Allows several compilers on a machine: safe, since no chip is used.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  # Any value avoids a warning; the layout is given elsewhere.
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}
_STACK = "fibers_default_thread_stack_size"  # A flag of libtpu, in bytes.
# Generation -> smallest layout of whole hosts, and number of chips of the
# largest slice, which libtpu does not check.
_GENERATIONS = {
  "v4": ("2x2x1", 4096),
  "v5e": ("2x2", 256),
  "v5p": ("2x2x1", 8960),
  "v6e": ("2x2", 256),
  "tpu7x": ("2x2x1", 9216),
}
# Prefix of an accelerator type -> generation, and units of its number per chip.
_TYPES = {
  "v4": ("v4", 2),
  "v5litepod": ("v5e", 1),
  "v5e": ("v5e", 1),
  "v5p": ("v5p", 2),
  "v6e": ("v6e", 1),
}
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True, eq=False)
class Topology:
  """A TPU slice.

  Attributes:
    name: the name that the user gave.
    layout: generation and chips along each axis, such as "v5e:4x4".
    devices: for `sharding.make_mesh`. Programs can be compiled for them, but
      not run. A device is a chip, but a chip of tpu7x is two devices.
    memory: bytes of each device that programs can use; None if unknown.
  """

  name: str
  layout: str
  devices: tuple[jax.Device, ...]
  memory: int | None

  @property
  def kind(self) -> str:
    """The name that JAX gives to the devices."""
    return self.devices[0].device_kind


def get(name: str) -> Topology:
  """Returns a slice by its layout or its accelerator type.

  Needs the compiler in libtpu, but no TPU. Makes JAX compute on the CPU.

  Args:
    name: a layout such as "v5e:4x4", or a type of Google Cloud such as
      "v5litepod-16".

  Raises:
    ValueError: if libtpu is missing or does not know the slice.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      f"--topology={name} needs the compiler for TPUs: pip install "
      "'soupjax[tpu]'. It needs no TPU."
    )
  for variable, value in _ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  _enlarge_stacks()
  jax.config.update("jax_platforms", "cpu")
  layout = layout_of(name)
  try:
    devices = _devices(layout)
  except jax.errors.JaxRuntimeError as e:
    reason = str(e).splitlines()[0].partition(": ")[2] or str(e)
    raise _unknown(name, reason) from e
  return Topology(name, layout, devices, _memory(devices[0]))


def _enlarge_stacks() -> None:
  """Gives the compiler's threads more than 64 kB of stack.

  They recurse over fused convolutions. With the default size, compiling a train
  step of ViT-G/14 ends in a segmentation fault (libtpu 0.0.42).
  """
  flags = os.environ.get("LIBTPU_INIT_ARGS", "")
  if _STACK not in flags:
    os.environ["LIBTPU_INIT_ARGS"] = f"{flags} --{_STACK}={2**22}".strip()


def layout_of(name: str) -> str:
  """Returns the layout of a slice, such as "v5e:4x4".

  Args:
    name: a layout, or a type such as "v5litepod-16" or "v5p-32". Its number
      counts chips or, for v4 and v5p, cores, of which a chip has two.

  Raises:
    ValueError: if it is neither, or a layout has more chips than the largest
      slice of its generation.
  """
  if match := re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", name):
    generation, shape = match.groups()
    if generation in _GENERATIONS:
      smallest, most = _GENERATIONS[generation]
      if shape.count("x") != smallest.count("x"):
        raise _unknown(name, f"a layout of {generation} is like {smallest}")
      if math.prod(map(int, shape.split("x"))) > most:
        raise _unknown(name, f"{generation} has at most {most} chips")
    return name
  kind, _, number = name.partition("-")
  if kind not in _TYPES or not number.isdigit():
    raise _unknown(name, "it is not GENERATION:AxB, GENERATION:AxBxC or a type")
  generation, cores = _TYPES[kind]
  chips, rest = divmod(int(number), cores)
  power = chips.bit_length() - 1
  if rest or chips != 2**power or chips < 4:
    raise _unknown(name, "give the layout of this number of chips")
  if chips > (most := _GENERATIONS[generation][1]):
    raise _unknown(name, f"{generation} has at most {most} chips")
  if generation in ("v5e", "v6e"):  # Close to a square: 2x4, 4x4.
    exponents = [power // 2, power - power // 2]
  else:  # Close to a cube: 2x2x1, 2x2x2, 2x2x4.
    exponents = [power // 3, (power + 1) // 3, (power + 2) // 3]
    if chips == 4:
      exponents = [1, 1, 0]
  return f"{generation}:" + "x".join(str(2**k) for k in exponents)


@contextlib.contextmanager
def explained(slice_: Topology) -> Iterator[None]:
  """Adds the name of a slice to the message of a ValueError in a block."""
  try:
    yield
  except ValueError as e:
    raise ValueError(f"--topology={slice_.name}: {e}") from e


def _devices(layout: str) -> tuple[jax.Device, ...]:
  """Asks libtpu for the devices of a layout."""
  options: dict[str, Any] = {}
  generation, _, shape = layout.partition(":")
  if generation == "v4":  # One device per chip, as programs see it.
    options["chip_config_name"] = "megacore"
  if math.prod(map(int, shape.split("x"))) == 1:
    options["chips_per_host_bounds"] = [1, 1, 1]
  described = topologies.get_topology_desc(
    platform="tpu", topology_name=layout, **options
  )
  return tuple(described.devices)


def _unknown(name: str, reason: str) -> ValueError:
  """Returns an error that lists the slices that libtpu knows."""
  known = []
  for generation, (smallest, _) in _GENERATIONS.items():
    try:
      _devices(f"{generation}:{smallest}")
    except jax.errors.JaxRuntimeError:
      continue
    known.append(f"{generation}:{smallest}")
  types = ", ".join(f"{kind}-N" for kind in _TYPES)
  return ValueError(
    f"--topology={name} is not a TPU slice that libtpu knows ({reason:.200}). "
    f"It knows {', '.join(known)} and multiples of these layouts, such as "
    f"v5e:4x4, and the types {types} with N a power of two."
  )


def _memory(device: jax.Device) -> int | None:
  """Finds the memory that programs can use, from an error of the compiler."""
  place = jax.sharding.SingleDeviceSharding(device)
  spec = jax.ShapeDtypeStruct((2**40,), jnp.float32, sharding=place)
  try:
    jax.jit(lambda x: x + 1).lower(spec).compile()
  except jax.errors.JaxRuntimeError as e:
    needs = needed(str(e))
    return needs[1] if needs else None
  return None


def needed(error: str) -> tuple[int, int] | None:
  """Parses a compiler's out-of-memory error.

  Args:
    error: message of the compiler.

  Returns:
    The bytes that the program needs, and those that a device has; None if it is
    another error.
  """
  if "RESOURCE_EXHAUSTED" not in error:
    return None
  for pattern in (
    r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
    r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)",
  ):
    if match := re.search(pattern, error):
      size, unit, room, of = match.groups()
      return (
        int(float(size) * _UNITS[unit]),
        int(float(room) * _UNITS[of]),
      )
  return None
