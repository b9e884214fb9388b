# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Recognises the format of a checkpoint by its content."""

import os
import pathlib
import types

from soupjax.checkpoints.formats import (
  byte_ranges,
  npz,
  safetensors,
  torch,
  unreadable,
)

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
    if not remote and os.path.exists(f"{path}.index"):
      raise ValueError(unreadable.of_file(f"{path}.index", b"?"))
    raise ValueError(f"There is no checkpoint at {path}.")
  if not place.is_dir():
    return path, _of_file(path, place)
  # Imported here because Orbax takes a second.
  from soupjax.checkpoints.formats import orbax

  for folder in (place, place / "params"):
    if orbax.is_orbax(folder):
      return str(folder), orbax
  if any(place.glob("*.safetensors*")):
    return path, safetensors
  if (place / TORCH_FILE).exists():
    return recognise(str(place / TORCH_FILE))
  names = [entry.name for entry in place.iterdir()]
  raise ValueError(unreadable.of_directory(path, names))


def _of_file(path, place) -> types.ModuleType:
  if path.endswith(".index.json"):
    return safetensors
  with place.open("rb") as f:
    head = f.read(unreadable.HEAD_BYTES)
  # The second one starts an archive without members.
  if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
    members = npz.members(path)
    if torch.is_torch(members):
      return torch
    if members and not any(name.endswith(".npy") for name in members):
      raise ValueError(unreadable.of_archive(path, members))
    return npz
  if safetensors.is_safetensors(path):
    return safetensors
  raise ValueError(unreadable.of_file(path, head))
