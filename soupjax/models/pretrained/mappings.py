# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Parameter names of other libraries: one table per family of checkpoints.

A row has the name of one of our leaves, its names in the family, and the layout
of its array there. Tables are used in both directions:
`pretrained.load_pretrained` reads the first name that exists,
`pretrained.export` writes the first one. `{i}` is the number of a block.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple


class Layout(NamedTuple):
  """A change of layout in both directions.

  Attributes:
    read: `read(array, shape)` converts to our layout, with that shape.
    write: `write(array)` converts from our layout.
  """

  read: Callable[[Any, tuple[int, ...]], Any]
  write: Callable[[Any], Any]


LAYOUTS = {
  "same": Layout(lambda x, _: x, lambda x: x),
  # PyTorch's (out, in) and (out, in, height, width).
  "dense": Layout(lambda x, _: x.T, lambda x: x.T),
  "conv": Layout(
    lambda x, _: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
  ),
  # We have (width, heads, size) or (heads, size, width).
  "to_heads": Layout(
    lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(len(x), -1).T
  ),
  "from_heads": Layout(
    lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(-1, x.shape[-1]).T
  ),
  "flat": Layout(lambda x, shape: x.reshape(shape), lambda x: x.reshape(-1)),
  # Position embeddings without an axis for the batch.
  "table": Layout(lambda x, _: x[None], lambda x: x[0]),
  # One number, with or without an axis.
  "scalar": Layout(lambda x, shape: x.reshape(shape), lambda x: x.reshape(())),
}


