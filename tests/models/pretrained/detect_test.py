# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Detection of the model of a checkpoint."""

import json

import family_models as cases
import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax.models import ViT, build, pretrained, variant

pytestmark = pytest.mark.filterwarnings("ignore:Models of")

VITS = [
  pytest.param(family, model, id=f"{family}{k}")
  for family, models in cases.MODELS.items()
  for k, model in enumerate(models)
  if isinstance(model, ViT)
]
# Options that do not follow from names and shapes.
SILENT = ("act", "norm_eps", "num_heads")
# Of some models, more do not: positions without leaves, and the pooling of a
# class token where neither a norm nor a head tells.
UNCLEAR = {
  "big_vision5": {"rope"},
  "big_vision6": {"rope"},
  "timm0": {"rope"},
  "timm1": {"rope"},
  "timm2": {"pool_type", "class_token"},
  "hf_dinov20": {"pool_type"},
}


def exported(model, family, name="renamed", seed=0):
  leaves = pretrained.export(cases.params_of(model, seed=seed), model, family)
  return sj.Ingredient.from_params(name, leaves)


@pytest.mark.parametrize("family, model", VITS)
def test_a_model_is_detected(request, family, model):
  unclear = UNCLEAR.get(request.node.callspec.id, set())
  detected = pretrained.detect(exported(model, family))
  assert detected.family == family
  # Where positions may leave out the class token, the grid may not be square.
  known = model.posemb == "learn" and (family, model.rope) != ("timm", "mixed")
  assert detected.image_size == (12 if known else None)
  assert detected.said == frozenset() and detected.classes is None
  told = {k: v for k, v in detected.options.items() if k not in SILENT}
  assert ("pool_type" in detected.assumed) == (model.pool_type != "map")
  assert {k for k in told if told[k] != getattr(model, k)} == unclear
  if "rope" in unclear:  # It has to be given.
    assert told["rope"] is None and "rope" in detected.assumed
  if family == "big_vision":
    assert detected.options["num_heads"] == model.num_heads
  else:
    # No variant has this width: the model asks for the heads.
    assert detected.options["num_heads"] is None
    asked = "num_heads=, a divisor of the width"
    asked = "Give rope=" if "rope" in unclear else asked
    with pytest.raises(ValueError, match=asked):
      pretrained.load_pretrained(
        exported(model, family), ViT(**detected.options)
      )
  rest = {k: getattr(model, k) for k in {*SILENT, *unclear}}
  same = ViT(**{**detected.options, **rest})
  params = cases.params_of(model)
  np.testing.assert_array_equal(
    cases.logits(same.clone(scan=model.scan), params),
    cases.logits(model, params),
  )


@pytest.mark.parametrize(
  "family", ["mixer", "timm_mixer", "bit", "bit_original", "timm_bit"]
)
def test_models_other_than_vits_have_options_of_their_own(family):
  [model] = cases.MODELS[family]
  detected = pretrained.detect(exported(model, family))
  assert detected.family == family and detected.said == frozenset()
  same = build(detected.model, **detected.options)
  assert same == model
  assert detected.image_size == (12 if "mixer" in family else None)
  usual = {"act", "image_size"} if "mixer" in family else {"conv_eps"}
  assert detected.assumed == usual


def test_usual_heads_of_a_variant():
  model = ViT(num_classes=2, **variant("Ti/16"), pool_type="tok")
  images = np.zeros((1, 32, 32, 3), np.float32)
  leaves = pretrained.export(cases.params_of(model, images), model, "timm")
  detected = pretrained.detect(sj.Ingredient.from_params("ti", leaves))
  assert detected.options["num_heads"] == 3
  assert "num_heads" in detected.assumed
  assert detected.image_size == 32


HF = {
  "model_type": "vit",
  "hidden_size": 8,
  "num_attention_heads": 4,
  "hidden_act": "gelu_pytorch_tanh",
  "layer_norm_eps": 1e-7,
  "id2label": {"1": "b", "0": "a", "10": "k"},
}

HF_OPTIONS = {"num_heads": 4, "act": "gelu", "norm_eps": 1e-7}


def folder(path, model, family, config, name="config.json"):
  path.mkdir(exist_ok=True)
  params = cases.params_of(model)
  pretrained.save_exported(path / "model.safetensors", params, model, family)
  (path / name).write_text(json.dumps(config))
  return path


