"""Whole CLIPs against the PyTorch classes, with random weights, both ways."""

import json

import jax
import numpy as np
import pytest
import torch_models

import soupjax as sj
from soupjax.models import CLIP, pretrained, tiny_clip

IMAGES = torch_models.IMAGES
# The highest id is the end of a text, which may be followed by others.
TOKENS = np.array([[7, 2, 3, 8, 0], [7, 4, 4, 1, 8], [7, 8, 0, 0, 0]])
VISION = {"layers": 2, "width": 24, "head_width": 8, "mlp_ratio": 40 / 24}
VISION |= {"patch_size": 4, "image_size": 16}
TEXT = {"context_length": 5, "vocab_size": 9, "width": 8, "heads": 2}
TEXT |= {"layers": 2}
HF_VISION = {
  "hidden_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
  "intermediate_size": 40,
  "image_size": 16,
  "patch_size": 4,
}
HF_TEXT = {
  "hidden_size": 8,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "intermediate_size": 12,
  "vocab_size": 9,
  "max_position_embeddings": 5,
  "bos_token_id": 7,
  "pad_token_id": 0,
}


def hf_clip(act="quick_gelu", eos=8):
  transformers = torch_models.package("transformers")
  return transformers.CLIPModel(
    transformers.CLIPConfig(
      text_config={**HF_TEXT, "hidden_act": act, "eos_token_id": eos},
      vision_config={**HF_VISION, "hidden_act": act},
      projection_dim=6,
    )
  )


def hf_siglip():
  transformers = torch_models.package("transformers")
  text = {**HF_TEXT, "hidden_size": 24, "num_attention_heads": 3}
  return transformers.SiglipModel(
    transformers.SiglipConfig(
      text_config={**text, "eos_token_id": 8}, vision_config=HF_VISION
    )
  )


def openclip(custom=False, quick=True, **text):
  """Returns a model and its config."""
  bias = text.pop("init_logit_bias", None)
  config = {
    "embed_dim": 6,
    "vision_cfg": VISION,
    "text_cfg": {**TEXT, **text},
    "quick_gelu": quick,
    **({} if bias is None else {"init_logit_bias": bias}),
  }
  model_of = torch_models.package("open_clip.model")
  kind = model_of.CustomTextCLIP if custom else model_of.CLIP
  return kind(**config), config


OPENCLIP = {
  "openclip": lambda: openclip(),
  "openclip gelu": lambda: openclip(quick=False),
  "openclip custom": lambda: openclip(custom=True),
  "openclip custom gelu": lambda: openclip(custom=True, quick=False),
  "openclip bidirectional": lambda: openclip(
    custom=True,
    quick=False,
    no_causal_mask=True,
    proj_bias=True,
    pool_type="last",
    init_logit_bias=-10,
  ),
}
HF = {
  "hf_clip": hf_clip,
  "hf_clip gelu": lambda: hf_clip("gelu"),
  "hf_clip old end of text": lambda: hf_clip(eos=2),
  "hf_siglip": hf_siglip,
}


def save(folder, case):
  """Writes a random model as its users have it, and returns it."""
  if case in HF:
    model = torch_models.randomize(HF[case]())
    model.save_pretrained(folder)
    return model
  model, config = OPENCLIP[case]()
  torch_models.randomize(model)
  safetensors = torch_models.package("safetensors.torch")
  safetensors.save_file(
    {k: v.contiguous() for k, v in model.state_dict().items()},
    folder / "open_clip_model.safetensors",
  )
  text = json.dumps({"model_cfg": config, "preprocess_cfg": {}})
  (folder / "open_clip_config.json").write_text(text)
  return model


def torch_outputs(model):
  """Returns embeddings of images and texts, the scale and the logits."""
  torch = torch_models.torch()
  images = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
  tokens = torch.from_numpy(TOKENS)
  with torch.no_grad():
    if hasattr(model, "encode_text"):
      outputs = model(images, tokens)[:3]
      logits = model.get_logits(images, tokens)[0]
      return [x.numpy() for x in (*outputs, logits)]
    outputs = model(input_ids=tokens, pixel_values=images)
    return [
      outputs.image_embeds.numpy(),
      outputs.text_embeds.numpy(),
      model.logit_scale.exp().numpy(),
      outputs.logits_per_image.numpy(),
    ]


def random_params(model, seed=0):
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES, TOKENS)

  def random(x):
    # Norms with scales near 1, as they are.
    return rng.normal(x.ndim == 1, 0.2, x.shape).astype(x.dtype)

  return jax.tree.map(random, shapes["params"])


def our_outputs(model, params):
  zimg, ztxt, logits = jax.jit(model.apply)({"params": params}, IMAGES, TOKENS)
  return [zimg, ztxt, np.exp(params["t"]), logits]


def check_equal(ours, theirs):
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(np.squeeze(a), np.squeeze(b), atol=1e-4)
  assert np.ptp(theirs[1], axis=0).min() > 2e-3  # The texts differ.


