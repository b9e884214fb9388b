# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Against the PyTorch classes themselves, with random weights, both ways."""

import functools

import helpers
import jax
import numpy as np
import pytest
import torch_models

import soupjax as sj
from soupjax.models import ViT, pretrained
from soupjax.models.pretrained import positions

IMAGES = torch_models.IMAGES
SIZES = {
  "patch_size": 4,
  "width": 24,
  "depth": 3,
  "mlp_dim": 40,
  "num_heads": 3,
}


def hf_vit():
  transformers = torch_models.package("transformers")
  config = transformers.ViTConfig(
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=3,
    intermediate_size=40,
    image_size=16,
    patch_size=4,
    num_labels=5,
  )
  model = transformers.ViTForImageClassification(config)
  return model, lambda x: model(pixel_values=x).logits


def hf_clip(act="quick_gelu"):
  transformers = torch_models.package("transformers")
  config = transformers.CLIPVisionConfig(
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=3,
    intermediate_size=40,
    image_size=16,
    patch_size=4,
    projection_dim=6,
    hidden_act=act,
  )
  model = transformers.CLIPVisionModelWithProjection(config)
  return model, lambda x: model(pixel_values=x).image_embeds


def timm_vit(quick=False, **options):
  timm = torch_models.package("timm")
  if quick:
    torch = torch_models.torch()
    options["norm_layer"] = functools.partial(torch.nn.LayerNorm, eps=1e-5)
    options["act_layer"] = timm.layers.get_act_layer("quick_gelu")
  model = timm.models.vision_transformer.VisionTransformer(
    img_size=16,
    patch_size=4,
    embed_dim=24,
    depth=3,
    num_heads=3,
    mlp_ratio=40 / 24,
    num_classes=5,
    **options,
  )
  return model, model


def openclip(quick=True):
  model_of = torch_models.package("open_clip.model")
  vision = {"layers": 3, "width": 24, "head_width": 8, "mlp_ratio": 40 / 24}
  text = {"context_length": 5, "vocab_size": 7, "width": 8, "heads": 2}
  model = model_of.CLIP(
    embed_dim=6,
    vision_cfg={**vision, "patch_size": 4, "image_size": 16},
    text_cfg={**text, "layers": 1},
    quick_gelu=quick,
  )
  return model, model.encode_image


def _vit(family, **changes):
  return ViT(**{**SIZES, **pretrained.options(family), **changes})


GAP = {"class_token": False, "global_pool": "avg"}
CLIP = {"num_classes": None, "proj_size": 6}
# name -> (family, what makes torch_model, ours)
CASES = {
  "hf_vit": ("hf_vit", hf_vit, {"num_classes": 5}),
  "hf_clip": ("hf_clip", hf_clip, CLIP),
  "hf_clip gelu": (
    "hf_clip",
    lambda: hf_clip("gelu"),
    {**CLIP, "act": "gelu_exact"},
  ),
  "timm": ("timm", timm_vit, {"num_classes": 5}),
  "timm class token in no mean": (
    "timm",
    lambda: timm_vit(global_pool="avg"),
    {"num_classes": 5, "pool_type": "gap", "class_token": True, "fc_norm": 1},
  ),
  "timm mean": (
    "timm",
    lambda: timm_vit(**GAP, fc_norm=False),
    {"num_classes": 5, "pool_type": "gap"},
  ),
  "timm map": (
    "timm",
    lambda: timm_vit(class_token=False, global_pool="map"),
    {"num_classes": 5, "pool_type": "map"},
  ),
  "timm clip": (
    "timm",
    lambda: timm_vit(quick=True, pre_norm=True, no_embed_class=True),
    {
      "num_classes": 5,
      "act": "quick_gelu",
      "norm_eps": 1e-5,
      "pre_norm": True,
      "patch_bias": False,
    },
  ),
  "openclip": ("openclip", openclip, CLIP),
  "openclip gelu": (
    "openclip",
    lambda: openclip(quick=False),
    {**CLIP, "act": "gelu_exact"},
  ),
}


def made(case):
  family, make, changes = CASES[case]
  torch_model, call = make()
  return family, torch_model, call, _vit(family, **changes)


def save(torch_model, folder):
  """Writes what their users have."""
  if hasattr(torch_model, "save_pretrained"):
    torch_model.save_pretrained(folder)
    return folder / "model.safetensors"
  module = torch_models.torch()
  module.save(torch_model.state_dict(), folder / "torch_model.pt")
  return folder / "torch_model.pt"


