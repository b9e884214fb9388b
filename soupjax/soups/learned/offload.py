# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Placement of ingredients between passes: devices, host or disk."""

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

# The standard logger: absl, where it is used, shows its messages too.
_log = logging.getLogger(__name__)


def choose(
  residency: str | float | None,
  ingredients: Sequence[Ingredient],
  sharding: Any,
) -> str:
  """Chooses where ingredients stay between passes, and logs the choice.

  Args:
    residency: "device", "host" or "disk"; or a limit in bytes for this process,
      on all its devices together or on the host, to choose the first place with
      room; None allows half of the free memory.
    ingredients: the ingredients to keep.
    sharding: as in `Ingredient.load`.

  Returns:
    One of `CHOICES`.

  Raises:
    ValueError: for another word or a negative number.
  """
  if isinstance(residency, str):
    if residency not in CHOICES:
      raise ValueError(
        "residency must be 'device', 'host', 'disk', a number of bytes or "
        f"None, got {residency!r}."
      )
    _log.info(
      "%d ingredients stay on %s, as requested.", len(ingredients), residency
    )
    return residency
  if residency is not None:
    residency = arguments.number(
      "residency", residency, "not be negative", lambda x: x >= 0
    )
  needs = _needed_bytes(ingredients, sharding)
  limits = _allowed_bytes(residency, ingredients, sharding)
  choice = next((p for p in needs if needs[p] <= limits[p]), "disk")
  _log.info(
    "%d ingredients stay on %s: they need %s.",
    len(ingredients),
    choice,
    ", ".join(
      f"{needs[p] / 1e9:.3g} of {limits[p] / 1e9:.3g} GB on {p}" for p in needs
    ),
  )
  return choice


def cached_on_host(ingredient: Ingredient) -> Ingredient:
  """Returns an ingredient that keeps on the host what it has read."""
  if ingredient.path is None:
    return ingredient  # It is already in memory.
  cache: dict[tuple[str, str], np.ndarray] = {}

  def read(leaf, index):
    key = (leaf, str(index))
    if key not in cache:
      cache[key] = np.asarray(ingredient.reader(leaf, index))
    return cache[key]

  return dataclasses.replace(ingredient, reader=read)


def _needed_bytes(ingredients, sharding) -> dict[str, float]:
  """Bytes on all devices of this process together, and on the host."""
  on_devices = 0
  for leaf, spec in ingredients[0].specs.items():
    placement = sharding_of(sharding, leaf, spec)
    shape = placement.shard_shape(spec.shape) if placement else spec.shape
    copies = len(placement.addressable_devices) if placement else 1
    on_devices += copies * math.prod(shape) * spec.dtype.itemsize
  return {
    "device": on_devices * len(ingredients),
    # Trees in memory are already on the host.
    "host": sum(i.num_bytes for i in ingredients if i.path is not None),
  }


def _allowed_bytes(limit, ingredients, sharding) -> dict[str, float]:
  """Bytes that may be used on all devices together, and on the host."""
  devices = set()
  for leaf, spec in ingredients[0].specs.items():
    placement = sharding_of(sharding, leaf, spec)
    devices |= set(placement.addressable_devices if placement else ())
  stats = [d.memory_stats() for d in devices or {jax.local_devices()[0]}]
  host = _free_on_host()
  if all(s and "bytes_limit" in s for s in stats):
    # Shards have the same size, so the fullest device is the limit.
    free = len(stats) * min(
      s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats
    )
  else:
    free = host  # CPU devices share the memory of the host.
  if limit is None:
    return {"device": free / 2, "host": host / 2}
  return {"device": min(limit, free), "host": limit}


def _free_on_host() -> float:
  """Returns the bytes of memory that this process can still allocate."""
  free = math.inf
  try:
    with open("/proc/meminfo", encoding="ascii") as f:
      lines = dict(line.split(":", 1) for line in f)
    free = int(lines["MemAvailable"].split()[0]) * 1024
  except (OSError, KeyError, ValueError):  # Not Linux.
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
      free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  # A container may have a lower limit.
  for limit, used in (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
  ):
    try:
      with open(f"/sys/fs/cgroup/{limit}", encoding="ascii") as f:
        max_bytes = int(f.read())
      with open(f"/sys/fs/cgroup/{used}", encoding="ascii") as f:
        free = min(free, max(max_bytes - int(f.read()), 0))
    except (OSError, ValueError):  # No limit, or another cgroup version.
      continue
  return free
