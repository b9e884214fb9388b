# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The torch program of docs/judge.md decides about timm checkpoints."""

import json
import re
import sys

import helpers
import numpy as np
import PIL.Image
import pytest
import torch_models


@pytest.mark.slow
def test_the_program_of_the_docs(tmp_path):
  timm = torch_models.package("timm")
  from safetensors.torch import save_file

  page = (helpers.ROOT / "docs" / "judge.md").read_text()
  (program,) = re.findall(r"```\n(import json.*?)```", page, re.DOTALL)
  # torchvision may not fit the torch that is installed.
  header = (
    f"import sys\nsys.path.insert(0, {str(helpers.ROOT / 'tests')!r})\n"
    "import torch_models\ntorch_models.package('timm')\n"
  )
  (tmp_path / "my_eval.py").write_text(header + program)
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (3, 2, 224, 224, 3), np.uint8)
  for label, images in enumerate(pixels):
    folder = tmp_path / f"photos/val/class_{label}"
    folder.mkdir(parents=True)
    for k, image in enumerate(images):
      PIL.Image.fromarray(image).save(folder / f"{k}.png")
  expected = {}
  for k in range(2):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    model = torch_models.randomize(model, k)
    (tmp_path / f"runs/{k}").mkdir(parents=True)
    save_file(model.state_dict(), tmp_path / f"runs/{k}/model.safetensors")
    torch = torch_models.torch()
    x = torch.tensor(pixels.reshape(6, 224, 224, 3)).permute(0, 3, 1, 2)
    with torch.inference_mode():
      outputs = model(x / 127.5 - 1).argmax(1).numpy()
    expected[str(k)] = float((outputs == np.repeat(range(3), 2)).mean())
  done = helpers.soupjax(
    f"--config={helpers.ROOT / 'configs' / 'cook.py'}",
    f"--workdir={tmp_path / 'soups'}",
    f"--config.ingredients={tmp_path}/runs/*/model.safetensors",
    f"--config.evaluate_command={sys.executable} my_eval.py {{checkpoint}}",
    "--config.cook.metric=acc",
    cwd=tmp_path,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  lines = (tmp_path / "soups" / "results.jsonl").read_text().splitlines()
  found = {r["model"]: r["value"] for r in map(json.loads, lines)}
  for name, accuracy in expected.items():
    assert found[name] == pytest.approx(accuracy)
  assert {"uniform", "greedy"} <= found.keys()
