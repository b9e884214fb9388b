# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Graphs that torch.onnx exports: our features are those of onnxruntime."""

import json

import jax
import numpy as np
import pytest
import torch_models

from soupjax.models import ViT, pretrained

SIZES = {
  "hidden_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
  "mlp_ratio": 2,
  "image_size": 16,
  "patch_size": 4,
}


@pytest.mark.filterwarnings("ignore")  # Of the exporter.
@pytest.mark.parametrize("options", [{}, {"use_swiglu_ffn": True}])
def test_dinov2_from_onnx(options, tmp_path):
  torch, _ = torch_models.torch(), pytest.importorskip("onnx")
  runtime = pytest.importorskip("onnxruntime", reason="pip install onnxruntime")
  transformers = torch_models.package("transformers")
  config = transformers.Dinov2Config(**SIZES, **options)
  config._attn_implementation = "eager"
  model = torch_models.randomize(transformers.Dinov2Model(config))
  images = torch.from_numpy(torch_models.IMAGES.transpose(0, 3, 1, 2).copy())

  class Features(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.net = model

    def forward(self, x):
      return self.net(x).last_hidden_state

  graph = str(tmp_path / "model.onnx")
  torch.onnx.export(
    Features(), (images,), graph, input_names=["x"], dynamo=False
  )
  (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
  session = runtime.InferenceSession(graph, providers=["CPUExecutionProvider"])
  [expected] = session.run(None, {"x": images.numpy()})
  detected = pretrained.detect(graph)
  assert detected.family == "hf_dinov2"
  options = {**detected.options, "num_classes": None, "pool_type": "tok"}
  ours = ViT(**options)
  params = pretrained.load_pretrained(graph, ours)
  features, _ = jax.jit(ours.apply)({"params": params}, torch_models.IMAGES)
  np.testing.assert_allclose(features, expected[:, 0], atol=1e-4)
