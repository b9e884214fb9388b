# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import re

import chex
from family_models import (
  IMAGES,
  MODELS,
  load,
  logits,
  params_of,
  vit,
)
import helpers
import jax
import numpy as np
import pytest
from scipy import ndimage

import soupjax as sj
from soupjax import files
from soupjax.models import pretrained
from soupjax.models.pretrained import foreign, mappings, mismatch, positions
from soupjax.soups.core import tree


def npz(path, leaves):
  np.savez(path, **leaves)
  return path


@pytest.mark.filterwarnings("ignore:Models of")
@pytest.mark.parametrize(
  "family,model",
  [(family, model) for family, models in MODELS.items() for model in models],
)
def test_there_and_back_is_the_identity(family, model, tmp_path):
  params = params_of(model)
  suffix = "npz" if family in ("big_vision", "mixer") else "safetensors"
  path = tmp_path / f"exported.{suffix}"
  pretrained.save_exported(path, params, model, family)
  # Recognised by its names.
  loaded = pretrained.load_pretrained(path, model, head="keep")
  chex.assert_trees_all_equal(loaded, params)


def test_every_family_is_tested():
  assert set(MODELS) == set(mappings.FAMILIES)


def test_old_layouts():
  model = vit(pool_type="tok", rep_size=6)
  params = params_of(model)
  old = helpers.old_layout(params)
  assert "Transformer/encoderblock_2/MlpBlock_3/Dense_1/bias" in old
  chex.assert_trees_all_close(load(old, model), params, atol=1e-6)
  # The layout between the two, inside the state of an optimizer.
  table = old.pop("Transformer/posembed_input/pos_embedding")
  old["Transformer/pos_embedding"] = table
  old = {f"opt/target/{k}": v for k, v in old.items()} | {"opt/state": table}
  chex.assert_trees_all_close(load(old, model), params, atol=1e-6)


def test_attention_pooling_that_was_inlined():
  model = vit(pool_type="map")
  params = params_of(model)
  old = {
    k.removeprefix("MAPHead_0/"): v
    for k, v in helpers.flat_leaves(params).items()
  }
  assert "probe" in old and "LayerNorm_0/scale" in old
  chex.assert_trees_all_equal(load(old, model), params)


def test_the_image_tower_of_two():
  model = vit(pool_type="map", num_classes=None)
  params = params_of(model)
  leaves = {
    f"params/img/{k}": v for k, v in helpers.flat_leaves(params).items()
  }
  leaves |= {"params/txt/head/kernel": np.ones((2, 2)), "params/t": np.ones(1)}
  chex.assert_trees_all_equal(load(leaves, model), params)


@pytest.mark.parametrize("scanned", [False, True])
def test_scanned_blocks_and_single_ones(scanned, tmp_path):
  saved, model = vit(scan=scanned), vit(scan=not scanned)
  params = params_of(saved)
  path = npz(tmp_path / "a.npz", helpers.flat_leaves(params))
  loaded = pretrained.load_pretrained(path, model)
  chex.assert_trees_all_equal_shapes(loaded, params_of(model))
  np.testing.assert_allclose(
    logits(model, loaded), logits(saved, params), rtol=1e-4, atol=1e-5
  )


def test_positions_of_another_resolution():
  model = vit(pool_type="tok")
  params = params_of(model)
  old = helpers.old_layout(params)
  table = load(old, model, image_size=(24, 8))["pos_embedding"]
  before = params["pos_embedding"].reshape(3, 3, 8)
  expected = ndimage.zoom(before, (2, 2 / 3, 1), order=1).reshape(1, 12, 8)
  np.testing.assert_allclose(table, expected, atol=1e-6)
  # Bilinear, with corners on corners.
  table = table.reshape(6, 2, 8)
  np.testing.assert_allclose(table[::5, ::1], before[::2, ::2], atol=1e-6)
  along = np.interp(np.linspace(0, 2, 6), range(3), before[:, 0, 0])
  np.testing.assert_allclose(table[:, 0, 0], along, atol=1e-6)
  np.testing.assert_allclose(load(old, model)["cls"], params["cls"], atol=1e-6)
  big = np.zeros((2, 24, 8, 1))
  assert logits(model, load(old, model, image_size=(24, 8)), big).shape == (
    2,
    5,
  )