@pytest.mark.parametrize("case", [*HF, *OPENCLIP])
def test_both_towers_equal_theirs_both_ways(case, tmp_path):
  torch_model = save(tmp_path, case)
  detected = pretrained.detect(tmp_path, text=True)
  model = CLIP(**detected.options)
  params = pretrained.load_pretrained(tmp_path, model)
  check_equal(our_outputs(model, params), torch_outputs(torch_model))

  source = sj.open_ingredient(tmp_path)
  adapted = pretrained.as_ingredient(source, model)
  same = sj.Ingredient.from_params("x", params)
  assert adapted.treedef == same.treedef
  for leaf in same.specs:
    np.testing.assert_array_equal(adapted.read(leaf), same.read(leaf), leaf)
  back = pretrained.export(params, model, detected.family, like=source)
  assert set(back) == set(source.specs)
  for name, value in back.items():
    # The image tower's class token holds its position.
    if not name.endswith(("class_embedding",)) and "visual.pos" not in name:
      if "vision_model.embeddings.position" not in name:
        np.testing.assert_array_equal(value, source.read(name), err_msg=name)


@pytest.mark.parametrize("case", ["hf_clip", "hf_siglip", "openclip custom"])
def test_soups_load_in_their_libraries(case, tmp_path):
  for name in "ab":
    (tmp_path / name).mkdir()
    torch_model = save(tmp_path / name, case)
    if name == "b":
      break
  source = sj.open_ingredient(tmp_path / "a")
  model = CLIP(**pretrained.detect(source, text=True).options)
  params = [pretrained.load_pretrained(tmp_path / n, model) for n in "ab"]
  params[1] = jax.tree.map(lambda x: x + np.float32(0.1), params[1])
  mean = jax.tree.map(lambda a, b: (a + b) / 2, *params)
  family = pretrained.detect(source).family
  out = tmp_path / "soup"
  out.mkdir()
  if case in HF:
    pretrained.save_exported(out / "model.safetensors", mean, model, family)
    torch_model.config.save_pretrained(out)
    torch_model, report = type(torch_model).from_pretrained(
      out, output_loading_info=True
    )
    assert not any(report.values()), report
  else:
    path = out / "soup.safetensors"
    pretrained.save_exported(path, mean, model, family, like=source)
    factory = torch_models.package("open_clip.factory")
    factory.load_checkpoint(torch_model, str(path), strict=True)
  check_equal(our_outputs(model, mean), torch_outputs(torch_model.eval()))


