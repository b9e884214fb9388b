# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""PyTorch `.pt` and `.bin` zip files, read without torch.

The list of tensors in such a file is a pickle, which is a program. `unpickle`
interprets it without imports: it knows a dozen names, each bound to a harmless
function in this file, and refuses all others. Numbers are read by ranges.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.checkpoints.formats import (
  byte_ranges,
  npz,
  params_of_state,
  unpickle,
)
from soupjax.soups.core import crc32
from soupjax.soups.core.ingredient import Ingredient

_MAX_PICKLE = 64 << 20
_MAX_PARTS = 1_000_000
_MAX_DEPTH = 64
_MAX_AXES = 64
_MAX_EXPANDED = 1 << 30
_STORAGES = {
  "DoubleStorage": "float64",
  "FloatStorage": "float32",
  "HalfStorage": "float16",
  "BFloat16Storage": "bfloat16",
  "LongStorage": "int64",
  "IntStorage": "int32",
  "ShortStorage": "int16",
  "CharStorage": "int8",
  "ByteStorage": "uint8",
  "BoolStorage": "bool",
  "UntypedStorage": "uint8",
}
_DTYPES = (
  "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 "
  "int64 int32 int16 int8 uint8 bool"
).split()
# Entries of a training checkpoint that may hold the weights.
_WEIGHTS = ("state_dict", "model_state_dict", "model", "module", "params")


class _Kind(NamedTuple):
  """The dtype of a storage or a tensor."""

  dtype: np.dtype


class _Storage(NamedTuple):
  """A member of the archive."""

  key: str
  dtype: np.dtype


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int  # In elements, like the strides.
  shape: tuple[int, ...]
  strides: tuple[int, ...]
  dtype: np.dtype


def _v2(storage, offset, shape, strides, grad=None, hooks=None, metadata=None):
  if type(storage) is not _Storage:
    raise unpickle.refused("a tensor has no storage")
  dtype = storage.dtype
  return _v3(storage, offset, shape, strides, grad, hooks, dtype, metadata)


def _v3(storage, offset, shape, strides, grad, hooks, dtype, metadata=None):
  del grad, hooks
  dtype = dtype.dtype if type(dtype) is _Kind else dtype
  if type(storage) is not _Storage or not isinstance(dtype, np.dtype):
    raise unpickle.refused("a tensor has no storage or no dtype")
  if not (
    type(shape) is type(strides) is tuple
    and (len(shape) == len(strides) <= _MAX_AXES)
  ):
    raise unpickle.refused("a tensor has no shape or too many axes")
  numbers = [offset, *shape, *strides]
  if not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
    raise unpickle.refused("a tensor has an invalid shape, offset or stride")
  if metadata:
    # Negative and conjugate views differ from the numbers in the file.
    kinds = sorted(map(str, metadata)) if type(metadata) is dict else "metadata"
    raise unpickle.refused(
      f"a tensor is a lazy view ({kinds!s:.80}), which differs from the stored "
      "numbers. Save its .resolve_neg().resolve_conj()"
    )
  return _Tensor(storage, offset, shape, strides, dtype)


def _parameter(data, *rest):
  del rest
  return data


def _ignored(*arguments):
  """Replaces settings and metrics that training scripts save."""
  del arguments


def _size(shape=()):
  if type(shape) is not tuple:
    raise unpickle.refused("a size is not a tuple")
  return shape


_FUNCTIONS = {
  ("collections", "OrderedDict"): lambda: {},
  ("torch._utils", "_rebuild_tensor"): _v2,
  ("torch._utils", "_rebuild_tensor_v2"): _v2,
  ("torch._utils", "_rebuild_tensor_v3"): _v3,
  ("torch._utils", "_rebuild_parameter"): _parameter,
  ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
  ("torch", "Size"): _size,
  ("torch", "device"): _ignored,
  # Command lines and metrics, such as those in checkpoints of timm.
  ("argparse", "Namespace"): _ignored,
  **{
    (module, kind): _ignored
    for module in ("pathlib", "pathlib._local")
    for kind in ("PosixPath", "PurePosixPath", "WindowsPath")
  },
  ("numpy", "dtype"): _ignored,
  ("numpy.core.multiarray", "scalar"): _ignored,
  ("numpy._core.multiarray", "scalar"): _ignored,
  ("_codecs", "encode"): _ignored,
}
_ALLOWED: Mapping[tuple[str, str], Any] = {
  **{name: unpickle.Function(call) for name, call in _FUNCTIONS.items()},
  **{
    ("torch", name): _Kind(jnp.dtype(dtype))
    for name, dtype in [*_STORAGES.items(), *zip(_DTYPES, _DTYPES)]
  },
  ("torch.storage", "UntypedStorage"): _Kind(np.dtype(np.uint8)),
}


def _storage(pid: Any) -> _Storage:
  """Interprets a reference to a member of the archive."""
  if type(pid) is tuple and len(pid) == 5 and pid[0] == "storage":
    _, kind, key, _, _ = pid
    if type(kind) is _Kind and type(key) is str:
      return _Storage(key, kind.dtype)
  raise unpickle.refused("it refers to something that is not a storage")


