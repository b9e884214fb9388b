# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads and writes leaves by a table of `mappings`."""

from collections.abc import (
  Callable,
  Collection,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)
import dataclasses
import functools
import re
from typing import Any

import jax
import numpy as np

from soupjax.models.pretrained import mappings, mismatch, positions
from soupjax.soups.core import layers
from soupjax.soups.core.ingredient import Ingredient

# Our blocks, before their number.
_BLOCKS = ("Transformer/encoderblock_", "MixerBlock_")


@dataclasses.dataclass(frozen=True)
class Entry:
  """A leaf of a checkpoint.

  Attributes:
    shape: its shape.
    read: `read(index)` with a tuple of slices, or None for all of it.
  """

  shape: tuple[int, ...]
  read: Callable[[tuple[slice, ...] | None], Any]


def entries(ingredient: Ingredient) -> dict[str, Entry]:
  """All leaves of a checkpoint; scanned blocks one by one."""
  found = {}
  for name, spec in ingredient.specs.items():
    blocks = layers.block_names(name, spec.shape[0]) if spec.shape else []
    if not blocks:
      read = functools.partial(_read, ingredient, name)
      found[name] = Entry(spec.shape, read)
    for i, block in enumerate(blocks):
      read = functools.partial(_read_block, ingredient, name, i)
      found[block] = Entry(spec.shape[1:], read)
  return found


def _read(ingredient, name, index):
  return np.asarray(ingredient.read(name, index=index))


def _read_block(ingredient, name, i, index):
  index = (slice(i, i + 1), *(index or ()))
  return np.asarray(ingredient.read(name, index=index))[0]


