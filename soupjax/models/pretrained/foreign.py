# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads and writes leaves of other libraries by the tables of `mappings`."""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import math
import re
from typing import Any

import jax
import numpy as np

from soupjax.models.pretrained import (
  configs,
  mappings,
  mismatch,
  positions,
  tables,
)
from soupjax.soups.core import layers
from soupjax.soups.core.ingredient import Ingredient

# Names of our blocks, up to the block number.
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
  """Returns name -> leaf of a checkpoint, with scanned blocks split."""
  result = {}
  for leaf, spec in ingredient.specs.items():
    blocks = _block_names(leaf, spec)
    for i, name in enumerate(blocks):
      read = functools.partial(_read, ingredient, leaf, i)
      result[name] = Entry(spec.shape[1:], read)
    if not blocks:
      read = functools.partial(_read, ingredient, leaf, None)
      result[leaf] = Entry(spec.shape, read)
  return result


def _block_names(leaf: str, value: Any) -> list[str]:
  """Names the blocks that a leaf stacks, [] if it does not stack any."""
  return layers.block_names(leaf, value.shape[0]) if value.shape else []


def _read(ingredient, leaf, block, index):
  if block is None:
    return np.asarray(ingredient.read(leaf, index=index))
  index = (slice(block, block + 1), *(index or ()))
  return np.asarray(ingredient.read(leaf, index=index))[0]


