# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""MessagePack files of Flax: `flax.serialization` and `training.checkpoints`.

A file is one map of maps. Arrays are extensions of type 1: a message of shape,
name of the dtype and row-major bytes. Arrays of more than 1 GiB are cut into
flat chunks. Opening a file reads only the bytes between the arrays.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import math
import re
import struct
import sys
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from soupjax.checkpoints.formats import (
  byte_ranges,
  params_of_state,
  safetensors,
)
from soupjax.soups.core import slices, tree
from soupjax.soups.core.ingredient import Ingredient

SUFFIX = ".msgpack"
INDEX = f"{SUFFIX}.index.json"
# Files of `flax.training.checkpoints`.
_STEP = r"checkpoint_\d+(\.\d+)?"
_CHUNKED = "__msgpack_chunked_array__"
# Stands for an array that several processes saved in another directory.
_ELSEWHERE = "//GDAPlaceholder:"
_WINDOW = 1 << 16
_MAX_KEY = 1 << 16
_MAX_ENTRIES = 1_000_000
_ARRAY, _SCALAR = 1, 3  # Codes of extensions; 2 is a complex number.
# First byte -> kind, format of the number that follows; see the specification
# at https://github.com/msgpack/msgpack/blob/master/spec.md.
_SIZED = {
  **{0xC4: ("bin", ">B"), 0xC5: ("bin", ">H"), 0xC6: ("bin", ">I")},
  **{0xC7: ("ext", ">B"), 0xC8: ("ext", ">H"), 0xC9: ("ext", ">I")},
  **{0xD9: ("str", ">B"), 0xDA: ("str", ">H"), 0xDB: ("str", ">I")},
  **{0xDC: ("list", ">H"), 0xDD: ("list", ">I")},
  **{0xDE: ("map", ">H"), 0xDF: ("map", ">I")},
}
_NUMBERS = {
  **{0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"},
  **{0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"},
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


class _Array(NamedTuple):
  """The shape and dtype of an array, and the offset of its values in bytes."""

  shape: tuple[int, ...]
  dtype: np.dtype
  offset: int


class _Chunked(NamedTuple):
  """An array in flat chunks of a common size; the last may be smaller."""

  shape: tuple[int, ...]
  dtype: np.dtype
  chunks: Sequence[_Array]


class _Other(NamedTuple):
  """A value that is not an array."""

  value: Any


def _bad(path: str, reason: str) -> ValueError:
  return ValueError(
    f"{path} is not a valid MessagePack file of Flax: {reason}. Copy it again "
    "or leave it out."
  )


class _Scanner:
  """Reads a file from its start and skips the values of arrays."""

  def __init__(self, file: byte_ranges.ByteFile):
    self._file, self.at = file, 0
    self._window, self._start = b"", 0
    self._entries = 0

  def bad(self, reason: str) -> ValueError:
    return _bad(self._file.path, f"{reason} at byte {self.at}")

  def take(self, count: int) -> bytes:
    """Returns the next bytes."""
    first = self.at - self._start
    if first < 0 or first + count > len(self._window):
      size = min(max(count, _WINDOW), self._file.size - self.at)
      if size < count:
        raise self.bad("it is cut short")
      self._window, self._start = self._file.read(self.at, size), self.at
      first = 0
    self.at += count
    return self._window[first : first + count]

  def skip(self, count: int) -> None:
    if self.at + count > self._file.size:
      raise self.bad(f"it is cut short: {count} bytes are missing")
    self.at += count

  def head(self) -> tuple[str, Any]:
    """Returns the kind of the next value, and its size or the value itself."""
    (byte,) = self.take(1)
    if byte <= 0x7F or byte >= 0xE0:
      return "value", byte if byte <= 0x7F else byte - 256
    if byte <= 0x8F:
      return "map", byte & 15
    if byte <= 0x9F:
      return "list", byte & 15
    if byte <= 0xBF:
      return "str", byte & 31
    if byte in _CONSTANTS:
      return "value", _CONSTANTS[byte]
    if byte in _NUMBERS:
      return "value", self._number(_NUMBERS[byte])
    if 0xD4 <= byte <= 0xD8:
      return "ext", 1 << (byte - 0xD4)
    if byte in _SIZED:
      kind, form = _SIZED[byte]
      return kind, self._number(form)
    raise self.bad(f"{byte:#x} starts no value")

  def _number(self, form: str) -> Any:
    return struct.unpack(form, self.take(struct.calcsize(form)))[0]

  def count(self, number: int) -> None:
    """Counts entries of containers, each of which has at least one byte."""
    self._entries += number
    if number > self._file.size - self.at:
      raise self.bad(f"it claims {number} entries, more than there are bytes")
    if self._entries > _MAX_ENTRIES:
      raise self.bad(f"it has more than {_MAX_ENTRIES} entries")

  def key(self) -> str:
    """Returns the key of a map as text."""
    kind, size = self.head()
    if kind == "value" and type(size) is int:
      return str(size)
    if kind != "str" or size > _MAX_KEY:
      raise self.bad(f"a key is not a text but a {kind}")
    return sys.intern(self.take(size).decode("utf-8"))

  def array(self, end: int) -> _Array:
    """Returns the array in an extension that ends before byte `end`."""
    if self.head() != ("list", 3):
      raise self.bad("an array has no shape, dtype and bytes")
    kind, axes = self.head()
    if kind != "list" or axes > 64:
      raise self.bad("an array has no shape")
    shape = tuple(self.head()[1] for _ in range(axes))
    kind, size = self.head()
    if kind not in ("str", "bin") or size > 64:
      raise self.bad("an array has no dtype")
    name = self.take(size).decode("ascii", "replace")
    dtype = self._dtype(name)
    kind, size = self.head()
    offset = self.at
    if kind != "bin" or offset + size != end:
      raise self.bad("the bytes of an array do not end with it")
    if not all(type(n) is int and n >= 0 for n in shape):
      raise self.bad(f"an array has shape {list(shape)}")
    if math.prod(shape) * dtype.itemsize != size:
      raise self.bad(
        f"an array {dtype}{list(shape)} has {size} bytes, which do not fit"
      )
    self.skip(size)
    return _Array(shape, dtype, offset)

  def _dtype(self, name: str) -> np.dtype:
    name = "bfloat16" if name == "b'bfloat16'" else name  # Of old versions.
    try:
      dtype = jnp.dtype(name)
      if dtype.name != name or not tree.is_number(dtype):
        raise TypeError("not a dtype of numbers")
    except TypeError as e:
      raise self.bad(f"an array has the dtype {name!r:.40} ({e})") from e
    return dtype

  def value(self, depth: int = 0) -> Any:
    """Returns the next value: a dict, `_Array`, `_Chunked` or `_Other`."""
    if depth > byte_ranges.MAX_DEPTH:
      raise self.bad(f"it is nested more than {byte_ranges.MAX_DEPTH} times")
    kind, size = self.head()
    if kind == "value":
      return _Other(size)
    if kind == "ext":
      (code,) = self.take(1)
      if code in (_ARRAY, _SCALAR):
        return self.array(self.at + size)
      self.skip(size)
      return _Other(f"extension {code}")
    if kind in ("str", "bin"):
      text = self.take(size).decode() if size <= _MAX_KEY else ""
      self.skip(0 if size <= _MAX_KEY else size)
      return _Other(text)
    self.count(size)
    entries: dict[str, Any] = {}
    for number in range(size):
      key = self.key() if kind == "map" else str(number)
      if key in entries:
        raise self.bad(f"a map has {key!r:.80} twice")
      entries[key] = self.value(depth + 1)
    return self._joined(entries) if _CHUNKED in entries else entries

  def _joined(self, entries) -> _Chunked:
    """Returns the array that a map of chunks describes."""
    try:
      shape = tuple(_in_order(entries["shape"], lambda n: n.value))
      chunks = _in_order(entries["chunks"], lambda chunk: chunk)
      (dtype,) = {chunk.dtype for chunk in chunks}
      sizes = [n for chunk in chunks for n in (*chunk.shape, *chunk.shape[1:])]
      total = math.prod(shape)
    except (AttributeError, KeyError, TypeError, ValueError) as e:
      raise self.bad(f"an array in chunks is not complete ({e!r:.80})") from e
    if (
      len(sizes) != len(chunks)
      or sum(sizes) != total
      or {*sizes[:-1]} - {sizes[0]}
      or sizes[-1] > sizes[0]
    ):
      raise self.bad(
        f"an array of shape {list(shape)} has chunks of {sizes[:5]} elements"
      )
    return _Chunked(shape, dtype, chunks)


def _in_order(entries: dict[str, Any], of) -> list[Any]:
  return [of(entries[str(k)]) for k in range(len(entries))]


def is_msgpack(head: bytes) -> bool:
  """Whether a file starts with a map whose first key is a text."""
  key = rb"[\xa0-\xbf\xd9]"
  first = rb"[\x81-\x8f]|\xde..|\xdf...."
  return re.match(rb"(%b)%b" % (first, key), head, re.DOTALL) is not None


def is_name(name: str) -> bool:
  """Whether a file in a directory has the name of a checkpoint of Flax."""
  return name.endswith(SUFFIX) or re.fullmatch(_STEP, name) is not None


def record(path: str) -> dict[str, Any]:
  """Returns {}: soupjax writes no MessagePack files."""
  del path
  return {}


def files_of(path: str) -> list[str]:
  """Returns the files of a checkpoint; see `safetensors.files_of`."""
  return safetensors.files_of(path, (SUFFIX,))


def open_checkpoint(
  path: str, name: str, entry: str | None = None
) -> Ingredient:
  """Opens a file, an index or a directory of shards lazily.

  Reads the keys and the headers of the arrays, but no values. The format has no
  checksums.

  Args:
    path: path of a file, an index or a directory.
    name: name of the ingredient.
    entry: the model's entry in a train state; None follows the rule of
      `params_of_state`.

  Returns:
    The ingredient. A train state is reduced to its weights.

  Raises:
    ValueError: if a file is damaged, has arrays elsewhere, or holds no model.
  """
  specs, places, chunked, ignored = {}, {}, {}, {}
  for shard in files_of(path):
    file = byte_ranges.ByteFile(shard)
    scanner = _Scanner(file)
    try:
      content = scanner.value()
    except UnicodeDecodeError as e:
      raise scanner.bad(f"a text is not valid ({e})") from e
    if scanner.at != file.size:
      raise scanner.bad(f"{file.size - scanner.at} bytes follow the model")
    for leaf, array in _leaves(content, ()):
      if isinstance(array, _Other):
        _check_here(shard, leaf, array.value)
        if not params_of_state.is_training(leaf.split("/")[0]):
          ignored[leaf] = "not an array"
        continue
      if leaf in specs:
        raise ValueError(f"{path} has leaf {leaf!r} twice.")
      specs[leaf] = tree.shared_spec(array.shape, array.dtype)
      first = array
      if isinstance(array, _Chunked):
        chunked[leaf], first = array, array.chunks[0]
      places[leaf] = byte_ranges.Place(file, first.offset)
  leaves = ((leaf, place.file.path) for leaf, place in places.items())
  index = safetensors.check_index(path, leaves, (SUFFIX,))
  others = {str(index): byte_ranges.identity(str(index))} if index else {}
  ingredient = byte_ranges.ingredient(name, path, specs, places, others=others)
  if chunked:
    ingredient = _with_chunks(ingredient, path, places, chunked)
  ingredient = dataclasses.replace(ingredient, ignored=ignored)
  return params_of_state.of(ingredient, entry)


def _leaves(content, keys) -> Iterator[tuple[str, Any]]:
  if not isinstance(content, dict):
    yield "/".join(keys), content
    return
  for key, value in content.items():
    yield from _leaves(value, (*keys, key))


def _check_here(path, leaf, value):
  """Raises a ValueError if a text stands for an array in another directory."""
  if isinstance(value, str) and value.startswith(_ELSEWHERE):
    raise ValueError(
      f"{path}: the array {leaf!r} is in the directory {path}_gda, which "
      "several processes wrote and soupjax does not read. Load it with "
      "flax.training.checkpoints and save the parameters with Orbax."
    )


def _with_chunks(ingredient, path, places, chunked) -> Ingredient:
  """Replaces the reader of arrays that are in chunks."""
  read_ranges = ingredient.storage.read

  def read(spans, out):
    read_ranges([span for span in spans if span.leaf not in chunked], out)
    for leaf, box, at, until, first in spans:
      if leaf not in chunked:
        continue
      file, array = places[leaf].file, chunked[leaf]
      runs = ((first, until - at),)
      if first is None:
        runs = slices.contiguous_runs(array.shape, box)
      for start, count in runs:
        for offset, part in _parts(array, start, count):
          file.read_into(offset, out[at : at + part])
          at += part

  storage = dataclasses.replace(ingredient.storage, read=read)
  reader = byte_ranges.reader(path, ingredient.specs, storage)
  return dataclasses.replace(ingredient, storage=storage, reader=reader)


def _parts(
  array: _Chunked, start: int, count: int
) -> Iterator[tuple[int, int]]:
  """Yields the offset in bytes and number of elements of each part of a run."""
  (size,) = array.chunks[0].shape
  while count:
    chunk, first = divmod(start, size)
    part = min(count, size - first)
    yield array.chunks[chunk].offset + first * array.dtype.itemsize, part
    start, count = start + part, count - part
