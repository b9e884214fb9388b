# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Keeps ingredients on devices, on the host or on disk between passes."""

from collections.abc import Sequence
import dataclasses
import logging
import math
import os
from typing import Any

import jax
import numpy as np

from soupjax.soups.core import arguments
from soupjax.soups.core.ingredient import Ingredient, sharding_of

CHOICES = ("device", "host", "disk")

# Not absl's, which only some programs have; absl shows what is logged here.
_log = logging.getLogger(__name__)


def choose(
  residency: str | float | None,
  ingredients: Sequence[Ingredient],
  sharding: Any,
) -> str:
  """Says where ingredients are to stay, also in the log.

  Args:
    residency: "device", "host" or "disk"; or the bytes that ingredients may
      take in this process, on its devices together or on the host, to choose
      the first place with room; None allows half of the free memory.
    ingredients: those to keep.
    sharding: as in `Ingredient.load`.

  Returns:
    One of `CHOICES`.

  Raises:
    ValueError: for another word or a negative number.
  """
  memory_bytes = None
  if isinstance(residency, str):
    if residency not in CHOICES:
      raise ValueError(
        "residency must be 'device', 'host', 'disk', a number of bytes or "
        f"None, got {residency!r}."
      )
    _log.info(
      "%d ingredients stay on %s, as asked.", len(ingredients), residency
    )
    return residency
  if residency is not None:
    memory_bytes = arguments.number(
      "residency", residency, "not be negative", lambda x: x >= 0
    )
  needs = _needs(ingredients, sharding)
  rooms = _rooms(memory_bytes, sharding, ingredients)
  chosen = "disk"
  for place, need in needs.items():
    if need <= rooms[place]:
      chosen = place
      break
  _log.info(
    "%d ingredients stay on %s: they need %s.",
    len(ingredients),
    chosen,
    ", ".join(
      f"{needs[p] / 1e9:.3g} of {rooms[p] / 1e9:.3g} GB on {p}" for p in needs
    ),
  )
  return chosen


def cached_on_host(ingredient: Ingredient) -> Ingredient:
  """Returns an ingredient that keeps on the host what was read of it once."""
  if ingredient.path is None:
    return ingredient  # It is in memory as it is.
  kept: dict[tuple[str, str], np.ndarray] = {}

  def read(leaf, index):
    key = (leaf, str(index))
    if key not in kept:
      kept[key] = np.asarray(ingredient.reader(leaf, index))
    return kept[key]

  return dataclasses.replace(ingredient, reader=read)


def _devices(ingredients, sharding) -> set[jax.Device]:
  """Those of this process that hold anything."""
  found = set()
  for leaf, spec in ingredients[0].specs.items():
    where = sharding_of(sharding, leaf, spec)
    found |= set(where.addressable_devices if where else ())
  return found or {jax.local_devices()[0]}


def _needs(ingredients, sharding) -> dict[str, float]:
  """Bytes on all devices of this process together, and on the host."""
  on_devices = 0
  for leaf, spec in ingredients[0].specs.items():
    where = sharding_of(sharding, leaf, spec)
    shape = where.shard_shape(spec.shape) if where else spec.shape
    copies = len(where.addressable_devices) if where else 1
    on_devices += copies * math.prod(shape) * spec.dtype.itemsize
  return {
    "device": on_devices * len(ingredients),
    # Trees in memory are there already.
    "host": sum(i.num_bytes for i in ingredients if i.path is not None),
  }


def _rooms(memory_bytes, sharding, ingredients) -> dict[str, float]:
  """Bytes that may be taken on all devices together, and on the host."""
  devices = _devices(ingredients, sharding)
  stats = [device.memory_stats() for device in devices]
  host = _free_on_host()
  if all(s and "bytes_limit" in s for s in stats):
    # Shards are of one size: the fullest device decides.
    free = len(stats) * min(
      s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats
    )
  else:
    free = host  # The CPU is its own device.
  if memory_bytes is None:
    return {"device": free / 2, "host": host / 2}
  return {"device": min(memory_bytes, free), "host": memory_bytes}


def _free_on_host() -> float:
  """Bytes of memory that this process could still take."""
  free = math.inf
  try:
    with open("/proc/meminfo", encoding="ascii") as f:
      lines = dict(line.split(":", 1) for line in f)
    free = int(lines["MemAvailable"].split()[0]) * 1024
  except (OSError, KeyError, ValueError):  # Not Linux.
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
      free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  # A container may have less.
  for limit, used in (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
  ):
    try:
      with open(f"/sys/fs/cgroup/{limit}", encoding="ascii") as f:
        most = int(f.read())
      with open(f"/sys/fs/cgroup/{used}", encoding="ascii") as f:
        free = min(free, max(most - int(f.read()), 0))
    except (OSError, ValueError):  # "max", or another version of cgroups.
      continue
  return free