def unstacked(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Splits the leaves of scanned blocks into one leaf per block.

  Args:
    flat: leaf -> array or `jax.ShapeDtypeStruct`, of one of our models.

  Returns:
    The same with one leaf per block; other leaves are unchanged.
  """
  result: dict[str, Any] = {}
  for leaf, value in flat.items():
    blocks = _block_names(leaf, value)
    if not blocks:
      result[leaf] = value
    elif isinstance(value, jax.ShapeDtypeStruct):
      spec = jax.ShapeDtypeStruct(value.shape[1:], value.dtype)
      result |= dict.fromkeys(blocks, spec)
    else:
      result |= {name: value[i] for i, name in enumerate(blocks)}
  return result


def _split_block(leaf: str) -> tuple[str, int, str] | None:
  """Splits the name of a leaf of our blocks at the block number."""
  parts = layers.split_number(leaf)
  return parts if parts and parts[0] in _BLOCKS else None


def stacked(leaves: dict[str, Any], scan: bool) -> dict[str, Any]:
  """Stacks blocks if the model scans them; empties `leaves` to save memory."""
  return {
    leaf: leaves.pop(leaf)
    if names == (leaf,)
    else np.stack([leaves.pop(name) for name in names])
    for leaf, names in blocks_of(list(leaves), scan).items()
  }


def blocks_of(names: Iterable[str], scan: bool) -> dict[str, tuple[str, ...]]:
  """Groups leaves by the leaf of the model that contains them.

  Args:
    names: names of our leaves, with one leaf per block.
    scan: whether the model stacks them.

  Returns:
    Leaf of the model -> its own name, or the blocks that it stacks, in order.
  """
  groups: dict[str, dict[int, str]] = {}
  for name in names:
    block = _split_block(name) if scan else None
    leaf = f"Transformer/encoderblock{block[2]}" if block else name
    groups.setdefault(leaf, {})[block[1] if block else 0] = name
  return {
    leaf: tuple(blocks[i] for i in sorted(blocks))
    for leaf, blocks in groups.items()
  }


def rows_of(family: tables.Family, leaf: str) -> tuple[tables.Row, ...]:
  """Returns the rows of our leaf, with its block number; () if it has none."""
  block = _split_block(leaf)
  template = f"{block[0]}{{i}}{block[2]}" if block else leaf
  rows = _rows(family.rows).get(template, ())
  if not block:
    return rows
  number = str(block[1])
  return tuple(
    row._replace(
      leaf=leaf, names=tuple(n.replace("{i}", number) for n in row.names)
    )
    for row in rows
  )


@functools.lru_cache
def _rows(rows):
  result: dict[str, tuple[tables.Row, ...]] = {}
  for row in rows:
    result[row.leaf] = (*result.get(row.leaf, ()), row)
  return result


@functools.lru_cache
def _templates(rows):
  # A name that several leaves share stands for the first.
  return {name: row.leaf for row in reversed(rows) for name in row.names}


def leaf_of(family: tables.Family, name: str) -> str | None:
  """Returns our leaf for a name of the family, None if we have none."""
  known = _templates(family.rows)
  if name in known and "{i}" not in name:
    return known[name]
  for number in re.finditer(r"\d+", name):
    template = f"{name[: number.start()]}{{i}}{name[number.end() :]}"
    if template in known:
      return known[template].replace("{i}", number[0])
  return None


@dataclasses.dataclass(frozen=True)
class SourceTable:
  """A checkpoint with the table that translates its names.

  Attributes:
    name: its family, a key of `mappings.FAMILIES`.
    entries: its leaves by name, without those of `ignored`.
    prefix: start of the names of the model.
    where: path or name, for errors.
    outer: our leaf -> name of a head or projection outside the prefix.
    ignored: name of a rule -> leaves that are not weights of the tower.
    dropped: names that the user leaves out with `skip`.
    said: the computation that a config beside the weights describes.
    unread: the leaves of `ignored`, by name.
    kind: the table, if it is not the one of the family in `mappings`.
  """

  name: str
  entries: Mapping[str, Entry]
  prefix: str = ""
  where: str = ""
  outer: Mapping[str, str] = dataclasses.field(default_factory=dict)
  ignored: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  dropped: frozenset[str] = frozenset()
  said: configs.Said = configs.Said()
  unread: Mapping[str, Entry] = dataclasses.field(default_factory=dict)
  kind: tables.Family | None = None

  @property
  def family(self) -> tables.Family:
    """Returns the table of the family."""
    return self.kind or mappings.FAMILIES[self.name]

  def leaf_of(self, name: str) -> str | None:
    """Returns our leaf for a name of the checkpoint, None if we have none."""
    for leaf, outer in self.outer.items():
      if name == outer:
        return leaf
    if not name.startswith(self.prefix):
      return None
    return leaf_of(self.family, name[len(self.prefix) :])

  def leaves(self) -> list[str]:
    """Returns our names for those of its leaves that we have."""
    names = map(self.leaf_of, self.entries)
    return [name for name in names if name is not None]

  def locate(self, leaf: str) -> tuple[tables.Row | None, str | None]:
    """Returns the row of our leaf and its name in the file, None if absent.

    The names in the row have the prefix.
    """
    if leaf in self.outer:
      name = self.outer[leaf]
      layout = "dense" if name.endswith("weight") else "same"
      return tables.Row(leaf, (name,), layout), name
    rows = [
      row._replace(names=tuple(self.prefix + name for name in row.names))
      for row in rows_of(self.family, leaf)
      if row.packed in (None, self.packed)
    ]
    names = [(row, k) for row in rows for k in row.names if k in self.entries]
    if names:  # Of several, prefers one that is not left out.
      return min(names, key=lambda pair: pair[1] in self.dropped)
    return (rows[0] if rows else None), None

  def dropped_leaves(self) -> set[str]:
    """Returns our leaves that the user leaves out."""
    leaves = {leaf for name in self.dropped if (leaf := self.leaf_of(name))}
    return {leaf for leaf in leaves if self.locate(leaf)[1] in self.dropped}

  @functools.cached_property
  def packed(self) -> bool:
    """Whether the two matrices of gated MLPs are stored as one."""
    mlp = f"{tables.BLOCK_0}MlpBlock_0/"
    inner, outer = (
      [
        self.entries[self.prefix + name]
        for row in rows_of(self.family, mlp + leaf)
        for name in row.names
        if row.packed is not False and self.prefix + name in self.entries
      ]
      for leaf in ("gate/kernel", "Dense_1/kernel")
    )
    return bool(inner and outer) and (
      inner[0].shape[0] == 2 * outer[0].shape[-1]
    )

  def names_of(self, leaves: Iterable[str]) -> set[str]:
    """Returns the file's names for those of our leaves that it has."""
    names = (self.locate(leaf)[1] for leaf in leaves)
    return {name for name in names if name is not None}

  def shape(self, leaf: str) -> tuple[int, ...] | None:
    """Returns the shape of our leaf in our layout, None if it is unknown.

    Heads may share an axis with features.
    """
    row, name = self.locate(leaf)
    if name is None:
      return None
    layout = tables.LAYOUTS[row.layout]
    try:
      return layout.read(_view(self.entries[name].shape), None).shape
    except (ValueError, TypeError, IndexError):
      return None

  def tokens(self) -> int:
    """Returns the number of patches of an image, 1 if leaves do not tell."""
    mixing = self.shape("MixerBlock_0/token_mixing/Dense_0/kernel")
    if mixing:
      return mixing[0]
    table = self.shape("pos_embedding")
    if table is None or len(table) != 3:
      return 1
    return table[1] - self.positions_before_patches(table[1], None)

  def channels(self) -> int:
    """Returns the number of image channels, 3 if leaves do not tell."""
    stems = ("embedding/kernel", "stem/kernel", "root_block/conv_root/kernel")
    for leaf in stems:
      shape = self.shape(leaf)
      if shape and len(shape) == 4:
        return shape[2]
    return 3

  def _known_class_position(self) -> bool | None:
    if self.said.class_position is None and (
      self.family.class_position == "always"
    ):
      return True
    return self.said.class_position

  def class_position_is_open(self) -> bool:
    """Whether it is unknown if the class token has a position embedding.

    A square number of embeddings can belong to the patches alone, or to a class
    token and the patches of images that are not square.
    """
    return (
      self.family.class_position == "usually"
      and self._known_class_position() is None
      and self.locate("cls")[1] is not None
      and (shape := self.shape("pos_embedding")) is not None
      and self.tokens() == shape[1]
    )

  def positions_before_patches(self, tokens: int, patches: int | None) -> int:
    """Returns how many position embeddings precede those of the patches.

    Args:
      tokens: number of position embeddings.
      patches: number of patches of the model, None if it may be any.
    """
    counts = {leaf: self._count(leaf) for leaf in self.family.positioned}
    count = sum(counts.values())
    known = self._known_class_position()
    if known is not None:
      return count if known else 0
    usual = self.family.class_position == "usually"
    # Models with registers seldom have positions for other tokens.
    usual = usual and not counts.get("reg_tokens")
    return positions.before_patches(
      tokens, patches, count, count if usual else 0
    )

  def _count(self, leaf: str) -> int:
    """Returns the number of tokens in a leaf, 0 without it."""
    if self.locate(leaf)[1] is None:
      return 0
    shape = self.shape(leaf)
    return shape[1] if shape is not None and len(shape) == 3 else 1

  def fits(self, leaf: str, shape: tuple[int, ...]) -> bool:
    """Whether our leaf can be read with this shape."""
    row, name = self.locate(leaf)
    if name is None:
      return False
    if leaf == "pos_embedding":
      table = self.shape(leaf)
      return table is not None and len(table) == 3 and table[2] == shape[2]
    if row.layout == "scalar":
      return math.prod(self.entries[name].shape) == 1
    return self.entries[name].shape == foreign_shape(row, shape)

  def compare(
    self, specs: Mapping[str, jax.ShapeDtypeStruct], optional: Sequence[str]
  ) -> str:
    """Lists all leaves that do not fit a model, "" if all do.

    Args:
      specs: our leaves.
      optional: regular expressions of our leaves that the checkpoint may have
        in addition.
    """
    missing, misshapen, used = {}, {}, set()
    for leaf, spec in specs.items():
      row, name = self.locate(leaf)
      if name is None:
        missing[row.names[0] if row else leaf] = leaf if row else ""
        continue
      used.add(name)
      if not self.fits(leaf, spec.shape):
        shapes = self.entries[name].shape, foreign_shape(row, spec.shape)
        misshapen[name] = shapes
    unexpected, twice = {}, {}
    for name in self.entries:
      leaf = self.leaf_of(name)
      # A layer outside the model must be used with all its leaves or none.
      partly = leaf in self.outer and _module(leaf) in map(_module, specs)
      if name not in used | self.dropped and not (
        leaf
        and not partly
        and any(re.search(pattern, leaf) for pattern in optional)
      ):
        unexpected[name] = leaf
        other = self.locate(leaf)[1] if leaf else None
        if other not in (None, name):
          twice[name] = other
    return mismatch.describe(missing, unexpected, misshapen, twice)

  def read(
    self,
    specs: Mapping[str, jax.ShapeDtypeStruct],
    grid: tuple[int, int] | None,
  ) -> dict[str, np.ndarray]:
    """Reads leaves, one after the other.

    Args:
      specs: our leaves, which must fit.
      grid: rows and columns of patches, None to keep those of the checkpoint.

    Returns:
      Our leaf -> array. Position embeddings of tokens before the patches are
      added to these tokens.

    Raises:
      ValueError: if position embeddings cannot be resampled.
    """
    leaves = {leaf: self._leaf(leaf, spec) for leaf, spec in specs.items()}
    if "pos_embedding" in leaves:
      table = leaves["pos_embedding"]
      patches = specs["pos_embedding"].shape[1]
      before = self.positions_before_patches(table.shape[1], patches)
      start = 0
      for leaf in self.family.positioned if before else ():
        count = self._count(leaf)
        if leaf in leaves:
          leaves[leaf] = leaves[leaf] + table[:, start : start + count]
        start += count
      leaves["pos_embedding"] = positions.resample(
        table[:, before:], grid, self.family.resample, self._grid()
      )
    return leaves

  def _grid(self) -> tuple[int, int] | None:
    """Returns rows and columns of the patches, None if no config has them."""
    kernel = self.shape("embedding/kernel")
    if self.said.image_size is None or kernel is None or len(kernel) != 4:
      return None
    height, width = self.said.image_size
    return (height // kernel[0], width // kernel[1])

  def _leaf(self, leaf, spec):
    row, name = self.locate(leaf)
    entry, (k, n) = self.entries[name], row.part
    size = entry.shape[0] // n if entry.shape else 0
    index = None if n == 1 else (slice(k * size, (k + 1) * size),)
    layout = tables.LAYOUTS[row.layout]
    array = layout.read(entry.read(index), spec.shape)
    return np.array(array, spec.dtype, order="C")


def _module(leaf: str) -> str:
  return leaf.partition("/")[0]


def _view(shape: tuple[int, ...]) -> np.ndarray:
  """Returns an array of this shape that takes no memory."""
  return np.broadcast_to(np.float32(0), shape)


def foreign_shape(row: tables.Row, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Converts the shape of our leaf to the layout of the family."""
  shape = tables.LAYOUTS[row.layout].write(_view(shape)).shape
  return (shape[0] * row.part[1], *shape[1:]) if shape else shape


def write(
  family: tables.Family,
  leaves: Mapping[str, Any],
  like: SourceTable | None = None,
) -> dict[str, np.ndarray]:
  """Converts our leaves to the names and layout of a family.

  Args:
    family: a table with a row for every leaf.
    leaves: our leaves, with one leaf per block.
    like: a checkpoint whose names and prefix to use; None uses the first name
      of every row.

  Returns:
    Name in the family -> array. Tokens before the patches keep the positions
    that were added to them; if the family, or `like`, has position embeddings
    for these tokens, they are zero.
  """
  parts: dict[str, dict[int, np.ndarray]] = {}
  before = _positions_to_write(family, leaves, like)
  rows = rows_to_write(family, leaves)
  for leaf, value in leaves.items():
    row, name = rows[leaf], None
    if like is not None:
      row, name = like.locate(leaf)
    value = np.asarray(value)
    if leaf == "pos_embedding" and before:
      zeros = np.zeros((1, before, value.shape[2]), value.dtype)
      value = np.concatenate([zeros, value], axis=1)
    value = tables.LAYOUTS[row.layout].write(value)
    if name and row.layout == "scalar":
      value = value.reshape(like.entries[name].shape)
    name = name or row.names[0]
    parts.setdefault(name, {})[row.part[0]] = value
  return {
    name: np.asarray(arrays[0], order="C")  # Keeps scalars.
    if len(arrays) == 1
    else np.concatenate([arrays[k] for k in sorted(arrays)])
    for name, arrays in parts.items()
  }


def _positions_to_write(family, leaves, like) -> int:
  """Returns the number of positions to write before those of the patches."""
  if "pos_embedding" not in leaves:
    return 0
  counts = {k: leaves[k].shape[1] for k in family.positioned if k in leaves}
  table = like.shape("pos_embedding") if like is not None else None
  if table is not None:
    patches = leaves["pos_embedding"].shape[1]
    with_positions = like.positions_before_patches(table[1], patches) > 0
  else:
    with_positions = family.class_position != "seldom"
    with_positions = with_positions and "reg_tokens" not in counts
  return sum(counts.values()) if with_positions else 0


def rows_to_write(family, leaves) -> dict[str, tables.Row]:
  """Returns leaf -> the first of its rows whose parts are all there."""
  packed = any("/gate/" in leaf for leaf in leaves)
  rows = {
    leaf: [r for r in rows_of(family, leaf) if r.packed in (None, packed)]
    for leaf in leaves
  }
  parts = collections.Counter(
    (row.names[0], row.part[1]) for group in rows.values() for row in group
  )
  return {
    leaf: next(r for r in group if parts[r.names[0], r.part[1]] == r.part[1])
    for leaf, group in rows.items()
  }