def unstacked(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Takes scanned blocks apart.

  Args:
    flat: leaf -> array or `jax.ShapeDtypeStruct`, of a model of ours.

  Returns:
    The same with blocks one by one; others are left as they are.
  """
  found: dict[str, Any] = {}
  for name, value in flat.items():
    blocks = layers.block_names(name, value.shape[0]) if value.shape else []
    if not blocks:
      found[name] = value
    for i, block in enumerate(blocks):
      if isinstance(value, jax.ShapeDtypeStruct):
        found[block] = jax.ShapeDtypeStruct(value.shape[1:], value.dtype)
      else:
        found[block] = value[i]
  return found


def _block(name: str) -> tuple[str, int, str] | None:
  """Splits the name of a leaf of our blocks at their number."""
  parts = layers.split_number(name)
  return parts if parts and parts[0] in _BLOCKS else None


def stacked(leaves: dict[str, Any]) -> dict[str, Any]:
  """Puts blocks into one array a leaf; `leaves` is empty then."""
  found = {}
  for name in list(leaves):
    block = _block(name)
    if not block:
      found[name] = leaves.pop(name)
    elif block[1] == 0:
      names, i = [], 0
      while (one := f"{block[0]}{i}{block[2]}") in leaves:
        names.append(one)
        i += 1
      # One leaf at a time: blocks go as the stack comes.
      stack = np.stack([leaves.pop(one) for one in names])
      found[f"Transformer/encoderblock{block[2]}"] = stack
  return found


def blocks_of(names: Iterable[str], scan: bool) -> dict[str, tuple[str, ...]]:
  """What leaves of a model are made of.

  Args:
    names: our leaves, with blocks one by one.
    scan: whether the model stacks them.

  Returns:
    Leaf of the model -> its own name, or the blocks that are stacked in it.
  """
  found: dict[str, tuple[str, ...]] = {}
  for name in names:
    block = _block(name) if scan else None
    leaf = f"Transformer/encoderblock{block[2]}" if block else name
    found[leaf] = (*found.get(leaf, ()), name)
  return {
    leaf: tuple(sorted(parts, key=lambda one: _block(one)[1]))
    if len(parts) > 1
    else parts
    for leaf, parts in found.items()
  }


def row_of(family: mappings.Family, ours: str) -> mappings.Row | None:
  """The row of one of our leaves, with the number of its block put in."""
  block = _block(ours)
  template = f"{block[0]}{{i}}{block[2]}" if block else ours
  row = _rows(family.rows).get(template)
  if row is None or not block:
    return row
  theirs = tuple(one.replace("{i}", str(block[1])) for one in row.theirs)
  return row._replace(ours=ours, theirs=theirs)


@functools.lru_cache
def _rows(rows):
  return {row.ours: row for row in rows}


@functools.lru_cache
def _templates(rows):
  return {theirs: row.ours for row in rows for theirs in row.theirs}


def ours_of(family: mappings.Family, theirs: str) -> str | None:
  """What we call a leaf of theirs, None if we have none."""
  known = _templates(family.rows)
  if theirs in known and "{i}" not in theirs:
    return known[theirs]
  for number in re.finditer(r"\d+", theirs):
    template = f"{theirs[: number.start()]}{{i}}{theirs[number.end() :]}"
    if template in known:
      return known[template].replace("{i}", number[0])
  return None


class Table:
  """A checkpoint seen through the table of its family."""

  def __init__(self, family: mappings.Family, found: Mapping[str, Entry]):
    self.family = family
    self.found = found

  def ours(self) -> Iterator[str]:
    """What we call its leaves."""
    names = (ours_of(self.family, theirs) for theirs in self.found)
    return (name for name in names if name is not None)

  def _at(self, ours: str) -> tuple[mappings.Row | None, str | None]:
    """The row of a leaf, and its name there if it is there."""
    row = row_of(self.family, ours)
    there = [k for k in row.theirs if k in self.found] if row else []
    return row, there[0] if there else None

  def shape(self, ours: str) -> tuple[int, ...] | None:
    """Shape of a leaf in our layout, up to what is our choice."""
    row, theirs = self._at(ours)
    if theirs is None:
      return None
    layout = mappings.LAYOUTS[row.layout]
    try:
      return layout.read(_view(self.found[theirs].shape), None).shape
    except (ValueError, TypeError, IndexError):
      return None

  def tokens(self) -> int:
    """How many patches an image has, 1 if that cannot be told."""
    mixing = self.shape("MixerBlock_0/token_mixing/Dense_0/kernel")
    if mixing:
      return mixing[0]
    table = self.shape("pos_embedding")
    if table is None or len(table) != 3:
      return 1
    return table[1] - int(self._has_class_position(table[1], None))

  def channels(self) -> int:
    """How many channels an image has, 3 if that cannot be told."""
    for name in ("embedding/kernel", "stem/kernel"):
      shape = self.shape(name)
      if shape and len(shape) == 4:
        return shape[2]
    return 3

  def _has_class_position(self, tokens: int, wanted: int | None) -> bool:
    _, cls = self._at("cls")
    expected = self.family.class_position and cls is not None
    return positions.has_class(tokens, wanted, expected)

  def fits(self, ours: str, shape: tuple[int, ...]) -> bool:
    """Whether a leaf is there in a shape that makes ours."""
    row, theirs = self._at(ours)
    if theirs is None:
      return False
    if ours == "pos_embedding":
      found = self.shape(ours)
      return found is not None and len(found) == 3 and found[2] == shape[2]
    return self.found[theirs].shape == needed(row, shape)

  def compare(
    self, wanted: Mapping[str, jax.ShapeDtypeStruct], optional: Sequence[str]
  ) -> mismatch.Mismatch:
    """Finds all that does not fit.

    Args:
      wanted: our leaves.
      optional: regular expressions of our leaves that may be there.
    """
    missing, misshapen, used = {}, {}, set()
    for ours, spec in wanted.items():
      row, theirs = self._at(ours)
      if theirs is None:
        missing[row.theirs[0] if row else ours] = ours if row else ""
        continue
      used.add(theirs)
      if not self.fits(ours, spec.shape):
        shape = needed(row, spec.shape)
        misshapen[theirs] = self.found[theirs].shape, shape
    unexpected = {}
    for theirs in self.found:
      ours = ours_of(self.family, theirs)
      if theirs not in used and not (
        ours and any(re.search(one, ours) for one in optional)
      ):
        unexpected[theirs] = ours
    return mismatch.Mismatch(
      missing=missing, unexpected=unexpected, misshapen=misshapen
    )

  def read(
    self,
    wanted: Mapping[str, jax.ShapeDtypeStruct],
    grid: tuple[int, int] | None,
  ) -> dict[str, np.ndarray]:
    """Reads leaves, one after the other.

    Args:
      wanted: our leaves, which fit.
      grid: of patches, None to keep what is there.

    Raises:
      ValueError: if position embeddings cannot be resampled.
    """
    leaves = {
      ours: self._leaf(ours, spec)
      for ours, spec in wanted.items()
      if ours != "pos_embedding"
    }
    if "pos_embedding" in wanted:
      spec = wanted["pos_embedding"]
      table = self._leaf("pos_embedding", spec)
      if self._has_class_position(table.shape[1], spec.shape[1]):
        if "cls" in leaves:
          leaves["cls"] = leaves["cls"] + table[:, :1]
        table = table[:, 1:]
      if not positions.can_resample(table.shape[1], grid):
        raise ValueError(
          f"{table.shape[1]} position embeddings are of no square grid, and "
          f"cannot be resampled to {grid}: load them without image_size=."
        )
      if grid:
        table = positions.resample(table, grid)
      leaves["pos_embedding"] = table
    return leaves

  def _leaf(self, ours, spec):
    row, theirs = self._at(ours)
    entry, (k, n) = self.found[theirs], row.part
    size = entry.shape[0] // n if entry.shape else 0
    index = None if n == 1 else (slice(k * size, (k + 1) * size),)
    layout = mappings.LAYOUTS[row.layout]
    array = layout.read(entry.read(index), spec.shape)
    return np.array(array, spec.dtype, order="C")


def _view(shape: tuple[int, ...]) -> np.ndarray:
  """An array of that shape that takes no memory."""
  return np.broadcast_to(np.float32(0), shape)


def needed(row: mappings.Row, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Shape that a leaf of ours has there."""
  there = mappings.LAYOUTS[row.layout].write(_view(shape)).shape
  return (there[0] * row.part[1], *there[1:]) if there else there


def write(
  family: mappings.Family,
  leaves: Mapping[str, Any],
  like: Collection[str] = (),
) -> dict[str, np.ndarray]:
  """Writes leaves as a family does.

  Args:
    family: with a row for every leaf.
    leaves: ours, with blocks one by one.
    like: names to write where a leaf has several; else the first.

  Returns:
    Their name -> array. What the class token had added of its position stays
    in the token, and its position is zero.
  """
  parts: dict[str, dict[int, np.ndarray]] = {}
  for ours, value in leaves.items():
    row, value = row_of(family, ours), np.asarray(value)
    if ours == "pos_embedding" and family.class_position and "cls" in leaves:
      value = np.concatenate([np.zeros_like(value[:, :1]), value], axis=1)
    value = mappings.LAYOUTS[row.layout].write(value)
    theirs = next((one for one in row.theirs if one in like), row.theirs[0])
    parts.setdefault(theirs, {})[row.part[0]] = value
  return {
    theirs: np.ascontiguousarray(found[0])
    if len(found) == 1
    else np.concatenate([found[k] for k in sorted(found)])
    for theirs, found in parts.items()
  }