def siglip_of_openclip():
  """OpenCLIP's SigLIP: a trunk of timm, and the text tower beside it."""
  timm = torch_models.package("timm")
  text = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
  text |= {"norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}}
  torch_model, _ = openclip(
    custom=True, quick=False, init_logit_bias=-10, **text
  )
  visual = torch_models.torch().nn.Module()
  visual.trunk = timm.models.vision_transformer.VisionTransformer(
    img_size=16,
    patch_size=4,
    embed_dim=6,
    depth=2,
    num_heads=2,
    num_classes=0,
    class_token=False,
    global_pool="map",
    act_layer="gelu_tanh",
  )
  visual.forward = lambda images: visual.trunk(images)
  torch_model.visual = visual
  return torch_models.randomize(torch_model)


SIGLIP = {
  "image": {
    "patch_size": 4,
    "width": 6,
    "depth": 2,
    "mlp_dim": 24,
    "num_heads": 2,
    "pool_type": "map",
  },
  "text": {
    "vocab_size": 9,
    "context_length": 5,
    "width": 8,
    "depth": 2,
    "mlp_dim": 32,
    "num_heads": 2,
    "num_classes": 6,
  },
  "bias": True,
}


def test_siglip_in_names_of_openclip(tmp_path):
  torch_model = siglip_of_openclip()
  path = tmp_path / "a.pt"
  torch_models.torch().save(torch_model.state_dict(), path)
  model = CLIP(**SIGLIP)
  with pytest.warns(UserWarning, match="'timm' have act='gelu_exact'"):
    params = pretrained.load_pretrained(path, model)
  check_equal(our_outputs(model, params), torch_outputs(torch_model))
  source = sj.open_ingredient(path)
  with pytest.warns(UserWarning, match="'timm' have act='gelu_exact'"):
    back = pretrained.export(params, model, "timm", like=source)
  assert set(back) == set(source.specs)
  for name, value in back.items():
    np.testing.assert_array_equal(value, source.read(name), name)
  with pytest.raises(ValueError, match="'timm'.*like="):
    pretrained.export(params, model, "timm")


def test_siglip_in_names_of_big_vision(tmp_path):
  torch_model = siglip_of_openclip()
  model = CLIP(**SIGLIP)
  params = random_params(model)
  # OpenCLIP reads the files of big_vision.
  path = tmp_path / "siglip.npz"
  pretrained.save_exported(path, params, model, "big_vision")
  factory = torch_models.package("open_clip.factory")
  factory.load_checkpoint(torch_model, str(path))
  check_equal(our_outputs(model, params), torch_outputs(torch_model.eval()))


@pytest.mark.parametrize("prefix, scan", [("", False), ("params/", True)])
def test_lit_of_big_vision(prefix, scan, tmp_path):
  """An image tower with a class token, as of AugReg, and no bias."""
  image = {**SIGLIP["image"], "pool_type": "tok", "scan": scan}
  text = {**SIGLIP["text"], "scan": scan}
  model = CLIP(image, text)
  params = random_params(model)
  leaves = sj.Ingredient.from_params("x", params)
  np.savez(
    tmp_path / "lit.npz",
    **{f"{prefix}{leaf}": leaves.read(leaf) for leaf in leaves.specs},
  )
  detected = pretrained.detect(tmp_path / "lit.npz", text=True)
  assert detected.family == "big_vision" and not detected.options["bias"]
  found = CLIP(**detected.options)
  again = pretrained.load_pretrained(tmp_path / "lit.npz", found)
  for a, b in zip(our_outputs(found, again), our_outputs(model, params)):
    np.testing.assert_allclose(a, b, atol=1e-5)
  source = sj.open_ingredient(tmp_path / "lit.npz")
  adapted = pretrained.as_ingredient(source, model)
  for leaf in leaves.specs:
    np.testing.assert_array_equal(adapted.read(leaf), leaves.read(leaf), leaf)


def big_vision_leaves(change=None, drop=()):
  """Returns the leaves of a SigLIP, some of them changed."""
  model = CLIP(**SIGLIP)
  leaves = pretrained.export(random_params(model), model, "big_vision")
  leaves = {k: v for k, v in leaves.items() if not k.startswith(tuple(drop))}
  return sj.Ingredient.from_params("x", {**leaves, **(change or {})})


@pytest.mark.parametrize(
  "change, drop, message",
  [
    ({}, ["txt/", "t"], "'x' has an image tower only"),
    ({}, ["txt/"], "'x' has an image tower only"),
    ({"txt/BertModel_0/w": np.zeros(2)}, ["txt/"], "BERT.*'txt/BertModel_0/w'"),
    ({"txt/extra": np.zeros(2)}, [], "1 unexpected.*\n.*txt/extra"),
    ({}, ["b"], "1 missing.*\n.*b"),
    ({"txt/Embed_0/embedding": np.zeros((7, 8))}, [], r"\(7, 8\).*\(9, 8\)"),
    ({"txt/pos_embedding": np.zeros((1, 3, 8))}, [], "context_length is 5"),
  ],
)
def test_text_towers_that_do_not_fit(change, drop, message):
  source = big_vision_leaves(change, drop)
  with pytest.raises(ValueError, match=f"(?s){message}"):
    pretrained.load_pretrained(source, CLIP(**SIGLIP))
  # The image tower alone is still read.
  tower = sj.models.ViT(**SIGLIP["image"])
  pretrained.load_pretrained(source, tower)


@pytest.mark.parametrize(
  "text, message",
  [
    ({"heads": 4}, "implies.*'num_heads': 4"),
    ({"layers": 5}, "depth=5 for the text tower.*have 2"),
    ({"hf_model_name": "roberta-base"}, "hf_model_name='roberta-base'"),
    ({"ls_init_value": 0.1}, "ls_init_value=0.1"),
    ({"pool_type": "none"}, "pool_type='none'"),
  ],
)
def test_configs_of_text_towers(text, message, tmp_path):
  model = CLIP(
    {**SIGLIP["image"], "act": "gelu_exact", "norm_eps": 1e-5, "proj_size": 6}
    | {"pool_type": "tok", "pre_norm": True, "patch_bias": False},
    {**SIGLIP["text"], "num_classes": None, "proj_size": 6, "causal": True}
    | {"act": "gelu_exact", "norm_eps": 1e-5, "pool_type": "argmax"},
  )
  path = tmp_path / "a.safetensors"
  pretrained.save_exported(path, random_params(model), model, "openclip")
  vision = {**VISION, "width": 6, "head_width": 3, "mlp_ratio": 4}
  config = {"vision_cfg": vision, "text_cfg": {**TEXT, **text}, "embed_dim": 6}
  path = tmp_path / "open_clip_config.json"
  path.write_text(json.dumps({"model_cfg": config}))
  with pytest.raises(ValueError, match=message):
    pretrained.load_pretrained(tmp_path, model)


@pytest.mark.parametrize(
  "leaf, shape, message",
  [
    ("text_projection", (16, 6), "projections of .*x.safetensors.* 8.* 6"),
    ("text_decoder.resblocks.0.ln_1.weight", (4,), "x.safetensors.*CoCa"),
  ],
)
def test_towers_that_do_not_belong_together(leaf, shape, message, tmp_path):
  tiny_clip.save(tmp_path / "whole")
  source = sj.open_ingredient(tmp_path / "whole")
  leaves = {name: source.read(name) for name in source.specs}
  leaves[leaf] = np.zeros(shape, np.float32)
  sj.save_params(tmp_path / "x.safetensors", leaves)
  with pytest.raises(ValueError, match=message):
    pretrained.detect(tmp_path / "x.safetensors", text=True)
