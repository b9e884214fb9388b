# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny models for every family of pretrained weights, with random weights."""

import jax
import numpy as np

import soupjax as sj
from soupjax.models import Mixer, ResNet, ViT, pretrained

SIZES = {
  "patch_size": 4,
  "width": 8,
  "depth": 3,
  "mlp_dim": 12,
  "num_heads": 2,
  "num_classes": 5,
}
IMAGES = np.random.default_rng(0).normal(size=(2, 12, 12, 1))
IMAGES = IMAGES.astype(np.float32)
CLIP = {**SIZES, "num_classes": None, "proj_size": 6}
# Options that add all optional leaves of other libraries.
ALL_PARTS = {
  "pool_type": "tok",
  "layer_scale": 1e-5,
  "registers": 3,
  "distilled": True,
  "gated": True,
  "mlp_norm": True,
  "attention_norm": True,
  "qk_norm": True,
  "rope": "mixed",
}
DINO = {"pool_type": "tok", "layer_scale": 1e-5, "act": "gelu_exact"}
ROTATED = {"posemb": "none", "rope": "dinov3", "qkv_bias": "qv"}


def params_of(model, images=IMAGES, seed=0):
  rng = np.random.default_rng(seed)
  made = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), made
  )


def vit(**changes):
  return ViT(**{**SIZES, **changes})


def logits(model, params, images=IMAGES):
  return jax.jit(model.apply)({"params": params}, images)[0]


def load(leaves, model, **options):
  source = sj.Ingredient.from_params("exported", dict(leaves))
  return pretrained.load_pretrained(source, model, **options)


# Family -> models whose leaves have names in this family.
MODELS = {
  "big_vision": [
    vit(pool_type="map"),
    vit(pool_type="tok", rep_size=6),
    ViT(**CLIP, pre_norm=True, patch_bias=False, fc_norm=True),
    vit(posemb="sincos2d"),
    vit(scan=True),
    vit(**ALL_PARTS, scan=True),
    vit(**DINO, **ROTATED),
  ],
  "timm": [
    vit(**ALL_PARTS, act="gelu_exact"),
    vit(**DINO, **ROTATED, registers=2, scan=True),
    vit(class_token=True, final_norm=False, act="silu", qkv_bias=""),
    vit(pool_type="tok"),
    vit(pool_type="map", scan=True),
    vit(class_token=True, fc_norm=True),
    vit(),
  ],
  "hf_vit": [vit(pool_type="tok"), vit(pool_type="tok", scan=True)],
  "hf_deit": [
    vit(pool_type="tok", distilled=True, act="gelu_exact"),
    vit(
      pool_type="tok",
      distilled=True,
      distilled_head=False,
      act="gelu_exact",
    ),
  ],
  "hf_dinov2": [
    vit(**{**DINO, "pool_type": "tok+gap"}, scan=True),
    vit(**{**DINO, "act": "silu"}, gated=True),
  ],
  "hf_dinov2_registers": [vit(**DINO, registers=2)],
  "hf_dinov3": [vit(**DINO, **ROTATED, registers=2, num_classes=None)],
  "hf_siglip2": [
    vit(num_classes=None, pool_type="map", scan=True),
  ],
  "hf_clip": [ViT(**{**CLIP, **pretrained.options("hf_clip")})],
  "hf_siglip": [
    ViT(**{**SIZES, **pretrained.options("hf_siglip"), "num_classes": None})
  ],
  "openclip": [ViT(**{**CLIP, **pretrained.options("openclip")}, scan=True)],
  "mixer": [
    Mixer(5, patch_size=4, width=8, depth=2, tokens_dim=6, channels_dim=12)
  ],
  "timm_mixer": [
    Mixer(
      *(5, 4, 8, 2, 6, 12),
      act="gelu_exact",
    )
  ],
  "bit": [ResNet(5, width=32, depths=(1,), conv_eps=1e-10)],
  "bit_original": [ResNet(5, width=32, depths=(1,), conv_eps=1e-10)],
  "timm_bit": [ResNet(5, width=32, depths=(2,))],
}
