# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The safetensors format: one file, or shards with an index.

A file consists of the header's length (8 bytes), the header (JSON) and the
data. Headers are untrusted: every entry is checked before it is used.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
import itertools
import json
import math
import os
import pathlib
import re
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

SUFFIX = ".safetensors"
_MAX_HEADER = 100_000_000
# Name of a shard, such as "model-00001-of-00002.safetensors".
_SHARD = re.compile(
  r"(?P<stem>.*)[-_.]\d+-of-(?P<count>\d+)(?P<suffix>\.[a-z]+)"
)
# Files that are often beside weights.
_NO_MODEL = re.compile(
  r"(optimizer|scheduler|scaler|rng_state|random_states|training_args|"
  r"trainer_state|tokenizer|vocab|sampler|dl_state_dict)[^a-z].*|"
  r".*_optim_states\.pt"
)
_MAX_NAME = 255  # Bytes in the name of a file.
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
    f"{path} is not a valid safetensors file: {reason}. Copy it again or leave "
    "it out."
  )


def _unique(pairs):
  entries = dict(pairs)
  if len(entries) < len(pairs):
    counts = collections.Counter(name for name, _ in pairs)
    twice = counts.most_common(1)[0][0]
    raise ValueError(f"the header has {twice!r} twice")
  return entries


def _parsed(text: str) -> Any:
  """Parses JSON in which no object has a key twice.

  Raises:
    ValueError: if it is not valid, or has a key twice.
  """
  header = json.loads(text)
  try:
    # Colons occur in strings and after keys. If there are no more of them than
    # in the parsed header, no key was dropped. This is faster than a hook that
    # is called for every object. An escaped colon would spoil the count.
    metadata = header.get("__metadata__", {}).items()
    strings = "".join([*header, *itertools.chain(*metadata)])
    keys = sum(map(len, [header, *header.values()]))
    if text.count(":") == keys + strings.count(":") and "\\u003" not in text:
      return header
  except (AttributeError, TypeError):
    pass  # Not of the usual form.
  return json.loads(text, object_pairs_hook=_unique)


def read_header(file: byte_ranges.ByteFile) -> tuple[dict[str, Any], int]:
  """Returns the header of an open file and the offset of the data.

  Raises:
    ValueError: if the header is damaged.
  """
  if file.size < 8:
    raise _bad(file.path, f"it has {file.size} bytes")
  (length,) = struct.unpack("<Q", file.read(0, 8))
  if length > min(file.size - 8, _MAX_HEADER):
    raise _bad(
      file.path,
      f"its header should have {length} bytes, but the file has {file.size} "
      f"and a header at most {_MAX_HEADER}",
    )
  try:
    header = _parsed(file.read(8, length).decode("utf-8", "surrogatepass"))
  except (ValueError, RecursionError) as e:
    raise _bad(file.path, f"its header is not valid ({e})") from e
  if not isinstance(header, dict):
    raise _bad(file.path, f"its header is a {type(header).__name__}")
  text = header.get("__metadata__", {})
  if not (
    isinstance(text, dict) and all(type(v) is str for v in text.values())
  ):
    raise _bad(
      file.path, f"its __metadata__ must map names to strings, got {text!r:.80}"
    )
  return header, 8 + length


def is_safetensors(path: str) -> bool:
  """Whether a file starts like a safetensors file."""
  file = byte_ranges.ByteFile(path)
  if file.size < 10:
    return False
  (length,) = struct.unpack("<Q", file.read(0, 8))
  return length <= _MAX_HEADER and file.read(8, 1) == b"{"


def record(path: str) -> dict[str, Any]:
  """Returns the record that soupjax left in a file or in all its shards."""
  merged: dict[str, Any] = {}
  checksums: dict[str, str] = {}
  for file in files_of(path):
    header, _ = read_header(byte_ranges.ByteFile(file))
    text = header.pop("__metadata__", {})
    entries = _record(file, text)
    specs = {k: _entry(file, k, e, math.inf)[0] for k, e in header.items()}
    leaf_digest.check(file, specs, text.get(leaf_digest.KEY), entries)
    if entries:
      checksums |= entries["crc32"]
      merged |= {**entries, "crc32": checksums}
  return merged


def _record(path, text) -> Any:
  """Returns the record in the metadata of a file, None if it has none."""
  try:
    return json.loads(text["soupjax"]) if "soupjax" in text else None
  except (ValueError, RecursionError) as e:
    raise _bad(path, f"its record of soupjax is damaged ({e})") from e


@functools.lru_cache(maxsize=4096)
def _spec(dtype: str, shape: tuple[int, ...]) -> tuple[Any, int]:
  """Returns the spec of leaves with this dtype and shape, and their bytes."""
  spec = tree.shared_spec(shape, np.dtype(_DTYPES[dtype]))
  return spec, spec.size * spec.dtype.itemsize


