# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Recognises the format of a checkpoint by its content."""

from collections.abc import Sequence
import os
import pathlib
import re
import types

from soupjax.checkpoints.formats import byte_ranges, npz, safetensors, torch
from soupjax.checkpoints.formats.foreign import dcp, msgpack, onnx

# The weights in a directory that transformers or timm saved.
TORCH_FILE = "pytorch_model.bin"
_INDEX = ".safetensors.index.json"
# Bytes at the start of a file, enough to recognise its kind.
_HEAD_BYTES = 512

_CONVERT = (
  "Load it with the library that wrote it, and save the weights as safetensors "
  "or npz"
)
_UNPACK = "Unpack it first"
_AGAIN = "Copy or download it again"
_PICKLE = (
  "Pickles are programs and are not run. Load it where you trust it, and save "
  "the weights as safetensors or npz"
)
# (offset, bytes, description, fix); the first that matches is used.
_MAGIC = (
  (
    0,
    b"version https://git-lfs",
    "a Git LFS pointer, which stands for the file",
    "Run `git lfs pull` in its repository, or download the file itself",
  ),
  (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, TensorFlow)", _CONVERT),
  (0, b"\x1f\x8b", "compressed with gzip", _UNPACK),
  (0, b"BZh", "compressed with bzip2", _UNPACK),
  (0, b"\xfd7zXZ\x00", "compressed with xz", _UNPACK),
  (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
  (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
  (0, b"Rar!", "a RAR archive", _UNPACK),
  (
    257,
    b"ustar",
    "a tar archive, which torch also wrote before version 0.4",
    "Unpack it, or load it with torch and save its state_dict() again",
  ),
  (
    0,
    b"GGUF",
    "a GGUF file, with quantised weights",
    "Take the checkpoint that it was made from",
  ),
  (0, b"\x93NUMPY", "a single NumPy array", "Save arrays with numpy.savez"),
  (4, b"TFL3", "a TensorFlow Lite model", "Take the original checkpoint"),
  (0, b"PAR1", "a Parquet table", "Give the path of the weights"),
  (0, b"\x89PNG", "a PNG image", "Give the path of the weights"),
  (0, b"\xff\xd8\xff", "a JPEG image", "Give the path of the weights"),
  (0, b"%PDF", "a PDF document", "Give the path of the weights"),
  (
    0,
    b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
    "a pickle, the format of torch before version 1.6",
    "Pickles are programs and are not run. Save it again with a newer torch or "
    "convert it to safetensors",
  ),
)
# Suffix -> description, for formats without magic bytes.
_SUFFIXES = {
  ".onnx": "not a valid ONNX graph",
  ".pb": "a TensorFlow graph",
  ".h5": "an HDF5 file (Keras, TensorFlow)",
  ".keras": "a Keras archive",
  ".gguf": "a GGUF file",
  ".index": "part of a TensorFlow checkpoint",
  ".joblib": "a pickle",
}
_TF_SHARD = re.compile(r"\.data-\d+-of-\d+$")


def absolute(path: str | os.PathLike) -> str:
  """Returns a local path made absolute, or a remote one unchanged."""
  path = os.fspath(path)
  if byte_ranges.is_remote(path):
    return path
  return os.path.abspath(os.path.expanduser(path))


def recognise(path: str) -> tuple[str, types.ModuleType]:
  """Returns the path of the checkpoint itself and the module of its format.

  Such a module has the functions `open_checkpoint` and `record`.

  Raises:
    ValueError: if the path does not exist or its format is unknown.
  """
  remote = byte_ranges.is_remote(path)
  place = byte_ranges.remote_path(path) if remote else pathlib.Path(path)
  try:
    exists = place.exists()
  except OSError as e:  # Such as a name that is too long.
    raise ValueError(
      f"There is no checkpoint at {path}: {e.strerror or e}."
    ) from e
  if not exists:
    if not remote and os.path.exists(f"{path}.index"):
      raise ValueError(_explain_file(f"{path}.index", b"?"))
    raise ValueError(f"There is no checkpoint at {path}.")
  if not place.is_dir():
    return path, _of_file(path)
  # Imported here because importing Orbax takes a second.
  from soupjax.checkpoints.formats import orbax

  for folder in (place, place / "params"):
    if orbax.is_orbax(folder):
      return str(folder), orbax
  names = sorted(entry.name for entry in place.iterdir())
  if dcp.is_dcp(names):
    return path, dcp
  if any(name.endswith((".safetensors", _INDEX)) for name in names):
    return path, safetensors
  if any(name.endswith(msgpack.INDEX) for name in names):
    return path, msgpack
  if any(name.endswith(".index.json") for name in names):
    return path, torch
  models = safetensors.models_of(n for n in names if n.endswith(torch.SUFFIXES))
  safetensors.check_one_model(path, models)
  for first, shards in models.items():
    return (path, torch) if shards[1:] else recognise(str(place / first))
  models = safetensors.models_of(
    n for n in names if msgpack.is_name(n) or n.endswith(onnx.SUFFIX)
  )
  safetensors.check_one_model(path, models)
  for first, shards in models.items():
    return (path, msgpack) if shards[1:] else recognise(str(place / first))
  raise ValueError(_explain_directory(path, names))


def _of_shards(shards: Sequence[str]) -> types.ModuleType:
  for file_format, suffixes in (
    (torch, torch.SUFFIXES),
    (msgpack, msgpack.SUFFIX),
  ):
    if any(shard.endswith(suffixes) for shard in shards):
      return file_format
  return safetensors


def _of_file(path) -> types.ModuleType:
  if path.endswith(".index.json"):
    _, shards = safetensors.index_of(path)
    return _of_shards([*shards.values()])
  if path.endswith(dcp.SUFFIX):  # It would be opened as one of its tensors.
    raise ValueError(
      f"{path} is part of a checkpoint of torch.distributed.checkpoint: give "
      "the path of its directory, with the file .metadata."
    )
  file = byte_ranges.ByteFile(path)
  head = file.read(0, min(_HEAD_BYTES, file.size))
  # The second signature starts an archive without members.
  if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
    members = npz.members(file)
    if torch.is_torch(members):
      return torch
    if members and not any(name.endswith(".npy") for name in members):
      raise ValueError(_explain_archive(path, members))
    return npz
  if safetensors.is_safetensors(path):
    return safetensors
  if onnx.is_onnx(path, head):
    return onnx
  if msgpack.is_msgpack(head):
    return msgpack
  raise ValueError(_explain_file(path, head))


def _explain_file(path: str, head: bytes) -> str:
  """Returns an error message with the kind of a file and what to do.

  Args:
    path: path of the file.
    head: its first `_HEAD_BYTES`.
  """
  name = os.path.basename(path)
  for offset, magic, what, fix in _MAGIC:
    if head[offset:].startswith(magic):
      return f"{path} is {what}. {fix}."
  if not head:
    return f"{path} is empty. {_AGAIN}, or leave it out."
  if _TF_SHARD.search(name):
    return f"{path} is part of a TensorFlow checkpoint. {_CONVERT}."
  if re.match(rb"\x80[\x02-\x05]", head):
    return f"{path} is a pickle. {_PICKLE}."
  for suffix, what in _SUFFIXES.items():
    if name.endswith(suffix):
      return f"{path} is {what}. {_CONVERT}."
  if text := _text(head):
    if re.match(r"(<\?xml[^>]*>\s*)?<(!doctype )?html", text, re.IGNORECASE):
      return (
        f"{path} is a web page. The download failed, perhaps because it needs "
        "a login: download the file itself."
      )
    return (
      f"{path} is a text file that begins with "
      f"{text.splitlines()[0][:60]!r}. Give the path of the weights."
    )
  return (
    f"{path} is not a checkpoint: expected a safetensors, npz, torch zip or "
    "Flax file, or an Orbax directory, but it begins with the bytes "
    f"{head[:8]!r}. It may have been cut short or damaged."
  )


def _explain_archive(path: str, members: Sequence[str]) -> str:
  """Returns an error message about a zip file that contains no arrays."""
  if path.endswith(".keras") or "model.weights.h5" in members:
    return f"{path} is a Keras archive. {_CONVERT}."
  return (
    f"{path} is a zip archive of other files: {sorted(members)[:5]}. {_UNPACK}."
  )


def _explain_directory(path: str, entries: Sequence[str]) -> str:
  """Returns an error message about a directory without a readable checkpoint.

  Args:
    path: path of the directory.
    entries: names in it.
  """
  if "saved_model.pb" in entries:
    return f"{path} is a TensorFlow SavedModel. {_CONVERT}."
  if any(map(_TF_SHARD.search, entries)):
    return f"{path} contains a TensorFlow checkpoint. {_CONVERT}."
  if any(name.endswith(dcp.SUFFIX) for name in entries):
    return (
      f"{path} has files of torch.distributed.checkpoint, but not .metadata: "
      "copy it too."
    )
  foreign = [name for name in entries if name.endswith((*_SUFFIXES,))]
  if foreign:
    kind = _SUFFIXES[os.path.splitext(foreign[0])[1]]
    return (
      f"{path} contains {foreign[0]}, {kind}, but no checkpoint that can be "
      f"read. {_CONVERT}."
    )
  return (
    f"{path} is not a checkpoint: expected an Orbax directory, or a directory "
    "that contains one in params/, safetensors or pytorch_model.bin. It "
    + (f"contains {sorted(entries)[:10]}." if entries else "is empty.")
  )


def _text(head: bytes) -> str:
  """Returns the text at the start of a file, "" if it is binary."""
  for cut in range(4):  # The last character may be incomplete.
    try:
      text = head[: len(head) - cut].decode("utf-8-sig").strip()
    except UnicodeDecodeError:
      continue
    readable = all(c.isprintable() or c in "\r\n\t\f" for c in text)
    return text if readable else ""
  return ""
