# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Checks that an output can be read back with the same leaves and names."""

from collections.abc import Mapping

import jax

from soupjax.checkpoints.formats import byte_ranges, params_of_state
from soupjax.checkpoints.formats.recognise import recognise
from soupjax.soups.core import records

Specs = Mapping[str, jax.ShapeDtypeStruct]

# Bytes. No format stores longer names; typical names have about 100 bytes.
_MAX_NAME = 1 << 15


def check_names(path: str, specs: Specs) -> Specs:
  """Checks names of leaves before anything is written.

  Args:
    path: path of the output, for errors.
    specs: leaf -> shape and dtype.

  Returns:
    The leaves that a reader of the output will find: all of them, or only the
    weights if it will be read as a train state.

  Raises:
    ValueError: naming a leaf whose name is invalid or too long, or that no
      reader would find.
  """
  for leaf in specs:
    try:
      size = len(leaf.encode("utf-8"))
    except UnicodeEncodeError as e:
      raise ValueError(
        f"{path}: the leaf name {leaf!r} is not valid Unicode. Rename it."
      ) from e
    if size > _MAX_NAME:
      raise ValueError(
        f"{path}: the leaf name {leaf[:40]!r}... has {size} bytes, more than "
        f"{_MAX_NAME}. Shorten it."
      )
  written = byte_ranges.ingredient("", path, specs, {}, order=list(specs))
  try:
    read = params_of_state.of(written)
  except params_of_state.NotOneModel:  # A user can read it as PATH#ENTRY.
    return specs
  ignored = [k for k, why in read.ignored.items() if why != records.TRAINING]
  if ignored:
    raise ValueError(
      f"{path} would be read as a train state, without the leaves in "
      f"{ignored}. Rename these entries or 'params'."
    )
  return read.specs


def check_written(temporary: str, path: str, expected: Specs) -> None:
  """Checks that a complete output can be opened, before it is published.

  Args:
    temporary: path of the output while it is written.
    path: its final path, for errors.
    expected: the leaves to find, from `check_names`.

  Raises:
    ValueError: if the output cannot be opened, or naming a leaf that is
      missing, unexpected or different.
  """
  try:
    inner, file_format = recognise(temporary)
    try:
      stored = file_format.open_checkpoint(inner, "").specs
    except params_of_state.NotOneModel:
      stored = file_format.open_checkpoint(inner, "", "").specs
  except ValueError as e:
    raise ValueError(
      f"{path} was not published, since it could not be opened again: {e}"
    ) from e
  for leaf in [*expected, *(expected.keys() ^ stored.keys())]:
    a, b = expected.get(leaf), stored.get(leaf)
    if None not in (a, b) and (a.shape, a.dtype) == (b.shape, b.dtype):
      continue
    raise ValueError(
      f"{path} was not published, since leaf {leaf!r} would be read as "
      f"{stored.get(leaf)} instead of {expected.get(leaf)}. Rename it or "
      "choose another format."
    )
