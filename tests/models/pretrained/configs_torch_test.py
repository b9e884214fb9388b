# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Files and configs as libraries save them: equal outputs, or refused."""

import json

import chex
import jax
import numpy as np
import pytest
import torch_models

import soupjax as sj
from soupjax.models import ViT, pretrained
from soupjax.models.pretrained import timm_models

IMAGES = torch_models.IMAGES
SIZES = {
  "hidden_size": 24,
  "num_hidden_layers": 1,
  "num_attention_heads": 3,
  "intermediate_size": 40,
  "image_size": 16,
  "patch_size": 4,
}
TEXT = {
  "hidden_size": 8,
  "num_attention_heads": 2,
  "num_hidden_layers": 1,
  "intermediate_size": 8,
  "vocab_size": 9,
}
DECODER = {
  "decoder_hidden_size": 8,
  "decoder_num_hidden_layers": 1,
  "decoder_num_attention_heads": 2,
  "decoder_intermediate_size": 8,
}
BOTH = {"vision_config": SIZES, "text_config": TEXT}
TOKENS = {"pool_type": "none", "class_token": True}


def random_params(model):
  rng = np.random.default_rng(0)
  specs = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
  return jax.tree.map(
    lambda x: rng.normal(x.ndim == 1, 0.2, x.shape).astype(x.dtype), specs
  )


def first(x):
  return x.last_hidden_state[:, 0]


def pooled(x):
  return x.pooler_output


# Class of transformers -> arguments of its config, its output that ours equals,
# and changes of the detected model.
EQUAL = {
  "ViTForImageClassification": ({}, lambda x: x.logits),
  "ViTModel": ({"hidden_act": "gelu_fast"}, first),
  "ViTMAEModel": ({"mask_ratio": 0.0}, None),
  "ViTMSNForImageClassification": ({}, lambda x: x.logits),
  "IJepaForImageClassification": ({"num_labels": 5}, lambda x: x.logits),
  "CLIPVisionModel": ({"hidden_act": "gelu"}, pooled),
  "CLIPVisionModelWithProjection": (
    {"projection_dim": 6},
    lambda x: x.image_embeds,
  ),
  "SiglipVisionModel": ({}, pooled),
  "DeiTForImageClassification": ({"num_labels": 5}, lambda x: x.logits),
  "DeiTForImageClassificationWithTeacher": (
    {"num_labels": 5},
    lambda x: x.logits,
  ),
  "DeiTModel": ({}, first),
  "Dinov2ForImageClassification": ({"num_labels": 5}, lambda x: x.logits),
  "Dinov2Model": ({"use_swiglu_ffn": True}, first),
  "Dinov2WithRegistersForImageClassification": (
    {"num_labels": 5, "num_register_tokens": 2},
    lambda x: x.logits,
  ),
  "Dinov2WithRegistersModel": ({}, first),
  "DINOv3ViTModel": (
    {"num_register_tokens": 2, "use_gated_mlp": True, "hidden_act": "silu"},
    first,
  ),
}
REFUSED = {
  "BeitForImageClassification": SIZES,
  "Data2VecVisionModel": SIZES,
  "YolosModel": {**SIZES, "image_size": [16, 16], "num_detection_tokens": 2},
  "CLIPForImageClassification": BOTH,
  "SiglipForImageClassification": BOTH,
}


def save(name, settings, folder):
  transformers = torch_models.package("transformers")
  kind = getattr(transformers, name)
  model = kind(kind.config_class(**settings))
  torch_models.randomize(model).save_pretrained(folder)
  return model


def ours(folder, **changes):
  """Builds and applies the model that is detected."""
  options = pretrained.detect(folder).options
  model = ViT(**{**options, **changes})
  params = pretrained.load_pretrained(folder, model)
  return np.asarray(model.apply({"params": params}, IMAGES)[0])


