# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""PyTorch `.pt` and `.bin` zip files, without torch and without running them.

The list of tensors in such a file is a pickle, which is a program. It is
followed by `program`, which knows a dozen names, each bound to a harmless
function of our own, and imports nothing: any other name is refused. The numbers
are read by ranges.
"""

from collections.abc import Mapping
import math
from typing import Any, NamedTuple
import zipfile

import jax
import ml_dtypes
import numpy as np

from soupjax.checkpoints.formats import (
  byte_ranges,
  npz,
  params_of_state,
  unpickle,
)
from soupjax.soups.core.ingredient import Ingredient

_MAX_PROGRAM = 64 << 20
_MAX_PARTS = 1_000_000
_MAX_DEPTH = 64
_MAX_AXES = 64
_MAX_EXPANDED = 1 << 30
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


class _Kind(NamedTuple):
  """The dtype of a storage or a tensor."""

  dtype: np.dtype


class _Bytes(NamedTuple):
  """A storage: a member of the archive."""

  key: str
  dtype: np.dtype


class _Tensor(NamedTuple):
  storage: _Bytes
  offset: int  # In elements, as the strides.
  shape: tuple[int, ...]
  strides: tuple[int, ...]
  dtype: np.dtype


def _v1(storage, offset, shape, strides):
  if type(storage) is not _Bytes:
    raise unpickle.refused("a tensor has no storage")
  return _v3(storage, offset, shape, strides, False, None, storage.dtype)


def _v2(storage, offset, shape, strides, grad, hooks, metadata=None):
  if type(storage) is not _Bytes:
    raise unpickle.refused("a tensor has no storage")
  dtype = storage.dtype
  return _v3(storage, offset, shape, strides, grad, hooks, dtype, metadata)


def _v3(storage, offset, shape, strides, grad, hooks, dtype, metadata=None):
  del grad, hooks
  dtype = dtype.dtype if type(dtype) is _Kind else dtype
  if type(storage) is not _Bytes or not isinstance(dtype, np.dtype):
    raise unpickle.refused("a tensor has no storage or no dtype")
  if not (
    type(shape) is type(strides) is tuple
    and (len(shape) == len(strides) <= _MAX_AXES)
  ):
    raise unpickle.refused("a tensor has no shape, or too many axes")
  numbers = [offset, *shape, *strides]
  if not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
    raise unpickle.refused("a tensor has no sound shape or place")
  if metadata:
    # Negative and conjugate views: the numbers in the file are not theirs.
    kinds = sorted(map(str, metadata)) if type(metadata) is dict else "metadata"
    raise unpickle.refused(
      f"a tensor is a lazy view ({kinds!s:.80}), whose numbers are not those "
      "in the file. Save its .resolve_neg().resolve_conj()"
    )
  return _Tensor(storage, offset, shape, strides, dtype)


def _parameter(data, *rest):
  del rest
  return data


def _setting(*arguments):
  """Stands for what training scripts save beside weights: nothing is kept."""
  del arguments


def _size(shape=()):
  if type(shape) is not tuple:
    raise unpickle.refused("a size is no tuple")
  return shape


_ALLOWED: Mapping[tuple[str, str], Any] = {
  ("collections", "OrderedDict"): unpickle.Function(lambda: {}),
  ("torch._utils", "_rebuild_tensor"): unpickle.Function(_v1),
  ("torch._utils", "_rebuild_tensor_v2"): unpickle.Function(_v2),
  ("torch._utils", "_rebuild_tensor_v3"): unpickle.Function(_v3),
  ("torch._utils", "_rebuild_parameter"): unpickle.Function(_parameter),
  ("torch._utils", "_rebuild_parameter_with_state"): unpickle.Function(
    _parameter
  ),
  ("torch", "Size"): unpickle.Function(_size),
  ("torch", "device"): unpickle.Function(_setting),
  # Command lines and metrics, as timm's and many others' checkpoints have.
  ("argparse", "Namespace"): unpickle.Function(_setting),
  **{
    (module, kind): unpickle.Function(_setting)
    for module in ("pathlib", "pathlib._local")
    for kind in ("PosixPath", "PurePosixPath", "WindowsPath")
  },
  ("numpy", "dtype"): unpickle.Function(_setting),
  ("numpy.core.multiarray", "scalar"): unpickle.Function(_setting),
  ("numpy._core.multiarray", "scalar"): unpickle.Function(_setting),
  ("_codecs", "encode"): unpickle.Function(_setting),
  **{("torch", k): _Kind(np.dtype(v)) for k, v in _STORAGES.items()},
  ("torch.storage", "UntypedStorage"): _Kind(np.dtype(np.uint8)),
  **{("torch", k): _Kind(np.dtype(v)) for k, v in _DTYPES.items()},
}


def _storage(pid: Any) -> _Bytes:
  """Understands a reference to a member of the archive."""
  if type(pid) is tuple and len(pid) == 5 and pid[0] == "storage":
    _, kind, key, _, _ = pid
    if type(kind) is _Kind and type(key) is str:
      return _Bytes(key, kind.dtype)
  raise unpickle.refused("it refers to something that is no storage")


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
    if order is not None and (
      npz.inflate(archive, path, order, 16) != b"little"
    ):
      raise ValueError(f"{path} is big-endian: save it on another machine.")
    data = npz.inflate(archive, path, info)
  try:
    tensors = _weights(path, unpickle.follow(data, _ALLOWED, _storage))
    return tensors, prefix, infos
  except Exception as e:  # A hostile program can raise anything.
    raise ValueError(
      f"{path} is refused: {e}. Only tensors in dicts and lists are read, and "
      "nothing in a file is ever run. Save its state_dict() again, or convert "
      "it to safetensors."
    ) from e


def _weights(path: str, found: Any) -> dict[str, _Tensor]:
  """Names the tensors of a train state's weights, or all if it is none."""
  for key in _WEIGHTS:
    if type(found) is dict and type(found.get(key)) is dict:
      others = _named({k: part for k, part in found.items() if k != key})
      others = dict.fromkeys(name.split("/")[0] for name in others)
      params_of_state.warn_of_others(path, [key], others)
      return _named(found[key])
  return _named(found)