def _entry(path, name, entry, end) -> tuple[jax.ShapeDtypeStruct, int, int]:
  """Returns the spec of a leaf, its first byte and the one after its last."""
  try:
    dtype, shape = entry["dtype"], entry["shape"]
    start, stop = entry["data_offsets"]
    for n in (*shape, start, stop):
      if type(n) is not int or n < 0:
        raise TypeError("a size or offset is not a natural number")
  except (TypeError, KeyError, ValueError) as e:
    raise _bad(path, f"the entry of {name!r} is not valid ({e!r})") from e
  if type(dtype) is not str or dtype not in _DTYPES:
    raise _bad(
      path, f"{name!r} has dtype {dtype!r}, which is not in {sorted(_DTYPES)}"
    )
  spec, needed = _spec(dtype, tuple(shape))
  if stop - start != needed:
    raise _bad(
      path,
      f"{name!r} has {stop - start} bytes, but {dtype}{list(shape)} needs "
      f"{needed}",
    )
  if stop > end:
    raise _bad(
      path,
      f"it is cut short: {name!r} ends at byte {stop} of the data, which has "
      f"{end}",
    )
  return spec, start, stop


def index_of(
  path: str, suffixes: Sequence[str] = (SUFFIX,)
) -> tuple[pathlib.Path | None, dict[str, str]]:
  """Returns the path of the index of a checkpoint, and leaf -> shard.

  Args:
    path: path of a file, a directory or an index.
    suffixes: suffixes of the shards.

  Raises:
    ValueError: if a directory has several indices, or the index is damaged.
  """
  place = byte_ranges.as_path(path)
  if byte_ranges.is_directory(path):
    ends = tuple(f"{suffix}.index.json" for suffix in suffixes)
    names = sorted(n for n in byte_ranges.names_in(path) if n.endswith(ends))
    indices = [place / name for name in names]
    if len(indices) > 1:
      raise ValueError(
        f"{path} has several indices, {[f.name for f in indices]}: give the "
        "path of one."
      )
    index = indices[0] if indices else None
  else:
    index = place if path.endswith(".index.json") else None
  if index is None:
    return None, {}
  content = files.read_json(index)
  shards = content.get("weight_map") if isinstance(content, dict) else None
  if not isinstance(shards, dict) or not shards:
    raise ValueError(f"{index} is not an index: it has no weight_map.")
  for leaf, shard in shards.items():
    if not _is_file_name(shard):
      raise ValueError(
        f"{index} maps {leaf!r} to {shard!r:.80}, which is not the name of a "
        "file in its directory."
      )
  return index, shards


def _is_file_name(name: Any) -> bool:
  """Whether a name in an index is that of a file in the same directory."""
  return (
    type(name) is str
    and name not in ("", ".", "..")
    and "/" not in name
    and name.isprintable()
    and len(name.encode()) <= _MAX_NAME
  )


def models_of(names: Iterable[str]) -> dict[str, list[str]]:
  """Groups the files of a directory by model.

  Args:
    names: names of files; training state, such as optimizer.bin, is left out.

  Returns:
    First file of each model -> all its files: shards such as
    "model-00001-of-00002.safetensors" belong together.
  """
  models: dict[str, list[str]] = {}
  for name in sorted(names):
    if _NO_MODEL.match(name):
      continue
    match = _SHARD.fullmatch(name)
    # Shards of one model differ only in the number.
    key = str(match.group("stem", "count", "suffix")) if match else name
    models.setdefault(key, []).append(name)
  return {shards[0]: shards for shards in models.values()}


def files_of(path: str, suffixes: Sequence[str] = (SUFFIX,)) -> list[str]:
  """Returns the files of a checkpoint, from its index if it has one.

  Args:
    path: path of a file, a directory or an index.
    suffixes: suffixes of the shards.

  Raises:
    ValueError: if shards are missing, or a directory without an index has
      no models or several.
  """
  index, shards = index_of(path, suffixes)
  if index is not None:
    names = sorted(set(shards.values()))
    folder = os.fspath(index.parent)
  elif byte_ranges.is_directory(path):
    folder = path
    listed = byte_ranges.names_in(path)
    models = models_of(n for n in listed if n.endswith((*suffixes,)))
    check_one_model(path, models)
    if not models:
      raise ValueError(f"{path} contains no files with weights.")
    (names,) = models.values()
  else:
    return [path]
  if byte_ranges.is_remote(path):
    missing = sorted({*names} - {*byte_ranges.names_in(folder)})
  else:
    missing = [n for n in names if not os.path.exists(f"{folder}/{n}")]
  if missing and index is not None:
    raise ValueError(
      f"{index} names {len(names)} shards, of which {len(missing)} are "
      f"missing: {missing[:10]}. Copy them too."
    )
  for first, shards in models_of(names).items():
    match = _SHARD.fullmatch(first)
    # An index that lacks a shard and its leaves would lose them silently.
    if match and len(shards) != int(match["count"]):
      raise ValueError(
        f"{index or path} has {len(shards)} shards, {shards[:10]}, but their "
        f"names say that there are {int(match['count'])}: others are missing, "
        "or the index lacks their leaves. Copy them too."
      )
  return [os.path.join(folder, name) for name in names]


