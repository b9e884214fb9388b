# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""PyTorch `.pt` and `.bin` zip files, read without torch.

The list of tensors in such a file is a pickle, which is a program. `unpickle`
interprets it without imports: it knows a few dozen names, each bound to a dtype
or a harmless function in this file. Objects of all other classes are skipped,
unless they are among the weights. Values are read as byte ranges.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
import re
from typing import Any, NamedTuple
import zipfile

import jax.numpy as jnp
import numpy as np

from soupjax.checkpoints.formats import (
  byte_ranges,
  leaf_digest,
  npz,
  params_of_state,
  safetensors,
  unpickle,
)
from soupjax.soups.core import crc32, tree
from soupjax.soups.core.ingredient import Ingredient

_MAX_PICKLE = 64 << 20
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
  "ComplexFloatStorage": "complex64",
  "ComplexDoubleStorage": "complex128",
  "UntypedStorage": "uint8",
}
_DTYPES = (
  "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 "
  "float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu complex64 complex128 "
  "int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool"
).split()
# The member with the record of soupjax, in files that it wrote.
RECORD = "soupjax.json"
# The shards of one model may have these suffixes.
SUFFIXES = (".bin", ".pt", ".pth")


# Kinds of objects that are never weights.
_PLAIN = re.compile(
  r"(frozen)?set|(__builtin__|builtins)\.(set|frozenset|complex|bytearray|"
  r"x?range|slice|object)|collections\.\w+|(datetime|decimal|fractions|uuid|"
  r"pathlib|argparse|omegaconf|numpy\.random)\..*|torch\.serialization\..*"
)


class Kind(NamedTuple):
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


class _Listing(NamedTuple):
  """The content of one file.

  Attributes:
    tensors: leaf -> tensor.
    prefix: the prefix of all member names.
    members: name -> member of the archive.
    ignored: other entries that may belong to the model -> reason.
    sealed: the record of soupjax and its digest, {} if another program wrote
      the file.
  """

  tensors: dict[str, _Tensor]
  prefix: str
  members: dict[str, zipfile.ZipInfo]
  ignored: dict[str, str]
  sealed: dict[str, Any]


def _v2(storage, offset, shape, strides, grad=None, hooks=None, metadata=None):
  dtype = getattr(storage, "dtype", None)
  return _v3(storage, offset, shape, strides, grad, hooks, dtype, metadata)


def _v3(storage, offset, shape, strides, grad, hooks, dtype, metadata=None):
  del grad, hooks
  if unpickle.Opaque in (type(storage), type(dtype)):
    return unpickle.Opaque("tensor of a quantised or unknown dtype")
  dtype = dtype.dtype if type(dtype) is Kind else dtype
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
    # Negative and conjugate views differ from the values in the file.
    kinds = sorted(map(str, metadata)) if type(metadata) is dict else "metadata"
    return unpickle.Opaque(
      f"lazy view ({kinds!s:.80}), which differs from the stored values: save "
      "its .resolve_neg().resolve_conj()"
    )
  return _Tensor(storage, offset, shape, strides, dtype)


def _parameter(data, *rest):
  del rest
  return data


def _of_subclass(function, kind, arguments, *state):
  """Makes a plain tensor from one of a subclass, with the same values."""
  del kind, state
  if type(function) is not unpickle.Function or type(arguments) is not tuple:
    raise unpickle.refused("a tensor is made by an unknown function")
  return function.call(*arguments)


def _setting(*arguments):
  """Stands in for settings and metrics that training scripts save."""
  del arguments
  return ""


def _size(shape=()):
  if type(shape) is not tuple:
    raise unpickle.refused("a size is not a tuple")
  return shape


_FUNCTIONS = {
  ("collections", "OrderedDict"): lambda: {},
  ("collections", "defaultdict"): lambda *factory: {},
  ("torch._utils", "_rebuild_tensor"): _v2,
  ("torch._utils", "_rebuild_tensor_v2"): _v2,
  ("torch._utils", "_rebuild_tensor_v3"): _v3,
  ("torch._utils", "_rebuild_parameter"): _parameter,
  ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
  ("torch._tensor", "_rebuild_from_type_v2"): _of_subclass,
  ("torch", "Size"): _size,
  ("torch", "device"): _setting,
  # Command lines and metrics, such as those in checkpoints of timm.
  ("argparse", "Namespace"): _setting,
  **{
    (module, kind): _setting
    for module in ("pathlib", "pathlib._local")
    for kind in ("PosixPath", "PurePosixPath", "WindowsPath")
  },
  ("numpy", "dtype"): _setting,
  ("numpy.core.multiarray", "scalar"): _setting,
  ("numpy._core.multiarray", "scalar"): _setting,
  ("_codecs", "encode"): _setting,
}
# Names that torch pickles may use.
ALLOWED: Mapping[tuple[str, str], Any] = {
  **{name: unpickle.Function(call) for name, call in _FUNCTIONS.items()},
  **{
    ("torch", name): Kind(jnp.dtype(dtype))
    for name, dtype in [*_STORAGES.items(), *zip(_DTYPES, _DTYPES)]
  },
  ("torch.storage", "UntypedStorage"): Kind(np.dtype(np.uint8)),
}