class Row(NamedTuple):
  """One leaf.

  Attributes:
    leaf: our name.
    names: its names in the family; the first one is written.
    layout: a key of `LAYOUTS`.
    part: (k, n) if it is the k-th of n equal parts of an array, on axis 0.
  """

  leaf: str
  names: tuple[str, ...]
  layout: str = "same"
  part: tuple[int, int] = (0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """A kind of checkpoint.

  Attributes:
    about: libraries and models, for errors.
    rows: the table.
    model: name of our model class.
    prefixes: texts that may precede all names.
    class_position: whether the class token has a position embedding, the
      first: "always", "usually" or "seldom". Our ViT adds it to the token.
    ignored: name of a rule -> regular expression of leaves that are left out,
      by their names after the prefix or any part of it.
    not_heads: regular expression of linear layers that are not a head of the
      pooled features, despite their name.
    options: of `models.ViT`, for the same computation.
    acts: activations that models of this family have.
  """

  about: str
  rows: tuple[Row, ...]
  model: str = "ViT"
  prefixes: tuple[str, ...] = ("", "module.")
  class_position: str = "always"
  ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
  not_heads: str = r"^$"
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  acts: tuple[str, ...] = ("gelu",)


BLOCK = "Transformer/encoderblock_{i}/"
_ATTENTION = "MultiHeadDotProductAttention_0/"

_QKV = ("query", "key", "value")
# Kind of layer -> name of its weight, layout of its weight and of its bias.
_KINDS = {
  "norm": ("scale", "same", "same"),
  "dense": ("kernel", "dense", "same"),
  "conv": ("kernel", "conv", "same"),
  "to_heads": ("kernel", "to_heads", "flat"),
  "from_heads": ("kernel", "from_heads", "same"),
}


def _layer(
  kind: str, ours: str, *modules: str, part: tuple[int, int] = (0, 1)
) -> tuple[Row, ...]:
  """Returns the rows of a weight and a bias in a PyTorch module."""
  weight, layout, bias_layout = _KINDS[kind]
  weights = tuple(f"{module}weight" for module in modules)
  biases = tuple(f"{module}bias" for module in modules)
  return (
    Row(f"{ours}/{weight}", weights, layout, part),
    Row(f"{ours}/bias", biases, bias_layout, part),
  )


def _fused(ours: str, parts: tuple[str, ...], *modules: str) -> tuple[Row, ...]:
  """Returns the rows of projections that are stacked in one matrix."""
  rows: tuple[Row, ...] = ()
  for k, name in enumerate(parts):
    leaf, part = f"{ours}{_ATTENTION}{name}", (k, len(parts))
    rows += _layer("to_heads", leaf, *modules, part=part)
  return rows


def _split(ours: str, modules: Mapping[str, tuple[str, ...]]):
  """Returns the rows of projections in matrices of their own."""
  rows: tuple[Row, ...] = ()
  for name, names in modules.items():
    rows += _layer("to_heads", f"{ours}{_ATTENTION}{name}", *names)
  return rows


def _block(
  projections: tuple[Row, ...],
  out: tuple[str, ...],
  norms: tuple[tuple[str, ...], tuple[str, ...]],
  mlp: tuple[tuple[str, ...], tuple[str, ...]],
) -> tuple[Row, ...]:
  """Returns the rows of an encoder block, from the names of its modules."""
  return (
    *projections,
    *_layer("from_heads", f"{BLOCK}{_ATTENTION}out", *out),
    *_layer("norm", f"{BLOCK}LayerNorm_0", *norms[0]),
    *_layer("norm", f"{BLOCK}LayerNorm_1", *norms[1]),
    *_layer("dense", f"{BLOCK}MlpBlock_0/Dense_0", *mlp[0]),
    *_layer("dense", f"{BLOCK}MlpBlock_0/Dense_1", *mlp[1]),
  )


def _same(*names: str) -> tuple[Row, ...]:
  return tuple(Row(name, (name,)) for name in names)


def _weights(*layers: str, weight: str = "kernel") -> list[str]:
  return [f"{layer}/{p}" for layer in layers for p in (weight, "bias")]


def _big_vision() -> tuple[Row, ...]:
  """Returns our own names, with older ones.

  Until 2021 layers of a block were numbered regardless of their kind. MAP heads
  were inlined for a while.
  """
  old = {
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    "LayerNorm_1": "LayerNorm_2",
    "MlpBlock_0": "MlpBlock_3",
  }
  block = [
    *_weights("LayerNorm_0", "LayerNorm_1", weight="scale"),
    *_weights(*(f"{_ATTENTION}{name}" for name in (*_QKV, "out"))),
    *_weights("MlpBlock_0/Dense_0", "MlpBlock_0/Dense_1"),
  ]
  rows = []
  for name in block:
    layer, _, rest = name.partition("/")
    before = (f"{BLOCK}{old[layer]}/{rest}",) if layer in old else ()
    rows.append(Row(BLOCK + name, (BLOCK + name, *before)))
    if layer != "LayerNorm_1":
      rows.append(Row(f"MAPHead_0/{name}", (f"MAPHead_0/{name}", name)))
  positions = "pos_embedding"
  before = (
    "Transformer/pos_embedding",
    "Transformer/posembed_input/pos_embedding",
  )
  norms = ("Transformer/encoder_norm", "pre_norm", "fc_norm")
  return (
    *rows,
    Row(positions, (positions, *before)),
    Row("MAPHead_0/probe", ("MAPHead_0/probe", "probe")),
    *_same("cls", "proj/kernel", *_weights("embedding", "pre_logits", "head")),
    *_same(*_weights(*norms, weight="scale")),
  )


def _mixer() -> tuple[Row, ...]:
  block = "MixerBlock_{i}/"
  norms = (f"{block}LayerNorm_0", f"{block}LayerNorm_1", "pre_head_layer_norm")
  mlps = (
    f"{block}{kind}_mixing/Dense_{k}"
    for kind in ("token", "channel")
    for k in range(2)
  )
  return (
    *_same(*_weights(*norms, weight="scale")),
    *_same(*_weights(*mlps, "stem", "head")),
  )


def _hf_vit() -> tuple[Row, ...]:
  """Returns the names in files, ViTModel's, and those of transformers 5."""

  def block(old, new):
    return (
      f"vit.encoder.layer.{{i}}.{old}.",
      f"encoder.layer.{{i}}.{old}.",
      f"vit.layers.{{i}}.{new}.",
      f"layers.{{i}}.{new}.",
    )

  def top(name):
    return (f"vit.{name}", name)

  projections = {
    name: block(f"attention.attention.{name}", f"attention.{name[0]}_proj")
    for name in _QKV
  }
  return (
    *_layer(
      "conv", "embedding", *top("embeddings.patch_embeddings.projection.")
    ),
    Row("cls", top("embeddings.cls_token")),
    Row("pos_embedding", top("embeddings.position_embeddings")),
    *_block(
      _split(BLOCK, projections),
      out=block("attention.output.dense", "attention.o_proj"),
      norms=(
        block("layernorm_before", "layernorm_before"),
        block("layernorm_after", "layernorm_after"),
      ),
      mlp=(
        block("intermediate.dense", "mlp.fc1"),
        block("output.dense", "mlp.fc2"),
      ),
    ),
    *_layer("norm", "Transformer/encoder_norm", *top("layernorm.")),
    *_layer("dense", "head", "classifier."),
  )


def _hf_tower() -> tuple[Row, ...]:
  """Returns the rows that CLIP and SigLIP of transformers share.

  transformers 5 saves vision models without "vision_model.".
  """

  def top(name):
    return (f"vision_model.{name}", name)

  def block(name):
    return top(f"encoder.layers.{{i}}.{name}.")

  return (
    Row("embedding/kernel", top("embeddings.patch_embedding.weight"), "conv"),
    Row("pos_embedding", top("embeddings.position_embedding.weight"), "table"),
    *_block(
      _split(
        BLOCK, {name: block(f"self_attn.{name[0]}_proj") for name in _QKV}
      ),
      out=block("self_attn.out_proj"),
      norms=(block("layer_norm1"), block("layer_norm2")),
      mlp=(block("mlp.fc1"), block("mlp.fc2")),
    ),
    *_layer("norm", "Transformer/encoder_norm", *top("post_layernorm.")),
  )


def _hf_clip() -> tuple[Row, ...]:
  patches, norm = "embeddings.class_embedding", "pre_layrnorm."  # Sic.
  return (
    *_hf_tower(),
    Row("cls", (f"vision_model.{patches}", patches), "flat"),
    *_layer("norm", "pre_norm", f"vision_model.{norm}", norm),
    Row("proj/kernel", ("visual_projection.weight",), "dense"),
  )


def _hf_siglip() -> tuple[Row, ...]:
  ours = "MAPHead_0/"

  def top(name):
    return (f"vision_model.{name}", name)

  return (
    *_hf_tower(),
    Row("embedding/bias", top("embeddings.patch_embedding.bias")),
    Row(f"{ours}probe", top("head.probe")),
    *_fused(ours, _QKV, *top("head.attention.in_proj_")),
    *_layer(
      "from_heads", f"{ours}{_ATTENTION}out", *top("head.attention.out_proj.")
    ),
    *_layer("norm", f"{ours}LayerNorm_0", *top("head.layernorm.")),
    *_layer("dense", f"{ours}MlpBlock_0/Dense_0", *top("head.mlp.fc1.")),
    *_layer("dense", f"{ours}MlpBlock_0/Dense_1", *top("head.mlp.fc2.")),
  )


def _openclip() -> tuple[Row, ...]:
  block = "visual.transformer.resblocks.{i}."
  return (
    Row("embedding/kernel", ("visual.conv1.weight",), "conv"),
    Row("cls", ("visual.class_embedding",), "flat"),
    Row("pos_embedding", ("visual.positional_embedding",), "table"),
    *_layer("norm", "pre_norm", "visual.ln_pre."),
    *_block(
      _fused(BLOCK, _QKV, f"{block}attn.in_proj_"),
      out=(f"{block}attn.out_proj.",),
      norms=((f"{block}ln_1.",), (f"{block}ln_2.",)),
      mlp=((f"{block}mlp.c_fc.",), (f"{block}mlp.c_proj.",)),
    ),
    *_layer("norm", "Transformer/encoder_norm", "visual.ln_post."),
    *_layer("norm", "fc_norm", "visual.ln_post."),  # CLIPA's place of it.
    Row("proj/kernel", ("visual.proj",)),
  )


def _timm() -> tuple[Row, ...]:
  block, pool, ours = "blocks.{i}.", "attn_pool.", "MAPHead_0/"
  return (
    *_layer("conv", "embedding", "patch_embed.proj."),
    Row("cls", ("cls_token",)),
    Row("pos_embedding", ("pos_embed",)),
    *_layer("norm", "pre_norm", "norm_pre."),
    *_block(
      _fused(BLOCK, _QKV, f"{block}attn.qkv."),
      out=(f"{block}attn.proj.",),
      norms=((f"{block}norm1.",), (f"{block}norm2.",)),
      mlp=((f"{block}mlp.fc1.",), (f"{block}mlp.fc2.",)),
    ),
    *_layer("norm", "Transformer/encoder_norm", "norm."),
    *_layer("norm", "fc_norm", "fc_norm."),
    Row(f"{ours}probe", (f"{pool}latent",)),
    *_split(ours, {"query": (f"{pool}q.",)}),
    *_fused(ours, ("key", "value"), f"{pool}kv."),
    *_layer("from_heads", f"{ours}{_ATTENTION}out", f"{pool}proj."),
    *_layer("norm", f"{ours}LayerNorm_0", f"{pool}norm."),
    *_layer("dense", f"{ours}MlpBlock_0/Dense_0", f"{pool}mlp.fc1."),
    *_layer("dense", f"{ours}MlpBlock_0/Dense_1", f"{pool}mlp.fc2."),
    *_layer("dense", "head", "head."),
  )


_CLIP = {
  "pool_type": "tok",
  "act": "quick_gelu",
  "norm_eps": 1e-5,
  "pre_norm": True,
  "patch_bias": False,
}
_TOWER = ("", "params/", "opt/target/")
_TEXT = {
  "text tower": r"^(text|text_decoder|token_embedding|ln_final)\."
  r"|^transformer\.resblocks\.|^(positional_embedding|text_projection)$"
  r"|^(attn_mask|cls_emb|input_resolution|context_length|vocab_size)$",
  "temperature": r"^logit_(scale|bias)$",
}
_TRANSFORMERS_TEXT = {
  "text tower": r"^text_(model|projection)\.",
  "temperature": r"^logit_(scale|bias)$",
  "position numbers": r"\.position_ids$",
}

FAMILIES = {
  "big_vision": Family(
    about="big_vision, AugReg, vision_transformer and soupjax (npz)",
    rows=_big_vision(),
    prefixes=_TOWER + tuple(f"{prefix}img/" for prefix in _TOWER),
    class_position="seldom",
    ignored={
      "text tower": r"^txt/",
      "temperature": r"^[tb]$",
      "optimizer": r"^(opt|chrono|state)(/|$)",
    },
  ),
  "mixer": Family(
    about="MLP-Mixer of vision_transformer (npz)",
    rows=_mixer(),
    model="Mixer",
    prefixes=_TOWER,
    ignored={"optimizer": r"^(opt|state)(/|$)"},
  ),
  "hf_vit": Family(
    about="ViT, ViT-MAE, ViT-MSN and I-JEPA of transformers",
    rows=_hf_vit(),
    prefixes=("", "module.", "ijepa."),
    ignored={
      "pooler": r"^(vit\.)?pooler\.",
      "position numbers": r"\.position_ids$",
      "decoder of masked images": r"^decoder\."
      r"|^(vit\.)?embeddings\.mask_token$",
    },
    options={"pool_type": "tok", "act": "gelu_exact", "norm_eps": 1e-12},
    acts=("gelu_exact",),
  ),
  "hf_clip": Family(
    about="CLIPModel and CLIPVisionModel of transformers: the vision tower",
    rows=_hf_clip(),
    ignored=_TRANSFORMERS_TEXT,
    not_heads=r"^classifier\.",  # CLIPForImageClassification's: of the mean.
    options=_CLIP,
    acts=("quick_gelu", "gelu_exact"),
  ),
  "hf_siglip": Family(
    about="SiglipModel and SiglipVisionModel of transformers: the vision tower",
    rows=_hf_siglip(),
    ignored=_TRANSFORMERS_TEXT,
    not_heads=r"^classifier\.",  # SiglipForImageClassification's: of the mean.
    options={"pool_type": "map", "act": "gelu", "norm_eps": 1e-6},
    acts=("gelu", "gelu_exact"),
  ),
  "timm": Family(
    about="vit_* of timm",
    rows=_timm(),
    prefixes=("", "module.", "model.", "visual.trunk.", "module.visual.trunk."),
    class_position="usually",
    ignored={
      **_TEXT,
      "decoder of masked images": r"^decoder_(embed|blocks|norm|pred|pos_embed)"
      r"\b|^mask_token$",
    },
    options={"pool_type": "tok", "act": "gelu_exact"},
    acts=("gelu_exact", "quick_gelu"),
  ),
  "openclip": Family(
    about="CLIP of OpenAI and OpenCLIP: the vision tower",
    rows=_openclip(),
    ignored=_TEXT,
    options=_CLIP,
    acts=("quick_gelu", "gelu_exact"),
  ),
}
