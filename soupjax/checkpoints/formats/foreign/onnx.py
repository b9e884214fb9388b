# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Initialisers of ONNX graphs, read as byte ranges without the package onnx.

A file is a protocol buffer message (ModelProto). Opening it reads everything
but the values. torch.onnx names weights as in the state_dict, but folds the
transpose of a linear layer into its weight and renames it "onnx::MatMul_NNN".
The name of the node that uses the weight tells its layer.
"""

from collections.abc import Iterator
import dataclasses
import math
import os
import pathlib
import re
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from soupjax.checkpoints.formats import byte_ranges, params_of_state
from soupjax.soups.core import tree
from soupjax.soups.core.ingredient import Ingredient

SUFFIX = ".onnx"
_WINDOW = 1 << 16
_MAX_MESSAGE = 1 << 20
# Numbers of fields in onnx.proto.
_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
_DIMS, _TYPE, _NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 8, 9, 13, 14
_PACKED = {"float32": 4, "float64": 10}  # Packed as in memory.
_INPUT, _NODE_NAME = 1, 3
_DTYPES = {
  **{1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32"},
  **{7: "int64", 9: "bool", 10: "float16", 11: "float64", 12: "uint32"},
  **{13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16"},
  **{17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2"},
  **{20: "float8_e5m2fnuz"},
}
_LOST = re.compile(r"onnx::(\w+)_\d+")


class _Tensor(NamedTuple):
  """An initialiser, whose values start at byte `start` of a file."""

  shape: tuple[int, ...]
  dtype: np.dtype
  file: byte_ranges.ByteFile
  start: int


def _bad(path: str, reason: str) -> ValueError:
  return ValueError(
    f"{path} is not a valid ONNX file: {reason}. Copy it again or leave it out."
  )


class _Message:
  """The fields of a message in a range of a file."""

  def __init__(self, file: byte_ranges.ByteFile):
    self._file, self._window, self._start = file, b"", 0

  def fields(self, at: int, end: int) -> Iterator[tuple[int, Any]]:
    """Yields field number and value: an integer, or a range of bytes."""
    while at < end:
      tag, at = self._varint(at, end)
      number, wire = tag >> 3, tag & 7
      if wire == 0:
        value, at = self._varint(at, end)
        yield number, value
        continue
      size = {1: 8, 5: 4}.get(wire)
      if wire == 2:
        size, at = self._varint(at, end)
      if size is None or at + size > end:
        raise _bad(self._file.path, f"field {number} at byte {at} is not valid")
      yield number, range(at, at + size)
      at += size

  def bytes_of(self, span: range) -> bytes:
    """Returns the bytes of a short field."""
    if len(span) > _MAX_MESSAGE:
      raise _bad(self._file.path, f"a name at byte {span.start} is too long")
    first = span.start - self._start
    if first < 0 or first + len(span) > len(self._window):
      size = min(max(len(span), _WINDOW), self._file.size - span.start)
      self._window = self._file.read(span.start, size)
      self._start, first = span.start, 0
    return self._window[first : first + len(span)]

  def text(self, span: range) -> str:
    return self.bytes_of(span).decode("utf-8")

  def _varint(self, at: int, end: int) -> tuple[int, int]:
    value = 0
    for k, byte in enumerate(self.bytes_of(range(at, min(at + 10, end)))):
      value |= (byte & 127) << (7 * k)
      if byte < 128:
        return value, at + k + 1
    raise _bad(self._file.path, f"a number at byte {at} is not complete")

  def varints(self, value: Any) -> list[int]:
    """Returns the integers of a field that may be packed."""
    if isinstance(value, int):
      return [value]
    numbers, at = [], value.start
    while at < value.stop:
      number, at = self._varint(at, value.stop)
      numbers.append(number)
    return numbers


def is_onnx(path: str, head: bytes) -> bool:
  """Whether a file is an ONNX model, which starts with a version."""
  return path.endswith(SUFFIX) and head[:1] == b"\x08"


def record(path: str) -> dict[str, Any]:
  """Returns {}: soupjax writes no ONNX files."""
  del path
  return {}


def open_checkpoint(
  path: str, name: str, entry: str | None = None
) -> Ingredient:
  """Opens the initialisers of a graph lazily. The format has no checksums.

  Args:
    path: path of the file.
    name: name of the ingredient.
    entry: see `params_of_state.choose`.

  Returns:
    The ingredient. Weights of linear layers that have lost their names are
    named after the graph's nodes and have torch's layout, (outputs, inputs).
    Constants of the graph are ignored.

  Raises:
    ValueError: if the file is damaged, has no weights, or stores values in a
      form that cannot be read as byte ranges.
  """
  file = byte_ranges.ByteFile(path)
  message = _Message(file)
  tensors: dict[str, _Tensor] = {}
  users: dict[str, tuple[str, int]] = {}  # Node and position of the input.
  files = {path: file}
  for number, value in message.fields(0, file.size):
    if number != _GRAPH or isinstance(value, int):
      continue
    for field, span in message.fields(value.start, value.stop):
      if isinstance(span, int):
        continue
      if field == _INITIALIZER:
        leaf, tensor = _tensor(message, files, path, span)
        if leaf in tensors:
          raise _bad(path, f"it has two initialisers called {leaf!r:.80}")
        tensors[leaf] = tensor
      elif field == _NODE:
        _add_node(message, span, users)
  if not tensors:
    raise ValueError(
      f"{path} is an ONNX file without initialisers: it has no weights. "
      "Export it with them, or copy it again."
    )
  leaves, transposed, ignored = _named(tensors, users)
  positions = _positions(leaves, users)
  for leaf, parts in positions.items():
    for part in parts:
      del leaves[part]
    leaves[leaf] = tensors[parts[0]]
  specs, places = {}, {}
  for leaf, t in leaves.items():
    shape = t.shape[::-1] if leaf in transposed else t.shape
    if leaf in positions:
      length = sum(tensors[part].shape[1] for part in positions[leaf])
      shape = (1, length, shape[2])
    specs[leaf] = tree.shared_spec(shape, t.dtype)
    places[leaf] = byte_ranges.Place(t.file, t.start)
  ingredient = byte_ranges.ingredient(
    name, path, specs, places, others={path: file.identity}
  )
  ingredient = dataclasses.replace(ingredient, ignored=ignored)

  def read_whole(leaf):
    if leaf in positions:
      parts = [_array(tensors[part]) for part in positions[leaf]]
      return np.concatenate(parts, axis=1)
    return _array(leaves[leaf]).T

  if whole := {*transposed, *positions}:
    ingredient = byte_ranges.with_whole_leaves(
      ingredient, path, whole, read_whole
    )
  return params_of_state.of(ingredient, entry)


def _tensor(message, files, path, span) -> tuple[str, _Tensor]:
  """Reads one TensorProto without its values."""
  name, shape, code, external = "", [], 0, {}
  data: dict[int, range] = {}
  for field, value in message.fields(span.start, span.stop):
    if field == _DIMS:
      shape += message.varints(value)
    elif field == _TYPE:
      code = value
    elif field == _NAME:
      name = message.text(value)
    elif field == _EXTERNAL:
      pair = dict(message.fields(value.start, value.stop))
      external[message.text(pair[1])] = message.text(pair[2])
    elif not isinstance(value, int):
      data[field] = value
  if code not in _DTYPES:
    raise ValueError(
      f"{path}: the initialiser {name!r:.80} has the data type {code} of ONNX, "
      "which is not supported. Export the model in another precision."
    )
  dtype = jnp.dtype(_DTYPES[code])
  num_bytes = math.prod(shape) * dtype.itemsize
  if external:
    file, start = _external(files, path, name, external)
    size = int(external.get("length", num_bytes))
    inside = start + size <= file.size
  else:
    empty = range(span.stop, span.stop)
    part = data.get(_RAW) or data.get(_PACKED.get(dtype.name, _RAW), empty)
    file, start, size, inside = files[path], part.start, len(part), True
    if not part and num_bytes and {4, 5, 7, 10, 11} & data.keys():
      if not _LOST.fullmatch(name):
        raise ValueError(
          f"{path}: the initialiser {name!r:.80} is not stored as raw_data: "
          "save it with onnx.numpy_helper.from_array."
        )
      size = num_bytes  # A constant of the graph, which is not read.
  if size != num_bytes or not inside:
    raise _bad(path, f"{name!r:.80} has {size} bytes for {dtype}{list(shape)}")
  return name, _Tensor(tuple(shape), dtype, file, start)


def _external(files, path, name, external):
  """Returns the file beside the graph with the values, and their offset."""
  location = external.get("location", "")
  if not location or pathlib.PurePath(location).name != location:
    raise _bad(path, f"the values of {name!r:.80} are in {location!r:.80}")
  if location not in files:
    place = os.path.join(os.path.dirname(path), location)
    files[location] = byte_ranges.ByteFile(place)
  offset = int(external.get("offset", 0))
  if offset < 0:
    raise _bad(path, f"the values of {name!r:.80} are at byte {offset}")
  return files[location], offset


def _add_node(message, span, users):
  """Records which node uses each input."""
  inputs, name = [], ""
  for field, value in message.fields(span.start, span.stop):
    if field == _INPUT:
      inputs.append(message.text(value))
    elif field == _NODE_NAME:
      name = message.text(value)
  for k, source in enumerate(inputs):
    users.setdefault(source, (name, k))


def _named(tensors, users):
  """Gives weights their names in the state_dict.

  Returns:
    Leaf -> tensor, the leaves that are stored as (inputs, outputs), and ignored
    initialisers with reasons.
  """
  leaves, transposed, ignored = {}, set(), {}
  for name, tensor in tensors.items():
    lost = _LOST.fullmatch(name)
    if lost and (tensor.dtype.kind in "iub" or math.prod(tensor.shape) <= 1):
      ignored[name] = "a constant of the graph"
      continue
    leaf = name
    if lost and len(tensor.shape) == 2:
      node, position = users.get(name, ("", 0))
      path, _, kind = node.rpartition("/")
      weight = f"{_module(path)}.weight"
      is_linear = re.fullmatch(r"MatMul(_\d+)?", kind) and position == 1
      if path and is_linear and weight not in {*tensors, *leaves}:
        leaf = weight
        transposed.add(leaf)
    leaves[leaf] = tensor
  return leaves, transposed, ignored


def _array(tensor: _Tensor) -> np.ndarray:
  array = np.empty(tensor.shape, tensor.dtype)
  tensor.file.read_into(tensor.start, array)
  return array


def _positions(leaves, users) -> dict[str, tuple[str, str]]:
  """Finds position embeddings that torch.onnx split to interpolate them.

  DINOv2 of transformers resizes those of patches, (1, patches, width), and puts
  that of the class token, (1, 1, width), before them.

  Returns:
    Leaf -> names of the initialisers of the class token and of the patches.
  """
  scopes: dict[str, list[str]] = {}
  for name in leaves:
    if _LOST.fullmatch(name) and len(leaves[name].shape) == 3:
      path = users.get(name, ("", 0))[0].rpartition("/")[0]
      scopes.setdefault(path, []).append(name)
  positions = {}
  for path, names in scopes.items():
    names.sort(key=lambda name: leaves[name].shape)
    kinds = [_LOST.fullmatch(name)[1] for name in names]
    leaf = f"{_module(path)}.position_embeddings"
    if (
      path.endswith("/embeddings")
      and kinds == ["Concat", "Reshape"]
      and [leaves[name].shape[:2] for name in names][0] == (1, 1)
      and leaves[names[0]].shape[2] == leaves[names[1]].shape[2]
      and leaf not in leaves
    ):
      positions[leaf] = names[0], names[1]
  return positions


def _module(path: str) -> str:
  """Returns the name of a module from the scope of its node.

  "/net/net.0/attention" is "net.0.attention": if a container is called, scopes
  of the modules inside it repeat its name.
  """
  parts: list[str] = []
  for part in path.strip("/").split("/"):
    if parts and part.startswith(f"{parts[-1]}."):
      parts.pop()
    parts.append(part)
  return ".".join(parts)
