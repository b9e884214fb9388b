# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Estimates of the memory and disk that a run will take.

Host memory is the peak of anonymous memory of one process: what it allocates,
imports included, without files that the system caches or maps and can drop.
Where the CPU is the device, the arrays on it are part of the host memory.
"""

from collections.abc import Mapping
import dataclasses

# Anonymous memory of the imports where the system does not tell it.
_IMPORTS = 200_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
  """Bytes that a run will take, by what takes them.

  Attributes:
    host: of a process, when it takes most.
    device: of each device, when it takes most.
    disk: of all processes together, when the run takes most.
    free: bytes that are free where the run writes; None if unknown.
  """

  host: Mapping[str, float]
  device: Mapping[str, float]
  disk: Mapping[str, float]
  free: float | None = None

  def __str__(self) -> str:
    """Returns a heading and three lines."""
    room = "" if self.free is None else f" ({_size(self.free)} are free)"
    return "\n".join(
      [
        "Needs about",
        f"  host memory    {_line(self.host, ' a process')}",
        f"  device memory  {_line(self.device, ' a device')}",
        f"  disk space     {_line(self.disk)}{room}",
      ]
    )


def total(parts: Mapping[str, float]) -> float:
  """Returns the sum of parts, in bytes."""
  return sum(parts.values())


def program_bytes() -> int:
  """Returns the anonymous memory of this process now: imports, mostly."""
  try:
    with open("/proc/self/status", encoding="utf-8") as f:
      for line in f:
        if line.startswith("RssAnon:"):
          return int(line.split()[1]) * 1024
  except OSError:
    pass
  return _IMPORTS


def _line(parts, each=""):
  parts = {name: size for name, size in parts.items() if size}
  if not parts:
    return "none"
  # The largest first.
  listed = sorted(parts.items(), key=lambda part: -part[1])
  text = ", ".join(f"{name} {_size(size)}" for name, size in listed)
  return f"{_size(total(parts))}{each}: {text}"


def _size(size: float) -> str:
  """Formats bytes with three digits."""
  for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
    if size >= scale:
      return f"{size / scale:.3g} {unit}"
  return f"{size / 1e3:.3g} kB"
