# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Parameter names of MLP-Mixers, and options inferred from leaves."""

from typing import Any

from soupjax.models.pretrained import tables

FIRST_NORM = "MixerBlock_{i}/LayerNorm_0/scale"
# Our layers within and outside blocks -> kind and name in timm.
_BLOCK = {
  "LayerNorm_0": ("norm", "norm1"),
  "LayerNorm_1": ("norm", "norm2"),
  "token_mixing/Dense_0": ("dense", "mlp_tokens.fc1"),
  "token_mixing/Dense_1": ("dense", "mlp_tokens.fc2"),
  "channel_mixing/Dense_0": ("dense", "mlp_channels.fc1"),
  "channel_mixing/Dense_1": ("dense", "mlp_channels.fc2"),
}
_TOP = {
  "stem": ("conv", "stem.proj"),
  "pre_head_layer_norm": ("norm", "norm"),
  "head": ("dense", "head"),
}
# Option -> leaf and axis that have this size.
_SIZES = {
  "patch_size": ("stem/kernel", 0),
  "width": ("stem/kernel", 3),
  "tokens_dim": ("MixerBlock_0/token_mixing/Dense_0/kernel", 1),
  "channels_dim": ("MixerBlock_0/channel_mixing/Dense_0/kernel", 1),
  "num_classes": ("head/kernel", 1),
}


def rows() -> tuple[tables.Row, ...]:
  """Returns our names, which are those of vision_transformer."""
  layers = {f"MixerBlock_{{i}}/{k}": kind for k, (kind, _) in _BLOCK.items()}
  layers |= {k: kind for k, (kind, _) in _TOP.items()}
  names = (
    f"{layer}/{part}"
    for layer, kind in layers.items()
    for part in ("scale" if kind == "norm" else "kernel", "bias")
  )
  return tables.same(*names)


def timm_rows() -> tuple[tables.Row, ...]:
  """Returns the names of `mixer_*` of timm."""
  result: tuple[tables.Row, ...] = ()
  for layer, (kind, name) in _BLOCK.items():
    ours, module = f"MixerBlock_{{i}}/{layer}", f"blocks.{{i}}.{name}."
    result += tables.layer(kind, ours, module)
  for layer, (kind, name) in _TOP.items():
    result += tables.layer(kind, layer, f"{name}.")
  return result


def measured(table: Any) -> dict[str, Any]:
  """Infers options of `models.Mixer` from names and shapes.

  Args:
    table: a `foreign.SourceTable`.
  """
  blocks = {k.split("/")[0] for k in table.leaves() if k.startswith("Mixer")}
  options = {"depth": len(blocks)}
  for option, (leaf, axis) in _SIZES.items():
    shape = table.shape(leaf)
    if shape and len(shape) > axis:
      options[option] = shape[axis]
  return options
