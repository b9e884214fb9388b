# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Adapters against PEFT itself."""

import helpers
import jax
import numpy as np
import pytest
import torch_models

import soupjax as sj
from soupjax.tasks.finetune import config as settings

# Workers of pytest-xdist cannot pass on warnings whose classes the first
# process has not imported.
pytestmark = pytest.mark.filterwarnings("ignore")
ALL = ["q", "k", "conv", "point", "emb", "head"]


def small(torch):
  """Returns a model with every kind of layer that is adapted."""
  from transformers.pytorch_utils import Conv1D

  nn = torch.nn
  layers = {
    "q": nn.Linear(12, 9),
    "k": nn.Linear(12, 9, bias=False),
    "conv": nn.Conv2d(3, 6, 2),
    "point": nn.Conv2d(6, 4, 1),
    "emb": nn.Embedding(11, 12),
    "head": nn.Linear(9, 4),
    "norm": nn.LayerNorm(9),
    "gpt": Conv1D(7, 5),
  }

  class Small(nn.Module):
    def __init__(self):
      super().__init__()
      for name, layer in layers.items():
        setattr(self, name, layer)

    def forward(self, x):
      return x

  return torch_models.randomize(Small())


def adapted(peft, torch, model, config, folder, seed=0):
  """Saves an adapter with random values; returns the PEFT model."""
  torch.manual_seed(seed)  # PEFT draws the first values of some factors.
  model = peft.get_peft_model(model, config)
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for p in model.parameters():
      if p.requires_grad:
        p.add_(0.3 * torch.randn(p.shape, generator=generator))
  model.save_pretrained(folder)
  return model


def arrays(module):
  return {k: v.numpy().copy() for k, v in module.state_dict().items()}


def assert_merged(model, ingredient):
  expected = arrays(model.merge_and_unload())
  assert ingredient.specs.keys() == expected.keys()
  for leaf, value in ingredient.load().items():
    np.testing.assert_allclose(value, expected[leaf], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
  "kind,settings",
  [
    ("Lora", {}),
    ("Lora", {"rank_pattern": {"q": 2}, "alpha_pattern": {"^k": 7}}),
    ("Lora", {"use_rslora": True}),
    ("Lora", {"target_modules": ALL}),
    ("Lora", {"modules_to_save": ["head", "norm"]}),
    ("Lora", {"bias": "all"}),
    ("Lora", {"bias": "lora_only"}),
    ("Lora", {"lora_bias": True, "target_modules": ["q"]}),
    ("Lora", {"use_dora": True, "target_modules": ALL}),
    ("Lora", {"target_modules": ["gpt"], "fan_in_fan_out": True}),
    (
      "Lora",
      {"target_modules": ["gpt"], "fan_in_fan_out": True, "use_dora": True},
    ),
    ("IA3", {"feedforward_modules": ["k"]}),
    (
      "IA3",
      {"target_modules": ["conv", "point"], "feedforward_modules": ["point"]},
    ),
    (
      "IA3",
      {
        "target_modules": ["gpt"],
        "feedforward_modules": [],
        "fan_in_fan_out": True,
      },
    ),
    (
      "IA3",
      {
        "target_modules": ["gpt"],
        "feedforward_modules": ["gpt"],
        "fan_in_fan_out": True,
      },
    ),
  ],
)
def test_equals_merge_and_unload(tmp_path, kind, settings):
  peft, torch = torch_models.package("peft"), torch_models.torch()
  model = small(torch)
  base = arrays(model)
  settings = {"target_modules": ["q", "k"], **settings}
  if kind == "Lora":
    settings |= {"r": 3, "lora_alpha": 5}
  config = getattr(peft, f"{kind}Config")(**settings)
  model = adapted(peft, torch, model, config, tmp_path)
  assert_merged(model, sj.open_adapter(tmp_path, base))


def test_names_of_transformers(tmp_path):
  peft, torch = torch_models.package("peft"), torch_models.torch()
  transformers = torch_models.package("transformers")
  sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
  config = transformers.ViTConfig(
    **sizes, intermediate_size=16, image_size=8, patch_size=4, num_labels=3
  )
  model = transformers.ViTForImageClassification(config)
  model.vit.save_pretrained(tmp_path / "body")
  model.save_pretrained(tmp_path / "base")
  config = peft.LoraConfig(
    r=2,
    target_modules="all-linear",
    exclude_modules=["classifier"],
    modules_to_save=["classifier"],
  )
  model = adapted(peft, torch, model, config, tmp_path / "adapter")
  model.merge_and_unload().save_pretrained(tmp_path / "merged")
  expected = sj.load_params(tmp_path / "merged")
  for base in ("base", "body"):  # The body has no head and no prefix "vit.".
    opened = sj.open_adapter(tmp_path / "adapter", tmp_path / base)
    params = opened.load()
    for leaf, value in expected.items():
      name = leaf if base == "base" else leaf.removeprefix("vit.")
      np.testing.assert_allclose(params[name], value, rtol=0, atol=1e-6)