def test_positions_of_a_rectangular_grid():
  images = np.zeros((1, 8, 12, 1))
  model = vit()
  params = params_of(model, images)
  leaves = helpers.flat_leaves(params)
  chex.assert_trees_all_equal(load(leaves, model), params)
  same = load(leaves, model, image_size=(8, 12))
  chex.assert_trees_all_equal(same, params)
  with pytest.raises(ValueError, match="6 position"):
    load(leaves, model, image_size=12)


@pytest.mark.parametrize(
  "tokens,patches,count,expected,result",
  [
    (17, None, 1, 0, 1),
    (16, None, 1, 1, 0),
    (295, None, 1, 1, 1),
    (294, None, 1, 0, 0),
    (10, 10, 1, 1, 0),
    (10, 9, 1, 0, 1),
    (17, 25, 1, 0, 1),
    (1, None, 1, 1, 0),
    # With registers, or a distillation token.
    (20, None, 4, 0, 4),
    (16, None, 5, 5, 0),
    (14, 12, 2, 0, 2),
    (14, 14, 2, 2, 0),
  ],
)
def test_positions_before_patches(tokens, patches, count, expected, result):
  args = tokens, patches, count, expected
  assert positions.before_patches(*args) == result


def test_heads():
  ten, five, bare = (vit(num_classes=n) for n in (10, 5, None))
  params = params_of(ten)
  exported = pretrained.export(params, ten, "big_vision")
  kept = load(exported, ten)
  chex.assert_trees_all_equal(kept["head"], params["head"])
  for loaded in (load(exported, five), load(exported, five, head="new")):
    assert loaded["head"]["kernel"].shape == (8, 5)
    assert not np.any(loaded["head"]["kernel"])
    assert not np.any(loaded["head"]["bias"])
    chex.assert_trees_all_equal(loaded["Transformer"], params["Transformer"])
  assert not np.any(load(exported, ten, head="new")["head"]["kernel"])
  assert "head" not in load(exported, bare)
  del exported["head/kernel"], exported["head/bias"]
  assert not np.any(load(exported, ten)["head"]["kernel"])
  with pytest.raises(ValueError, match="2 missing:\n  +head/bias"):
    load(exported, ten, head="keep")


def test_a_new_head_is_without_the_layer_before_it():
  params = params_of(vit(rep_size=6, num_classes=7))
  loaded = load(helpers.flat_leaves(params), vit())
  assert set(loaded) == {"Transformer", "embedding", "head", "pos_embedding"}
  # If the old head stays, the layer is an error.
  with pytest.raises(ValueError, match="2 unexpected:\n  +pre_logits"):
    load(helpers.flat_leaves(params_of(vit(rep_size=8))), vit())


def test_leaves_that_are_skipped():
  gap, attention = vit(), vit(pool_type="map")
  exported, init = (
    helpers.flat_leaves(params_of(attention)),
    params_of(gap, seed=1),
  )
  loaded = load(exported, gap, skip=["MAPHead_0", "LayerNorm_1/"], init=init)
  assert "MAPHead_0" not in loaded
  block = loaded["Transformer"]["encoderblock_1"]
  other = init["Transformer"]["encoderblock_1"]
  chex.assert_trees_all_equal(block["LayerNorm_1"], other["LayerNorm_1"])
  name = "Transformer/encoderblock_1/LayerNorm_0/scale"
  np.testing.assert_array_equal(block["LayerNorm_0"]["scale"], exported[name])
  with pytest.raises(ValueError, match="MAPHead_0|LayerNorm_1/"):
    load(exported, gap, skip=["MAPHead_0", "LayerNorm_1/"])
  with pytest.raises(ValueError, match="probe_of"):
    load(exported, attention, skip=["probe_of"])
  with pytest.raises(ValueError, match="init=.*MAPHead_0/probe"):
    load(helpers.flat_leaves(init), attention, skip=["MAPHead_0"], init=init)


