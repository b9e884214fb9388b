# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Parameter names of other libraries: one table per family of checkpoints.

Tables are used in both directions: `pretrained.load_pretrained` reads the first
name that exists, `pretrained.export` writes the first one. `{i}` is the number
of a block.
"""

from soupjax.models.pretrained import tables
from soupjax.models.pretrained.other_models import bit, mixer


def _big_vision() -> tuple[tables.Row, ...]:
  """Returns our own names, followed by older ones of big_vision.

  Until 2021, all layers of a block shared one numbering, whatever their type.
  For a while, the layers of MAP heads were at the top level.
  """
  old = {
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    "LayerNorm_1": "LayerNorm_2",
    "MlpBlock_0": "MlpBlock_3",
  }
  block = [
    *tables.weights("LayerNorm_0", "LayerNorm_1", weight="scale"),
    *tables.weights(
      *(f"{tables.ATTENTION}{name}" for name in (*tables.QKV, "out"))
    ),
    *tables.weights("MlpBlock_0/Dense_0", "MlpBlock_0/Dense_1"),
  ]
  result = []
  for name in block:
    layer, _, rest = name.partition("/")
    before = (f"{tables.BLOCK}{old[layer]}/{rest}",) if layer in old else ()
    result.append(
      tables.Row(tables.BLOCK + name, (tables.BLOCK + name, *before))
    )
    if layer != "LayerNorm_1":
      result.append(
        tables.Row(f"MAPHead_0/{name}", (f"MAPHead_0/{name}", name))
      )
  positions = "pos_embedding"
  before = (
    "Transformer/pos_embedding",
    "Transformer/posembed_input/pos_embedding",
  )
  norms = ("Transformer/encoder_norm", "pre_norm", "fc_norm")
  # Leaves that only soupjax has.
  inner = (
    f"{tables.ATTENTION}query_norm",
    f"{tables.ATTENTION}key_norm",
    f"{tables.ATTENTION}norm",
    "MlpBlock_0/norm",
  )
  own = (
    *tables.weights(*inner, weight="scale"),
    *tables.weights("MlpBlock_0/gate"),
    "LayerScale_0/gamma",
    "LayerScale_1/gamma",
  )
  return (
    *result,
    *tables.same(*(tables.BLOCK + name for name in own)),
    *tables.same("reg_tokens", "dist_token", "pos_frequencies"),
    *tables.same(*tables.weights("head_dist")),
    tables.Row(positions, (positions, *before)),
    tables.Row("MAPHead_0/probe", ("MAPHead_0/probe", "probe")),
    *tables.same(
      "cls", "proj/kernel", *tables.weights("embedding", "pre_logits", "head")
    ),
    *tables.same(*tables.weights(*norms, weight="scale")),
  )


def _hf_vit(base: str, *heads: str) -> tuple[tables.Row, ...]:
  """Returns the names in classifiers and bare models, and in transformers 5.

  Args:
    base: name of the model inside a classifier.
    *heads: names of the classifier's head.
  """

  def block(old, new):
    return (
      f"{base}.encoder.layer.{{i}}.{old}.",
      f"encoder.layer.{{i}}.{old}.",
      f"{base}.layers.{{i}}.{new}.",
      f"layers.{{i}}.{new}.",
    )

  def top(name):
    return (f"{base}.{name}", name)

  projections = {
    name: block(f"attention.attention.{name}", f"attention.{name[0]}_proj")
    for name in tables.QKV
  }
  return (
    *tables.layer(
      "conv", "embedding", *top("embeddings.patch_embeddings.projection.")
    ),
    tables.Row("cls", top("embeddings.cls_token")),
    tables.Row("pos_embedding", top("embeddings.position_embeddings")),
    *tables.block(
      tables.split(tables.BLOCK, projections),
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
    *tables.layer("norm", "Transformer/encoder_norm", *top("layernorm.")),
    *tables.layer("dense", "head", *heads),
  )


def _hf_deit() -> tuple[tables.Row, ...]:
  token = "embeddings.distillation_token"
  return (
    *_hf_vit("deit", "cls_classifier.", "classifier."),
    tables.Row("dist_token", (f"deit.{token}", token)),
    *tables.layer("dense", "head_dist", "distillation_classifier."),
  )


def _hf_dinov2(base: str) -> tuple[tables.Row, ...]:
  """Returns the names in classifiers and bare models, and in transformers 5.

  Args:
    base: name of the model inside a classifier.
  """
  mlp = f"{tables.BLOCK}MlpBlock_0/"

  def top(name):
    return (f"{base}.{name}", name)

  def block(*names):
    return tuple(n for k in names for n in top(f"encoder.layer.{{i}}.{k}"))

  inner = block("mlp.weights_in.")
  return (
    *tables.layer(
      "conv", "embedding", *top("embeddings.patch_embeddings.projection.")
    ),
    tables.Row("cls", top("embeddings.cls_token")),
    tables.Row("pos_embedding", top("embeddings.position_embeddings")),
    *tables.block(
      tables.split(
        tables.BLOCK,
        {
          name: block(
            f"attention.attention.{name}.", f"attention.{name[0]}_proj."
          )
          for name in tables.QKV
        },
      ),
      out=block("attention.output.dense.", "attention.o_proj."),
      norms=(block("norm1."), block("norm2.")),
      mlp=(
        block("mlp.fc1."),
        block("mlp.fc2.", "mlp.weights_out.", "mlp.down_proj."),
      ),
      packed=False,
    ),
    *tables.layer("dense", f"{mlp}gate", *inner, part=(0, 2), packed=True),
    *tables.layer("dense", f"{mlp}Dense_0", *inner, part=(1, 2), packed=True),
    *tables.layer("dense", f"{mlp}gate", *block("mlp.gate_proj.")),
    *tables.layer("dense", f"{mlp}Dense_0", *block("mlp.up_proj.")),
    *tables.scales(
      block("layer_scale1.lambda1"), block("layer_scale2.lambda1")
    ),
    *tables.layer("norm", "Transformer/encoder_norm", *top("layernorm.")),
    *tables.layer("dense", "head", "classifier."),
  )


def _hf_dinov2_registers() -> tuple[tables.Row, ...]:
  base, tokens = "dinov2_with_registers", "embeddings.register_tokens"
  registers = tables.Row("reg_tokens", (f"{base}.{tokens}", tokens))
  return (*_hf_dinov2(base), registers)


def _hf_dinov3() -> tuple[tables.Row, ...]:
  """Returns the names in files, and those of transformers 5 in memory."""
  mlp = f"{tables.BLOCK}MlpBlock_0/"

  def block(name):
    return (f"layer.{{i}}.{name}", f"model.layer.{{i}}.{name}")

  return (
    *tables.layer("conv", "embedding", "embeddings.patch_embeddings."),
    tables.Row("cls", ("embeddings.cls_token",)),
    tables.Row("reg_tokens", ("embeddings.register_tokens",)),
    *tables.block(
      tables.split(
        tables.BLOCK,
        {name: block(f"attention.{name[0]}_proj.") for name in tables.QKV},
      ),
      out=block("attention.o_proj."),
      norms=(block("norm1."), block("norm2.")),
      mlp=(block("mlp.up_proj."), block("mlp.down_proj.")),
    ),
    *tables.layer("dense", f"{mlp}gate", *block("mlp.gate_proj.")),
    *tables.scales(
      block("layer_scale1.lambda1"), block("layer_scale2.lambda1")
    ),
    *tables.layer("norm", "Transformer/encoder_norm", "norm."),
    *tables.layer("dense", "head", "classifier."),
  )


def _hf_tower() -> tuple[tables.Row, ...]:
  """Returns the rows that CLIP and SigLIP of transformers share.

  transformers 5 saves vision models without "vision_model.".
  """

  def top(name):
    return (f"vision_model.{name}", name)

  def block(name):
    return top(f"encoder.layers.{{i}}.{name}.")

  return (
    tables.Row(
      "embedding/kernel", top("embeddings.patch_embedding.weight"), "conv"
    ),
    tables.Row(
      "pos_embedding", top("embeddings.position_embedding.weight"), "table"
    ),
    *tables.block(
      tables.split(
        tables.BLOCK,
        {name: block(f"self_attn.{name[0]}_proj") for name in tables.QKV},
      ),
      out=block("self_attn.out_proj"),
      norms=(block("layer_norm1"), block("layer_norm2")),
      mlp=(block("mlp.fc1"), block("mlp.fc2")),
    ),
    *tables.layer("norm", "Transformer/encoder_norm", *top("post_layernorm.")),
  )


def _hf_clip() -> tuple[tables.Row, ...]:
  patches, norm = "embeddings.class_embedding", "pre_layrnorm."  # Sic.
  return (
    *_hf_tower(),
    tables.Row("cls", (f"vision_model.{patches}", patches), "flat"),
    *tables.layer("norm", "pre_norm", f"vision_model.{norm}", norm),
    tables.Row("proj/kernel", ("visual_projection.weight",), "dense"),
  )


def _hf_siglip() -> tuple[tables.Row, ...]:
  ours = "MAPHead_0/"

  def top(name):
    return (f"vision_model.{name}", name)

  return (
    *_hf_tower(),
    tables.Row("embedding/bias", top("embeddings.patch_embedding.bias")),
    tables.Row(f"{ours}probe", top("head.probe")),
    *tables.fused(ours, tables.QKV, *top("head.attention.in_proj_")),
    *tables.layer(
      "from_heads",
      f"{ours}{tables.ATTENTION}out",
      *top("head.attention.out_proj."),
    ),
    *tables.layer("norm", f"{ours}LayerNorm_0", *top("head.layernorm.")),
    *tables.layer("dense", f"{ours}MlpBlock_0/Dense_0", *top("head.mlp.fc1.")),
    *tables.layer("dense", f"{ours}MlpBlock_0/Dense_1", *top("head.mlp.fc2.")),
  )


def _hf_siglip2() -> tuple[tables.Row, ...]:
  """Returns the rows of models that take patches instead of images."""
  kernel = "embedding/kernel"
  return tuple(
    row._replace(layout="patches") if row.leaf == kernel else row
    for row in _hf_siglip()
  )


def _openclip() -> tuple[tables.Row, ...]:
  block = "visual.transformer.resblocks.{i}."
  return (
    tables.Row("embedding/kernel", ("visual.conv1.weight",), "conv"),
    tables.Row("cls", ("visual.class_embedding",), "flat"),
    tables.Row("pos_embedding", ("visual.positional_embedding",), "table"),
    *tables.layer("norm", "pre_norm", "visual.ln_pre."),
    *tables.block(
      tables.fused(tables.BLOCK, tables.QKV, f"{block}attn.in_proj_"),
      out=(f"{block}attn.out_proj.",),
      norms=((f"{block}ln_1.",), (f"{block}ln_2.",)),
      mlp=((f"{block}mlp.c_fc.",), (f"{block}mlp.c_proj.",)),
    ),
    *tables.layer("norm", "Transformer/encoder_norm", "visual.ln_post."),
    *tables.layer("norm", "fc_norm", "visual.ln_post."),  # In CLIPA.
    tables.Row("proj/kernel", ("visual.proj",)),
  )


def _timm() -> tuple[tables.Row, ...]:
  """Returns the names of timm's VisionTransformer, and those of its Eva."""
  block, pool, ours = "blocks.{i}.", "attn_pool.", "MAPHead_0/"
  attention = f"{tables.BLOCK}{tables.ATTENTION}"
  mlp = f"{tables.BLOCK}MlpBlock_0/"
  one = f"{block}mlp.fc1."
  return (
    *tables.layer("conv", "embedding", "patch_embed.proj."),
    tables.Row("cls", ("cls_token",)),
    tables.Row("dist_token", ("dist_token",)),
    tables.Row("reg_tokens", ("reg_token",)),
    tables.Row("pos_embedding", ("pos_embed",)),
    tables.Row("pos_frequencies", ("rope.freqs",)),
    *tables.layer("norm", "pre_norm", "norm_pre."),
    *tables.block(
      tables.fused(tables.BLOCK, tables.QKV, f"{block}attn.qkv."),
      out=(f"{block}attn.proj.",),
      norms=((f"{block}norm1.",), (f"{block}norm2.",)),
      mlp=((one,), (f"{block}mlp.fc2.",)),
      packed=False,
    ),
    # Eva has biases as separate parameters, or separate projections.
    *(
      tables.Row(
        f"{attention}{name}/bias", (f"{block}attn.{name[0]}_bias",), "flat"
      )
      for name in ("query", "value")
    ),
    *tables.split(
      tables.BLOCK,
      {name: (f"{block}attn.{name[0]}_proj.",) for name in tables.QKV},
    ),
    # The two matrices of gated MLPs, stored as one or separately.
    *tables.layer("dense", f"{mlp}gate", one, part=(0, 2), packed=True),
    *tables.layer("dense", f"{mlp}Dense_0", one, part=(1, 2), packed=True),
    *tables.layer("dense", f"{mlp}gate", f"{block}mlp.fc1_g."),
    *tables.layer("dense", f"{mlp}Dense_0", f"{block}mlp.fc1_x."),
    *tables.layer("norm", f"{mlp}norm", f"{block}mlp.norm."),
    *tables.layer("norm", f"{attention}norm", f"{block}attn.norm."),
    *tables.layer("norm", f"{attention}query_norm", f"{block}attn.q_norm."),
    *tables.layer("norm", f"{attention}key_norm", f"{block}attn.k_norm."),
    *tables.scales(
      (f"{block}ls1.gamma", f"{block}gamma_1"),
      (f"{block}ls2.gamma", f"{block}gamma_2"),
    ),
    *tables.layer("norm", "Transformer/encoder_norm", "norm."),
    *tables.layer("norm", "fc_norm", "fc_norm."),
    tables.Row(f"{ours}probe", (f"{pool}latent",)),
    *tables.split(ours, {"query": (f"{pool}q.",)}),
    *tables.fused(ours, ("key", "value"), f"{pool}kv."),
    *tables.layer("from_heads", f"{ours}{tables.ATTENTION}out", f"{pool}proj."),
    *tables.layer("norm", f"{ours}LayerNorm_0", f"{pool}norm."),
    *tables.layer("dense", f"{ours}MlpBlock_0/Dense_0", f"{pool}mlp.fc1."),
    *tables.layer("dense", f"{ours}MlpBlock_0/Dense_1", f"{pool}mlp.fc2."),
    *tables.layer("dense", "head", "head."),
    *tables.layer("dense", "head_dist", "head_dist."),
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

_MASKED = {"token of masked patches": r"^(.*\.)?embeddings\.mask_token$"}
_DINO = {"pool_type": "tok", "act": "gelu_exact", "norm_eps": 1e-6}
_DINO_ACTS = ("gelu_exact", "silu", "gelu")
_SIGLIP = {"pool_type": "map", "act": "gelu", "norm_eps": 1e-6}
_OPTIMIZER = {"optimizer": r"^(opt|state)(/|$)"}
_TIMM_PREFIXES = ("", "module.", "model.")

FAMILIES = {
  "big_vision": tables.Family(
    about="big_vision, AugReg, vision_transformer and soupjax (npz)",
    rows=_big_vision(),
    prefixes=_TOWER + tuple(f"{prefix}img/" for prefix in _TOWER),
    class_position="seldom",
    without_positions="sincos2d",
    ignored={
      "text tower": r"^txt/",
      "temperature": r"^[tb]$",
      "optimizer": r"^(opt|chrono|state)(/|$)",
    },
  ),
  "mixer": tables.Family(
    about="MLP-Mixer of vision_transformer (npz)",
    rows=mixer.rows(),
    model="Mixer",
    first_norm=mixer.FIRST_NORM,
    prefixes=_TOWER,
    ignored=_OPTIMIZER,
  ),
  "timm_mixer": tables.Family(
    about="mixer_* of timm",
    rows=mixer.timm_rows(),
    model="Mixer",
    first_norm=mixer.FIRST_NORM,
    prefixes=_TIMM_PREFIXES,
    options={"act": "gelu_exact"},
    acts=("gelu_exact",),
  ),
  "bit": tables.Family(
    about="ResNets of BiT in big_vision (bit_paper) and soupjax (npz)",
    rows=bit.rows(),
    model="ResNet",
    first_norm=bit.FIRST_NORM,
    prefixes=_TOWER,
    ignored=_OPTIMIZER,
    options={"conv_eps": 1e-10},
  ),
  "bit_original": tables.Family(
    about="ResNets of BiT as they were published (npz)",
    rows=bit.original_rows(),
    model="ResNet",
    first_norm=bit.FIRST_NORM,
    prefixes=("",),
    options={"conv_eps": 1e-10},
  ),
  "timm_bit": tables.Family(
    about="resnetv2_*_bit of timm",
    rows=bit.timm_rows(),
    model="ResNet",
    first_norm=bit.FIRST_NORM,
    prefixes=_TIMM_PREFIXES,
    options={"conv_eps": 1e-8},
  ),
  "hf_vit": tables.Family(
    about="ViT, ViT-MAE, ViT-MSN and I-JEPA of transformers",
    rows=_hf_vit("vit", "classifier."),
    prefixes=("", "module.", "ijepa."),
    resample="bicubic",
    ignored={
      "pooler": r"^(vit\.)?pooler\.",
      "position numbers": r"\.position_ids$",
      "decoder of masked images": r"^decoder\."
      r"|^(vit\.)?embeddings\.mask_token$",
    },
    options={"pool_type": "tok", "act": "gelu_exact", "norm_eps": 1e-12},
    acts=("gelu_exact",),
  ),
  "hf_deit": tables.Family(
    about="DeiT of transformers, with a distillation token",
    rows=_hf_deit(),
    positioned=("cls", "dist_token"),
    resample="bicubic",
    ignored={
      **_MASKED,
      "pooler": r"^(deit\.)?pooler\.",
      "decoder of masked images": r"^decoder\.",
    },
    options={"pool_type": "tok", "act": "gelu_exact", "norm_eps": 1e-12},
    acts=("gelu_exact",),
  ),
  "hf_dinov2": tables.Family(
    about="DINOv2 of transformers",
    rows=_hf_dinov2("dinov2"),
    resample="bicubic",
    ignored=_MASKED,
    options=_DINO,
    acts=_DINO_ACTS,
  ),
  "hf_dinov2_registers": tables.Family(
    about="DINOv2 with registers of transformers",
    rows=_hf_dinov2_registers(),
    resample="bicubic_antialias",
    ignored=_MASKED,
    options=_DINO,
    acts=_DINO_ACTS,
  ),
  "hf_dinov3": tables.Family(
    about="DINOv3ViTModel of transformers",
    rows=_hf_dinov3(),
    ignored=_MASKED,
    options={**_DINO, "norm_eps": 1e-5, "rope": "dinov3", "posemb": "none"},
    acts=_DINO_ACTS,
  ),
  "hf_clip": tables.Family(
    about="CLIPModel and CLIPVisionModel of transformers: the vision tower",
    rows=_hf_clip(),
    ignored=_TRANSFORMERS_TEXT,
    resample="bicubic",
    not_heads=r"^classifier\.",  # CLIPForImageClassification's, on the mean.
    options=_CLIP,
    acts=("quick_gelu", "gelu_exact"),
  ),
  "hf_siglip": tables.Family(
    about="SiglipModel and SiglipVisionModel of transformers: the vision tower",
    rows=_hf_siglip(),
    ignored=_TRANSFORMERS_TEXT,
    not_heads=r"^classifier\.",  # SiglipForImageClassification's, on the mean.
    resample="bicubic",
    options=_SIGLIP,
    acts=("gelu", "gelu_exact"),
  ),
  "hf_siglip2": tables.Family(
    about="Siglip2VisionModel of transformers, on square images",
    rows=_hf_siglip2(),
    resample="bilinear_antialias",
    ignored=_TRANSFORMERS_TEXT,
    not_heads=r"^classifier\.",
    options=_SIGLIP,
    acts=("gelu", "gelu_exact"),
  ),
  "timm": tables.Family(
    about="vit_*, deit*, eva* and flexivit_* of timm",
    rows=_timm(),
    prefixes=(*_TIMM_PREFIXES, "visual.trunk.", "module.visual.trunk."),
    class_position="usually",
    ignored={
      **_TEXT,
      "decoder of masked images": r"^decoder_(embed|blocks|norm|pred|pos_embed)"
      r"\b|^mask_token$",
    },
    positioned=("cls", "dist_token", "reg_tokens"),
    resample="bicubic_antialias",
    options={"pool_type": "tok", "act": "gelu_exact"},
    acts=("gelu_exact", "quick_gelu", "silu"),
  ),
  "openclip": tables.Family(
    about="CLIP of OpenAI and OpenCLIP: the vision tower",
    rows=_openclip(),
    resample="bicubic_antialias",
    ignored=_TEXT,
    options=_CLIP,
    acts=("quick_gelu", "gelu_exact"),
  ),
}
