# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Directories of torch.distributed.checkpoint, read without torch.

`.metadata` is a pickle with the shape, dtype and chunks of each tensor. A chunk
is a small torch zip file in a range of a `.distcp` file. It holds a box of the
tensor, as FSDP and tensor parallelism cut it.
"""

from collections.abc import Sequence
import dataclasses
import math
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from soupjax.checkpoints.formats import (
  byte_ranges,
  npz,
  params_of_state,
  torch,
  unpickle,
)
from soupjax.soups.core import crc32, slices, tree
from soupjax.soups.core.ingredient import Ingredient, box_by_box

METADATA = ".metadata"
SUFFIX = ".distcp"
_MAX_METADATA = 256 << 20
_MODULE = "torch.distributed.checkpoint.metadata"
_CLASSES = {
  **{
    (_MODULE, name): unpickle.Class(name)
    for name in (
      *("Metadata", "TensorStorageMetadata", "TensorProperties"),
      *("ChunkStorageMetadata", "BytesStorageMetadata", "MetadataIndex"),
    )
  },
  ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): unpickle.Class(
    "_StorageInfo"
  ),
}


class _Chunk(NamedTuple):
  """A box of a tensor, and the location of its values in row-major order."""

  box: slices.Slices
  file: byte_ranges.ByteFile
  offset: int
  checksum: int | None


def is_dcp(names: Sequence[str]) -> bool:
  """Whether a directory with these names is such a checkpoint."""
  return METADATA in names and any(name.endswith(SUFFIX) for name in names)


def record(path: str) -> dict[str, Any]:
  """Returns {}: soupjax writes no such directories."""
  del path
  return {}


def files_of(path: str) -> list[str]:
  """Returns the files of a checkpoint."""
  names = sorted(os.listdir(path))
  return [os.path.join(path, n) for n in names if n.endswith(SUFFIX)]


def open_checkpoint(
  path: str, name: str, entry: str | None = None
) -> Ingredient:
  """Opens a directory lazily: reads its metadata and the headers of all chunks.

  Args:
    path: path of the directory.
    name: name of the ingredient.
    entry: the model's entry in a train state; None follows the rule of
      `params_of_state` for torch files.

  Returns:
    The ingredient. Checksums are verified for tensors that are cut along their
    first axis only, or not at all.

  Raises:
    ValueError: if a file is damaged or missing, or chunks do not make up their
      tensor.
  """
  place = os.path.join(path, METADATA)
  metadata = byte_ranges.ByteFile(place)
  if metadata.size > _MAX_METADATA:
    raise ValueError(f"{place} has {metadata.size} bytes: it is damaged.")
  data = metadata.read(0, metadata.size)
  content = unpickle.interpret(data, {**torch.ALLOWED, **_CLASSES}, _refused)
  fields = _state(content, "Metadata")
  stored = {}
  for key, info in fields["storage_data"].items():
    index = _state(key, "MetadataIndex")
    stored[index["fqn"], _numbers(index.get("offset"))] = _state(
      info, "_StorageInfo"
    )
  paths = fields.get("planner_data")
  files: dict[str, byte_ranges.ByteFile] = {}
  specs, chunks, plain, checksums, places = {}, {}, [], {}, {}
  for key, described in fields["state_dict_metadata"].items():
    keys = tuple(map(str, _path(paths, key)))
    leaf = "/".join(keys)
    if described.kind == "BytesStorageMetadata":
      plain.append(keys)
      continue
    if leaf in specs:
      raise ValueError(f"{path} has leaf {leaf!r} twice.")
    described = _state(described, "TensorStorageMetadata")
    kind = _state(described["properties"], "TensorProperties")[0]
    if type(kind) is not torch.Kind:
      raise ValueError(f"{path}: leaf {leaf!r} has an unknown dtype.")
    specs[leaf] = tree.shared_spec(_numbers(described["size"]), kind.dtype)
    chunks[leaf] = [
      _chunk(path, files, leaf, specs[leaf], _box(chunk), stored, key)
      for chunk in described["chunks"]
    ]
    _check_tiling(path, leaf, specs[leaf].shape, chunks[leaf])
    checksum = _checksum(specs[leaf], chunks[leaf])
    if checksum is not None:
      checksums[leaf] = checksum
    if chunks[leaf]:
      first = chunks[leaf][0]
      places[leaf] = byte_ranges.Place(first.file, first.offset)
  order = sorted(places, key=lambda k: (places[k].file.path, places[k].offset))
  order += [leaf for leaf in specs if leaf not in places]  # Empty leaves.
  ingredient = byte_ranges.ingredient(
    name,
    path,
    specs,
    places,
    order=order,
    checksums=checksums,
    others={place: metadata.identity},
  )
  storage = dataclasses.replace(
    ingredient.storage, read=box_by_box(_reader(specs, chunks))
  )
  ingredient = dataclasses.replace(
    ingredient,
    storage=storage,
    reader=byte_ranges.reader(path, ingredient.specs, storage),
  )
  return params_of_state.of(ingredient, entry, _plain(specs, plain))


def _refused(pid):
  raise unpickle.refused("its metadata refers to something outside")


def _state(value: Any, kind: str) -> Any:
  """Returns the state of an object of a class."""
  if type(value) is not unpickle.Record or value.kind != kind:
    raise unpickle.refused(
      f"its metadata has a {type(value).__name__}, not a {kind}"
    )
  return value.state


def _numbers(value: Any) -> tuple[int, ...]:
  """Returns a shape or an offset; () for None, as in old versions."""
  value = () if value is None else value
  if type(value) is not tuple or not all(
    type(n) is int and 0 <= n < 1 << 62 for n in value
  ):
    raise unpickle.refused(f"its metadata has the shape {value!r:.80}")
  return value


def _path(paths: Any, key: str) -> Sequence[Any]:
  """Returns the path of an entry, which the planner joined by dots."""
  path = paths.get(key) if type(paths) is dict else None
  return path if type(path) is tuple and path else (key,)


def _box(chunk) -> slices.Slices:
  state = _state(chunk, "ChunkStorageMetadata")
  offsets, sizes = _numbers(state["offsets"]), _numbers(state["sizes"])
  return tuple(slice(a, a + n) for a, n in zip(offsets, sizes, strict=True))


def _chunk(path, files, leaf, spec, box, stored, key) -> _Chunk:
  """Locates the values of a chunk."""
  offset = tuple(s.start for s in box)
  info = stored.get((key, offset)) or (
    stored.get((key, ())) if not any(offset) else None
  )
  if info is None:
    raise ValueError(f"{path} is damaged: a chunk of {leaf!r} is not stored.")
  if info.get("transform_descriptors"):
    raise ValueError(
      f"{path} is compressed or otherwise transformed "
      f"({info['transform_descriptors']!r:.80}): save it without extensions."
    )
  name = info["relative_path"]
  if type(name) is not str or pathlib.PurePath(name).name != name:
    raise ValueError(f"{path} is damaged: it refers to the file {name!r:.80}.")
  if name not in files:
    files[name] = byte_ranges.ByteFile(os.path.join(path, name))
  window = byte_ranges.Window(files[name], info["offset"], info["length"])
  listing = torch.listing_of(window, None)
  tensor = listing.tensors.get("")
  shape = slices.shape_of(box)
  if tensor is None or (tensor.shape, tensor.dtype) != (shape, spec.dtype):
    raise ValueError(
      f"{window.path} is damaged: at byte {window.start} is not the chunk "
      f"{spec.dtype}{list(shape)} of {leaf!r}. Copy the checkpoint again."
    )
  if not torch.is_row_major(tensor.shape, tensor.strides):
    raise ValueError(
      f"{path}: leaf {leaf!r} is not stored in row-major order (strides "
      f"{tensor.strides}): save its .contiguous()."
    )
  member = torch.member_of(window.path, listing, leaf, tensor)
  item = spec.dtype.itemsize
  start = npz.data_offset(window, member) + tensor.offset * item
  whole = math.prod(shape) * item == member.file_size
  return _Chunk(
    box, files[name], window.start + start, member.CRC if whole else None
  )


def _check_tiling(path, leaf, shape, chunks) -> None:
  """Checks that chunks cover a tensor without overlap."""
  bounds = np.array(
    [[(s.start, s.stop) for s in chunk.box] for chunk in chunks], np.int64
  ).reshape(len(chunks), len(shape), 2)
  starts, stops = bounds[..., 0], bounds[..., 1]
  total = sum(slices.size(chunk.box) for chunk in chunks)
  overlap = np.ones((len(chunks),) * 2, bool)
  for axis in range(len(shape)):
    overlap &= starts[:, None, axis] < stops[None, :, axis]
    overlap &= starts[None, :, axis] < stops[:, None, axis]
  np.fill_diagonal(overlap, False)
  if total != math.prod(shape) or overlap.any() or (stops > shape).any():
    raise ValueError(
      f"{path} is damaged or was not saved completely: the {len(chunks)} "
      f"chunks of {leaf!r} have {total} elements and do not make up the shape "
      f"{list(shape)}."
    )


def _checksum(
  spec: jax.ShapeDtypeStruct, chunks: Sequence[_Chunk]
) -> int | None:
  """Returns the CRC-32 of a tensor from those of its chunks, if possible."""
  parts = []
  for chunk in chunks:
    first = slices.first_of(spec.shape, chunk.box)
    if first is None or chunk.checksum is None:
      return None
    parts.append((first, slices.size(chunk.box) * spec.dtype.itemsize, chunk))
  parts.sort(key=lambda part: part[0])
  return crc32.combine((chunk.checksum, n) for _, n, chunk in parts)


def _reader(specs, chunks):
  """Returns a function that fills a flat array with a box of a tensor."""

  def read(leaf, box, out):
    target = out.reshape(slices.shape_of(box))
    for chunk in chunks[leaf]:
      part = slices.intersection(box, chunk.box)
      if part is None:
        continue
      into = target[slices.inside(part, box)]
      # A part that is not contiguous in the box is copied, at most one block.
      values = (
        into if into.flags.c_contiguous else np.empty(into.shape, into.dtype)
      )
      _fill(chunk, slices.inside(part, chunk.box), values.reshape(-1))
      if values is not into:
        np.copyto(into, values)

  return read


def _fill(chunk: _Chunk, box: slices.Slices, out: np.ndarray) -> None:
  """Fills a flat array with a box of a chunk."""
  at, shape = 0, slices.shape_of(chunk.box)
  for first, count in slices.contiguous_runs(shape, box):
    offset = chunk.offset + first * out.itemsize
    chunk.file.read_into(offset, out[at : at + count])
    at += count


def _plain(specs, paths: Sequence[tuple[str, ...]]):
  """Returns the argument `plain` of `params_of_state.choose`."""
  containers = {
    keys[:n]
    for keys in (tuple(leaf.split("/")) for leaf in specs)
    for n in range(1, len(keys) + 1)
  }

  def plain(prefix):
    depth = len(prefix)
    names = {
      keys[depth]
      for keys in paths
      if keys[:depth] == prefix and len(keys) > depth
    }
    return [name for name in names if (*prefix, name) not in containers]

  return plain
