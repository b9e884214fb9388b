# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Models of other libraries that our ViT computes, by name."""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

# --- transformers -------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TransformersModel:
  """A model type of transformers.

  Attributes:
    family: of its leaves.
    defaults: of our options, where the config lacks a key.
    architectures: name of each class -> options that it implies. Classes
      without a head leave the pooling open.
  """

  family: str
  defaults: Mapping[str, Any]
  architectures: Mapping[str, Mapping[str, Any]]


def _defaults(act: str, norm_eps: float, **options: Any) -> dict[str, Any]:
  return {"num_heads": 12, "act": act, "norm_eps": norm_eps, **options}


_VIT = _defaults("gelu_exact", 1e-12)
_CLIP = _defaults("quick_gelu", 1e-5, pool_type="tok")
_SIGLIP = _defaults("gelu", 1e-6, pool_type="map")
_MSN = {**_VIT, "norm_eps": 1e-6}
_TOKEN, _MEAN = {"pool_type": "tok"}, {"pool_type": "gap"}
_TRANSFORMERS = {
  "vit": TransformersModel(
    "hf_vit",
    _VIT,
    {
      "ViTForImageClassification": _TOKEN,
      "ViTModel": {},
      "ViTForMaskedImageModeling": {},
    },
  ),
  "vit_mae": TransformersModel(
    "hf_vit", _VIT, {"ViTMAEForPreTraining": {}, "ViTMAEModel": {}}
  ),
  "vit_msn": TransformersModel(
    "hf_vit", _MSN, {"ViTMSNForImageClassification": _TOKEN, "ViTMSNModel": {}}
  ),
  "ijepa": TransformersModel(
    "hf_vit", _VIT, {"IJepaForImageClassification": _MEAN, "IJepaModel": {}}
  ),
  "clip": TransformersModel(
    "hf_clip", _CLIP, {"CLIPModel": {}, "CLIPVisionModelWithProjection": {}}
  ),
  "clip_vision_model": TransformersModel(
    "hf_clip",
    _CLIP,
    {"CLIPVisionModel": {}, "CLIPVisionModelWithProjection": {}},
  ),
  "siglip": TransformersModel("hf_siglip", _SIGLIP, {"SiglipModel": {}}),
  "siglip_vision_model": TransformersModel(
    "hf_siglip", _SIGLIP, {"SiglipVisionModel": {}}
  ),
}
TRANSFORMERS_FAMILIES = frozenset(m.family for m in _TRANSFORMERS.values())
# Keys of transformers' configs that do not change outputs in inference, or
# whose values the leaves show.
TRANSFORMERS_FREE = "|".join(
  (
    # Of the file, of training, and of the form of results.
    "_name_or_path|_commit_hash|_attn_implementation.*|transformers_version",
    "model_type|architectures|(torch_)?dtype|torchscript|use_bfloat16",
    "return_dict|use_return_dict|output_.*|use_cache|problem_type|id2label",
    "label2id|num_labels|_num_labels|finetuning_task|gradient_checkpointing",
    "initializer_.*|logit_scale_init_value|.*dropout(_prob)?|drop_path_rate",
    # Of decoders and text towers.
    "text_config(_dict)?|vision_config(_dict)?|decoder_.*|mask_ratio",
    "norm_pix_loss|encoder_stride|use_mask_token|tokenizer_class|.*_token_id",
    "tie_.*|is_(encoder_)?decoder|is_encoder_decoder|chunk_size_feed_forward",
    # Generation of text, which older versions write into every config.
    "padding|(max|min)_length|num_beams?.*|num_return_sequences|temperature|top_[kp]",
    "typical_p|.*_penalty|length_penalty|.*no_repeat_ngram_size",
    # Of the pooler, which is left out, and sizes that the leaves show.
    "pooler_.*|num_channels|projection_dim|projection_size",
  )
)


def transformers_model(config: Mapping[str, Any]) -> TransformersModel | None:
  """Returns the model of a config, None if one of its names is not known.

  Args:
    config: with "model_type", or else with "architectures".
  """
  names, kind = class_names(config), config.get("model_type")
  for model_type, model in _TRANSFORMERS.items():
    known = all(name in model.architectures for name in names)
    if known and (model_type == kind or (not kind and names)):
      return model
  return None


def class_names(config: Mapping[str, Any]) -> list[str]:
  """Returns the names of classes in a config of transformers."""
  names = config.get("architectures") or []
  return list(map(str, names if isinstance(names, list) else [names]))


def transformers_names() -> list[str]:
  """Returns the names of all classes in the tables."""
  return sorted({k for m in _TRANSFORMERS.values() for k in m.architectures})


