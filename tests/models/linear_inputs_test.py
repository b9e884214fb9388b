# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Inputs of linear layers against those computed by hand."""

import jax
import numpy as np
import pytest

from soupjax import models
from soupjax.models.linear_inputs import linear_inputs

SIZES = {
  "num_classes": 5, "patch_size": 4, "width": 8, "mlp_dim": 12, "num_heads": 2,
  "pool_type": "gap",
}  # fmt: skip
BLOCK = "Transformer/encoderblock_0"
ATTENTION = f"{BLOCK}/MultiHeadDotProductAttention_0"


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("f")


def init(model, images):
  return jax.jit(model.init)(jax.random.key(0), images)["params"]


def test_inputs_of_a_vit_are_those_by_hand(images):
  model = models.ViT(depth=1, head_zeroinit=False, **SIZES)
  params = init(model, images)
  inputs = jax.jit(linear_inputs(model))(params, images)
  assert sorted(inputs) == [
    *(f"{BLOCK}/MlpBlock_0/Dense_{k}/kernel" for k in (0, 1)),
    *(
      f"{ATTENTION}/{name}/kernel" for name in ("key", "out", "query", "value")
    ),
    "head/kernel",
  ]
  (_, features), state = model.apply(
    {"params": params}, images, capture_intermediates=True
  )
  outputs = state["intermediates"]["Transformer"]["encoderblock_0"]
  normed = np.asarray(outputs["LayerNorm_0"]["__call__"][0])
  # Attention in NumPy, from the definition.
  weights = params["Transformer"]["encoderblock_0"]
  weights = weights["MultiHeadDotProductAttention_0"]

  def project(name):
    w = jax.tree.map(np.asarray, weights[name])
    return np.einsum("btw,whc->bthc", normed, w["kernel"]) + w["bias"]

  q, k, v = map(project, ("query", "key", "value"))
  scores = np.exp(np.einsum("bqhc,bkhc->bhqk", q, k) / 2)  # sqrt(4 channels)
  scores /= scores.sum(-1, keepdims=True)
  attended = np.einsum("bhqk,bkhc->bqhc", scores, v)
  hidden = np.asarray(outputs["MlpBlock_0"]["Dense_0"]["__call__"][0])
  expected = {
    f"{ATTENTION}/query/kernel": normed,
    f"{ATTENTION}/out/kernel": attended.reshape(2, 4, 8),
    f"{BLOCK}/MlpBlock_0/Dense_0/kernel": outputs["LayerNorm_1"]["__call__"][0],
    f"{BLOCK}/MlpBlock_0/Dense_1/kernel": jax.nn.gelu(hidden),
    "head/kernel": features,
  }
  for name, x in expected.items():
    x = np.asarray(x).reshape(-1, np.shape(x)[-1])
    np.testing.assert_allclose(inputs[name], x, atol=1e-5, err_msg=name)


def test_other_models(images):
  mixer = models.Mixer(
    num_classes=5, patch_size=4, width=8, depth=1, tokens_dim=6, channels_dim=7
  )
  inputs = linear_inputs(mixer)(init(mixer, images), images)
  shape = {name: x.shape for name, x in inputs.items()}
  # Tokens are mixed for each of 8 channels of both images.
  assert shape["MixerBlock_0/token_mixing/Dense_1/kernel"] == (16, 6)
  assert shape["MixerBlock_0/channel_mixing/Dense_0/kernel"] == (8, 8)
  assert len(inputs) == 5
  scanned = models.ViT(depth=2, scan=True, **SIZES)
  with pytest.raises(ValueError, match="scan=False"):
    linear_inputs(scanned)(None, images)