def check_one_model(path: str, models: Mapping[str, Sequence[str]]) -> None:
  """Raises a ValueError if a directory has several models; see `models_of`."""
  if len(models) > 1:
    # The user rarely means an adapter.
    likely = min(models, key=lambda name: (name.startswith("adapter"), name))
    raise ValueError(
      f"{path} contains {len(models)} models, {[*models][:10]}, and no index "
      f"says which one to read. Give the path of one, such as "
      f"{os.path.join(path, likely)}."
    )


def open_checkpoint(
  path: str, name: str, entry: str | None = None
) -> Ingredient:
  """Opens a file, an index or a directory of shards; reads headers only.

  Args:
    path: path of a file, an index or a directory.
    name: name of the ingredient.
    entry: the model's entry in a train state; None follows the rule of
      `params_of_state`.

  Returns:
    The ingredient. Names with '/' make nested dicts; a train state is reduced
    to its weights.

  Raises:
    ValueError: if a file is damaged or missing, two shards have the same leaf,
      or there is no single model.
  """
  specs, places, checksums = {}, {}, {}
  order: list[str] = []
  texts: dict[str, str] = {}
  for shard in files_of(path):
    file = byte_ranges.ByteFile(shard)
    header, data = read_header(file)
    text, spans, in_shard = header.pop("__metadata__", {}), [], {}
    texts = {**text, **texts}
    for leaf, fields in header.items():
      leaf = sys.intern(leaf)  # One string for all checkpoints of a model.
      if leaf in specs:
        raise ValueError(
          f"{path} has leaf {leaf!r} in two shards: "
          f"{places[leaf].file.path} and {shard}."
        )
      spec, start, stop = _entry(shard, leaf, fields, file.size - data)
      in_shard[leaf] = spec
      places[leaf] = byte_ranges.Place(file, data + start)
      spans.append((start, stop, leaf))
    del header
    order += _in_order(shard, spans, file.size - data)
    checksums |= leaf_digest.check(
      shard, in_shard, text.get(leaf_digest.KEY), _record(shard, text)
    )
    specs |= in_shard
  index = check_index(path, ((k, p.file.path) for k, p in places.items()))
  others = {str(index): byte_ranges.identity(str(index))} if index else {}
  ingredient = byte_ranges.ingredient(
    name, path, specs, places, order=order, checksums=checksums, others=others
  )
  own = ("soupjax", leaf_digest.KEY)
  texts = {key: value for key, value in texts.items() if key not in own}
  ingredient = dataclasses.replace(ingredient, text=texts)
  return params_of_state.of(ingredient, entry)


def _in_order(path, spans, size) -> list[str]:
  """Returns leaves in file order; raises a ValueError at an overlap or gap."""
  end, before = 0, "the header"
  spans = sorted(spans)
  for start, stop, leaf in spans:
    if start != end:
      problem = "share bytes" if start < end else "have a gap between them"
      raise _bad(path, f"{before!r} and {leaf!r} {problem}")
    end, before = stop, leaf
  if end != size:
    raise _bad(path, f"{size - end} bytes at its end belong to no leaf")
  return [leaf for _, _, leaf in spans]


def check_index(
  path: str,
  leaves: Iterable[tuple[str, str]],
  suffixes: Sequence[str] = (SUFFIX,),
) -> pathlib.Path | None:
  """Checks that the index of a checkpoint, if any, lists its leaves.

  Args:
    path: path of the checkpoint.
    leaves: names of leaves, and paths of their shards.
    suffixes: suffixes of the shards.

  Returns:
    The path of the index, None if there is none.

  Raises:
    ValueError: naming leaves that are missing or in another shard.
  """
  index, shards = index_of(path, suffixes)
  if index is None:
    return None
  actual = {leaf: os.path.basename(shard) for leaf, shard in leaves}
  wrong = [k for k in {**shards, **actual} if shards.get(k) != actual.get(k)]
  if wrong:
    raise ValueError(
      f"{index} and its shards disagree on {len(wrong)} leaves: {wrong[:10]}. "
      "Are they from the same save?"
    )
  return index