def test_weights_of_16_bits_and_parts_are_read_alone(tmp_path):
  model = vit(pool_type="tok", act="gelu_exact")
  params = params_of(model)
  exported = pretrained.export(params, model, "timm")
  exported = {k: v.astype(np.float16) for k, v in exported.items()}
  sj.save_params(tmp_path / "a.safetensors", exported)
  loaded = pretrained.load_pretrained(tmp_path / "a.safetensors", model)
  assert {x.dtype for x in jax.tree.leaves(loaded)} == {np.dtype("float32")}
  chex.assert_trees_all_close(loaded, params, rtol=2e-3, atol=1e-3)
  # Queries, keys and values share a leaf, which is read once in three parts.
  read = []
  entries = foreign.entries(sj.open_ingredient(tmp_path / "a.safetensors"))

  def watch(name, entry):
    def reading(index):
      array = entry.read(index)
      read.append((name, array.size))
      return array

    return foreign.Entry(entry.shape, reading)

  table = foreign.SourceTable(
    "timm", {k: watch(k, v) for k, v in entries.items()}
  )
  specs, _ = tree.flatten(params)
  table.read(specs, None)
  assert sum(n for _, n in read) == sum(v.size for v in exported.values())
  assert len([k for k, _ in read if k == "blocks.0.attn.qkv.weight"]) == 3


@pytest.mark.filterwarnings("ignore:Models of")
def test_many_checkpoints_of_one_model_are_adapted_after_one_trace(monkeypatch):
  model = vit(width=24)
  params = params_of(model)
  leaves = pretrained.export(params, model, "timm")
  calls, init = [], sj.models.ViT.init
  monkeypatch.setattr(
    sj.models.ViT, "init", lambda *args: calls.append(1) or init(*args)
  )
  for patch, traces in ((4, 0), (6, 1)):  # The export has traced the first.
    for name in "abc":
      source = sj.Ingredient.from_params(name, leaves)
      if patch == 4:
        loaded = pretrained.as_ingredient(source, model).load()
        chex.assert_trees_all_equal(loaded, params)
      else:
        with pytest.raises(ValueError, match="does not fit"):
          pretrained.as_ingredient(source, model.clone(patch_size=patch))
    assert len(calls) == traces


def wrong(leaves, model=None, **options):
  with pytest.raises(ValueError) as error:
    load(leaves, model or vit(), **options)
  return str(error.value)


def test_all_that_does_not_fit_is_listed_with_nearest_names():
  model = vit(depth=4)
  exported = pretrained.export(params_of(model), model, "big_vision")
  block = "Transformer/encoderblock_{}/"
  for i in range(4):
    name = f"{block}MlpBlock_0/Dense_1/bias".format(i)
    exported[name.replace("bias", "biases")] = exported.pop(name)
  del exported["Transformer/encoder_norm/scale"]
  exported["embedding/kernel"] = np.zeros((4, 4, 1, 9))
  exported["cls"] = np.zeros((1, 1, 8))
  exported["something/else"] = np.zeros(3)
  text = wrong(exported, vit(depth=5))
  assert "'exported', read as 'big_vision', does not fit this ViT" in text
  for line in (
    # 16 leaves of the fifth block, of which one is missing in all.
    "21 missing:",
    "Transformer/encoder_norm/scale",
    "Transformer/encoderblock_[0-4]/MlpBlock_0/Dense_1/bias; nearest is "
    "Transformer/encoderblock_[0-3]/MlpBlock_0/Dense_1/biases",
    "6 unexpected:",
    "cls; a model with pool_type='tok' or class_token=True has it",
    "something/else\n",
    "1 misshapen:",
    "embedding/kernel is (4, 4, 1, 9), and (4, 4, 1, 8) is needed",
    "options('big_vision')",
  ):
    assert line in text, (line, text)
  # Every leaf is in it, but blocks share lines.
  assert len(text.splitlines()) < 32


def test_nearest_names_are_unknown_ones():
  # Names of surplus blocks resemble those that are missing, too.
  missing = {"blocks.0.norm2.bias": "ours"}
  unexpected = {"blocks.9.norm1.bias": "ours too", "blocks.0.ln2.bias": None}
  text = mismatch.describe(missing, unexpected, {})
  assert "norm2.bias (here ours); nearest is blocks.0.ln2.bias" in text
  unexpected.pop("blocks.0.ln2.bias")
  text = mismatch.describe(missing, unexpected, {})
  assert "nearest is blocks.9.norm1.bias" in text