def _named(found: Any) -> dict[str, _Tensor]:
  """Names all tensors in containers."""
  if type(found) not in (dict, list, tuple, _Tensor):
    return {}
  tensors: dict[str, _Tensor] = {}
  waiting, parts, characters = [("", found, 0)], 0, 0
  while waiting:
    name, value, depth = waiting.pop()
    if type(value) is _Tensor:
      if name in tensors:
        raise unpickle.refused(f"it has two tensors called {name!r:.80}")
      tensors[name] = value
      continue
    if depth > _MAX_DEPTH:
      raise unpickle.refused(
        f"{name:.40}... is more than {_MAX_DEPTH} levels deep, or a container "
        "holds itself"
      )
    items = value if type(value) is dict else dict(enumerate(value))
    parts += len(items)
    for key, part in reversed(items.items()):
      if type(part) in (dict, list, tuple, _Tensor):
        waiting.append((f"{name}/{key}" if name else str(key), part, depth + 1))
        characters += len(waiting[-1][0])
      if max(parts, characters // 100) > _MAX_PARTS:
        raise unpickle.refused(f"it has more than {_MAX_PARTS} parts")
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
  file = byte_ranges.ByteFile(path)
  specs, places, sums, strided = {}, {}, {}, {}
  for leaf, tensor in tensors.items():
    specs[leaf] = jax.ShapeDtypeStruct(tensor.shape, tensor.dtype)
    info = infos.get(f"{prefix}data/{tensor.storage.key}")
    if info is None:
      raise npz.bad(path, f"the numbers of {leaf!r} are missing")
    if info.compress_type != zipfile.ZIP_STORED:
      raise npz.bad(path, f"the numbers of {leaf!r} are compressed")
    item, count = tensor.dtype.itemsize, math.prod(tensor.shape)
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides)) + 1
    if count and (tensor.offset + reach) * item > info.file_size:
      raise npz.bad(
        path,
        f"{leaf!r} reaches byte {(tensor.offset + reach) * item} of its "
        f"{info.file_size}",
      )
    if count > 2 * reach and count * item > _MAX_EXPANDED:
      raise npz.bad(
        path,
        f"{leaf!r} is an expanded view, which repeats {reach} numbers to "
        f"{count * item} bytes (at most {_MAX_EXPANDED}): save its .clone()",
      )
    start = npz.data_offset(file, info) + tensor.offset * item
    places[leaf] = byte_ranges.Place(file, start)
    if tensor.strides != _row_major(tensor.shape) and count > 1:
      strided[leaf] = (tensor.strides, reach)
    elif count * item == info.file_size:
      sums[leaf] = info.CRC
  result = byte_ranges.ingredient(name, path, specs, places, checksums=sums)
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

  return byte_ranges.with_whole_leaves(found, path, strided, whole)