@pytest.mark.parametrize("name", EQUAL)
def test_models_of_transformers(name, tmp_path):
  settings, output = EQUAL[name]
  model = save(name, {**SIZES, **settings}, tmp_path)
  if output is None:  # Its random masking reorders patches, but not the class.
    output = first
  expected = torch_models.outputs(model, lambda x: output(model(x)))
  np.testing.assert_allclose(ours(tmp_path), expected, atol=1e-4)


@pytest.mark.parametrize(
  "name",
  [
    "DeiTForImageClassificationWithTeacher",
    "Dinov2Model",
    "Dinov2WithRegistersForImageClassification",
    "DINOv3ViTModel",
  ],
)
def test_transformers_read_our_exports(name, tmp_path):
  settings, output = EQUAL[name]
  model = save(name, {**SIZES, **settings}, tmp_path)
  detected = pretrained.detect(tmp_path)
  vit = ViT(**detected.options)
  params = random_params(vit)
  source = sj.open_ingredient(tmp_path)
  out = tmp_path / "model.safetensors"
  pretrained.save_exported(
    out, params, vit, detected.family, like=source, overwrite=True
  )
  chex.assert_trees_all_equal(pretrained.load_pretrained(out, vit), params)
  same, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
  # Nothing else is new there.
  names = [name for group in report.values() for name in group]
  assert all(name.endswith("mask_token") for name in names), names
  result = torch_models.outputs(same.eval(), lambda x: output(same(x)))
  expected, _ = jax.jit(vit.apply)({"params": params}, IMAGES)
  np.testing.assert_allclose(result, expected, atol=1e-4)


def test_siglip2_takes_patches(tmp_path):
  transformers = torch_models.package("transformers")
  torch = torch_models.torch()
  sizes = {k: v for k, v in SIZES.items() if k != "image_size"}
  config = transformers.Siglip2VisionConfig(**sizes, num_patches=16)
  model = transformers.Siglip2VisionModel(config)
  torch_models.randomize(model).save_pretrained(tmp_path)
  x = IMAGES.reshape(2, 4, 4, 4, 4, 3).swapaxes(2, 3).reshape(2, 16, 48)
  with torch.no_grad():
    result = model(
      torch.from_numpy(np.ascontiguousarray(x)),
      pixel_attention_mask=torch.ones(2, 16, dtype=torch.int64),
      spatial_shapes=torch.tensor([[4, 4]] * 2),
    )
  expected = result.pooler_output.numpy()
  np.testing.assert_allclose(ours(tmp_path), expected, atol=1e-4)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("beside", [True, False])
def test_what_our_vit_does_not_compute_is_refused(name, beside, tmp_path):
  save(name, REFUSED[name], tmp_path)
  if not beside:
    (tmp_path / "config.json").unlink()
  message = "unexpected|does not belong"
  if beside:
    message = f"{name}'.* not known"
  with pytest.raises(ValueError, match=f"(?s){message}"):
    ours(tmp_path, num_heads=3)


@pytest.mark.parametrize(
  "name, settings",
  [
    ("ViTMAEForPreTraining", {**SIZES, **DECODER}),
    ("ViTForMaskedImageModeling", {**SIZES, "encoder_stride": 4}),
    ("SiglipModel", BOTH),
  ],
)
def test_encoders_of_larger_models(name, settings, tmp_path):
  whole = save(name, settings, tmp_path)
  encoder = whole.vit if hasattr(whole, "vit") else whole.vision_model
  if name == "ViTMAEForPreTraining":
    encoder.config.mask_ratio = 0.0
  output = first if hasattr(whole, "vit") else pooled
  expected = torch_models.outputs(whole, lambda x: output(encoder(x)))
  np.testing.assert_allclose(ours(tmp_path), expected, atol=1e-4)
  ignored = pretrained.detect(tmp_path).ignored
  assert set(ignored) & {"decoder of masked images", "text tower"}


# --- OpenCLIP -----------------------------------------------------------------

VISION = {
  "layers": 1,
  "width": 24,
  "head_width": 8,
  "mlp_ratio": 2,
  "patch_size": 4,
  "image_size": 16,
}


