# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Parameter names of text towers: one table per family of image towers.

Our names here are those of `models.Text`, but with the image tower's names for
blocks (`tree_name` converts them), and "t" and "b".
"""

from soupjax.models.pretrained import mappings, tables

BLOCK, QKV, Row = tables.BLOCK, tables.QKV, tables.Row
_ENCODER, _TEXT_ENCODER = "Transformer/", "Encoder_0/"


def tree_name(leaf: str) -> str:
  """Converts a leaf name of the tables to that in parameters of `CLIP`."""
  if leaf in ("t", "b"):
    return leaf
  return f"txt/{leaf.replace(_ENCODER, _TEXT_ENCODER, 1)}"


def table_name(leaf: str) -> str:
  """Converts a leaf name in parameters of `CLIP` to that of the tables."""
  return leaf.removeprefix("txt/").replace(_TEXT_ENCODER, _ENCODER, 1)


def _big_vision() -> tuple[Row, ...]:
  shared = (_ENCODER, "MAPHead_0/", "head/", "proj/", "pos_embedding")
  leaves = (row.leaf for row in mappings.FAMILIES["big_vision"].rows)
  leaves = (
    "Embed_0/embedding",
    *filter(lambda k: k.startswith(shared), leaves),
  )
  return tuple(Row(k, (tree_name(k),)) for k in (*leaves, "t", "b"))


def _transformers(*head: Row) -> tuple[Row, ...]:
  embeddings, layer = "text_model.embeddings", "text_model.encoder.layers.{i}."
  attention = f"{layer}self_attn."
  return (
    Row("Embed_0/embedding", (f"{embeddings}.token_embedding.weight",)),
    Row("pos_embedding", (f"{embeddings}.position_embedding.weight",), "table"),
    *tables.block(
      tables.split(
        BLOCK, {name: (f"{attention}{name[0]}_proj.",) for name in QKV}
      ),
      out=(f"{attention}out_proj.",),
      norms=((f"{layer}layer_norm1.",), (f"{layer}layer_norm2.",)),
      mlp=((f"{layer}mlp.fc1.",), (f"{layer}mlp.fc2.",)),
    ),
    *tables.layer(
      "norm", "Transformer/encoder_norm", "text_model.final_layer_norm."
    ),
    *head,
  )


def _openclip() -> tuple[Row, ...]:
  """Returns the names of OpenCLIP's `CLIP`, then those of `CustomTextCLIP`."""

  def top(name):
    return (name, f"text.{name}")

  def block(name):
    return top(f"transformer.resblocks.{{i}}.{name}")

  return (
    Row("Embed_0/embedding", top("token_embedding.weight")),
    Row("pos_embedding", top("positional_embedding"), "table"),
    *tables.block(
      tables.fused(BLOCK, QKV, *block("attn.in_proj_")),
      out=block("attn.out_proj."),
      norms=(block("ln_1."), block("ln_2.")),
      mlp=(block("mlp.c_fc."), block("mlp.c_proj.")),
    ),
    *tables.layer("norm", "Transformer/encoder_norm", *top("ln_final.")),
    Row("proj/kernel", top("text_projection")),
    *tables.layer("dense", "head", *top("text_projection.")),
    *_scalars("scalar"),
  )


def _scalars(layout: str) -> tuple[Row, Row]:
  return Row("t", ("logit_scale",), layout), Row("b", ("logit_bias",), layout)


_CLIP = {"causal": True, "pool_type": "argmax"}
_LAST = {"causal": False, "pool_type": "last"}
_OPENCLIP = tables.Family(
  about="text towers of OpenAI's CLIP and of OpenCLIP",
  rows=_openclip(),
  model="CLIP",
  ignored={
    "buffer": r"^(text\.)?(attn_mask|input_resolution|context_length"
    r"|vocab_size)$"
  },
  options={**_CLIP, "act": "quick_gelu", "norm_eps": 1e-5},
  acts=("quick_gelu", "gelu_exact", "gelu"),
)
_POSITIONS = {"position numbers": r"\.position_ids$"}

# Family of the image tower -> table of the text tower.
FAMILIES = {
  "big_vision": tables.Family(
    about="text_transformer of big_vision and soupjax",
    rows=_big_vision(),
    model="CLIP",
    options={**_LAST, "act": "gelu", "norm_eps": 1e-6},
  ),
  "hf_clip": tables.Family(
    about="CLIPTextModel of transformers",
    rows=_transformers(
      Row("proj/kernel", ("text_projection.weight",), "dense"),
      *_scalars("scalar"),
    ),
    model="CLIP",
    ignored=_POSITIONS,
    options={**_CLIP, "act": "quick_gelu", "norm_eps": 1e-5},
    acts=("quick_gelu", "gelu_exact", "gelu"),
  ),
  "hf_siglip": tables.Family(
    about="SiglipTextModel of transformers",
    rows=_transformers(
      *tables.layer("dense", "head", "text_model.head."), *_scalars("same")
    ),
    model="CLIP",
    ignored=_POSITIONS,
    options={**_LAST, "act": "gelu", "norm_eps": 1e-6},
    acts=("gelu", "gelu_exact"),
  ),
  "openclip": _OPENCLIP,
  "timm": _OPENCLIP,
}
