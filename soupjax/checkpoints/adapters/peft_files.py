# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes an adapter as a folder that PEFT reads."""

from collections.abc import Mapping
import os
import pathlib
from typing import Any

import numpy as np

from soupjax import buckets, files
from soupjax.checkpoints import save
from soupjax.checkpoints.adapters import peft_config

PREFIX = "base_model.model."
# Suffixes of single files of weights.
_FILES = frozenset((".safetensors", ".npz", ".pt", ".pth", ".bin"))


def check_local(path: str | os.PathLike) -> None:
  """Raises a ValueError if an adapter cannot be written to a path."""
  if buckets.is_remote(path):
    raise ValueError(
      f"{os.fspath(path)}: adapters are written to local disks. Choose a local "
      "path and copy what is written there."
    )


def check_new(path: str | os.PathLike) -> None:
  """Raises a ValueError if a path cannot become the folder of an adapter."""
  check_local(path)
  path = pathlib.Path(path).expanduser()
  if path.suffix in _FILES:
    raise ValueError(
      f"{path}: an adapter is a folder of several files. Choose a name without "
      f"{path.suffix}."
    )
  if os.path.lexists(path):
    raise ValueError(f"{path} exists already: delete it, or choose another.")


def write(
  path: str | os.PathLike,
  leaves: Mapping[str, np.ndarray],
  config: Mapping[str, Any],
  metadata: Mapping[str, Any] | None = None,
  **sidecars: Any,
) -> None:
  """Writes an adapter, whole or not at all.

  Args:
    path: path of a new folder.
    leaves: name -> array, with the names of PEFT.
    config: content of `adapter_config.json`.
    metadata: JSON to store with the weights.
    **sidecars: `name=value` is written to `name.json` beside them.

  Raises:
    ValueError: if `path` exists or cannot be written.
  """
  check_local(path)
  with files.new_directory(pathlib.Path(path)) as directory:
    save.write(
      directory / peft_config.WEIGHTS[0],
      dict(leaves),
      metadata,
      text={"format": "pt"},
    )
    files.write_json(directory / peft_config.CONFIG, dict(config))
    for name, value in sidecars.items():
      files.write_json(directory / f"{name}.json", value)