def save_openclip(vision, folder, quick=False):
  model_of = torch_models.package("open_clip.model")
  text = {"context_length": 5, "vocab_size": 7, "width": 8, "heads": 2}
  config = {
    "embed_dim": 6,
    "vision_cfg": {**VISION, **vision},
    "text_cfg": {**text, "layers": 1},
    "quick_gelu": quick,
  }
  model = torch_models.randomize(model_of.CLIP(**config))
  write(folder, model.state_dict(), {"model_cfg": config})
  return model


def write(folder, leaves, config, name="open_clip_config.json"):
  torch_models.torch().save(leaves, folder / "weights.pt")
  (folder / name).write_text(json.dumps(config))


@pytest.mark.parametrize(
  "vision",
  [
    {"pool_type": "avg"},
    {"pool_type": "none"},
    {"norm_kwargs": {"eps": 1e-2}, "act_kwargs": {"approximate": "tanh"}},
    # CLIPA.
    {
      "pool_type": "avg",
      "final_ln_after_pool": True,
      "no_ln_pre": True,
      "pos_embed_type": "sin_cos_2d",
    },
  ],
)
def test_vision_configs_of_openclip_are_obeyed(vision, tmp_path):
  model = save_openclip(vision, tmp_path)
  expected = torch_models.outputs(model, model.encode_image)
  np.testing.assert_allclose(ours(tmp_path / "weights.pt"), expected, atol=1e-4)
  # A model that computes something else is refused.
  options = pretrained.detect(tmp_path / "weights.pt").options
  for change in ({"pool_type": "map"}, {"norm_eps": 1e-7}, {"num_heads": 6}):
    with pytest.raises(ValueError, match=next(iter(change))):
      ours(tmp_path / "weights.pt", **{**options, **change})


@pytest.mark.parametrize(
  "vision, message",
  [
    ({"attentional_pool": True}, "attentional_pool=True"),
    ({"qk_norm": True}, "qk_norm=True"),
    ({"norm_kwargs": {"elementwise_affine": False}}, "only the key 'eps'"),
    ({"pool_type": "max"}, "pool_type='max'"),
    ({"timm_model_name": "convnext_base"}, "'convnext_base'.*'timm'|openclip"),
  ],
)
def test_other_vision_configs_are_refused(vision, message, tmp_path):
  save_openclip({}, tmp_path)
  file = tmp_path / "open_clip_config.json"
  config = json.loads(file.read_text())
  config["model_cfg"]["vision_cfg"] |= vision
  file.write_text(json.dumps(config))
  with pytest.raises(ValueError, match=message):
    pretrained.detect(tmp_path / "weights.pt")


# --- timm ---------------------------------------------------------------------


def save_timm(folder, architecture="vit_base_patch16_224", config=(), **args):
  timm = torch_models.package("timm")
  sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "num_heads": 3}
  args = {**sizes, "depth": 1, **args}
  model = timm.create_model(architecture, num_classes=5, **args)
  torch_models.randomize(model)
  content = {
    "architecture": architecture,
    "global_pool": model.global_pool,
    "model_args": args,
    **dict(config),
  }
  write(folder, model.state_dict(), content, "config.json")
  return model