def logits(model, params, images=IMAGES):
  return jax.jit(model.apply)({"params": params}, images)[0]


def random_params(model, seed=0):
  rng = np.random.default_rng(seed)
  made = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]

  def random(x):
    # Norms with scales near 1, as they are.
    return rng.normal(x.ndim == 1, 0.2, x.shape).astype(x.dtype)

  return jax.tree.map(random, made)


@pytest.mark.parametrize("case", CASES)
def test_their_weights_give_their_logits(case, tmp_path):
  family, torch_model, call, model = made(case)
  torch_models.randomize(torch_model)
  path = save(torch_model, tmp_path)
  expected = torch_models.outputs(torch_model, call)
  params = pretrained.load_pretrained(path, model)
  np.testing.assert_allclose(logits(model, params), expected, atol=1e-4)
  # Not because they are all alike.
  assert np.ptp(expected, axis=0).min() > 1e-2


@pytest.mark.parametrize("case", CASES)
def test_our_weights_give_our_logits_there(case, tmp_path):
  family, torch_model, call, model = made(case)
  params = random_params(model)
  path = tmp_path / "model.safetensors"
  pretrained.save_exported(path, params, model, family)
  if hasattr(torch_model, "save_pretrained"):
    torch_model.config.save_pretrained(tmp_path)
    same, report = type(torch_model).from_pretrained(
      tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    torch_model.load_state_dict(same.state_dict(), strict=True)
  else:
    load = torch_models.package("safetensors.torch").load_file(path)
    if family == "openclip":
      prefix = "visual."
      load = {k.removeprefix(prefix): v for k, v in load.items()}
      torch_model.visual.load_state_dict(load, strict=True)
    else:
      torch_model.load_state_dict(
        _with_positions(torch_model, load), strict=True
      )
  torch_model.eval()
  result = torch_models.outputs(torch_model, call)
  np.testing.assert_allclose(result, logits(model, params), atol=1e-4)


def _with_positions(torch_model, load):
  """Without a position of the class token, where their model has none."""
  if torch_model.no_embed_class:
    assert not load["pos_embed"][:, 0].any()
    load["pos_embed"] = load["pos_embed"][:, 1:]
  return load


def test_the_vision_tower_of_a_whole_clip(tmp_path):
  transformers = torch_models.package("transformers")
  vision, call = hf_clip()
  text = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
  text |= {"intermediate_size": 8, "vocab_size": 9, "bos_token_id": 1}
  config = transformers.CLIPConfig(
    text_config=text,
    vision_config=vision.config.to_dict(),
    projection_dim=6,
  )
  whole = torch_models.randomize(transformers.CLIPModel(config))
  whole.save_pretrained(tmp_path)
  model = _vit("hf_clip", **CLIP)
  params = pretrained.load_pretrained(tmp_path, model)
  result = {k: v for k, v in whole.state_dict().items() if "text" not in k}
  vision.load_state_dict(result, strict=False)
  expected = torch_models.outputs(vision.eval(), call)
  np.testing.assert_allclose(logits(model, params), expected, atol=1e-4)


def test_names_of_transformers_in_memory(tmp_path):
  family, torch_model, call, model = made("hf_vit")
  torch_models.randomize(torch_model)
  path = tmp_path / "memory.pt"
  torch_models.torch().save(torch_model.state_dict(), path)
  params = pretrained.load_pretrained(path, model)
  expected = torch_models.outputs(torch_model, call)
  np.testing.assert_allclose(logits(model, params), expected, atol=1e-4)


def test_checkpoints_of_torch_users_are_souped_and_returned(tmp_path):
  models = []
  for seed in range(2):
    torch_model, _ = hf_vit()
    torch_models.randomize(torch_model, seed).save_pretrained(
      tmp_path / str(seed)
    )
    models.append(torch_model)
  soup = tmp_path / "soup"
  models[0].config.save_pretrained(soup)
  paths = [tmp_path / str(seed) / "model.safetensors" for seed in range(2)]
  # In their names, as files.
  sj.mix(sj.rules.linear(), paths, out=soup / "model.safetensors")
  torch_model = type(models[0]).from_pretrained(soup).eval()
  result = torch_models.outputs(
    torch_model, lambda x: torch_model(pixel_values=x).logits
  )
  # In ours, as trees.
  model = _vit("hf_vit", num_classes=5)
  params = [pretrained.load_pretrained(path, model) for path in paths]
  mean = sj.uniform_soup(
    [sj.Ingredient.from_params(str(i), p) for i, p in enumerate(params)]
  )
  np.testing.assert_allclose(result, logits(model, mean), atol=1e-4)


def test_timm_reads_our_npz(tmp_path):
  _, torch_model, call, _ = made("timm map")
  # It has no model with the tanh approximation, so ours is without.
  model = ViT(**SIZES, num_classes=5, pool_type="map", act="gelu_exact")
  params = random_params(model)
  with pytest.warns(UserWarning, match="'big_vision' have act='gelu'"):
    ours = pretrained.export(params, model, "big_vision")
  # The names are those of big_vision.
  np.savez(tmp_path / "a.npz", **{f"params/{k}": v for k, v in ours.items()})
  torch_model.load_pretrained(str(tmp_path / "a.npz"))
  result = torch_models.outputs(torch_model.eval(), call)
  np.testing.assert_allclose(result, logits(model, params), atol=1e-4)


@pytest.mark.filterwarnings("ignore:Models of 'big_vision'")
def test_timm_and_we_read_old_layouts_alike(tmp_path):
  _, torch_model, call, model = made("timm")
  params = random_params(model)
  np.savez(tmp_path / "old.npz", **helpers.old_layout(params))
  torch_model.load_pretrained(str(tmp_path / "old.npz"))
  result = torch_models.outputs(torch_model.eval(), call)
  params = pretrained.load_pretrained(tmp_path / "old.npz", model)
  np.testing.assert_allclose(result, logits(model, params), atol=1e-4)


@pytest.mark.parametrize("name", ["Ti/16", "B/32", "L/16", "H/14", "G/14"])
def test_sizes_are_those_of_timm(name):
  timm = torch_models.package("timm")
  names = {"Ti": "tiny", "B": "base", "L": "large", "H": "huge"}
  size, patch = name.split("/")
  torch_model = f"vit_{names.get(size, 'gigantic')}_patch{patch}_224"
  with torch_models.torch().device("meta"):
    torch_model = timm.create_model(
      torch_model, num_classes=1000, global_pool="token"
    )
  changes = {"num_classes": 1000, "scan": True, **pretrained.options("timm")}
  model = ViT(**{**sj.models.variant(name), **changes})
  images = np.zeros((1, 224, 224, 3), np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
  result = sum(x.size for x in jax.tree.leaves(shapes))
  # Its class token has a position.
  assert result + model.width == sum(
    p.numel() for p in torch_model.parameters()
  )


@pytest.mark.parametrize(
  "method, settings",
  [
    ("bicubic", {"mode": "bicubic"}),
    ("bicubic_antialias", {"mode": "bicubic", "antialias": True}),
    ("bilinear_antialias", {"mode": "bilinear", "antialias": True}),
  ],
)
@pytest.mark.parametrize("old", [(4, 4), (3, 5)])
@pytest.mark.parametrize("new", [(7, 7), (2, 9), (3, 3)])
def test_positions_are_resampled_as_in_torch(method, settings, old, new):
  torch = torch_models.torch()
  table = np.random.default_rng(0).normal(size=(1, *old, 6))
  table = table.astype(np.float32)
  image = torch.from_numpy(table).permute(0, 3, 1, 2)
  expected = torch.nn.functional.interpolate(
    image, size=new, align_corners=False, **settings
  )
  expected = expected.permute(0, 2, 3, 1).reshape(1, -1, 6).numpy()
  result = positions.resample(table.reshape(1, -1, 6), new, method, old)
  np.testing.assert_allclose(result, expected, atol=2e-5)


def test_timm_resamples_positions_alike(tmp_path):
  timm = torch_models.package("timm")
  name, sizes = "vit_small_patch14_reg4_dinov2", {"patch_size": 4, "depth": 1}
  sizes |= {"embed_dim": 24, "num_heads": 3, "num_classes": 5}
  theirs = torch_models.randomize(timm.create_model(name, img_size=8, **sizes))
  torch_models.torch().save(theirs.state_dict(), tmp_path / "a.pt")
  theirs.set_input_size(img_size=(16, 16))
  options = pretrained.detect(tmp_path / "a.pt").options
  model = ViT(**{**options, "num_heads": 3})
  params = pretrained.load_pretrained(
    tmp_path / "a.pt", model, image_size=IMAGES.shape[1:3]
  )
  expected = torch_models.outputs(theirs)
  np.testing.assert_allclose(logits(model, params), expected, atol=1e-4)
