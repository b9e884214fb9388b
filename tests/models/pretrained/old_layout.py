# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters as vision_transformer saved them until 2021 (AugReg)."""

import numpy as np

from soupjax.soups.core import tree

_THEN = {
  "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
  "LayerNorm_1": "LayerNorm_2",
  "MlpBlock_0": "MlpBlock_3",
}


def flat(params):
  """Leaves by name."""
  return {k: np.asarray(v) for k, v in tree.flatten(params)[0].items()}


def old_layout(params, class_position=0.5):
  """Names of that time, with a position of the class token."""
  result = {}
  for name, value in flat(params).items():
    if name.startswith("Transformer/encoderblock_"):
      top, block, layer, rest = name.split("/", 3)
      name = "/".join([top, block, _THEN.get(layer, layer), rest])
    result[name] = value
  table = result.pop("pos_embedding")
  position = np.full_like(table[:, :1], class_position)
  result["cls"] = result["cls"] - position
  result["Transformer/posembed_input/pos_embedding"] = np.concatenate(
    [position, table], axis=1
  )
  return result
