# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Mixers and BiT's ResNets of timm: equal logits, in both directions."""

import json

import jax
import numpy as np
import pytest
import torch_models

import soupjax as sj
from soupjax import models
from soupjax.models import pretrained

SIDE = 32
IMAGES = np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 3)).astype("f")


def mixer():
  torch_models.package("timm")
  from timm.models import mlp_mixer

  return mlp_mixer._create_mixer(
    *("mixer_s16_224",),
    img_size=SIDE,
    embed_dim=24,
    num_blocks=2,
    num_classes=5,
  )


def bit():
  torch_models.package("timm")
  from timm.models import resnetv2

  return resnetv2._create_resnetv2_bit(
    *("resnetv2_50x1_bit",),
    **{"layers": [1, 2], "channels": (128, 256), "stem_chs": 32},
    num_classes=5,
  )


# Family -> timm's model, and an option that only the family tells.
MODELS = {
  "timm_mixer": (mixer, {"act": "gelu_exact"}),
  "timm_bit": (bit, {"conv_eps": 1e-8}),
}


def saved(family, folder, **config):
  """Saves a model as timm does for the hub."""
  model = torch_models.randomize(MODELS[family][0]())
  if family == "timm_bit":  # Values below zero before the pooling, too.
    model.stem.conv.weight.data.mul_(0.01)
  from timm.models import _hub

  _hub.save_for_hf(model, folder, safe_serialization=True)
  path = folder / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | config))
  return model


def expected_of(model):
  torch = torch_models.torch()
  with torch.no_grad():
    x = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    return model(x).numpy()


def ours(folder):
  detected = pretrained.detect(folder)
  model = models.build(detected.model, **detected.options)
  params = pretrained.load_pretrained(folder, model)
  return detected, model, params


@pytest.mark.parametrize("family", MODELS)
def test_logits_equal_those_of_timm(family, tmp_path):
  config = {} if family == "timm_bit" else {"model_args": {"img_size": SIDE}}
  theirs = saved(family, tmp_path, **config)
  detected, model, params = ours(tmp_path)
  assert detected.family == family and detected.model != "vit"
  assert MODELS[family][1].items() <= detected.options.items()
  assert set(MODELS[family][1]) <= detected.said
  assert detected.image_size == (224 if family == "timm_bit" else SIDE)
  expected = expected_of(theirs)
  logits, _ = jax.jit(model.apply)({"params": params}, IMAGES)
  scale = max(np.abs(expected).max(), 1)
  np.testing.assert_allclose(logits, expected, atol=1e-5 * scale)
  # Back, with other values, into their class.
  params = jax.tree.map(lambda x: x * np.float32(0.9), params)
  pretrained.save_exported(tmp_path / "out.safetensors", params, model, family)
  torch = torch_models.torch()
  leaves = sj.open_ingredient(tmp_path / "out.safetensors").load()
  leaves = {k: torch.from_numpy(np.array(v)) for k, v in leaves.items()}
  theirs.load_state_dict(leaves)
  logits, _ = jax.jit(model.apply)({"params": params}, IMAGES)
  expected = expected_of(theirs)
  np.testing.assert_allclose(
    logits, expected, atol=1e-4 * max(np.abs(expected).max(), 1)
  )


def test_the_original_files_of_bit(tmp_path):
  theirs = torch_models.randomize(bit())
  state = {k: v.numpy() for k, v in theirs.state_dict().items()}
  source = sj.Ingredient.from_params("timm", state)
  detected = pretrained.detect(source)
  model = models.build(detected.model, **detected.options)
  params = pretrained.load_pretrained(source, model)
  path = tmp_path / "R50x1.npz"
  pretrained.save_exported(path, params, model, "bit_original")
  names = {
    "resnet/root_block/standardized_conv2d/kernel": (7, 7, 3, 32),
    "resnet/block1/unit01/a/proj/standardized_conv2d/kernel": (1, 1, 32, 128),
    "resnet/block2/unit02/c/group_norm/gamma": (64,),
    "resnet/group_norm/beta": (256,),
    "resnet/head/conv2d/kernel": (1, 1, 256, 5),
  }
  specs = sj.open_ingredient(path).specs
  assert names.items() <= {k: v.shape for k, v in specs.items()}.items()
  other = torch_models.randomize(bit(), seed=1)
  other.load_pretrained(str(path))  # timm reads them.
  np.testing.assert_array_equal(expected_of(other), expected_of(theirs))
  found = pretrained.detect(path)
  assert found.family == "bit_original"
  assert found.options == {**detected.options, "conv_eps": 1e-10}
  loaded = pretrained.load_pretrained(path, model)
  jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize(
  "family, config, message",
  [
    ("timm_mixer", {"architecture": "gmixer_12_224"}, "'gmixer_12_224'.*not k"),
    ("timm_bit", {"architecture": "resnetv2_50"}, "'resnetv2_50', an arch"),
    ("timm_bit", {"architecture": "mixer_b16_224"}, "mixer.*'timm_bit': move"),
    (
      "timm_mixer",
      {"model_args": {"img_size": 64}},
      r"patches \(64 x 64 pixels\)=16",
    ),
    ("timm_mixer", {"model_args": {"num_blocks": 3}}, "depth=3, but .* have 2"),
    ("timm_mixer", {"model_args": {"stem_norm": True}}, "args.stem_norm=True"),
    ("timm_mixer", {"global_pool": ""}, "global_pool=''"),
    ("timm_bit", {"model_args": {"output_stride": 16}}, "output_stride=16"),
    (
      "timm_bit",
      {"model_args": {"stem_type": "same"}},
      "stem_type='same'",
    ),
  ],
)
def test_what_a_config_contradicts(family, config, message, tmp_path):
  saved(family, tmp_path, **config)
  with pytest.raises(ValueError, match=message):
    pretrained.detect(tmp_path)


def test_a_model_that_computes_something_else(tmp_path):
  saved("timm_bit", tmp_path)
  with pytest.raises(ValueError, match="conv_eps=1e-08.*this ResNet has"):
    pretrained.load_pretrained(
      tmp_path, models.ResNet(5, width=32, depths=(1, 2), conv_eps=1e-10)
    )
  with pytest.raises(ValueError, match=r"stages.1.blocks.1.*other depths="):
    pretrained.load_pretrained(
      tmp_path, models.ResNet(5, width=32, depths=(1, 1))
    )
  with pytest.raises(ValueError, match="'timm_bit' is for models.ResNet"):
    pretrained.load_pretrained(tmp_path, models.ViT(5))
