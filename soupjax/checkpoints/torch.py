# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""PyTorch `.pt` and `.bin` zip files, without torch and without running them.

The list of tensors in such a file is a pickle, which is a program. It is read
by an unpickler that knows a dozen names, each bound to a harmless function of
our own, and imports nothing: any other name is refused. Only the small program
goes through it, the numbers are read by ranges.
"""

from collections import OrderedDict
from collections.abc import Mapping
import dataclasses
import io
import pickle
from typing import Any
import zipfile

import jax
import ml_dtypes
import numpy as np

from soupjax.checkpoints import npz, ranges
from soupjax.soups import boxes
from soupjax.soups.ingredient import Ingredient

_MAX_PROGRAM = 64 << 20
_MAX_NODES = 10_000_000
_STORAGES = {
  "DoubleStorage": np.float64,
  "FloatStorage": np.float32,
  "HalfStorage": np.float16,
  "BFloat16Storage": ml_dtypes.bfloat16,
  "LongStorage": np.int64,
  "IntStorage": np.int32,
  "ShortStorage": np.int16,
  "CharStorage": np.int8,
  "ByteStorage": np.uint8,
  "BoolStorage": np.bool_,
  "UntypedStorage": np.uint8,
}
_DTYPES = {
  "float64": np.float64,
  "float32": np.float32,
  "float16": np.float16,
  "bfloat16": ml_dtypes.bfloat16,
  "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
  "float8_e5m2": ml_dtypes.float8_e5m2,
  "int64": np.int64,
  "int32": np.int32,
  "int16": np.int16,
  "int8": np.int8,
  "uint8": np.uint8,
  "bool": np.bool_,
}
# Where a training checkpoint keeps its weights.
_WEIGHTS = ("state_dict", "model_state_dict", "model", "module", "params")


# With slots, and frozen: a program cannot change one after its checks.
@dataclasses.dataclass(frozen=True, slots=True)
class _Kind:
  """The dtype of a storage or a tensor."""

  dtype: np.dtype


@dataclasses.dataclass(frozen=True, slots=True)
class _Bytes:
  """A storage: a member of the archive."""

  key: str
  dtype: np.dtype


@dataclasses.dataclass(frozen=True, slots=True)
class _Tensor:
  storage: _Bytes
  offset: int  # In elements, as the strides.
  shape: tuple[int, ...]
  strides: tuple[int, ...]
  dtype: np.dtype


def _tensor(storage, offset, shape, strides, *rest):
  del rest  # requires_grad, hooks and the like.
  return _v3(storage, offset, shape, strides, storage.dtype)


def _v3(storage, offset, shape, strides, dtype, *rest):
  dtype = dtype.dtype if isinstance(dtype, _Kind) else dtype
  numbers = [offset, *shape, *strides]
  if not isinstance(storage, _Bytes) or len(shape) != len(strides):
    raise pickle.UnpicklingError("a tensor without storage")
  if not all(type(n) is int and n >= 0 for n in numbers):
    raise pickle.UnpicklingError(f"a tensor of shape {shape}")
  return _Tensor(storage, offset, tuple(shape), tuple(strides), dtype)


def _rebuild_v3(storage, offset, shape, strides, grad, hooks, dtype, *rest):
  del grad, hooks, rest
  return _v3(storage, offset, shape, strides, dtype)


def _parameter(data, *rest):
  del rest
  return data


_ALLOWED: Mapping[tuple[str, str], Any] = {
  ("collections", "OrderedDict"): OrderedDict,
  ("torch._utils", "_rebuild_tensor"): _tensor,
  ("torch._utils", "_rebuild_tensor_v2"): _tensor,
  ("torch._utils", "_rebuild_tensor_v3"): _rebuild_v3,
  ("torch._utils", "_rebuild_parameter"): _parameter,
  ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
  ("torch", "Size"): lambda *a: tuple(*a),
  ("torch", "device"): lambda *a: None,
  **{("torch", k): _Kind(np.dtype(v)) for k, v in _STORAGES.items()},
  ("torch.storage", "UntypedStorage"): _Kind(np.dtype(np.uint8)),
  **{("torch", k): _Kind(np.dtype(v)) for k, v in _DTYPES.items()},
}


class _Reader(pickle.Unpickler):
  """Understands tensors and plain containers, and nothing else."""

  def find_class(self, module, name):
    if (module, name) not in _ALLOWED:
      raise pickle.UnpicklingError(
        f"it asks for {module}.{name}, which weights have no need of"
      )
    return _ALLOWED[module, name]

  def persistent_load(self, pid):
    try:
      tag, kind, key, _, _ = pid
      if tag == "storage" and isinstance(kind, _Kind) and isinstance(key, str):
        return _Bytes(key, kind.dtype)
    except (TypeError, ValueError):
      pass
    raise pickle.UnpicklingError(f"it refers to {pid!r:.80}")


def _program(
  path: str,
) -> tuple[dict[str, _Tensor], str, dict[str, zipfile.ZipInfo]]:
  """Reads the list of tensors; also the prefix and members of the archive."""
  with npz.open_archive(path) as archive:
    infos = {info.filename: info for info in archive.infolist()}
    lists = [name for name in infos if name.rsplit("/", 1)[-1] == "data.pkl"]
    if len(lists) != 1:
      raise npz.bad(path, f"it has {len(lists)} lists of tensors (data.pkl)")
    info = infos[lists[0]]
    if info.file_size > _MAX_PROGRAM:
      raise npz.bad(path, f"its data.pkl has {info.file_size} bytes")
    prefix = lists[0].removesuffix("data.pkl")
    order = infos.get(prefix + "byteorder")
    if order is not None and archive.read(order) != b"little":
      raise ValueError(f"{path} is big-endian: save it on another machine.")
    data = npz.inflate(archive, path, info)
  try:
    tensors = _weights(_Reader(io.BytesIO(data)).load())
    return tensors, prefix, infos
  except Exception as e:  # A hostile program can raise anything.
    raise ValueError(
      f"{path} is refused: {e}. Only tensors in dicts and lists are read, and "
      "nothing in a file is ever run. Save its state_dict() again, or convert "
      "it to safetensors."
    ) from e


def _weights(found: Any) -> dict[str, _Tensor]:
  """Names all tensors in containers, or in the part that holds the weights."""
  for key in _WEIGHTS:
    if isinstance(found, dict) and isinstance(found.get(key), dict):
      found = found[key]
      break
  tensors: dict[str, _Tensor] = {}
  waiting, seen = [("", found)], 0
  while waiting:
    name, value = waiting.pop()
    seen += 1
    if seen > _MAX_NODES:
      raise pickle.UnpicklingError(f"it has more than {_MAX_NODES} parts")
    if isinstance(value, _Tensor):
      tensors[name] = value
      continue
    if isinstance(value, (list, tuple)):
      value = dict(enumerate(value))
    if isinstance(value, dict):
      waiting += [
        (f"{name}/{key}" if name else str(key), part)
        for key, part in reversed(dict.items(value))
      ]
  return tensors


def is_torch(path: str) -> bool:
  """Whether a zip file has the list of tensors that torch writes."""
  with npz.open_archive(path) as archive:
    return any(n.rsplit("/", 1)[-1] == "data.pkl" for n in archive.namelist())


def open_checkpoint(path: str, name: str) -> Ingredient:
  """Opens a file lazily: reads its list of tensors, and no numbers.

  Args:
    path: of the file.
    name: the ingredient's name.

  Returns:
    The ingredient. Of a training checkpoint, only the weights: what is in
    `state_dict`, `model` and the like.

  Raises:
    ValueError: if it asks for code, is damaged, or holds no tensors.
  """
  tensors, prefix, infos = _program(path)
  file = ranges.ByteFile(path)
  specs, places, sums, strided = {}, {}, {}, {}
  for leaf, tensor in tensors.items():
    specs[leaf] = jax.ShapeDtypeStruct(tensor.shape, tensor.dtype)
    info = infos.get(f"{prefix}data/{tensor.storage.key}")
    if info is None:
      raise npz.bad(path, f"the numbers of {leaf!r} are missing")
    if info.compress_type != zipfile.ZIP_STORED:
      raise npz.bad(path, f"the numbers of {leaf!r} are compressed")
    item, count = tensor.dtype.itemsize, boxes.size(boxes.whole(tensor.shape))
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides)) + 1
    if count and (tensor.offset + reach) * item > info.file_size:
      raise npz.bad(
        path,
        f"{leaf!r} reaches byte {(tensor.offset + reach) * item} of its "
        f"{info.file_size}",
      )
    if count > 2 * reach:
      raise npz.bad(path, f"{leaf!r} repeats {reach} numbers {count} times")
    start = npz.data_offset(file, info) + tensor.offset * item
    places[leaf] = ranges.Place(file, start)
    if tensor.strides != _row_major(tensor.shape) and count > 1:
      strided[leaf] = (tensor.strides, reach)
    elif count * item == info.file_size:
      sums[leaf] = info.CRC
  result = ranges.ingredient(name, path, specs, places, checksums=sums)
  return _with_strided(result, path, places, strided) if strided else result


def _row_major(shape) -> tuple[int, ...]:
  strides, step = [], 1
  for n in reversed(shape):
    strides.append(step)
    step *= n
  return tuple(reversed(strides))


def _with_strided(found, path, places, strided) -> Ingredient:
  """Adds views that are not in row-major order, such as transposed ones."""
  # Strides of axes of length 1 mean nothing.
  strided = {
    leaf: value
    for leaf, value in strided.items()
    if any(
      n > 1 and have != want
      for n, have, want in zip(
        found.specs[leaf].shape,
        value[0],
        _row_major(found.specs[leaf].shape),
      )
    )
  }

  def whole(leaf):
    strides, reach = strided[leaf]
    spec = found.specs[leaf]
    flat = np.empty(reach, spec.dtype)
    places[leaf].file.read_into(places[leaf].offset, flat)
    return np.lib.stride_tricks.as_strided(
      flat, spec.shape, [s * spec.dtype.itemsize for s in strides]
    )

  return ranges.with_whole_leaves(found, path, strided, whole)