def test_a_model_of_another_size_is_named_in_their_shapes():
  model = vit(pool_type="tok", act="gelu_exact")
  exported = pretrained.export(params_of(model), model, "timm")
  text = wrong(exported, vit(pool_type="tok", act="gelu_exact", mlp_dim=16))
  assert "9 misshapen:" in text and "missing" not in text
  assert "blocks.[0-2].mlp.fc1.weight is (12, 8), and (16, 8) is needed" in text
  text = wrong(exported, vit(act="gelu_exact", width=16))
  assert "pos_embed is (1, 10, 8), and (1, 9, 16) is needed" in text
  assert "blocks.[0-2].attn.qkv.weight is (24, 8), and (48, 16) is" in text
  assert "cls_token; a model with pool_type='tok'" in text


def test_a_checkpoint_of_no_family():
  text = wrong({"layer1.0.conv1.weight": np.zeros(2), "fc.bias": np.zeros(2)})
  assert text.startswith("'exported'") and "'openclip'" in text
  assert "'layer1.0.conv1.weight'" in text
  # With a family, the leaves that it lacks are listed.
  text = wrong({"layer1.0.conv1.weight": np.zeros(2)}, family="big_vision")
  assert "missing" in text and "layer1.0.conv1.weight" in text


def test_a_checkpoint_of_two_models_is_not_guessed():
  params = params_of(vit())
  two = {f"params/{k}": v for k, v in helpers.flat_leaves(params).items()}
  two |= helpers.flat_leaves(params)
  assert "'exported'" in wrong(two)
  assert "('big_vision', 'params/')" in wrong(two, family="big_vision")


def test_several_models_in_a_file_and_the_advice_about_them():
  model = vit(pool_type="tok", act="gelu_exact", num_classes=None)
  params = params_of(model)
  leaves = pretrained.export(params, model, "timm")
  names = ("module.base_encoder.", "module.momentum_encoder.")
  both = {prefix + k: v for prefix in names for k, v in leaves.items()}
  both["module.predictor.0.weight"] = np.zeros((2, 2))
  advice = re.escape(r"skip=['^module\.momentum_encoder\.']")
  with pytest.raises(ValueError, match=advice):
    load(both, model)
  skip = [r"^module\.momentum_encoder\."]
  with pytest.raises(ValueError, match=re.escape(r"['^module\.predictor\.']")):
    load(both, model, skip=skip)
  skip += [r"^module\.predictor\."]
  chex.assert_trees_all_equal(load(both, model, skip=skip), params)
  source = sj.Ingredient.from_params("two", both)
  adapted = pretrained.as_ingredient(source, model, skip=skip)
  chex.assert_trees_all_equal(adapted.load(), params)
  assert pretrained.detect(source, skip=skip).family == "timm"
  one = pretrained.without(source, "|".join(skip))
  chex.assert_trees_all_equal(pretrained.load_pretrained(one, model), params)
  for pattern, message in (("x", "no leaves"), (".", "all"), ("(", "not a")):
    with pytest.raises(ValueError, match=message):
      pretrained.without(source, pattern)


def test_leaves_outside_the_model_are_accounted_for():
  model = vit(pool_type="tok", act="gelu_exact")
  leaves = pretrained.export(params_of(model), model, "timm")
  leaves = {f"net.{k}": v for k, v in leaves.items()}
  # The model has a head of its own.
  for name in ("fc.weight", "queue", "proj.0.weight"):
    text = wrong({**leaves, name: np.zeros((5, 8))}, model)
    assert f"1 unexpected:\n    {name}" in text
  load({**leaves, "criterion.weight": np.zeros(5)}, model)
  # Which of two is the head is not in the file, nor what an MLP computes.
  backbone = {k: v for k, v in leaves.items() if "head" not in k}
  head = {"fc.weight": np.ones((5, 8)), "fc.bias": np.ones(5)}
  assert np.all(load({**backbone, **head}, model)["head"]["kernel"] == 1)
  for other in ("head.weight", "classifier.weight"):
    text = wrong({**backbone, **head, other: np.zeros((5, 8))}, model)
    assert "3 unexpected" in text
  mlp = {f"head.{i}.weight": np.zeros((8, 8)) for i in (0, 2)}
  assert "head.[0,2].weight" in wrong({**backbone, **mlp}, model)
  # A head of as many outputs on other features is not replaced by zeros.
  text = wrong({**backbone, "fc.weight": np.ones((5, 16))}, model)
  assert "fc.weight is (5, 16), and (5, 8) is needed" in text


