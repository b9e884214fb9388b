# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Parameter names of BiT's ResNets, and options inferred from leaves."""

import re
from typing import Any

from soupjax.models.pretrained import tables

FIRST_NORM = "block1/unit01/gn1/scale"
# The largest BiT has 36 units in a stage (152x4); ResNet-200 too.
_STAGES, _UNITS = 4, 48
# Our layers of a unit -> names in the original files and in timm.
_CONVS = {
  "conv1": ("a/standardized_conv2d", "conv1"),
  "conv2": ("b/standardized_conv2d", "conv2"),
  "conv3": ("c/standardized_conv2d", "conv3"),
  "conv_proj": ("a/proj/standardized_conv2d", "downsample.conv"),
}
_NORMS = {
  "gn1": ("a/group_norm", "norm1"),
  "gn2": ("b/group_norm", "norm2"),
  "gn3": ("c/group_norm", "norm3"),
}
_ROOT, _LAST_NORM, _HEAD = "root_block/conv_root", "norm-pre-head", "head"


def _units():
  """Yields our prefix of each unit, that of the original and that of timm."""
  for stage in range(_STAGES):
    for unit in range(_UNITS):
      ours = f"block{stage + 1}/unit{unit + 1:02d}/"
      yield ours, f"resnet/{ours}", f"stages.{stage}.blocks.{unit}."


def rows() -> tuple[tables.Row, ...]:
  """Returns our names, which are those of big_vision's bit_paper."""
  names = [f"{_ROOT}/kernel", *tables.weights(_HEAD)]
  norms = [_LAST_NORM]
  for unit, _, _ in _units():
    names += [f"{unit}{conv}/kernel" for conv in _CONVS]
    norms += [f"{unit}{norm}" for norm in _NORMS]
  return tables.same(*names, *tables.weights(*norms, weight="scale"))


def _norm(ours: str, scale: str, bias: str) -> tuple[tables.Row, ...]:
  return (
    tables.Row(f"{ours}/scale", (scale,), "channels"),
    tables.Row(f"{ours}/bias", (bias,), "channels"),
  )


def original_rows() -> tuple[tables.Row, ...]:
  """Returns the names of the files that were published with BiT."""
  root, norm = "resnet/root_block/standardized_conv2d/", "resnet/group_norm/"
  head = "resnet/head/conv2d/"
  result = (
    tables.Row(f"{_ROOT}/kernel", (f"{root}kernel",)),
    *_norm(_LAST_NORM, f"{norm}gamma", f"{norm}beta"),
    tables.Row(f"{_HEAD}/kernel", (f"{head}kernel",), "pixel_dense"),
    tables.Row(f"{_HEAD}/bias", (f"{head}bias",)),
  )
  for ours, unit, _ in _units():
    for layer, (name, _) in _CONVS.items():
      result += (
        tables.Row(f"{ours}{layer}/kernel", (f"{unit}{name}/kernel",)),
      )
    for layer, (name, _) in _NORMS.items():
      name = unit + name
      result += _norm(ours + layer, f"{name}/gamma", f"{name}/beta")
  return result


def timm_rows() -> tuple[tables.Row, ...]:
  """Returns the names of `resnetv2_*_bit` of timm."""
  head = "head.fc."
  result = (
    tables.Row(f"{_ROOT}/kernel", ("stem.conv.weight",), "conv"),
    *_norm(_LAST_NORM, "norm.weight", "norm.bias"),
    tables.Row(f"{_HEAD}/kernel", (f"{head}weight",), "dense_pixel"),
    tables.Row(f"{_HEAD}/bias", (f"{head}bias",)),
  )
  for ours, _, unit in _units():
    for layer, (_, name) in _CONVS.items():
      row = tables.Row(
        f"{ours}{layer}/kernel", (f"{unit}{name}.weight",), "conv"
      )
      result += (row,)
    for layer, (_, name) in _NORMS.items():
      name = unit + name
      result += _norm(ours + layer, f"{name}.weight", f"{name}.bias")
  return result


def measured(table: Any) -> dict[str, Any]:
  """Infers options of `models.ResNet` from names and shapes.

  Args:
    table: a `foreign.SourceTable`.
  """
  units: dict[int, set[str]] = {}
  for leaf in table.leaves():
    if unit := re.match(r"block(\d)/(unit\d+)/", leaf):
      units.setdefault(int(unit[1]), set()).add(unit[2])
  options: dict[str, Any] = {
    "depths": tuple(len(units[stage]) for stage in sorted(units))
  }
  for option, leaf, axis in (
    ("width", f"{_ROOT}/kernel", 3),
    ("num_classes", f"{_HEAD}/kernel", 1),
  ):
    shape = table.shape(leaf)
    if shape and len(shape) > axis:
      options[option] = shape[axis]
  return options
