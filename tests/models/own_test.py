# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Models outside of soupjax: their files are read by their own names."""

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax import models
from soupjax.models import own, pretrained


class Small(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, images, *, train=False):
    x = nn.Dense(4, name="stem")(images.reshape(len(images), -1))
    return nn.Dense(self.num_classes, name="head")(x), x


def params_of(model, size=4):
  images = np.zeros((1, size, size, 3), np.float32)
  params = model.init(jax.random.key(0), images)["params"]
  return jax.tree.map(lambda x: x + np.float32(0.5), params)


@pytest.fixture
def path(tmp_path):
  sj.save_params(tmp_path / "small.safetensors", params_of(Small(3)))
  return tmp_path / "small.safetensors"


def test_a_model_is_ones_own_if_its_class_is():
  assert own.is_own(Small(3)) and own.is_own(Small)
  assert not own.is_own(models.ViT(3)) and not own.is_own(models.ViT)


def test_the_parameters_come_back(path):
  loaded = models.load_pretrained(path, Small(3), image_size=4)
  chex.assert_trees_all_equal(loaded, params_of(Small(3)))
  opened = sj.open_ingredient(path)
  assert pretrained.as_ingredient(opened, Small(3), image_size=4) is opened


@pytest.mark.parametrize("head", ["auto", "new"])
def test_a_head_of_other_classes_starts_at_zero(path, head):
  loaded = models.load_pretrained(path, Small(5), image_size=4, head=head)
  assert loaded["head"]["kernel"].shape == (4, 5)
  assert not loaded["head"]["kernel"].any()
  assert loaded["stem"]["kernel"].all()


def test_skipped_leaves_come_from_init(path):
  init = jax.tree.map(np.zeros_like, params_of(Small(3)))
  loaded = models.load_pretrained(
    path, Small(3), image_size=4, skip=["^stem/bias"], init=init
  )
  assert not loaded["stem"]["bias"].any() and loaded["stem"]["kernel"].any()
  with pytest.raises(ValueError, match="stem/bias.*init="):
    models.load_pretrained(path, Small(3), image_size=4, skip=["^stem/bias"])


@pytest.mark.parametrize(
  "model, options, named",
  [
    (Small(3), {"image_size": 5}, "stem/kernel is"),
    (Small(5), {"image_size": 4, "head": "keep"}, "head/kernel is"),
    (Small(3), {}, "image_size="),
  ],
)
def test_what_does_not_fit_is_named(path, model, options, named):
  with pytest.raises(ValueError, match=named):
    models.load_pretrained(path, model, **options)


def test_other_leaves_are_named(tmp_path):
  params = {**params_of(Small(3)), "more": {"scale": np.ones(2, np.float32)}}
  sj.save_params(tmp_path / "more.safetensors", params)
  opened = sj.open_ingredient(tmp_path / "more.safetensors")
  with pytest.raises(ValueError, match="more/scale"):
    pretrained.as_ingredient(opened, Small(3), image_size=4)