@pytest.mark.parametrize(
  "architecture, args",
  [
    ("vit_base_patch16_224", {"global_pool": "map"}),
    ("vit_base_patch32_siglip_256", {}),
    ("flexivit_small", {"act_layer": "gelu_tanh"}),
    ("vit_giant_patch14_reg4_dinov2", {"mlp_ratio": 5, "qk_norm": True}),
    ("vit_so150m2_patch16_reg1_gap_256", {}),
    ("vit_base_patch16_rpn_224", {}),
    ("deit_tiny_distilled_patch16_224", {}),
    ("eva02_base_patch16_clip_224", {}),
    ("vit_small_plus_patch16_dinov3_qkvb", {"global_pool": "token"}),
    ("vit_pe_core_base_patch16_224", {}),
    ("vit_small_patch16_rope_mixed_ape_224", {"depth": 2}),
  ],
)
@pytest.mark.filterwarnings("ignore:Models of 'timm' have act")
def test_models_of_timm(architecture, args, tmp_path):
  model = save_timm(tmp_path, architecture, **args)
  expected = torch_models.outputs(model)
  path = tmp_path / "weights.pt"
  np.testing.assert_allclose(ours(path), expected, atol=1e-4)
  # In the other direction, and there again.
  vit = ViT(**pretrained.detect(path).options)
  params = random_params(vit)
  source = sj.open_ingredient(path)
  leaves = pretrained.export(params, vit, "timm", like=source)
  torch = torch_models.torch()
  leaves = {k: torch.from_numpy(v) for k, v in leaves.items()}
  model.load_state_dict(leaves, strict=True)
  torch.save(leaves, path)
  chex.assert_trees_all_equal(pretrained.load_pretrained(path, vit), params)
  expected, _ = jax.jit(vit.apply)({"params": params}, IMAGES)
  np.testing.assert_allclose(torch_models.outputs(model), expected, atol=1e-4)


@pytest.mark.parametrize(
  "config, message",
  [
    ({"architecture": "vit_xyz"}, "architecture='vit_xyz'.* not known"),
    ({"architecture": "beit_base_patch16_224"}, "beit_base.*relpos, beit"),
    ({"architecture": "vit_base_r50_s16_224"}, "vit_base_r50_s16"),
    ({"architecture": "vit_pe_core_base_patch16_224"}, "pre_norm=True.*False"),
    ({"model_args": {"qk_norm": True}}, "qk_norm=True, but .* have False"),
    ({"model_args": {"reg_tokens": 4}}, "registers=4, but .* have 0"),
    ({"model_args": {"init_values": 1e-5}}, "layer_scale=True, but .* False"),
    ({"model_args": {"rope_temperature": 5.0}}, "rope_temperature=5.0"),
    ({"model_args": {"act_layer": "relu"}}, "act_layer='relu'"),
    ({"model_args": {"norm_layer": "rmsnorm"}}, "norm_layer='rmsnorm'"),
    ({"model_args": {"class_token": False}}, "has_cls=False"),
    ({"model_args": ["a"]}, "model_args=.*mapping"),
    ({"global_pool": "avgmax"}, "global_pool='avgmax'"),
  ],
)
def test_other_configs_of_timm_are_refused(config, message, tmp_path):
  save_timm(tmp_path, config=config)
  with pytest.raises(ValueError, match=message):
    pretrained.detect(tmp_path / "weights.pt")


def test_names_of_timm_mean_what_they_mean_there():
  timm = torch_models.package("timm")
  acts = {"gelu_exact": "GELU", "gelu": "GELUTanh", "quick_gelu": "QuickGELU"}
  acts |= {"silu": "SiLU"}
  pools = {"tok": "token", "gap": "avg", "map": "map"}
  names = [name for name in timm.list_models() if timm_models.options(name)]
  assert len(names) > 200
  names = names[::3]  # tests/models/pretrained/zoo_torch_test.py builds all.
  for name in names:
    with torch_models.torch().device("meta"):
      model = timm.create_model(name, depth=1)
    options, block = timm_models.options(name), model.blocks[0]
    assert {
      "width": model.embed_dim,
      "num_heads": block.attn.num_heads,
      "norm_eps": block.norm1.eps,
      "no_embed_class": model.no_embed_class,
    }.items() <= options.items(), name
    assert type(block.mlp.act).__name__ == acts[options["act"]], name
    assert model.global_pool == pools[options["pool_type"]], name
    assert (model.cls_token is not None) == options.get("has_cls", True), name
    rotated = getattr(model, "rope", None) is not None
    assert rotated == bool(options.get("rope")), name
    post = "Post" in type(block).__name__
    assert post == options.get("post_norm", False), name
    normed = type(model.norm_pre).__name__ == "LayerNorm"
    assert normed == options.get("pre_norm", False), name