def _storage(pid: Any) -> _Storage | unpickle.Opaque:
  """Interprets a reference to a member of the archive."""
  if type(pid) is tuple and len(pid) == 5 and pid[0] == "storage":
    _, kind, key, _, _ = pid
    if type(kind) is Kind and type(key) is str:
      return _Storage(key, kind.dtype)
    if type(kind) is unpickle.Opaque:
      return kind
  raise unpickle.refused("it refers to something that is not a storage")


def listing_of(file: Any, entry: str | None) -> _Listing:
  """Reads the list of tensors in a file; see `params_of_state.choose`.

  Args:
    file: a `byte_ranges.ByteFile` or a `byte_ranges.Window`.
    entry: the model's entry in a train state.

  Raises:
    ValueError: if the file is damaged, holds no model or several, or has
      objects among the weights.
  """
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
    sealed = _sealed(archive, path, infos.get(prefix + RECORD))
  storages: list[Any] = []

  def reference(pid):
    storages.append(_storage(pid))
    return storages[-1]

  try:
    content = unpickle.interpret(data, ALLOWED, reference)
    tensors, opaque = unpickle.flatten(content, (_Tensor,))
    if not tensors:
      # A file with storages may be a model that was pickled as a whole.
      error = unpickle.refused if storages else params_of_state.NotAModel
      raise error(f"it holds no tensors in dicts{_kinds(opaque)}")
    try:
      choice = params_of_state.Choice()
      if not sealed:  # soupjax joins names by '/', which are split later.
        choice = _choose(path, content, tensors, entry)
    except params_of_state.NotAModel as e:
      if len(storages) <= len(tensors):
        raise
      # The values of some object cannot be reached: it may be the model.
      raise unpickle.refused(f"it holds no model{_kinds(opaque)}") from e
    inside = {k: o for k, o in opaque.items() if not k or choice.has(k)}
    depth = len(choice.prefix)
    extra = {k for k, o in inside.items() if k and _is_plain(k[depth:], o)}
    if objects := {k: o for k, o in inside.items() if k not in extra}:
      raise unpickle.refused(f"not all weights are tensors{_kinds(objects)}")
    ignored = {**choice.ignored, **_plain_values(content, choice, tensors)}
    ignored |= {
      "/".join(k[depth:]): "not a tensor"
      for k in extra
      if not params_of_state.is_training(k[depth])
    }
    return _Listing(_named(tensors, choice), prefix, infos, ignored, sealed)
  except Exception as e:  # A hostile pickle can raise anything.
    if str(e).startswith(path):
      raise
    kind = type(e) if isinstance(e, params_of_state.NotAModel) else ValueError
    raise kind(
      f"{path} is refused: {e}. Only tensors in dicts and lists are read, and "
      "code in a file is never run. Save its state_dict() again or convert it "
      "to safetensors."
    ) from e


def _sealed(archive, path, info) -> dict[str, Any]:
  """Returns the member that soupjax writes, {} without one."""
  if info is None:
    return {}
  if info.file_size > _MAX_PICKLE:
    raise npz.bad(path, f"its {RECORD} has {info.file_size} bytes")
  try:
    sealed = json.loads(npz.inflate(archive, path, info))
    if {*sealed} != {"soupjax", leaf_digest.KEY}:
      raise ValueError("its keys are wrong")
    return sealed
  except (ValueError, TypeError, RecursionError) as e:
    raise npz.bad(path, f"its {RECORD} is not valid ({e})") from e


def _kinds(opaque: Mapping[params_of_state.Keys, unpickle.Opaque]) -> str:
  """Describes objects of unknown classes."""
  kinds = [
    f"{'/'.join(k)!r:.80} is a {o.kind}" if k else f"it is a {o.kind}"
    for k, o in opaque.items()
  ]
  return f": {', '.join(kinds[:5])}" if kinds else ""


