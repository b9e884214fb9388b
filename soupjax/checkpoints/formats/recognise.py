# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Recognises the format of a checkpoint by its content."""

import os
import pathlib
import types

from soupjax.checkpoints.formats import byte_ranges, npz, safetensors, torch

# The weights in a directory that transformers or timm saved.
TORCH_FILE = "pytorch_model.bin"


def absolute(path: str | os.PathLike) -> str:
  """Returns a local path without `~` and relative parts, a remote one as is."""
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
  if not place.exists():
    raise ValueError(f"There is no checkpoint at {path}.")
  if not place.is_dir():
    return path, _of_file(path)
  # Imported here because Orbax takes a second.
  from soupjax.checkpoints.formats import orbax

  for folder in (place, place / "params"):
    if orbax.is_orbax(folder):
      return str(folder), orbax
  if any(place.glob("*.safetensors*")):
    return path, safetensors
  if (place / TORCH_FILE).exists():
    return recognise(str(place / TORCH_FILE))
  raise ValueError(
    f"{path} is not a checkpoint: expected an Orbax directory, or a directory "
    f"that contains one in params/, safetensors or {TORCH_FILE}."
  )


def _of_file(path) -> types.ModuleType:
  if path.endswith(".index.json"):
    return safetensors
  file = byte_ranges.ByteFile(path)
  magic = file.read(0, min(4, file.size))
  # The second one starts an archive without members.
  if magic in (b"PK\x03\x04", b"PK\x05\x06"):
    return torch if torch.is_torch(path) else npz
  if safetensors.is_safetensors(path):
    return safetensors
  if magic[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04"):
    raise ValueError(
      f"{path} is a pickle, the format of torch before version 1.6. Pickles "
      "are programs and are not run: save it again with a newer torch or "
      "convert it to safetensors."
    )
  raise ValueError(
    f"{path} is not a checkpoint: expected a safetensors, npz or torch zip "
    "file, or an Orbax directory. It may have been cut short."
  )