def test_leaves_that_are_saved_twice_are_named():
  model = vit(pool_type="tok", act="gelu_exact", layer_scale=1e-5)
  leaves = pretrained.export(params_of(model), model, "timm")
  other = {"blocks.0.gamma_1": leaves["blocks.0.ls1.gamma"]}
  text = wrong({**leaves, **other}, model)
  assert "gamma_1: the same leaf as blocks.0.ls1.gamma; leave out one" in text
  load({**leaves, **other}, model, skip=["gamma_1"])


def test_a_prefix_chooses_one_of_several_models():
  # As in checkpoints of MoCo v3.
  model = vit(pool_type="tok", act="gelu_exact")
  params = params_of(model)
  leaves = pretrained.export(params, model, "timm")
  both = {
    f"module.{name}.{k}": v + (name == "momentum_encoder")
    for name in ("base_encoder", "momentum_encoder")
    for k, v in leaves.items()
  }
  prefix = "module.base_encoder."
  source = sj.Ingredient.from_params("moco", both)
  assert pretrained.detect(source, prefix=prefix).options["depth"] == 3
  chex.assert_trees_all_equal(load(both, model, prefix=prefix), params)
  assert pretrained.under(source, "") is source
  lazy = pretrained.as_ingredient(source, model, prefix=prefix)
  chex.assert_trees_all_equal(lazy.load(), params)


def test_positions_without_a_square_grid_are_not_resampled():
  model = vit(pool_type="tok", layer_scale=1e-5, registers=2, act="gelu_exact")
  images = np.zeros((1, 8, 12, 1), np.float32)
  leaves = pretrained.export(params_of(model, images), model, "timm")
  with pytest.raises(ValueError, match="6 position embeddings .*grid of 2 x 2"):
    load(leaves, model, image_size=12)


def test_parts_that_our_models_lack_are_named():
  model = vit(pool_type="tok", act="gelu_exact")
  leaves = pretrained.export(params_of(model), model, "timm")
  text = wrong({**leaves, "blocks.0.rel_pos_bias": np.ones(8)}, model)
  assert (
    "rel_pos_bias: relative positions, which our models do not have" in text
  )


def test_names_of_the_file_can_be_skipped():
  model = vit(pool_type="tok", act="gelu_exact")
  params, init = params_of(model), params_of(model, seed=1)
  leaves = pretrained.export(params, model, "timm")
  loaded = load(leaves, model, skip=[r"^norm\."], init=init)
  expected = init["Transformer"]["encoder_norm"]
  chex.assert_trees_all_equal(loaded["Transformer"]["encoder_norm"], expected)
  with pytest.raises(
    ValueError, match="init=.*encoder_norm|encoder_norm.*init"
  ):
    load(leaves, model, skip=[r"^norm\."])
  with pytest.raises(ValueError, match="encoder_norm.*which the model has"):
    source = sj.Ingredient.from_params("a", leaves)
    pretrained.as_ingredient(source, model, skip=[r"^norm\."])


def test_positions_of_images_that_are_not_square():
  images = np.zeros((1, 8, 16, 1), np.float32)
  model = vit(pool_type="tok", act="gelu_exact")
  params = params_of(model, images)
  leaves = pretrained.export(params, model, "timm")  # 8 + 1, or 3 x 3.
  source = sj.Ingredient.from_params("a", leaves)
  assert pretrained.detect(source).image_size is None
  with pytest.raises(ValueError, match=r"9 patches.*image_size=\(8, 16\)"):
    logits(model, load(leaves, model), images)
  loaded = load(leaves, model, image_size=(8, 16))
  chex.assert_trees_all_equal(loaded, params)
  # In other libraries a class token always has a position.
  leaves = pretrained.export(params, model, "hf_vit")
  chex.assert_trees_all_equal(load(leaves, model), params)


def test_a_damaged_leaf_without_axes():
  exported = pretrained.export(params_of(vit()), vit(), "big_vision")
  exported["pos_embedding"] = exported["embedding/kernel"] = np.zeros(())
  text = wrong(exported)
  assert "pos_embedding is (), and (1, 1, 8) is needed" in text
  assert "embedding/kernel is (), and (4, 4, 3, 8) is needed" in text