def _is_plain(keys, opaque) -> bool:
  """Whether an object among the weights does not belong to the model."""
  return (
    _PLAIN.fullmatch(opaque.kind) is not None
    or keys[-1].endswith("_extra_state")  # May be anything in torch.
    or params_of_state.is_training(keys[0])
  )


def _choose(path, content, tensors, entry) -> params_of_state.Choice:
  """Chooses the weights among the tensors of a file."""
  containers = {
    keys[:depth] for keys in tensors for depth in range(1, len(keys) + 1)
  }

  def plain(prefix):
    names = (str(key) for key, _ in unpickle.items_of(_inside(content, prefix)))
    return [name for name in names if (*prefix, name) not in containers]

  sizes = {keys: math.prod(t.shape) for keys, t in tensors.items()}
  return params_of_state.choose(path, sizes, entry=entry, plain=plain)


def _inside(content, prefix):
  """Returns the container at a path; its keys may be numbers."""
  for name in prefix:
    items = unpickle.items_of(content)
    content = next(value for key, value in items if str(key) == name)
  return content


def _plain_values(content, choice, tensors) -> dict[str, str]:
  """Returns the numbers and texts beside the tensors of a model."""
  weights, depth = _inside(content, choice.prefix), len(choice.prefix)
  has_tensors = any(choice.has(k) and len(k) == depth + 1 for k in tensors)
  if type(weights) is not dict or not has_tensors:
    return {}
  return {
    key: "not a tensor"
    for key, value in weights.items()
    if type(key) is str
    and type(value) in (int, float, bool, str, bytes)
    and not params_of_state.is_training(key)
  }


def _named(tensors, choice) -> dict[str, _Tensor]:
  """Names the tensors of the weights."""
  named: dict[str, _Tensor] = {}
  for keys, tensor in tensors.items():
    if choice.has(keys):
      leaf = "/".join(keys[len(choice.prefix) :])
      if leaf in named:
        raise unpickle.refused(f"it has two tensors called {leaf!r:.80}")
      named[leaf] = tensor
  return named


def _is_list(member: str) -> bool:
  return member.rsplit("/", 1)[-1] == "data.pkl"


def is_torch(members: Sequence[str]) -> bool:
  """Whether a zip file with these members has a list of tensors."""
  return any(map(_is_list, members))


def record(path: str) -> dict[str, Any]:
  """Returns the record that soupjax left in a file, {} if it left none."""
  if len(files_of(path)) > 1:  # soupjax writes no shards.
    return {}
  open_checkpoint(path, "")  # Compares the record with its digest.
  (file,) = files_of(path)
  return listing_of(byte_ranges.ByteFile(file), None).sealed.get("soupjax", {})


def kinds_of(dtype: Any) -> tuple[str, str | None]:
  """Returns the names of a storage and of a dtype in torch.

  The dtype is None if the storage determines it, which all versions of torch
  can read.

  Raises:
    KeyError: if torch lacks the dtype.
  """
  name = np.dtype(dtype).name
  for storage, stored in _STORAGES.items():
    if stored == name and storage != "UntypedStorage":
      return storage, None
  if name not in _DTYPES:
    raise KeyError(name)
  return "UntypedStorage", name


def files_of(path: str) -> list[str]:
  """Returns the files of a checkpoint; see `safetensors.files_of`."""
  return safetensors.files_of(path, SUFFIXES)


