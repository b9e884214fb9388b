# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Architectures of other libraries that our ViT implements, by name."""

from collections.abc import Mapping
import dataclasses
from typing import Any

# --- transformers -------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TransformersModel:
  """A model type of transformers.

  Attributes:
    family: family of its leaves.
    defaults: values of our options where the config lacks a key.
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
_DINOV2 = {**_MSN, "pool_type": "tok"}
_DINOV3 = {**_DINOV2, "norm_eps": 1e-5, "num_heads": 6, "rope": "dinov3"}
_TOKEN, _MEAN = {"pool_type": "tok"}, {"pool_type": "gap"}
_BOTH = {"pool_type": "tok+gap"}
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
  "deit": TransformersModel(
    "hf_deit",
    _VIT,
    {
      "DeiTForImageClassification": _TOKEN,
      "DeiTForImageClassificationWithTeacher": _TOKEN,
      "DeiTModel": {},
      "DeiTForMaskedImageModeling": {},
    },
  ),
  "dinov2": TransformersModel(
    "hf_dinov2",
    _DINOV2,
    {"Dinov2ForImageClassification": _BOTH, "Dinov2Model": {}},
  ),
  "dinov2_with_registers": TransformersModel(
    "hf_dinov2_registers",
    _DINOV2,
    {
      "Dinov2WithRegistersForImageClassification": _BOTH,
      "Dinov2WithRegistersModel": {},
    },
  ),
  "dinov3_vit": TransformersModel("hf_dinov3", _DINOV3, {"DINOv3ViTModel": {}}),
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
_TRANSFORMERS |= {
  "siglip2": TransformersModel("hf_siglip2", _SIGLIP, {"Siglip2Model": {}}),
  "siglip2_vision_model": TransformersModel(
    "hf_siglip2", _SIGLIP, {"Siglip2VisionModel": {}}
  ),
}
TRANSFORMERS_FAMILIES = frozenset(m.family for m in _TRANSFORMERS.values())
# Keys of transformers' configs that do not change outputs in inference, or
# whose values can be inferred from the leaves.
TRANSFORMERS_FREE = "|".join(
  (
    # About the file, training, and the format of results.
    "_name_or_path|_commit_hash|_attn_implementation.*|transformers_version",
    "model_type|architectures|(torch_)?dtype|torchscript|use_bfloat16",
    "return_dict|use_return_dict|output_.*|use_cache|problem_type|id2label",
    "label2id|num_labels|_num_labels|finetuning_task|gradient_checkpointing",
    "initializer_.*|logit_scale_init_value|.*dropout(_prob)?|drop_path_rate",
    # For backbones in other models.
    "out_(features|indices)|_out_(features|indices)|stage_names",
    "apply_layernorm|reshape_hidden_states|pos_embed_(shift|jitter|rescale)",
    # For decoders and text towers.
    "text_config(_dict)?|vision_config(_dict)?|decoder_.*|mask_ratio",
    "norm_pix_loss|encoder_stride|use_mask_token|tokenizer_class|.*_token_id",
    "tie_.*|is_(encoder_)?decoder|is_encoder_decoder|chunk_size_feed_forward",
    # For generating text: older versions write these into every config.
    "padding|(max|min)_length|num_beams?.*|num_return_sequences|temperature|top_[kp]",
    "typical_p|.*_penalty|length_penalty|.*no_repeat_ngram_size",
    # For the pooler, which is left out, and sizes that the leaves have.
    "pooler_.*|num_channels|projection_dim|projection_size|mlp_ratio",
    "(query|key|value)_bias|num_patches|layerscale_value",
  )
)


def transformers_model(config: Mapping[str, Any]) -> TransformersModel | None:
  """Returns the model of a config, None if one of its names is unknown.

  Args:
    config: a config with "model_type", or else with "architectures".
  """
  names, kind = class_names(config), config.get("model_type")
  for model_type, model in _TRANSFORMERS.items():
    known = all(name in model.architectures for name in names)
    if known and (model_type == kind or (not kind and names)):
      return model
  return None


def class_names(config: Mapping[str, Any]) -> list[str]:
  """Returns the class names in a config of transformers."""
  names = config.get("architectures") or []
  return list(map(str, names if isinstance(names, list) else [names]))


def transformers_names() -> list[str]:
  """Returns the names of all classes in the tables."""
  return sorted({k for m in _TRANSFORMERS.values() for k in m.architectures})


# --- OpenCLIP -----------------------------------------------------------------

OPENCLIP_DEFAULTS = {
  "width": 768,
  "head_width": 64,
  "pool_type": "tok",
  "norm_eps": 1e-5,
  "no_ln_pre": False,
  "fc_norm": False,
}
