# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Vision transformers of timm, shrunk: equal logits, or refused by name.

Every sixth is tested, and all with SOUPJAX_ZOO=all, in two minutes. The table
in docs/pretrained.md is what that prints with `pytest -s`.
"""

import os
import re

import jax
import numpy as np
import pytest
import torch_models

from soupjax.models import ViT, pretrained
from soupjax.models.pretrained import timm_models

PATTERNS = ("vit_*", "deit*", "flexivit*", "eva*", "beit*")
# Beginning of a name -> the row in docs/pretrained.md.
KINDS = (
  (r"beit", "BEiT"),
  (r"vit_s?relpos", "relative positions"),
  (r".*(_r\d+_|_resnet|_r_|_mci)", "convolutional stems"),
  (r"eva02", "EVA-02"),
  (r"eva", "EVA"),
  (r"deit3", "DeiT-3"),
  (r"deit", "DeiT"),
  (r"flexivit", "FlexiViT"),
  (r"vit_pe_", "Perception Encoder"),
  (r".*dinov3|.*lingbot", "DINOv3"),
  (r".*dinov2|.*tipsv2|.*radio", "DINOv2"),
  (r".*siglip", "SigLIP"),
  (r".*clip", "CLIP"),
  (r".*rope", "rotary positions"),
  (r".*reg\d_", "registers"),
  (r"", "other ViT"),
)


def made(timm, name):
  """Builds a small model, None if timm cannot."""
  patch = re.search(r"patch(\d+)", name)
  side = 4 * int(patch[1]) if patch else 64
  sizes = {"img_size": side, "embed_dim": 64, "depth": 2, "num_classes": 5}
  for heads in ({"num_heads": 4}, {}):
    try:
      model = timm.create_model(name, **sizes, **heads)
    except (AssertionError, RuntimeError, TypeError, ValueError):
      continue
    return model, {**sizes, **heads}, side
  return None


def outcome(timm, name, folder):
  """Returns "equal", "refused" or "not built", or fails."""
  torch, small = torch_models.torch(), made(timm, name)
  if small is None:
    return "not built"
  model, args, side = small
  torch_models.randomize(model)
  args.pop("num_classes")
  from timm.models import _hub

  _hub.save_for_hf(model, folder, model_args=args, safe_serialization=True)
  x = np.random.default_rng(0).normal(size=(2, side, side, 3))
  x = x.astype(np.float32)
  with torch.no_grad():
    expected = model(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
  path = folder / "model.safetensors"
  if timm_models.options(name) is None:
    with pytest.raises(ValueError, match=f"architecture='{name}'.*not known"):
      pretrained.detect(path)
    return "refused"
  ours = ViT(**pretrained.detect(path).options)
  params = pretrained.load_pretrained(path, ours)
  logits, _ = jax.jit(ours.apply)({"params": params}, x)
  scale = max(np.abs(expected).max(), 1)
  np.testing.assert_allclose(logits, expected, atol=1e-4 * scale, err_msg=name)
  return "equal"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_vision_transformer_of_timm(tmp_path):
  timm = torch_models.package("timm")
  names = [name for p in PATTERNS for name in timm.list_models(p)]
  whole = os.environ.get("SOUPJAX_ZOO") == "all"
  names = names if whole else names[::6]
  table: dict[str, dict[str, int]] = {}
  for name in names:
    kind = next(kind for pattern, kind in KINDS if re.match(pattern, name))
    folder = tmp_path / name
    folder.mkdir()
    result = outcome(timm, name, folder)
    row = table.setdefault(kind, {"equal": 0, "refused": 0, "not built": 0})
    row[result] += 1
    for file in folder.iterdir():
      file.unlink()
  lines = [
    f"| {kind} | {' | '.join(str(n) for n in row.values())} |"
    for kind, row in table.items()
  ]
  print("\n".join(lines))
  equal = sum(row["equal"] for row in table.values())
  assert equal >= (200 if whole else 30)