@pytest.mark.parametrize(
  "call,message",
  [
    (lambda: pretrained.options("tim"), "'tim'.*'timm'"),
    (
      lambda: load({"a": IMAGES}, vit(), head="no"),
      "head 'no'",
    ),
    (
      lambda: load(
        helpers.flat_leaves(params_of(vit())), vit(), family="hf-vit"
      ),
      "'hf-vit'.*'hf_vit'",
    ),
    (
      lambda: load(helpers.flat_leaves(params_of(vit())), MODELS["mixer"][0]),
      "'big_vision'.*Mixer",
    ),
    (
      lambda: pretrained.export({}, vit(), "openclap"),
      "'openclap'.*'openclip'",
    ),
    (
      lambda: pretrained.export(params_of(vit()), vit(depth=2), "big_vision"),
      "16 unexpected",
    ),
    (
      lambda: pretrained.export(
        params_of(vit()), vit(mlp_dim=16), "big_vision"
      ),
      r"Dense_1/kernel is \(12, 8\).*\(16, 8\)",
    ),
    (
      lambda: pretrained.save_exported("a.pt", {}, vit(), "big_vision"),
      "a.pt",
    ),
  ],
)
def test_bad_arguments(call, message):
  with pytest.raises(ValueError, match=message):
    call()


@pytest.mark.filterwarnings("ignore:Models of")
def test_leaves_without_a_name_in_the_family():
  model = vit(pool_type="map", rep_size=3)
  with pytest.raises(ValueError) as error:
    pretrained.export(params_of(model), model, "hf_vit")
  text = str(error.value)
  assert "'hf_vit'" in text and "17 leaves" in text
  assert "MAPHead_0/probe (from pool_type='map')" in text
  assert "pre_logits/bias (from rep_size=)" in text
  model = vit(pool_type="tok", posemb="sincos2d")
  with pytest.raises(ValueError, match="'timm'.*sincos2d"):
    pretrained.export(params_of(model), model, "timm")


def test_another_activation_is_warned_about():
  model = vit(pool_type="tok")
  with pytest.warns(UserWarning, match="'gelu_exact'.*'gelu'"):
    exported = pretrained.export(params_of(model), model, "timm")
  with pytest.warns(UserWarning, match="'gelu_exact'.*'gelu'"):
    load(exported, model)


@pytest.mark.parametrize("towers", [False, True])
def test_the_record_of_a_run_says_the_activation(towers, tmp_path, recwarn):
  """As for the members of a sweep that started from CLIP."""
  model = vit(act="quick_gelu")
  path = tmp_path / "ingredients" / "last" / "params"
  sj.save_params(path, params_of(model))
  options = {"act": "quick_gelu"}
  record = {"task": "finetune", "model": options}
  if towers:
    record["model"] = {"name": "clip", "image": options}
  files.write_json(tmp_path / "config.json", record)
  pretrained.load_pretrained(path, model)
  pretrained.as_ingredient(sj.open_ingredient(path), model)
  assert not [str(w.message) for w in recwarn if w.category is UserWarning]
  options["act"] = "silu"
  files.write_json(tmp_path / "config.json", record)
  with pytest.warns(UserWarning, match="'gelu'.*'quick_gelu'"):
    pretrained.load_pretrained(path, model)


def test_a_file_at_the_path_stays(tmp_path):
  params = params_of(vit())
  path = tmp_path / "a.safetensors"
  path.write_text("precious")
  for overwrite in (False, True):
    with pytest.raises(ValueError, match="a.safetensors"):
      pretrained.save_exported(
        path, params, vit(), "big_vision", overwrite=overwrite
      )
  assert path.read_text() == "precious"
  path.unlink()
  pretrained.save_exported(path, params, vit(), "big_vision")
  pretrained.save_exported(path, params, vit(), "big_vision", overwrite=True)
  assert sj.open_ingredient(path).text["format"] == "pt"


def test_names_of_every_family_are_unique():
  for name, family in mappings.FAMILIES.items():
    for packed in (False, True):
      rows = [r for r in family.rows if r.packed in (None, packed)]
      parts = [
        (k, row.part)
        for row in rows
        for k in row.names
        # OpenCLIP's final norm has one name before and after the pooling.
        if (name, row.leaf.partition("/")[0]) != ("openclip", "fc_norm")
      ]
      assert len(parts) == len(set(parts)), name


def test_ranges_of_blocks():
  names = {f"b.{i}.w": None for i in (0, 1, 2, 5)} | {"conv1": None}
  text = mismatch.describe({}, names, {})
  assert text == "5 unexpected:\n    b.[0-2,5].w\n    conv1"
