# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Placement of ingredients between passes: devices, host or disk."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import logging
import math
import os
from typing import Any, NamedTuple
import weakref

import jax
import numpy as np

from soupjax.soups.core import arguments, crc32, slices
from soupjax.soups.core.ingredient import Ingredient, sharding_of

CHOICES = ("device", "host", "disk")
_ALIGNMENT = 64

# The standard logger, whose messages absl also shows if it is used.
_log = logging.getLogger(__name__)


class Residency(NamedTuple):
  """The place of the ingredients between passes.

  Attributes:
    place: one of `CHOICES`.
    host_bytes: limit in bytes for the leaves that stay on the host.
  """

  place: str
  host_bytes: float


def choose(
  residency: str | float | None,
  ingredients: Sequence[Ingredient],
  sharding: Any,
) -> Residency:
  """Chooses where ingredients stay between passes, and logs the choice.

  Args:
    residency: "device", "host" or "disk"; or a limit in bytes for this process,
      on all its devices together or on the host, to choose the first place with
      room; None allows half of the free memory.
    ingredients: the ingredients to keep.
    sharding: as in `Ingredient.load`.

  Returns:
    The place. If not all ingredients fit, it is "disk", and the leaves that fit
    stay on the host; none do if "disk" was requested.

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
    return Residency(residency, math.inf if residency == "host" else 0)
  if residency is not None:
    residency = arguments.number(
      "residency", residency, "not be negative", lambda x: x >= 0
    )
  needs = _needed_bytes(ingredients, sharding)
  limits = _allowed_bytes(residency, ingredients, sharding)
  place = next((p for p in needs if needs[p] <= limits[p]), "disk")
  host_bytes = 0 if place == "device" else min(needs["host"], limits["host"])
  _log.info(
    "%d ingredients stay on %s: they need %s.%s",
    len(ingredients),
    place,
    ", ".join(
      f"{needs[p] / 1e9:.3g} of {limits[p] / 1e9:.3g} GB on {p}" for p in needs
    ),
    f" {host_bytes / 1e9:.3g} GB of them are read once and stay on the host."
    if place == "disk"
    else "",
  )
  return Residency(place, host_bytes)


class Memory:
  """Memory on the host that is reused when no array refers to it any more.

  Reading into new memory takes three times as long. Only one thread may use it.
  """

  def __init__(self, num_bytes: int):
    """Reserves nothing yet.

    Args:
      num_bytes: of all arrays in one block of `filled`.
    """
    self._num_bytes = num_bytes
    self._free: list[np.ndarray] = []
    self._rest = np.empty(0, np.uint8)

  @contextlib.contextmanager
  def filled(self) -> Iterator[None]:
    """Takes memory that no array uses any more, or new memory, for a block."""
    slab = self._free.pop() if self._free else _aligned(self._num_bytes)
    # Its base is not an array, so all arrays made from it will refer to it.
    self._rest = np.frombuffer(memoryview(slab), np.uint8)
    weakref.finalize(self._rest, self._free.append, slab).atexit = False
    try:
      yield
    finally:
      self._rest = np.empty(0, np.uint8)

  def array(self, size: int, dtype: np.dtype) -> np.ndarray:
    """Returns uninitialised elements, aligned as JAX needs to avoid a copy."""
    num_bytes = size * dtype.itemsize
    end = -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
    if end > self._rest.size:
      return _aligned(num_bytes).view(dtype)
    part, self._rest = self._rest[:num_bytes], self._rest[end:]
    return part.view(dtype)


def _aligned(num_bytes: int) -> np.ndarray:
  raw = np.empty(num_bytes + _ALIGNMENT, np.uint8)
  first = -raw.ctypes.data % _ALIGNMENT
  return raw[first : first + num_bytes]


def padded_bytes(spec: jax.ShapeDtypeStruct) -> int:
  """Returns the bytes that a leaf takes in `Memory`."""
  num_bytes = spec.size * spec.dtype.itemsize
  return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def cached_on_host(
  ingredients: Sequence[Ingredient], limit: float, memory: Memory
) -> list[Ingredient]:
  """Returns ingredients that keep leaves on the host, up to a limit in bytes.

  Args:
    ingredients: those that are already in memory stay as they are.
    limit: bytes that all of them may keep; leaves read first are kept.
    memory: for the other leaves.
  """
  left = [limit]
  return [
    i if i.path is None else _cached(i, left, memory) for i in ingredients
  ]


def _cached(ingredient, left, memory):
  cache: dict[tuple[str, str], np.ndarray] = {}
  ledger = _ledger(ingredient)
  read_again = _reader(ingredient, memory, ledger)

  def read(leaf, index):
    key = (leaf, str(index))
    if key in cache:
      return cache[key]
    spec = ingredient.specs[leaf]
    box, steps = slices.without_steps(index, spec.shape)
    num_bytes = slices.size(box) * spec.dtype.itemsize
    if num_bytes > left[0]:
      return read_again(leaf, index)
    left[0] -= num_bytes
    cache[key] = np.asarray(ingredient.reader(leaf, index))
    if ledger is not None and not steps:
      # A checksum may cover both leaves that stay and leaves that do not.
      ledger.add(leaf, box, np.ascontiguousarray(cache[key]))
    return cache[key]

  return dataclasses.replace(ingredient, reader=read)


def _ledger(ingredient) -> crc32.Ledger | None:
  storage = ingredient.storage
  if storage is None:
    return None
  shapes = {leaf: spec.shape for leaf, spec in ingredient.specs.items()}
  return crc32.Ledger(
    ingredient.path, shapes, storage.checksums, storage.shared
  )


def _reader(ingredient, memory, ledger):
  """Returns a reader that fills `memory`, if the ingredient can."""
  storage = ingredient.storage
  if storage is None:
    return ingredient.reader

  def read(leaf, index):
    spec = ingredient.specs[leaf]
    box, steps = slices.without_steps(index, spec.shape)
    flat = memory.array(slices.size(box), spec.dtype)
    storage.read_box(leaf, box, flat)
    ledger.add(leaf, box, flat)
    array = flat.reshape(slices.shape_of(box))
    return array[steps] if steps else array

  return read


def _needed_bytes(ingredients, sharding) -> dict[str, float]:
  """Returns the bytes on all devices of this process, and on the host."""
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
  """Returns the bytes that may be used on all devices, and on the host."""
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