@pytest.mark.parametrize(
  "family, config, expected",
  [
    ("hf_vit", HF, {"num_heads": 4, "act": "gelu", "norm_eps": 1e-7}),
    (
      "timm",
      {
        "architecture": "vit_base_patch16_224.augreg_in1k",
        "global_pool": "avg",
        "model_args": {
          "num_heads": 4,
          "embed_dim": 8,
          "act_layer": "quick_gelu",
          "drop_path_rate": 0.1,
        },
      },
      {
        "num_heads": 4,
        "act": "quick_gelu",
        "pool_type": "gap",
        "class_token": True,
        "fc_norm": False,
      },
    ),
    ("timm", {"run": "another program's"}, {"act": "gelu_exact"}),
  ],
)
def test_a_config_beside_it(tmp_path, family, config, expected):
  path = folder(tmp_path / "x", cases.vit(pool_type="tok"), family, config)
  for source in (path, path / "model.safetensors"):
    detected = pretrained.detect(source)
    assert detected.options | expected == detected.options
    assert not detected.assumed & detected.said
  names = ("a", "b", *(f"LABEL_{k}" for k in range(2, 10)), "k")
  assert detected.classes == (names if family == "hf_vit" else None)


def test_a_timm_config_that_contradicts_itself_is_refused(tmp_path):
  config = {"architecture": "vit_base_patch16_224", "global_pool": "token"}
  config["model_args"] = {"num_heads": 4, "embed_dim": 8, "global_pool": "avg"}
  path = folder(tmp_path / "x", cases.vit(pool_type="tok"), "timm", config)
  with pytest.raises(ValueError, match="global_pool='token' and .*='avg'"):
    pretrained.detect(path)
  config["global_pool"] = "avg"
  (path / "config.json").write_text(json.dumps(config))
  assert pretrained.detect(path).options["pool_type"] == "gap"


def test_configs_of_clip(tmp_path):
  [model] = cases.MODELS["hf_clip"]
  vision = {"hidden_size": 8, "num_attention_heads": 4, "hidden_act": "gelu"}
  config = {"model_type": "clip", "vision_config": vision}
  detected = pretrained.detect(
    folder(tmp_path / "hf", model, "hf_clip", config)
  )
  assert detected.options["num_heads"] == 4
  assert detected.options["act"] == "gelu_exact"
  [model] = cases.MODELS["openclip"]
  vision = {"width": 8, "head_width": 2}
  for quick, act in ((True, "quick_gelu"), (False, "gelu_exact")):
    path = folder(
      tmp_path / act,
      model,
      "openclip",
      {"model_cfg": {"vision_cfg": vision, "quick_gelu": quick}},
      "open_clip_config.json",
    )
    detected = pretrained.detect(path)
    assert (detected.options["num_heads"], detected.options["act"]) == (4, act)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"hidden_size": 16}, "config.json has width=16.* 8"),
    ({"hidden_act": "relu"}, "hidden_act='relu': .* no such activation"),
    ({"image_size": 16}, r"has patches \(16 x 16 pixels\)=16, .* 9:"),
    ({"model_type": "vit_xyz"}, "'vit_xyz'.* not known"),
    ({"architectures": ["MyViT"]}, "'vit MyViT'.* not known"),
    ({"qkv_bias": False}, "qkv_bias=False, but our ViT only supports True"),
    ({"rotary": {"theta": 3}}, "rotary=.*remove it"),
    ({"hidden_size": "wide"}, "hidden_size='wide', .*positive integer"),
    ({"model_type": "clip"}, r"transformers \(model_type 'clip'\).*'hf_vit'"),
  ],
)
def test_a_config_that_contradicts_the_weights(tmp_path, changes, message):
  model = cases.vit(pool_type="tok")
  path = folder(tmp_path / "x", model, "hf_vit", {**HF, **changes})
  with pytest.raises(ValueError, match=message):
    pretrained.detect(path)


@pytest.mark.parametrize(
  "changes",
  [{"num_heads": 2}, {"act": "quick_gelu"}, {"norm_eps": 1e-5}],
)
def test_a_model_must_compute_what_the_config_says(tmp_path, changes):
  model = cases.vit(pool_type="tok")
  path = folder(tmp_path / "x", model, "hf_vit", HF)
  said = {k: HF_OPTIONS[k] for k in SILENT}
  pretrained.load_pretrained(path, model.clone(**said))
  [(key, value)] = changes.items()
  message = f"implies {key}={said[key]!r}, but this ViT has {key}={value!r}"
  other = model.clone(**{**said, **changes})
  with pytest.raises(ValueError, match=message):
    pretrained.load_pretrained(path, other)
  with pytest.raises(ValueError, match=message):
    pretrained.as_ingredient(sj.open_ingredient(path), other)


def test_all_options_that_differ_are_told_at_once(tmp_path):
  model = cases.vit(pool_type="tok")
  path = folder(tmp_path / "x", model, "hf_vit", HF)
  message = r"update\(num_heads=4, act='gelu', norm_eps=1e-07\)"
  with pytest.raises(ValueError, match=message):
    pretrained.load_pretrained(path, model.clone(act="gelu_exact"))


