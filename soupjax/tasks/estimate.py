# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Estimates of the memory and disk space that a run will take.

Host memory is the peak anonymous memory of one process: all that it allocates,
including imports, but no cached or mapped files, which the system can drop. If
CPUs are the devices, their arrays are part of the host memory.
"""

from collections.abc import Iterable, Mapping
import dataclasses

import jax

from soupjax.tasks.programs import cost
from soupjax.tasks.programs.report import Program

# Anonymous memory of the imports, for systems that do not report it.
_IMPORTS = 200_000_000
# These were measured on Linux with glibc's allocator, which keeps part of the
# freed memory. Bytes of compilers and of libraries' threads:
_COMPILING = 180_000_000
# Copies of the weights while the start is made and ingredients are written.
_COPIES_OF_WEIGHTS = 1.8
# Copies of a train state while it is written in the background.
_COPIES_OF_STATE = 1.7
# Parameters; larger models take minutes to compile for CPUs.
_LARGEST_ON_CPU = 50_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
  """Bytes that a run will take.

  Attributes:
    host: cause -> bytes of one process, at its peak.
    device: cause -> bytes on each device, at its peak.
    disk: cause -> bytes of all processes together, at their peak.
    free: bytes free on the disk that the run writes to; None if unknown.
    notes: lines about memory and disk space that are not counted.
  """

  host: Mapping[str, float]
  device: Mapping[str, float]
  disk: Mapping[str, float]
  free: float | None = None
  notes: tuple[str, ...] = ()

  def __str__(self) -> str:
    """Returns a heading and a line for each kind."""
    room = "" if self.free is None else f" ({_size(self.free)} are free)"
    return "\n".join(
      [
        "Needs about",
        f"  host memory    {_line(self.host, ' a process')}",
        f"  device memory  {_line(self.device, ' a device')}",
        f"  disk space     {_line(self.disk)}{room}",
        *(f"  not counted    {note}" for note in self.notes),
      ]
    )


def total(parts: Mapping[str, float]) -> float:
  """Returns the sum of the bytes of all parts."""
  return sum(parts.values())


def program_bytes() -> int:
  """Returns the current anonymous memory of this process: mostly imports."""
  try:
    with open("/proc/self/status", encoding="utf-8") as f:
      for line in f:
        if line.startswith("RssAnon:"):
          return int(line.split()[1]) * 1024
  except OSError:
    pass
  return _IMPORTS


def can_compile(devices: Iterable[jax.Device], parameters: int) -> bool:
  """Returns whether a dry run should compile a model's programs.

  Args:
    devices: to compile for.
    parameters: number of parameters of the model.
  """
  on_cpu = any(device.platform == "cpu" for device in devices)
  return not on_cpu or parameters <= _LARGEST_ON_CPU


def of_programs(programs: Iterable[Program]) -> dict[str, float]:
  """Compiles programs for the devices of this process.

  Returns:
    Part -> bytes on each device, of the program that needs the most.
  """
  largest: dict[str, float] = {}
  for program in programs:
    compiled = program.function.lower(*program.args).compile()
    memory = cost.memory(compiled)
    parts = {
      f"arrays of the {program.name}": memory.peak - memory.temporaries,
      "temporary arrays": memory.temporaries,
      **program.beside,
    }
    largest = max(largest, parts, key=total)
  return largest


def training(
  *,
  program: float,
  device: Mapping[str, float],
  devices_on_host: int,
  weights: float,
  state: float,
  images: float,
  batches: float,
  members: int,
  at_once: int,
  ingredients: int,
  states: int,
  tokens: float = 0.0,
  share: float = 1.0,
  free: float | None = None,
  notes: tuple[str, ...] = (),
) -> Estimate:
  """Estimates a fine-tuning run.

  Args:
    program: bytes of the process before the run.
    device: part -> bytes on each device.
    devices_on_host: number of devices of a process that are CPUs.
    weights: bytes of the parameters of one model.
    state: bytes of the train state of all members that are trained at once.
    images: bytes of decoded images that a process keeps.
    batches: bytes of batches that a process reads ahead.
    members: total number of members.
    at_once: number of members that are trained side by side.
    ingredients: number of ingredients of a member, with moving averages.
    states: number of train states saved by members that are trained at once.
    tokens: bytes of the tokens of prompts or captions.
    share: fraction of the arrays that one process holds.
    free: free bytes on the disk; None if unknown.
    notes: lines about memory and disk space that are not counted.
  """
  saved = min(states, 3)  # The newest two, and one that is being written.
  done = (members - at_once) * ingredients * weights
  # States are removed at the end, after the last ingredients are written.
  disk = {
    "the start": weights,
    "ingredients": done + at_once * ingredients * weights,
    "train states": max(saved * state, 0),
  }
  return Estimate(
    host={
      "the program": program,
      "compiling": _COMPILING,
      "copies of weights": _COPIES_OF_WEIGHTS * weights,
      "saving states": _COPIES_OF_STATE * state * share if states else 0,
      "decoded images": images,
      "batches ahead": batches,
      "tokens": tokens,
      "arrays on devices": devices_on_host * total(device),
    },
    device=device,
    disk=disk,
    free=free,
    notes=notes,
  )


def evaluating(
  *,
  program: float,
  weights: float,
  pool: float,
  copies: float,
  shards: float,
  devices_on_host: int,
  images: float,
  logits: float,
  report: float,
  disk: Mapping[str, float],
  free: float | None,
  compiling: float = _COMPILING,
) -> Estimate:
  """Estimates cooking, a diagnosis or an evaluation.

  Args:
    program: bytes of the process after it has opened its inputs.
    weights: bytes of the parameters of one model.
    pool: bytes of the models that stay in memory for learned soups.
    copies: number of models in sums, candidates, soups and gradients.
    shards: bytes of a model divided by its bytes on one device.
    devices_on_host: number of devices of a process that are CPUs.
    images: bytes of decoded images that a process keeps.
    logits: bytes of the logits of all ingredients.
    report: bytes for figures and the page of results.
    disk: part -> bytes.
    free: free bytes on the disk; None if unknown.
    compiling: bytes of compilers and threads.
  """
  device = {
    "ingredients": pool / shards,
    "sums, candidates, soups and gradients": copies * weights / shards,
    "decoded images": images if images <= 1e9 else 0,
  }
  return Estimate(
    host={
      "the program": program,
      "compiling": compiling,
      "decoded images": images,
      "logits": logits,
      "the report": report,
      "arrays on devices": devices_on_host * total(device),
    },
    device=device,
    disk=disk,
    free=free,
    notes=("activations of a batch",),
  )


def _line(parts, each=""):
  parts = {name: size for name, size in parts.items() if size}
  if not parts:
    return "none"
  # Largest first.
  listed = sorted(parts.items(), key=lambda part: -part[1])
  text = ", ".join(f"{name} {_size(size)}" for name, size in listed)
  return f"{_size(total(parts))}{each}: {text}"


def _size(size: float) -> str:
  """Formats a number of bytes with three significant digits."""
  for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
    if size >= scale:
      return f"{size / scale:.3g} {unit}"
  return f"{size / 1e3:.3g} kB"
