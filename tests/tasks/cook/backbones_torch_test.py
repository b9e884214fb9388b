# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Folders of timm's models are cooked, and timm opens the soups."""

import json
import os

import helpers
import numpy as np
import PIL.Image
import pytest
import torch_models

import soupjax as sj
from soupjax import config as config_lib
from soupjax.tasks.cook import run as cook

CONFIG = str(helpers.ROOT / "configs" / "cook.py")
SIDE = 32
VIT = {"embed_dim": 64, "depth": 1, "num_heads": 2, "img_size": SIDE}
# Architecture -> arguments. Rotary positions and registers; attention pooling;
# an MLP-Mixer; a ResNet, whose images have any size.
MODELS = {
  "vit_small_patch16_dinov3": {**VIT, "num_heads": 4},
  "vit_base_patch16_siglip_224": VIT,
  "mixer_s16_224": {"embed_dim": 24, "num_blocks": 1, "img_size": SIDE},
  "resnetv2_50x1_bit": {},
}


def made(name):
  timm = torch_models.package("timm")
  from timm.models import mlp_mixer, resnetv2

  args = {**MODELS[name], "num_classes": 3}
  if name.startswith("mixer"):  # Its own function has sizes that are fixed.
    return mlp_mixer._create_mixer(name, **args)
  if name.startswith("resnet"):
    small = {"layers": [1], "channels": (128,), "stem_chs": 32}
    return resnetv2._create_resnetv2_bit(name, **small, **args)
  return timm.create_model(name, **args)


# ViTs take 10 s more; infer_test.py cooks others.
TESTED = MODELS if os.environ.get("SOUPJAX_ZOO") == "all" else [*MODELS][2:]


@pytest.mark.parametrize("name", TESTED)
def test_soups_of_timm(name, tmp_path):
  torch = torch_models.torch()
  models = [torch_models.randomize(made(name), seed) for seed in range(2)]
  from timm.models import _hub

  for k, model in enumerate(models):
    folder = tmp_path / f"runs/{k}"
    _hub.save_for_hf(
      model, folder, model_args=MODELS[name], safe_serialization=True
    )
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (6, SIDE, SIDE, 3), np.uint8)
  for k, image in enumerate(pixels):
    folder = tmp_path / f"photos/val/{'abc'[k % 3]}"
    folder.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(image).save(folder / f"{k}.png")
  config = config_lib.load(
    CONFIG,
    **{
      "ingredients": f"{tmp_path}/runs/*",
      "data.name": f"folder:{tmp_path}/photos",
      "data.minival": "val",
      "data.eval_ops": "value_range(-1, 1)",
      "data.image_size": SIDE,
      "cook.learned.granularities": (),
      "cook.calibration": False,
      "cook.ensembles_gb": 0.0,
      "cook.metric": "loss",
    },
  )
  # timm's config says how to prepare images of the full size.
  for k in range(2):
    path = tmp_path / f"runs/{k}/config.json"
    content = json.loads(path.read_text())
    content["pretrained_cfg"] |= {
      "mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, SIDE, SIDE],
    }  # fmt: skip
    path.write_text(json.dumps(content))
  cook.run(config, tmp_path / "soups")
  x = torch.from_numpy((pixels / 127.5 - 1).astype("f").transpose(0, 3, 1, 2))
  truth = torch.arange(6) % 3

  def loss(model):
    with torch.no_grad():
      return torch.nn.functional.cross_entropy(model(x), truth).item()

  result = helpers.result_values(tmp_path / "soups", "loss")
  for k, model in enumerate(models):
    value = result[str(k), "photos/minival"]
    assert value == pytest.approx(loss(model), rel=1e-4)
  soup = made(name).eval()
  export = tmp_path / "soups/export/uniform"
  leaves = sj.open_ingredient(export).load()
  soup.load_state_dict(
    {k: torch.from_numpy(np.array(v)) for k, v in leaves.items()}
  )
  value = result["uniform", "photos/minival"]
  assert value == pytest.approx(loss(soup), rel=1e-4)
  states = [model.state_dict() for model in models]
  for key, leaf in soup.state_dict().items():
    mean = (states[0][key].double() + states[1][key].double()) / 2
    np.testing.assert_allclose(leaf, mean, atol=1e-6, err_msg=key)