def test_transformers_opens_a_mix_with_a_new_head(tmp_path):
  peft, torch = torch_models.package("peft"), torch_models.torch()
  transformers = torch_models.package("transformers")
  sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
  sizes |= {"intermediate_size": 16, "image_size": 8, "patch_size": 4}
  names = {0: "ant", 1: "bee", 2: "cow"}
  kind = transformers.ViTForImageClassification
  base = kind(transformers.ViTConfig(**sizes, id2label=names))
  base.save_pretrained(tmp_path / "base")
  config = peft.LoraConfig(
    r=2, target_modules=["query", "q_proj"], modules_to_save=["classifier"]
  )
  merged = []
  for k in range(2):
    model = kind.from_pretrained(
      tmp_path / "base", num_labels=5, ignore_mismatched_sizes=True
    )
    path = tmp_path / f"runs/{k}"
    merged.append(adapted(peft, torch, model, config, path, k))
  models = sj.find_ingredients(tmp_path / "runs/*", base=tmp_path / "base")
  sj.mix(sj.rules.linear(), models, out=tmp_path / "soup", format="hub")
  soup = kind.from_pretrained(tmp_path / "soup")
  assert soup.config.id2label == {k: f"LABEL_{k}" for k in range(5)}
  assert soup.config.label2id["LABEL_4"] == soup.config.num_labels - 1 == 4
  states = [model.merge_and_unload().state_dict() for model in merged]
  for leaf, value in soup.state_dict().items():
    mean = (states[0][leaf] + states[1][leaf]) / 2
    np.testing.assert_allclose(value, mean, atol=1e-6, err_msg=leaf)
  # The head of the base keeps its names.
  model = kind.from_pretrained(tmp_path / "base")
  config = peft.LoraConfig(r=2, target_modules=["query", "q_proj"])
  adapted(peft, torch, model, config, tmp_path / "same")
  same = sj.open_adapter(tmp_path / "same", tmp_path / "base")
  sj.mix(sj.rules.linear(), [same], out=tmp_path / "b", format="hub")
  assert kind.from_pretrained(tmp_path / "b").config.id2label == names


@pytest.mark.parametrize("rank", [None, 2])
def test_mixed_adapters_equal_those_of_peft(tmp_path, rank):
  peft, torch = torch_models.package("peft"), torch_models.torch()
  base = arrays(small(torch))
  model = None
  for k, name in enumerate("ab"):
    config = peft.LoraConfig(r=2 + k, lora_alpha=5, target_modules=ALL)
    adapted(peft, torch, small(torch), config, tmp_path / name, k)
    if model is None:
      model = peft.PeftModel.from_pretrained(
        small(torch), tmp_path / name, adapter_name=name
      )
    else:
      model.load_adapter(tmp_path / name, adapter_name=name)
  model.add_weighted_adapter(
    ["a", "b"],
    [0.25, 0.75],
    "mix",
    combination_type="svd" if rank else "cat",
    svd_rank=rank,
  )
  model.set_adapter("mix")
  paths = [tmp_path / name for name in "ab"]
  sj.mix_adapters(paths, tmp_path / "ours", weights=[1, 3], rank=rank)
  assert_merged(model, sj.open_adapter(tmp_path / "ours", base))
  # PEFT loads it and computes the same.
  loaded = peft.PeftModel.from_pretrained(small(torch), tmp_path / "ours")
  assert_merged(loaded, sj.open_adapter(tmp_path / "ours", base))


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_peft_loads_adapters_of_our_runs(tmp_path, kind):
  peft, torch = torch_models.package("peft"), torch_models.torch()
  timm = torch_models.package("timm")
  sizes = {"patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}
  model = timm.create_model(
    "vit_tiny_patch16_224", img_size=8, num_classes=3, mlp_ratio=1.5, **sizes
  )
  config = helpers.finetune_config(
    **{
      "adapter.kind": kind,
      "data.image_size": 8,
      "data.num_classes": 3,
      "model.width": 8,
      "model.depth": 2,
      "model.mlp_dim": 12,
      "model.pool_type": "tok",
    }
  )
  config.unlock().model.act = "gelu_exact"
  path, base, params = helpers.saved_adapter(tmp_path, config)
  leaves = sj.load_params(base)
  model.load_state_dict({k: torch.from_numpy(v) for k, v in leaves.items()})
  loaded = peft.PeftModel.from_pretrained(model, path).eval()
  images = torch_models.IMAGES[:, :8, :8]
  ours = settings.build_model(config)
  expected, _ = jax.jit(ours.apply)({"params": params}, images)
  with torch.no_grad():
    logits = loaded(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
  np.testing.assert_allclose(logits.numpy(), expected, atol=1e-4)
  assert_merged(loaded, sj.open_adapter(path, base))
