# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Architectures of timm that soupjax implements, by name.

The tables list options that cannot be inferred from leaves. The others, such as
layer scale, registers, gates and biases, follow from names and shapes.
"""

import re
from typing import Any

NORMS = {"layernorm": 1e-6, "layernormfp32": 1e-6}
# Arguments that do not change outputs at training resolution, or whose values
# can be inferred from the leaves.
FREE_ARGS = "|".join(
  (
    "num_classes|in_chans|.*drop_rate|drop_path_rate|weight_init|fix_init",
    "dynamic_img_(size|pad)|strict_img_size|device|dtype|head_init_scale",
    "mlp_ratio|swiglu_align_to|qkv_bias|qkv_fused|pos_embed|use_abs_pos_emb",
    "use_fc_norm|use_(pre|post)_transformer_norm|attn_pool_mlp_ratio",
  )
)
FREE = (
  "architecture|model_args|pretrained_cfg|num_classes|num_features|label_.*"
)
ABOUT = (
  "plain vit_*, also with registers (reg), rotary positions (rope, pe, eva02, "
  "dinov3), of DINOv2, CLIP and SigLIP; deit_*, deit3_*, flexivit_* and eva_*; "
  "mixer_*; resnetv2_*_bit; "
  "but not those with convolutions (r26, r50, resnet, mci), relative positions "
  "(relpos, beit), parallel blocks or differential or grouped attention"
)
# Name of a size -> width and heads.
_SIZES = {
  "tiny": (192, 3),
  "wee": (256, 4),
  "xsmall": (256, 4),
  "little": (320, 5),
  "small": (384, 6),
  "small_plus": (384, 6),
  "medium": (512, 8),
  "mediumd": (512, 8),
  "betwixt": (640, 10),
  "base": (768, 12),
  "so150m2": (832, 13),
  "so150m": (896, 14),
  "large": (1024, 16),
  "intern300m": (1024, 16),
  "so400m": (1152, 16),
  "huge": (1280, 16),
  "huge_plus": (1280, 20),
  "giant": (1408, 16),
  "giantopt": (1536, 16),
  "gigantic": (1664, 16),
  "enormous": (1792, 16),
  "7b": (4096, 32),
}
_GAP = {"pool_type": "gap", "has_cls": False}
_MAP = {"pool_type": "map", "has_cls": False}
_NO_EMBED = {"no_embed_class": True}
_LAION = {"norm_eps": 1e-5, "pre_norm": True}
_PLUS = {"width": 896, "num_heads": 14}
_GIANT = {"width": 1536, "num_heads": 24}
_EVA02 = {"act": "silu", "rope": "eva02", "rope_grid": 16}
_DINOV3 = {"pool_type": "gap", "norm_eps": 1e-5, "rope": "dinov3"}
_PE = {"norm_eps": 1e-5, "pre_norm": True, "rope": "pe"}
_PE_CORE = {"pool_type": "map", "pool_prefix": True, "pool_heads": 8}
_PE_GIGANTIC = {
  "width": 1536,
  "num_heads": 16,
  "has_cls": False,
  "rope": "pe_without_class",
}
_TANH = "base_patch32|so400m_patch16|giantopt_patch16"
_ERF = "(base|large)_patch16|so400m_patch14"
_PIXELS = "(224|240|256|336|378|384|448|512|896)"
# Names of timm's architectures -> options that differ from timm's defaults. All
# patterns that match a name apply; later ones override earlier ones.
_TIMM = (
  (r"vit_(tiny|small|base)_patch(8|16|32)_(224|384)", {}),
  (r"vit_large_patch(14|16|32)_(224|384)", {}),
  (r"vit_(huge|giant|gigantic)_patch14_224", {}),
  # Names of older versions.
  (r"vit_(tiny|small|base|large|huge)_patch\d+_224_(in21k|sam|dino)", {}),
  (r"vit_base_patch16_224_miil|vit_small_patch16_36x1_224", {}),
  (r"vit_base_patch(16_plus_240|32_plus_256)", _PLUS),
  (r"vit_base_patch16_rpn_224", {**_GAP, "post_norm": True}),
  (r"vit_intern300m_patch14_448", {}),
  (r"deit_(tiny|small|base)_(distilled_)?patch16_(224|384)", {}),
  (r"deit3_(small|medium|base|large|huge)_patch1[46]_(224|384)", _NO_EMBED),
  (r"flexivit_(small|base|large)", _NO_EMBED),
  # Pooling by the mean of the patches.
  (r"vit_(medium|betwixt)_patch16_gap_(240|256|384)", _GAP),
  (r"vit_base_patch16_gap_224", {**_GAP, "num_heads": 16}),
  (r"vit_(huge|giant)_patch1[46]_gap_(224|448)", _GAP),
  (
    r"vit_(wee|little|mediumd?|betwixt|base)_patch16_reg[14]_gap_(256|384)",
    {**_GAP, **_NO_EMBED},
  ),
  (r"vit_so150m2?_patch16_reg[14]_gap_(256|384|448)", _GAP),
  (r"vit_so150m_patch16_reg4_map_256", _MAP),
  # DINOv2 and models like it.
  (r"vit_(small|base|large|giant)_patch14_dinov2", {}),
  (r"vit_(small|base|large|giant)_patch14_reg4_dinov2", _NO_EMBED),
  (r"vit_(base|large|so400m|giant)_patch14_reg1_tipsv2", _NO_EMBED),
  (r"vit_giant_patch14_(dinov2|reg\d_.*)", {**_GIANT, "act": "silu"}),
  (r"vit_(base|large|huge|giant|so400m)_patch16_radio_v[34]", _NO_EMBED),
  (r"vit_giant_patch16_radio_v3", _GIANT),
  # CLIP and SigLIP.
  (r"vit_base_patch16_plus_clip_240", {**_LAION, **_PLUS}),
  (rf"vit_[a-z]+_patch(14|16|32)_clip_{_PIXELS}", _LAION),
  (
    rf"vit_[a-z]+_patch(14|16|32)_clip_quickgelu_{_PIXELS}",
    {**_LAION, "act": "quick_gelu"},
  ),
  (r"vit_large_patch16_siglip_512", {**_MAP, "act": "gelu"}),
  (r"vit_large_patch16_siglip_gap_512", {**_GAP, "act": "gelu"}),
  (rf"vit_({_TANH})_siglip_{_PIXELS}", {**_MAP, "act": "gelu"}),
  (rf"vit_({_TANH})_siglip_gap_{_PIXELS}", {**_GAP, "act": "gelu"}),
  (rf"vit_({_ERF})_siglip_(224|256|378|384)", _MAP),
  (rf"vit_({_ERF})_siglip_gap_(224|256|378|384|448|896)", _GAP),
  (r"vit_base_patch16_siglip_512", _MAP),
  (r"vit_base_patch16_siglip_gap_512", _GAP),
  # EVA.
  (r"eva_large_patch14_(196|336)", {"pool_type": "gap"}),
  (r"eva_giant_patch14_(224|336|560)", {"pool_type": "gap"}),
  (r"eva_giant_patch14_clip_224", {}),
  (
    r"eva02_(tiny|small|base|large)_patch14_(224|336|448)",
    {**_EVA02, "pool_type": "gap"},
  ),
  (r"eva02_(base|large)_patch1[46]_clip_(224|336)", _EVA02),
  (r"eva02_enormous_patch14_clip_224", {"post_norm": True}),
  # Rotary positions.
  (
    r"vit_(mediumd?|betwixt|base)_patch16_rope_reg[14]_gap_256",
    {**_GAP, "rope": "eva02", "rope_grid": 16},
  ),
  (r"vit_(small|base|large)_patch16_rope_(ape_)?224", {"rope": "axial"}),
  (r"vit_(small|base|large)_patch16_rope_mixed_(ape_)?224", {"rope": "mixed"}),
  (r"vit_(small|base|large)_patch16_rope_(mixed_)?ape_224", _NO_EMBED),
  (
    r"vit_(tiny|small|base|large|huge|7b)(_plus)?_patch16_dinov3(_qkvb)?",
    _DINOV3,
  ),
  (r"vit_((small|huge)_plus|7b)_patch16_dinov3(_qkvb)?", {"act": "silu"}),
  (
    r"vit_(small|base|large|giant)_patch16_lingbot",
    {**_DINOV3, "pool_type": "tok"},
  ),
  (r"vit_giant_patch16_lingbot", {**_GIANT, "act": "silu"}),
  (
    r"vit_pe_core_(tiny|small|base|large|gigantic)_patch\d+_\d+",
    {**_PE, **_PE_CORE},
  ),
  (
    r"vit_pe_(lang|spatial)_(tiny|small|base|large|gigantic)_patch\d+_\d+",
    {**_PE, "pool_type": "gap"},
  ),
  (r"vit_pe_[a-z]+_gigantic_patch14_448", _PE_GIGANTIC),
)


# Models other than ViTs: family -> architectures, and family -> options.
_OTHER = {
  "timm_mixer": r"mixer_[sbl](16|32)_224(_(in21k|miil(_in21k)?))?",
  "timm_bit": r"resnetv2_\d+x\d_bit[a-z]*(_.*)?",
}
OTHER_OPTIONS = {
  "timm_mixer": {"act": "gelu_exact"},
  "timm_bit": {"conv_eps": 1e-8},
}


def families(name: Any) -> tuple[str, ...]:
  """Returns the family of an architecture of timm; all if it is unknown."""
  name = str(name).partition(".")[0]
  if options(name) is not None:
    return ("timm",)
  known = tuple(k for k, v in _OTHER.items() if re.fullmatch(v, name))
  return known or ("timm", *_OTHER)


def options(name: str) -> dict[str, Any] | None:
  """Returns the options of a ViT architecture of timm, None if it is unknown.

  Args:
    name: with or without a tag, such as "vit_base_patch16_224.augreg_in1k".

  Returns:
    Options of `models.ViT`; timm's "no_embed_class"; and "has_cls" if the name
    tells whether there is a class token.
  """
  name = name.partition(".")[0]
  size = re.match(
    r"(?:vit|deit3?|flexivit|eva(?:02)?)_(?:pe_[a-z]+_)?([a-z0-9]+(_plus)?)",
    name,
  )
  if not size or (
    size[1] not in _SIZES and size[1].removesuffix("_plus") not in _SIZES
  ):
    return None
  matches = [given for pattern, given in _TIMM if re.fullmatch(pattern, name)]
  if not matches:
    return None
  width, heads = _SIZES.get(size[1]) or _SIZES[size[1].removesuffix("_plus")]
  result = {
    "width": width,
    "num_heads": heads,
    "act": "gelu_exact",
    "norm_eps": 1e-6,
    "pool_type": "tok",
    "no_embed_class": False,
    "post_norm": False,
    "pool_prefix": False,
    "rope": "",
  }
  for given in matches:
    result |= given
  if pixels := re.fullmatch(r"vit_pe_.*_patch(\d+)_(\d+)", name):
    result["rope_grid"] = int(pixels[2]) // int(pixels[1])
  return result