# --- timm ---------------------------------------------------------------------

TIMM_NORMS = {"layernorm": 1e-6, "layernormfp32": 1e-6}
TIMM_FREE_ARGS = (
  "num_classes|in_chans|mlp_ratio|.*drop_rate|drop_path_rate|weight_init|"
  # No effect at the size of training, at which outputs are compared.
  "fix_init|dynamic_img_(size|pad)|strict_img_size|device|dtype"
)
TIMM_FREE = (
  "architecture|model_args|pretrained_cfg|num_classes|num_features|label_.*"
)
TIMM_ABOUT = (
  "plain vit_*, deit_* without distillation, flexivit_*, eva_large_*, and the "
  "towers vit_*_clip_* and vit_*_siglip_*"
)
# Name of a size -> width and heads.
_SIZES = {
  "tiny": (192, 3),
  "xsmall": (256, 4),
  "small": (384, 6),
  "medium": (512, 8),
  "betwixt": (640, 10),
  "base": (768, 12),
  "large": (1024, 16),
  "so400m": (1152, 16),
  "huge": (1280, 16),
  "giant": (1408, 16),
  "giantopt": (1536, 16),
  "gigantic": (1664, 16),
}
_GAP = {"pool_type": "gap", "has_cls": False}
_MAP = {"pool_type": "map", "has_cls": False}
_LAION = {"norm_eps": 1e-5, "pre_norm": True}
_TANH = "base_patch32|so400m_patch16|giantopt_patch16"
_ERF = "(base|large)_patch16|so400m_patch14"
_PIXELS = "(224|240|256|336|378|384|448|512|896)"
# Names of timm's architectures -> options that differ from timm's defaults.
_TIMM = (
  (r"vit_(tiny|small|base)_patch(8|16|32)_(224|384)", {}),
  (r"vit_large_patch(14|16|32)_(224|384)", {}),
  (r"vit_(huge|giant|gigantic)_patch14_224", {}),
  # Names of older versions.
  (r"vit_(tiny|small|base|large|huge)_patch\d+_224_(in21k|sam|dino)", {}),
  (r"deit_(tiny|small|base)_patch16_(224|384)", {}),
  (r"flexivit_(small|base|large)", {"no_embed_class": True}),
  (r"eva_large_patch14_(196|336)", {"pool_type": "gap"}),
  (r"vit_base_patch16_gap_224", {**_GAP, "num_heads": 16}),
  (r"vit_(huge|giant)_patch1[46]_gap_(224|448)", _GAP),
  (
    r"vit_base_patch16_plus_clip_240",
    {**_LAION, "width": 896, "num_heads": 14},
  ),
  (rf"vit_[a-z]+_patch(14|16|32)_clip_{_PIXELS}", _LAION),
  (
    rf"vit_[a-z]+_patch(14|16|32)_clip_quickgelu_{_PIXELS}",
    {**_LAION, "act": "quick_gelu"},
  ),
  (r"vit_large_patch16_siglip_512", {**_MAP, "act": "gelu"}),
  (r"vit_large_patch16_siglip_gap_512", {**_GAP, "act": "gelu"}),
  (rf"vit_({_TANH})_siglip_{_PIXELS}", {**_MAP, "act": "gelu"}),
  (rf"vit_({_TANH})_siglip_gap_{_PIXELS}", {**_GAP, "act": "gelu"}),
  (rf"vit_({_ERF})_siglip_{_PIXELS}", _MAP),
  (rf"vit_({_ERF})_siglip_gap_{_PIXELS}", _GAP),
)


def timm(name: str) -> dict[str, Any] | None:
  """Returns the options of an architecture of timm, None if it is not known.

  Args:
    name: with or without a tag, such as "vit_base_patch16_224.augreg_in1k".
  """
  name = name.partition(".")[0]
  size = re.match(r"(?:vit|deit|flexivit|eva)_([a-z0-9]+)", name)
  if not size or size[1] not in _SIZES:
    return None
  width, heads = _SIZES[size[1]]
  plain = {
    "width": width,
    "num_heads": heads,
    "act": "gelu_exact",
    "norm_eps": 1e-6,
    "pool_type": "tok",
    "no_embed_class": False,
  }
  for pattern, options in _TIMM:
    if re.fullmatch(pattern, name):
      return plain | options
  return None


# --- OpenCLIP -----------------------------------------------------------------

OPENCLIP_DEFAULTS = {
  "width": 768,
  "head_width": 64,
  "pool_type": "tok",
  "norm_eps": 1e-5,
  "no_ln_pre": False,
  "fc_norm": False,
}