def open_checkpoint(
  path: str, name: str, entry: str | None = None
) -> Ingredient:
  """Opens a file, an index or a directory of shards lazily.

  Reads the lists of tensors, but no values.

  Args:
    path: path of a file, an index or a directory.
    name: name of the ingredient.
    entry: the model's entry in a train state; None follows the rule of
      `params_of_state`.

  Returns:
    The ingredient. A train state is reduced to its weights, such as its entry
    `state_dict` or `model`.

  Raises:
    ValueError: if objects are among the weights, or the file is damaged or
      holds no tensors or several models.
  """
  specs, places, checksums, strided, ignored = {}, {}, {}, {}, {}
  views, covered, others = _Views(), {}, {}
  sealed: dict[str, Any] = {}
  for shard in files_of(path):
    file = byte_ranges.ByteFile(shard)
    listing = listing_of(file, entry)
    ignored |= listing.ignored
    sealed |= listing.sealed
    for leaf, tensor in listing.tensors.items():
      if leaf in specs:
        raise ValueError(
          f"{path} has leaf {leaf!r} in two shards: "
          f"{places[leaf].file.path} and {shard}."
        )
      info = member_of(shard, listing, leaf, tensor)
      specs[leaf] = tree.shared_spec(tensor.shape, tensor.dtype)
      count, item = specs[leaf].size, tensor.dtype.itemsize
      start = npz.data_offset(file, info) + tensor.offset * item
      places[leaf] = byte_ranges.Place(file, start)
      row_major = is_row_major(tensor.shape, tensor.strides)
      if not row_major and count > 1:
        strided[leaf] = tensor
        if _reach(tensor) * item == info.file_size:
          covered[leaf] = info
      elif count * item == info.file_size:
        checksums[leaf] = info.CRC
      elif count:
        views.add(shard, info, tensor.offset * item, leaf, count * item)
  checksums |= leaf_digest.check(
    path, specs, sealed.get(leaf_digest.KEY), sealed.get("soupjax")
  )
  shards = ((leaf, place.file.path) for leaf, place in places.items())
  index = safetensors.check_index(path, shards, SUFFIXES)
  if index is not None:
    others[str(index)] = byte_ranges.identity(str(index))

  def read_whole(leaf):
    tensor = strided[leaf]
    flat = np.empty(_reach(tensor), tensor.dtype)
    places[leaf].file.read_into(places[leaf].offset, flat)
    if leaf in covered:
      crc32.check(path, leaf, crc32.crc32(flat), covered[leaf].CRC)
    strides = [s * flat.itemsize for s in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides)

  ingredient = dataclasses.replace(
    byte_ranges.ingredient(
      name,
      path,
      specs,
      places,
      checksums=checksums,
      shared=views.shared(),
      others=others,
    ),
    ignored=ignored,
  )
  if sealed:
    return params_of_state.of(ingredient, entry)
  if strided:
    return byte_ranges.with_whole_leaves(
      ingredient, path, strided, read_whole, self_checked=covered
    )
  return ingredient


def _reach(tensor: _Tensor) -> int:
  """Returns the elements of its storage that a tensor spans, gaps included."""
  steps = zip(tensor.shape, tensor.strides)
  return sum((n - 1) * stride for n, stride in steps) + 1


def member_of(path, listing, leaf, tensor) -> zipfile.ZipInfo:
  """Returns the member with the values of a tensor.

  Raises:
    ValueError: if it is missing, is compressed or does not contain the tensor,
      or if the tensor is an expanded view that is too large.
  """
  info = listing.members.get(f"{listing.prefix}data/{tensor.storage.key}")
  if info is None:
    raise npz.bad(path, f"the values of {leaf!r} are missing")
  if info.compress_type != zipfile.ZIP_STORED:
    raise npz.bad(path, f"the values of {leaf!r} are compressed")
  item, count = tensor.dtype.itemsize, math.prod(tensor.shape)
  reach = _reach(tensor)
  if count and (tensor.offset + reach) * item > info.file_size:
    raise npz.bad(
      path,
      f"{leaf!r} ends at byte {(tensor.offset + reach) * item} of a storage "
      f"with only {info.file_size} bytes",
    )
  if count > 2 * reach and count * item > _MAX_EXPANDED:
    raise npz.bad(
      path,
      f"{leaf!r} is an expanded view, which repeats {reach} values to "
      f"{count * item} bytes (at most {_MAX_EXPANDED}): save its .clone()",
    )
  return info


class _Views:
  """Leaves that are parts of storages."""

  def __init__(self):
    # File and member -> offset in bytes -> leaf and number of bytes.
    self._parts: dict[tuple[str, str], dict[int, tuple[str, int]]] = {}
    self._members: dict[tuple[str, str], zipfile.ZipInfo] = {}

  def add(self, path, member, offset, leaf, num_bytes):
    """Adds a leaf; of two with the same offset, the first counts."""
    key = path, member.filename
    self._members[key] = member
    self._parts.setdefault(key, {}).setdefault(offset, (leaf, num_bytes))

  def shared(self) -> list[crc32.Shared]:
    """Returns checksums of storages that leaves tile without overlap."""
    shared = []
    for key, parts in self._parts.items():
      end, sizes, member = 0, {}, self._members[key]
      for start, (leaf, num_bytes) in sorted(parts.items()):
        if start != end:
          break
        sizes[leaf] = num_bytes
        end += num_bytes
      if len(sizes) == len(parts) and end == member.file_size:
        shared.append(crc32.Shared(member.CRC, sizes))
    return shared


def is_row_major(shape: Sequence[int], strides: Sequence[int]) -> bool:
  """Whether the elements of a tensor are in row-major order without gaps."""
  step = 1
  for n, stride in zip(reversed(shape), reversed(strides)):
    # The strides of axes of length 1 do not matter.
    if n > 1 and stride != step:
      return False
    step *= n
  return True
