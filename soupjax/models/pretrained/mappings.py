# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Parameter names of other libraries: one table a family of checkpoints.

A row has the name of a leaf of ours, its name or names there, and how arrays
are laid out there. It is read in both directions: `pretrained.load_pretrained`
takes the first name that is found, `pretrained.export` writes the first. `{i}`
is the number of a block.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple


class Layout(NamedTuple):
  """A change of layout, both ways.

  Attributes:
    read: `read(array, shape)` makes ours, of that shape, of theirs.
    write: makes theirs of ours.
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
  # Ours is (width, heads, size) or (heads, size, width).
  "to_heads": Layout(
    lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(len(x), -1).T
  ),
  "from_heads": Layout(
    lambda x, shape: x.T.reshape(shape),
    lambda x: x.reshape(-1, x.shape[-1]).T,
  ),
  "flat": Layout(lambda x, shape: x.reshape(shape), lambda x: x.reshape(-1)),
  # Without the axis for the batch.
  "table": Layout(lambda x, _: x[None], lambda x: x[0]),
}


class Row(NamedTuple):
  """One leaf.

  Attributes:
    ours: its name here.
    theirs: its names there, the one to write first.
    layout: a key of `LAYOUTS`.
    part: (k, n) if it is the k-th of n equal parts of theirs, on axis 0.
  """

  ours: str
  theirs: tuple[str, ...]
  layout: str = "same"
  part: tuple[int, int] = (0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """A kind of checkpoint.

  Attributes:
    about: whose they are.
    rows: the table.
    model: class of the model that they are for.
    prefixes: what may stand before all names.
    class_position: whether the class token has a position embedding of its own,
      the first. Ours has none: it is added to the token.
    ignored: regular expression of names that are no weights of the model.
    options: of `models.ViT`, which make it compute what theirs does.
    acts: activations that models of this family have.
  """

  about: str
  rows: tuple[Row, ...]
  model: str = "ViT"
  prefixes: tuple[str, ...] = ("",)
  class_position: bool = True
  ignored: str = r"^$"
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  acts: tuple[str, ...] = ("gelu",)


BLOCK = "Transformer/encoderblock_{i}/"
_ATTENTION = "MultiHeadDotProductAttention_0/"


def _names(*templates: str, **values: str) -> tuple[str, ...]:
  return tuple(template.format(i="{i}", **values) for template in templates)


def _norm(ours: str, *theirs: str) -> tuple[Row, ...]:
  return (
    Row(f"{ours}/scale", tuple(f"{one}.weight" for one in theirs)),
    Row(f"{ours}/bias", tuple(f"{one}.bias" for one in theirs)),
  )


def _dense(ours: str, *theirs: str) -> tuple[Row, ...]:
  return (
    Row(f"{ours}/kernel", tuple(f"{one}.weight" for one in theirs), "dense"),
    Row(f"{ours}/bias", tuple(f"{one}.bias" for one in theirs)),
  )


def _mlp(ours: str, first: tuple[str, ...], second: tuple[str, ...]):
  """The two layers of an MLP."""
  return _dense(f"{ours}MlpBlock_0/Dense_0", *first) + _dense(
    f"{ours}MlpBlock_0/Dense_1", *second
  )


def _projections(
  ours: str, names: Mapping[str, tuple[str, ...]], out: tuple[str, ...]
) -> tuple[Row, ...]:
  """Query, key and value in matrices of their own, and the output."""
  rows: tuple[Row, ...] = ()
  for one, theirs in names.items():
    weights = tuple(f"{name}.weight" for name in theirs)
    biases = tuple(f"{name}.bias" for name in theirs)
    rows += (
      Row(f"{ours}{_ATTENTION}{one}/kernel", weights, "to_heads"),
      Row(f"{ours}{_ATTENTION}{one}/bias", biases, "flat"),
    )
  return rows + _out(ours, *out)


def _out(ours: str, *theirs: str) -> tuple[Row, ...]:
  weights = tuple(f"{name}.weight" for name in theirs)
  biases = tuple(f"{name}.bias" for name in theirs)
  return (
    Row(f"{ours}{_ATTENTION}out/kernel", weights, "from_heads"),
    Row(f"{ours}{_ATTENTION}out/bias", biases),
  )


def _fused(
  ours: str, weight: str, bias: str, parts: tuple[str, ...]
) -> tuple[Row, ...]:
  """Several projections in one matrix, one after the other."""
  rows: tuple[Row, ...] = ()
  for k, one in enumerate(parts):
    name, part = f"{ours}{_ATTENTION}{one}", (k, len(parts))
    rows += (
      Row(f"{name}/kernel", (weight,), "to_heads", part),
      Row(f"{name}/bias", (bias,), "flat", part),
    )
  return rows


_QKV = ("query", "key", "value")


def _big_vision() -> tuple[Row, ...]:
  """Our own names, and what they were before.

  Until 2021 layers were counted through in a block, whatever their kind. MAP
  heads were inlined for a while.
  """
  old = {
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    "LayerNorm_1": "LayerNorm_2",
    "MlpBlock_0": "MlpBlock_3",
  }
  inner = [
    *(f"LayerNorm_{k}/{p}" for k in range(2) for p in ("scale", "bias")),
    *(f"{_ATTENTION}{one}/kernel" for one in (*_QKV, "out")),
    *(f"{_ATTENTION}{one}/bias" for one in (*_QKV, "out")),
    *(f"MlpBlock_0/Dense_{k}/kernel" for k in range(2)),
    *(f"MlpBlock_0/Dense_{k}/bias" for k in range(2)),
  ]
  rows = []
  for name in inner:
    layer, _, rest = name.partition("/")
    before = (f"{BLOCK}{old[layer]}/{rest}",) if layer in old else ()
    rows.append(Row(BLOCK + name, (BLOCK + name, *before)))
    if not name.startswith("LayerNorm_1"):
      rows.append(Row(f"MAPHead_0/{name}", (f"MAPHead_0/{name}", name)))
  positions = "pos_embedding"
  rows += [
    Row(
      positions,
      (
        positions,
        f"Transformer/{positions}",
        f"Transformer/posembed_input/{positions}",
      ),
    ),
    Row("MAPHead_0/probe", ("MAPHead_0/probe", "probe")),
    *_same("cls", "embedding/kernel", "embedding/bias", "proj/kernel"),
    *_same("Transformer/encoder_norm/scale", "Transformer/encoder_norm/bias"),
    *_same("pre_norm/scale", "pre_norm/bias", "fc_norm/scale", "fc_norm/bias"),
    *_same("pre_logits/kernel", "pre_logits/bias", "head/kernel", "head/bias"),
  ]
  return tuple(rows)


def _same(*names: str) -> tuple[Row, ...]:
  return tuple(Row(name, (name,)) for name in names)


def _mixer() -> tuple[Row, ...]:
  block = "MixerBlock_{i}/"
  inner = [f"LayerNorm_{k}/{p}" for k in range(2) for p in ("scale", "bias")]
  for kind in ("token_mixing", "channel_mixing"):
    for k in range(2):
      inner += [f"{kind}/Dense_{k}/{p}" for p in ("kernel", "bias")]
  ends = ("stem/kernel", "stem/bias", "head/kernel", "head/bias")
  norm = ("pre_head_layer_norm/scale", "pre_head_layer_norm/bias")
  return _same(*(block + name for name in inner), *ends, *norm)


def _hf_vit() -> tuple[Row, ...]:
  """Files; then ViTModel without a head, and the modules of transformers 5."""
  old = ("vit.encoder.layer.{i}.{there}", "encoder.layer.{i}.{there}")
  new = ("vit.layers.{i}.{now}", "layers.{i}.{now}")

  def block(there, now):
    return _names(*old, *new, there=there, now=now)

  def top(name):
    return (f"vit.{name}", name)

  attention = "attention.attention."
  patches = "embeddings.patch_embeddings.projection."
  return (
    Row("embedding/kernel", top(f"{patches}weight"), "conv"),
    Row("embedding/bias", top(f"{patches}bias")),
    Row("cls", top("embeddings.cls_token")),
    Row("pos_embedding", top("embeddings.position_embeddings")),
    *_norm(BLOCK + "LayerNorm_0", *block(*["layernorm_before"] * 2)),
    *_projections(
      BLOCK,
      {
        one: block(f"{attention}{one}", f"attention.{one[0]}_proj")
        for one in _QKV
      },
      block("attention.output.dense", "attention.o_proj"),
    ),
    *_norm(BLOCK + "LayerNorm_1", *block(*["layernorm_after"] * 2)),
    *_mlp(
      BLOCK,
      block("intermediate.dense", "mlp.fc1"),
      block("output.dense", "mlp.fc2"),
    ),
    *_norm("Transformer/encoder_norm", *top("layernorm")),
    *_dense("head", "classifier"),
  )


def _hf_clip() -> tuple[Row, ...]:
  block = "vision_model.encoder.layers.{i}."
  patches = "vision_model.embeddings."
  return (
    Row("embedding/kernel", (f"{patches}patch_embedding.weight",), "conv"),
    Row("cls", (f"{patches}class_embedding",), "flat"),
    Row("pos_embedding", (f"{patches}position_embedding.weight",), "table"),
    *_norm("pre_norm", "vision_model.pre_layrnorm"),  # Sic.
    *_norm(BLOCK + "LayerNorm_0", f"{block}layer_norm1"),
    *_projections(
      BLOCK,
      {one: (f"{block}self_attn.{one[0]}_proj",) for one in _QKV},
      (f"{block}self_attn.out_proj",),
    ),
    *_norm(BLOCK + "LayerNorm_1", f"{block}layer_norm2"),
    *_mlp(BLOCK, (f"{block}mlp.fc1",), (f"{block}mlp.fc2",)),
    *_norm("Transformer/encoder_norm", "vision_model.post_layernorm"),
    Row("proj/kernel", ("visual_projection.weight",), "dense"),
  )


def _openclip() -> tuple[Row, ...]:
  block = "visual.transformer.resblocks.{i}."
  fused = f"{block}attn.in_proj_"
  return (
    Row("embedding/kernel", ("visual.conv1.weight",), "conv"),
    Row("cls", ("visual.class_embedding",), "flat"),
    Row("pos_embedding", ("visual.positional_embedding",), "table"),
    *_norm("pre_norm", "visual.ln_pre"),
    *_norm(BLOCK + "LayerNorm_0", f"{block}ln_1"),
    *_fused(BLOCK, f"{fused}weight", f"{fused}bias", _QKV),
    *_out(BLOCK, f"{block}attn.out_proj"),
    *_norm(BLOCK + "LayerNorm_1", f"{block}ln_2"),
    *_mlp(BLOCK, (f"{block}mlp.c_fc",), (f"{block}mlp.c_proj",)),
    *_norm("Transformer/encoder_norm", "visual.ln_post"),
    Row("proj/kernel", ("visual.proj",)),
  )


def _timm() -> tuple[Row, ...]:
  block, pool, ours = "blocks.{i}.", "attn_pool.", "MAPHead_0/"
  qkv, kv = f"{block}attn.qkv.", f"{pool}kv."
  return (
    Row("embedding/kernel", ("patch_embed.proj.weight",), "conv"),
    Row("embedding/bias", ("patch_embed.proj.bias",)),
    Row("cls", ("cls_token",)),
    Row("pos_embedding", ("pos_embed",)),
    *_norm("pre_norm", "norm_pre"),
    *_norm(BLOCK + "LayerNorm_0", f"{block}norm1"),
    *_fused(BLOCK, f"{qkv}weight", f"{qkv}bias", _QKV),
    *_out(BLOCK, f"{block}attn.proj"),
    *_norm(BLOCK + "LayerNorm_1", f"{block}norm2"),
    *_mlp(BLOCK, (f"{block}mlp.fc1",), (f"{block}mlp.fc2",)),
    *_norm("Transformer/encoder_norm", "norm"),
    *_norm("fc_norm", "fc_norm"),
    Row(f"{ours}probe", (f"{pool}latent",)),
    *_projections(ours, {"query": (f"{pool}q",)}, (f"{pool}proj",)),
    *_fused(ours, f"{kv}weight", f"{kv}bias", ("key", "value")),
    *_norm(f"{ours}LayerNorm_0", f"{pool}norm"),
    *_mlp(ours, (f"{pool}mlp.fc1",), (f"{pool}mlp.fc2",)),
    *_dense("head", "head"),
  )


_CLIP = {
  "pool_type": "tok",
  "act": "quick_gelu",
  "norm_eps": 1e-5,
  "pre_norm": True,
  "patch_bias": False,
}
_TOWER = ("", "params/", "opt/target/")

FAMILIES = {
  "big_vision": Family(
    about="big_vision, AugReg, vision_transformer and soupjax (npz)",
    rows=_big_vision(),
    prefixes=_TOWER + tuple(f"{one}img/" for one in _TOWER),
    class_position=False,
  ),
  "mixer": Family(
    about="MLP-Mixer of vision_transformer (npz)",
    rows=_mixer(),
    model="Mixer",
    prefixes=_TOWER,
  ),
  "hf_vit": Family(
    about="ViTForImageClassification and ViTModel of transformers",
    rows=_hf_vit(),
    prefixes=("", "module."),
    ignored=r"^(vit\.)?pooler\.|\.position_ids$",
    options={"pool_type": "tok", "act": "gelu_exact", "norm_eps": 1e-12},
    acts=("gelu_exact",),
  ),
  "hf_clip": Family(
    about="CLIPModel and CLIPVisionModel of transformers: the vision tower",
    rows=_hf_clip(),
    prefixes=("", "module."),
    ignored=r"^text_|^logit_scale$|\.position_ids$",
    options=_CLIP,
    acts=("quick_gelu", "gelu_exact"),
  ),
  "timm": Family(
    about="vit_* of timm",
    rows=_timm(),
    prefixes=("", "module.", "model.", "visual.trunk.", "module.visual.trunk."),
    options={"pool_type": "tok", "act": "gelu_exact"},
    acts=("gelu_exact", "quick_gelu"),
  ),
  "openclip": Family(
    about="CLIP of OpenAI and OpenCLIP: the vision tower",
    rows=_openclip(),
    prefixes=("", "module."),
    ignored=(
      r"^(transformer|token_embedding|ln_final|text)\.|^attn_mask$"
      r"|^(positional_embedding|text_projection|logit_scale|logit_bias)$"
      r"|^(input_resolution|context_length|vocab_size)$"
    ),
    options=_CLIP,
    acts=("quick_gelu", "gelu_exact"),
  ),
}