def test_pooling_is_free_under_a_new_head(tmp_path):
  model = cases.vit(pool_type="tok")
  config = {**HF, "architectures": ["ViTForImageClassification"]}
  path = folder(tmp_path / "x", model, "hf_vit", config)
  mean = {**HF_OPTIONS, "pool_type": "gap", "class_token": True}
  with pytest.raises(ValueError, match="pool_type='tok'"):
    pretrained.load_pretrained(path, model.clone(**mean))
  pretrained.load_pretrained(path, model.clone(**mean), head="new")
  pretrained.load_pretrained(path, model.clone(**mean, num_classes=3))


def test_an_unknown_pooling(tmp_path):
  config = {"architecture": "vit_base_patch8_224", "global_pool": "avgmax"}
  path = folder(tmp_path / "x", cases.vit(pool_type="tok"), "timm", config)
  with pytest.raises(ValueError, match="global_pool='avgmax'"):
    pretrained.detect(path)


def test_numbered_labels_are_not_classes(tmp_path):
  labels = {str(k): f"LABEL_{k}" for k in range(5)}
  config = {**HF, "id2label": labels}
  path = folder(tmp_path / "x", cases.vit(pool_type="tok"), "hf_vit", config)
  assert pretrained.detect(path).classes is None


@pytest.mark.parametrize(
  "labels, names",
  [
    # Names keep their numbers, and those without a name are not skipped.
    ({"1": "a", "2": "b"}, ("LABEL_0", "a", "b")),
    ({"0": "a", "3": "b"}, ("a", "LABEL_1", "LABEL_2", "b")),
    ({"-1": "a", "0": "b"}, None),
    ({"99999999999": "a"}, None),
    ({"first": "a"}, None),
  ],
)
def test_numbers_of_labels_are_those_of_outputs(labels, names, tmp_path):
  config = {**HF, "id2label": labels}
  path = folder(tmp_path / "x", cases.vit(pool_type="tok"), "hf_vit", config)
  assert pretrained.detect(path).classes == names


@pytest.mark.parametrize("family", ["timm", "big_vision"])
@pytest.mark.parametrize("rows", [9, 10])
def test_a_class_token_keeps_its_row_of_positions(family, rows):
  """The family's usual number of rows may not be that of the file."""
  model = cases.vit(pool_type="tok")
  leaves = dict(pretrained.export(cases.params_of(model), model, family))
  name = next(k for k in leaves if k.startswith("pos_emb"))
  leaves[name] = np.resize(leaves[name], (1, rows, 8))
  source = sj.Ingredient.from_params("x", leaves)
  adapted = pretrained.as_ingredient(source, model)
  back = pretrained.export(adapted.load(), model, family, like=source)
  assert {k: v.shape for k, v in back.items()} == {
    k: v.shape for k, v in leaves.items()
  }
  again = pretrained.as_ingredient(sj.Ingredient.from_params("x", back), model)
  for ours, theirs in zip(
    jax.tree.leaves(again.load()), jax.tree.leaves(adapted.load())
  ):
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("prefix", ["net.", "_orig_mod.model.", "module."])
@pytest.mark.parametrize("family", ["timm", "hf_vit"])
def test_a_model_in_another_module_and_back(prefix, family):
  model = cases.vit(pool_type="tok")
  params = cases.params_of(model)
  plain = pretrained.export(params, model, family)
  if family == "hf_vit":  # As transformers 5 calls its modules.
    plain = {
      k.replace("encoder.layer", "layers")
      .replace("attention.output.dense", "attention.o_proj")
      .replace("attention.attention.query", "attention.q_proj")
      .replace("attention.attention.key", "attention.k_proj")
      .replace("attention.attention.value", "attention.v_proj")
      .replace("intermediate.dense", "mlp.fc1")
      .replace("output.dense", "mlp.fc2"): v
      for k, v in plain.items()
    }
  renamed = {prefix + k: v for k, v in plain.items()}
  source = sj.Ingredient.from_params(
    "x", {**renamed, "criterion.weight": np.zeros(3, np.float32)}
  )
  adapted = pretrained.as_ingredient(source, model, image_size=12)
  back = pretrained.export(adapted.load(), model, family, like=source)
  assert set(back) == set(renamed)
  for name, value in renamed.items():
    if "cls" not in name and "pos" not in name:
      np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_two_models_in_one_file():
  leaves = pretrained.export(
    cases.params_of(cases.vit(pool_type="tok")),
    cases.vit(pool_type="tok"),
    "timm",
  )
  both = {
    f"{p}.{k}": v for p in ("student", "teacher") for k, v in leaves.items()
  }
  with pytest.raises(ValueError, match="'student.'.*'teacher.'"):
    pretrained.detect(sj.Ingredient.from_params("x", both))
