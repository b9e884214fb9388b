# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The safetensors format: one file, or shards with an index.

A file is the length of a header (8 bytes), the header (JSON) and the data.
Headers come from strangers: everything in them is checked before it is used.
"""

import json
import math
import os
import pathlib
import struct
import sys
from typing import Any

import jax
import ml_dtypes
import numpy as np

from soupjax import files
from soupjax.checkpoints.formats import (
  byte_ranges,
  leaf_digest,
  params_of_state,
)
from soupjax.soups.core import tree
from soupjax.soups.core.ingredient import Ingredient

_MAX_HEADER = 100_000_000
_DTYPES = {
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
  "F8_E4M3": ml_dtypes.float8_e4m3fn,
  "F8_E5M2": ml_dtypes.float8_e5m2,
  "F8_E8M0": ml_dtypes.float8_e8m0fnu,
  "I64": np.int64,
  "I32": np.int32,
  "I16": np.int16,
  "I8": np.int8,
  "U64": np.uint64,
  "U32": np.uint32,
  "U16": np.uint16,
  "U8": np.uint8,
  "BOOL": np.bool_,
  "C64": np.complex64,
}
NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


def _bad(path, reason):
  return ValueError(
    f"{path} is not a sound safetensors file: {reason}. Copy it again, or "
    "leave it out."
  )


def _unique(pairs):
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"the header has {twice!r} twice")
  return found


def read_header(file: byte_ranges.ByteFile) -> tuple[dict[str, Any], int]:
  """Reads the header of one file.

  Args:
    file: open.

  Returns:
    Its JSON, and the offset of the data.

  Raises:
    ValueError: if it is no header.
  """
  if file.size < 8:
    raise _bad(file.path, f"it has {file.size} bytes")
  (length,) = struct.unpack("<Q", file.read(0, 8))
  if length > min(file.size - 8, _MAX_HEADER):
    raise _bad(
      file.path,
      f"its header should have {length} bytes, of {file.size} in the file (and "
      f"{_MAX_HEADER} at most)",
    )
  try:
    header = json.loads(file.read(8, length), object_pairs_hook=_unique)
  except (ValueError, RecursionError) as e:
    raise _bad(file.path, f"its header is not valid ({e})") from e
  if not isinstance(header, dict):
    raise _bad(file.path, f"its header is a {type(header).__name__}")
  text = header.get("__metadata__", {})
  if not (
    isinstance(text, dict) and all(type(v) is str for v in text.values())
  ):
    raise _bad(
      file.path, f"its __metadata__ is {text!r:.80}, not names with texts"
    )
  return header, 8 + length


def is_safetensors(path: str) -> bool:
  """Whether a file begins as a safetensors file does."""
  file = byte_ranges.ByteFile(path)
  if file.size < 10:
    return False
  (length,) = struct.unpack("<Q", file.read(0, 8))
  return length <= _MAX_HEADER and file.read(8, 1) == b"{"


def metadata(path: str) -> dict[str, str]:
  """Returns the free text that a file, or the first of its shards, carries."""
  header, _ = read_header(byte_ranges.ByteFile(files_of(path)[0]))
  return header.get("__metadata__", {})


def record(path: str) -> dict[str, Any]:
  """Returns what soupjax left in a file, or in the shards of a directory."""
  merged: dict[str, Any] = {}
  for one in files_of(path):
    header, _ = read_header(byte_ranges.ByteFile(one))
    text = header.get("__metadata__", {}).get("soupjax")
    if text is not None:
      try:
        found = json.loads(text)
        merged |= {**found, "crc32": merged.get("crc32", {}) | found["crc32"]}
      except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise _bad(one, f"its record of soupjax is damaged ({e})") from e
  return merged


def _spec(path, name, entry, end) -> tuple[jax.ShapeDtypeStruct, int]:
  try:
    dtype, shape = entry["dtype"], entry["shape"]
    start, stop = entry["data_offsets"]
    sizes = [*shape, start, stop]
    if not all(type(n) is int and n >= 0 for n in sizes):
      raise TypeError("a number is not a natural number")
  except (TypeError, KeyError, ValueError) as e:
    raise _bad(path, f"the entry of {name!r} makes no sense ({e!r})") from e
  if type(dtype) is not str or dtype not in _DTYPES:
    raise _bad(
      path, f"{name!r} has dtype {dtype!r}, known are {sorted(_DTYPES)}"
    )
  spec = tree.shared_spec(tuple(shape), np.dtype(_DTYPES[dtype]))
  needed = math.prod(shape) * spec.dtype.itemsize
  if stop - start != needed:
    raise _bad(
      path,
      f"{name!r} has {stop - start} bytes, where {dtype}{list(shape)} needs "
      f"{needed}",
    )
  if stop > end:
    raise _bad(
      path,
      f"it is cut short: {name!r} ends at byte {stop} of the data, of which "
      f"there are {end}",
    )
  return spec, start


def files_of(path: str) -> list[str]:
  """The files of a checkpoint, from its index if it has one."""
  if not os.path.isdir(path) and not path.endswith(".index.json"):
    return [path]
  folder = pathlib.Path(path)
  if folder.is_dir():
    found = sorted(folder.glob("*.safetensors.index.json"))
    if len(found) > 1:
      raise ValueError(
        f"{path} has several indices, {[f.name for f in found]}: give the path "
        "of one."
      )
    if not found:
      return [str(f) for f in sorted(folder.glob("*.safetensors"))]
    folder = found[0]
  index = files.read_json(folder)
  names = index.get("weight_map") if isinstance(index, dict) else None
  if not isinstance(names, dict) or not names:
    raise ValueError(f"{folder} is no index: it has no weight_map.")
  for leaf, shard in names.items():
    if type(shard) is not str:
      raise ValueError(
        f"{folder} says that {leaf!r} is in {shard!r:.80}, which is no name of "
        "a file."
      )
  shards = sorted(set(names.values()))
  for shard in shards:
    if os.path.basename(shard) != shard:
      raise ValueError(
        f"{folder} names a shard {shard!r} outside its own directory."
      )
  missing = [s for s in shards if not (folder.parent / s).exists()]
  if missing:
    raise ValueError(
      f"{folder} names {len(shards)} shards, of which {len(missing)} are "
      f"missing: {missing[:10]}. Copy them too."
    )
  return [str(folder.parent / shard) for shard in shards]


def open_checkpoint(path: str, name: str) -> Ingredient:
  """Opens a file, an index or a directory of shards; reads headers only.

  Args:
    path: of one of these.
    name: the ingredient's name.

  Returns:
    The ingredient. Names with '/' make nested dicts; a train state is cut to
    its weights.

  Raises:
    ValueError: if a file is damaged or missing, or a leaf is there twice.
  """
  specs, places, checksums, spans = {}, {}, {}, {}
  for one in files_of(path):
    file = byte_ranges.ByteFile(one)
    header, data = read_header(file)
    text = header.pop("__metadata__", {})
    for leaf, entry in header.items():
      leaf = sys.intern(leaf)  # One string for all checkpoints of a model.
      if leaf in specs:
        raise ValueError(
          f"{path} has leaf {leaf!r} in two shards: "
          f"{places[leaf].file.path} and {one}."
        )
      specs[leaf], start = _spec(one, leaf, entry, file.size - data)
      places[leaf] = byte_ranges.Place(file, data + start)
      spans.setdefault(one, []).append((*entry["data_offsets"], leaf))
    _check_spans(one, spans.get(one, []), file.size - data)
    recorded = _recorded(one, text)
    inside = {leaf: specs[leaf] for leaf in header}
    leaf_digest.check(one, inside, text.get(leaf_digest.KEY), recorded)
    checksums |= recorded
  _check_index(path, places)
  return params_of_state.of(
    byte_ranges.ingredient(name, path, specs, places, checksums=checksums)
  )


def _check_spans(path, found, size):
  """Checks that leaves follow each other without overlap or gap."""
  end, before = 0, "the header"
  for start, stop, leaf in sorted(found):
    if start != end:
      what = "share bytes" if start < end else "have a gap between them"
      raise _bad(path, f"{before!r} and {leaf!r} {what}")
    end, before = stop, leaf
  if end != size:
    raise _bad(path, f"{size - end} bytes at its end belong to no leaf")


def _check_index(path, places):
  index = path if path.endswith(".index.json") else None
  if os.path.isdir(path):
    index = next(
      iter(pathlib.Path(path).glob("*.safetensors.index.json")), None
    )
  if index is None:
    return
  names = files.read_json(index)["weight_map"]
  wrong = [
    leaf
    for leaf, shard in names.items()
    if leaf not in places or os.path.basename(places[leaf].file.path) != shard
  ]
  wrong += [leaf for leaf in places if leaf not in names]
  if wrong:
    raise ValueError(
      f"{index} and its shards disagree on {len(wrong)} leaves: {wrong[:10]}. "
      "Are they from one save?"
    )


def _recorded(path, text) -> dict[str, int]:
  """Checksums that soupjax left in a file."""
  if "soupjax" not in text:
    return {}
  try:
    found = json.loads(text["soupjax"]).get("crc32", {})
    return {leaf: int(value, 16) for leaf, value in found.items()}
  except (ValueError, AttributeError, TypeError, RecursionError) as e:
    raise _bad(path, f"its record of soupjax is damaged ({e})") from e
