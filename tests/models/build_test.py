# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import flax.linen as nn
import pytest

from soupjax import models


def test_a_variant_and_options_make_a_model():
  model = models.build("vit", 10, variant="mu/4", dropout=0.1)
  expected = models.ViT(num_classes=10, dropout=0.1, **models.variant("mu/4"))
  assert model == expected
  assert models.build("mixer", 10, variant="mu/4").num_classes == 10
  assert models.build("vit", 3, variant="", depth=2).depth == 2


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_options_that_are_off_need_not_be_known(name):
  variant = "50x1" if name == "resnet" else "mu/4"
  plain = models.build(name, 3, variant=variant)
  assert models.build(name, 3, variant=variant, unknown=0.0) == plain


def test_lists_of_configs_make_a_model_that_compiles_once():
  model = models.build("resnet", None, depths=[1])
  assert hash(model) == hash(models.ResNet(depths=(1,)))


def test_options_of_a_tower_override_those_of_both():
  model = models.build(
    "clip", None, variant="mu/16", dropout=0.2, scan=True,
    image={"dropout": 0.1}, text={"scan": False},
  )  # fmt: skip
  assert model.image["dropout"] == 0.1 and model.image["scan"]
  assert not model.text["scan"] and model.image["dtype_mm"] == "float32"


def test_a_module_class_is_built_by_its_import_path():
  model = models.build("soupjax.models.ViT", 3, depth=1, variant="")
  assert isinstance(model, nn.Module) and model.depth == 1


@pytest.mark.parametrize(
  "name,options,culprit",
  [
    ("convnext", {}, "'convnext'"),
    ("vit", {"variant": "Q/16"}, "Q"),
    ("vit", {"depht": 3}, "'depht'.*'depth'"),
    ("mixer", {"dropout": 0.1}, "'dropout'"),
    ("soupjax.models.ViT", {"variant": "B/16"}, "'variant'.*B/16"),
    ("soupjax.models.Vit", {}, "soupjax.models.Vit"),
    ("math.pi", {}, "math.pi"),
    ("fractions.Fraction", {}, "Fraction"),
  ],
)
def test_bad_models_are_named(name, options, culprit):
  with pytest.raises(ValueError, match=culprit):
    models.build(name, 3, **options)