# --- Heads outside the model --------------------------------------------------


def wrapped(leaves, inner, outer):
  """Puts a model into a module beside a linear layer."""
  torch = torch_models.torch()
  generator = torch.Generator().manual_seed(1)
  head = torch.randn((5, 24), generator=generator)
  bias = torch.randn(5, generator=generator)
  result = {inner + k: v for k, v in leaves.items()}
  return result | {f"{outer}weight": head, f"{outer}bias": bias}


@pytest.mark.parametrize(
  "inner, outer",
  [
    ("backbone.", "head."),
    ("model.encoder.", "model.fc."),
    ("module.ema.", "module.classification_head."),
    ("net.0.", "classifier.0."),
  ],
)
def test_heads_beside_a_backbone_are_loaded(inner, outer, tmp_path):
  transformers = torch_models.package("transformers")
  model = transformers.ViTModel(transformers.ViTConfig(**SIZES))
  leaves = wrapped(torch_models.randomize(model).state_dict(), inner, outer)
  torch_models.torch().save({"state_dict": leaves}, tmp_path / "a.ckpt")
  weight, bias = leaves[f"{outer}weight"], leaves[f"{outer}bias"]
  expected = torch_models.outputs(
    model, lambda x: first(model(x)) @ weight.T + bias
  )
  logits = ours(tmp_path / "a.ckpt", num_heads=3)
  np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_openclip_projects_models_of_timm(tmp_path):
  model = save_timm(tmp_path, global_pool="token")
  (tmp_path / "config.json").unlink()
  leaves = {f"visual.trunk.{k}": v for k, v in model.state_dict().items()}
  head = {k for k in leaves if ".head." in k}
  leaves = {k: v for k, v in leaves.items() if k not in head}
  torch = torch_models.torch()
  weight = torch.randn((6, 24), generator=torch.Generator().manual_seed(0))
  leaves |= {"visual.head.proj.weight": weight, "logit_scale": torch.ones(())}
  leaves |= {"text.ln_final.weight": torch.ones(8)}
  vision = {"timm_model_name": "vit_base_patch16_224", "timm_pool": "token"}
  config = {"embed_dim": 6, "vision_cfg": {**vision, "image_size": 16}}
  write(tmp_path, leaves, {"model_cfg": config})
  expected = torch_models.outputs(
    model, lambda x: model.forward_features(x)[:, 0] @ weight.T
  )
  features = ours(tmp_path / "weights.pt", num_heads=3)
  np.testing.assert_allclose(features, expected, atol=1e-4)
  write(tmp_path, {**leaves, "visual.head.proj.bias": weight[:, 0]}, {})
  with pytest.raises(
    ValueError, match="1 unexpected:\n +visual.head.proj.bias"
  ):
    ours(tmp_path / "weights.pt", num_heads=3)


def test_heads_of_clip_ask_for_the_length_of_features(tmp_path):
  model = save_openclip({"pool_type": "tok"}, tmp_path)
  (tmp_path / "open_clip_config.json").unlink()
  leaves = wrapped(
    model.state_dict(), "module.model.", "module.classification_head."
  )
  for part, value in list(leaves.items()):
    if part.endswith("classification_head.weight"):
      leaves[part] = value[:, :6]
  torch_models.torch().save(leaves, tmp_path / "weights.pt")
  path, options = tmp_path / "weights.pt", {"num_heads": 3, "act": "gelu_exact"}
  with pytest.raises(ValueError, match="classification_head.*normalize=True"):
    ours(path, **options)
  features = torch_models.outputs(model, model.encode_image)
  weight = leaves["module.classification_head.weight"].numpy()
  bias = leaves["module.classification_head.bias"].numpy()
  for normalize in (False, True):
    x = features
    if normalize:
      x = x / np.linalg.norm(x, axis=1, keepdims=True)
    logits = ours(path, **options, normalize=normalize)
    np.testing.assert_allclose(logits, x @ weight.T + bias, atol=1e-4)
