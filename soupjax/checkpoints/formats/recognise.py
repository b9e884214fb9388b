# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Recognises the format of a checkpoint by its content."""

from collections.abc import Callable
import os
import pathlib

from soupjax.checkpoints.formats import byte_ranges, npz, safetensors, torch
from soupjax.soups.core.ingredient import Ingredient

# The weights of a folder as transformers and timm save it.
TORCH_FILE = "pytorch_model.bin"


def absolute(path: str | os.PathLike) -> str:
  """Returns a path without `~` and relative parts; addresses as they are."""
  path = os.fspath(path)
  if byte_ranges.is_remote(path):
    return path
  return os.path.abspath(os.path.expanduser(path))


def recognise(path: str) -> tuple[str, Callable[[str, str], Ingredient]]:
  """Finds out what is at a path: the checkpoint itself, and what opens it.

  Raises:
    ValueError: if there is nothing, or nothing that is understood.
  """
  place = (
    byte_ranges.remote_path(path)
    if byte_ranges.is_remote(path)
    else (pathlib.Path(path))
  )
  if not place.exists():
    raise ValueError(f"There is no checkpoint at {path}.")
  if not place.is_dir():
    if path.endswith(".index.json"):
      return path, safetensors.open_checkpoint
    with place.open("rb") as f:
      magic = f.read(4)
    # An archive without members begins with its end.
    if magic in (b"PK\x03\x04", b"PK\x05\x06"):
      kind = torch if torch.is_torch(path) else npz
      return path, kind.open_checkpoint
    if safetensors.is_safetensors(path):
      return path, safetensors.open_checkpoint
    if magic[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04"):
      raise ValueError(
        f"{path} is a pickle, such as torch wrote before version 1.6. Pickles "
        "are programs and are not run: save it again with a newer torch, or "
        "convert it to safetensors."
      )
    raise ValueError(
      f"{path} is no checkpoint: expected a safetensors, npz or torch zip "
      "file, or an Orbax directory. It may have been cut short."
    )
  # Orbax takes a second to import: only where it is needed.
  from soupjax.checkpoints.formats import orbax

  inner = place / "params"
  for one in (place, inner):
    if orbax.is_orbax(one):
      return str(one), orbax.open_checkpoint
  if any(place.glob("*.safetensors*")):
    return path, safetensors.open_checkpoint
  if (place / TORCH_FILE).exists():  # As transformers and timm save a folder.
    return recognise(str(place / TORCH_FILE))
  raise ValueError(
    f"{path} is no checkpoint: expected an Orbax directory, or a directory "
    f"with one in params/, or with safetensors or {TORCH_FILE} in it."
  )