def _read_list(
  file: byte_ranges.ByteFile,
) -> tuple[dict[str, _Tensor], str, dict[str, zipfile.ZipInfo]]:
  """Returns the tensors, and the prefix and members of the archive."""
  path = file.path
  with npz.open_archive(file) as archive:
    infos = {info.filename: info for info in archive.infolist()}
    lists = [name for name in infos if _is_list(name)]
    if len(lists) != 1:
      raise npz.bad(path, f"it has {len(lists)} lists of tensors (data.pkl)")
    info = infos[lists[0]]
    if info.file_size > _MAX_PICKLE:
      raise npz.bad(path, f"its data.pkl has {info.file_size} bytes")
    prefix = lists[0].removesuffix("data.pkl")
    order = infos.get(prefix + "byteorder")
    if order and npz.inflate(archive, path, order, 16) != b"little":
      raise ValueError(f"{path} is big-endian: save it on another machine.")
    data = npz.inflate(archive, path, info)
  try:
    tensors = _weights(path, unpickle.interpret(data, _ALLOWED, _storage))
    return tensors, prefix, infos
  except Exception as e:  # A hostile pickle can raise anything.
    raise ValueError(
      f"{path} is refused: {e}. Only tensors in dicts and lists are read, and "
      "code in a file is never run. Save its state_dict() again or convert it "
      "to safetensors."
    ) from e


def _weights(path: str, content: Any) -> dict[str, _Tensor]:
  """Names the tensors of the weights in a train state, or else all tensors."""
  for key in _WEIGHTS:
    if type(content) is dict and type(content.get(key)) is dict:
      rest = _named({k: part for k, part in content.items() if k != key})
      rest = dict.fromkeys(name.split("/")[0] for name in rest)
      params_of_state.warn_of_rest(path, [key], rest)
      return _named(content[key])
  return _named(content)


def _named(content: Any) -> dict[str, _Tensor]:
  """Names all tensors in nested containers."""
  if type(content) not in (dict, list, tuple, _Tensor):
    return {}
  tensors: dict[str, _Tensor] = {}
  stack, parts, characters = [("", content, 0)], 0, 0
  while stack:
    name, value, depth = stack.pop()
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
        stack.append((f"{name}/{key}" if name else str(key), part, depth + 1))
        characters += len(stack[-1][0])
      if max(parts, characters // 100) > _MAX_PARTS:
        raise unpickle.refused(f"it has more than {_MAX_PARTS} parts")
  return tensors


def _is_list(member: str) -> bool:
  return member.rsplit("/", 1)[-1] == "data.pkl"


def is_torch(members: Sequence[str]) -> bool:
  """Whether a zip file with these members has a list of tensors."""
  return any(map(_is_list, members))


def record(path: str) -> dict[str, Any]:
  """Returns {}: soupjax writes no torch files."""
  del path
  return {}


def open_checkpoint(path: str, name: str) -> Ingredient:
  """Opens a file lazily: reads its list of tensors, but no numbers.

  Args:
    path: of the file.
    name: of the ingredient.

  Returns:
    The ingredient. A training checkpoint is cut to its weights, such as its
    entry `state_dict` or `model`.

  Raises:
    ValueError: if it calls unknown code, is damaged, or holds no tensors.
  """
  file = byte_ranges.ByteFile(path)
  tensors, prefix, infos = _read_list(file)
  specs, places, checksums, strided = {}, {}, {}, {}
  # Leaves that are parts of a storage, and the storage that a leaf covers.
  parts: dict[str, dict[int, tuple[str, int]]] = {}
  covered: dict[str, zipfile.ZipInfo] = {}
  for leaf, tensor in tensors.items():
    specs[leaf] = jax.ShapeDtypeStruct(tensor.shape, tensor.dtype)
    info = infos.get(f"{prefix}data/{tensor.storage.key}")
    if info is None:
      raise npz.bad(path, f"the numbers of {leaf!r} are missing")
    if info.compress_type != zipfile.ZIP_STORED:
      raise npz.bad(path, f"the numbers of {leaf!r} are compressed")
    item, count = tensor.dtype.itemsize, specs[leaf].size
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides)) + 1
    if count and (tensor.offset + reach) * item > info.file_size:
      raise npz.bad(
        path,
        f"{leaf!r} ends at byte {(tensor.offset + reach) * item} of its "
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
    row_major = _is_row_major(tensor.shape, tensor.strides)
    if not row_major and count > 1:
      strided[leaf] = (tensor.strides, reach)
      if reach * item == info.file_size:
        covered[leaf] = info
    elif count * item == info.file_size:
      checksums[leaf] = info.CRC
    elif count:
      views = parts.setdefault(info.filename, {})
      views.setdefault(tensor.offset * item, (leaf, count * item))

  def read_whole(leaf):
    strides, reach = strided[leaf]
    flat = np.empty(reach, specs[leaf].dtype)
    places[leaf].file.read_into(places[leaf].offset, flat)
    if leaf in covered:
      crc32.check(path, leaf, crc32.crc32(flat), covered[leaf].CRC)
    return np.lib.stride_tricks.as_strided(
      flat, specs[leaf].shape, [s * flat.itemsize for s in strides]
    )

  ingredient = byte_ranges.ingredient(
    name,
    path,
    specs,
    places,
    checksums=checksums,
    shared=_shared(parts, infos),
  )
  if strided:
    return byte_ranges.with_whole_leaves(
      ingredient, path, strided, read_whole, self_checked=covered
    )
  return ingredient


def _shared(parts, infos) -> list[crc32.Shared]:
  """Returns the checksums of storages that leaves cover without overlap."""
  shared = []
  for member, views in parts.items():
    end, sizes = 0, {}
    for start, (leaf, num_bytes) in sorted(views.items()):
      if start != end:
        break
      sizes[leaf] = num_bytes
      end += num_bytes
    if len(sizes) == len(views) and end == infos[member].file_size:
      shared.append(crc32.Shared(infos[member].CRC, sizes))
  return shared


def _is_row_major(shape, strides) -> bool:
  step = 1
  for n, stride in zip(reversed(shape), reversed(strides)):
    # The strides of axes of length 1 do not matter.
    if n > 1 and stride != step:
      return False
    step *= n
  return True
