# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import chex
import family_models as cases
import numpy as np
import pytest

import soupjax as sj
from soupjax.models import pretrained

pytestmark = pytest.mark.filterwarnings("ignore:Models of")

ALL = [
  pytest.param(family, model, id=f"{family}{k}")
  for family, models in cases.MODELS.items()
  for k, model in enumerate(models)
]


def source_of(family, model, name="source", seed=0):
  params = cases.params_of(model, seed=seed)
  leaves = pretrained.export(params, model, family)
  return sj.Ingredient.from_params(name, leaves, {"minival/prec@1": 0.5})


@pytest.mark.parametrize("family, model", ALL)
def test_equals_load_pretrained(family, model):
  source = source_of(family, model)
  adapted = pretrained.as_ingredient(source, model, image_size=12)
  chex.assert_trees_all_equal(
    adapted.load(), pretrained.load_pretrained(source, model, image_size=12)
  )
  assert adapted.metrics == source.metrics
  for leaf, spec in adapted.specs.items():
    read = adapted.read(leaf)
    assert (read.shape, read.dtype) == (spec.shape, spec.dtype), leaf
    part = tuple(slice(0, n, 2) for n in spec.shape)
    np.testing.assert_array_equal(adapted.read(leaf, index=part), read[part])


def test_nothing_is_read_before_it_is_needed():
  model = cases.vit(pool_type="tok")
  source = source_of("timm", model)
  leaves_read = []

  def reader(leaf, index, read=source.reader):
    leaves_read.append(leaf)
    return read(leaf, index)

  adapted = pretrained.as_ingredient(
    dataclasses.replace(source, reader=reader), model, image_size=12
  )
  assert not leaves_read
  adapted.read("head/bias")
  assert leaves_read == ["head.bias"]


def test_renaming_and_averaging_commute():
  model = cases.vit(pool_type="tok", scan=True)
  sources = [
    source_of("hf_vit", model, name, seed)
    for seed, name in enumerate(["a", "b", "c"])
  ]
  adapted = [pretrained.as_ingredient(i, model, image_size=12) for i in sources]
  assert {i.hyperparameters["family"] for i in adapted} == {"hf_vit"}
  soup = sj.uniform_soup(adapted)
  foreign_soup = sj.uniform_soup(sources)
  back = pretrained.export(soup, model, "hf_vit")
  chex.assert_trees_all_equal_shapes(back, foreign_soup)
  # The position is added to the class token before or after averaging.
  chex.assert_trees_all_close(
    soup, cases.load(foreign_soup, model, image_size=12), rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize("scan", [False, True])
def test_own_checkpoints_stay_as_they_are(tmp_path, scan):
  model = cases.vit(pool_type="map", scan=scan)
  params = cases.params_of(model)
  sj.save_params(tmp_path / "own", params)
  own = sj.open_ingredient(tmp_path / "own")
  assert pretrained.as_ingredient(own, model, image_size=12) is own
  other = cases.vit(pool_type="map", scan=not scan)
  adapted = pretrained.as_ingredient(own, other, image_size=12)
  assert adapted is not own
  chex.assert_trees_all_close(
    cases.logits(other, adapted.load()), cases.logits(model, params), rtol=1e-5
  )


def test_a_head_of_other_classes_is_refused():
  source = source_of("timm", cases.vit(pool_type="tok"))
  with pytest.raises(ValueError, match=r"(?s)source.*head\.(bias|weight)"):
    pretrained.as_ingredient(
      source, cases.vit(pool_type="tok", num_classes=7), image_size=12
    )
