# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The ResNet-v2 of BiT."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soupjax.models import ResNet, resnet_variant
from soupjax.soups.core import layers, tree

TINY = {"width": 32, "depths": (1, 2), "num_classes": 3}
IMAGES = np.random.default_rng(0).normal(size=(2, 16, 24, 1)).astype("f")


def specs_of(model, images=IMAGES):
  made = jax.eval_shape(model.init, jax.random.key(0), images)
  return tree.flatten(made["params"])[0]


@pytest.mark.parametrize(
  # In millions; of the original files, and in section 1 of the paper.
  "name,classes,millions",
  [("50x1", 1000, 25.55), ("R152x4", None, 928.3)],
)
def test_sizes_are_the_published_ones(name, classes, millions):
  model = ResNet(classes, **resnet_variant(name))
  images = jnp.zeros((1, 224, 224, 3))
  count = sum(math.prod(x.shape) for x in specs_of(model, images).values())
  assert count / 1e6 == pytest.approx(millions, abs=0.1)


def test_leaves_are_those_of_big_vision():
  shapes = {k: x.shape for k, x in specs_of(ResNet(**TINY)).items()}
  known = {
    "root_block/conv_root/kernel": (7, 7, 1, 32),
    "block1/unit01/gn1/scale": (1, 1, 1, 32),
    "block1/unit01/conv_proj/kernel": (1, 1, 32, 128),
    "block2/unit01/conv2/kernel": (3, 3, 64, 64),
    "block2/unit02/gn3/bias": (1, 1, 1, 64),
    "block2/unit02/conv3/kernel": (1, 1, 64, 256),
    "norm-pre-head/scale": (1, 1, 1, 256),
    "head/kernel": (256, 3),
  }
  assert known.items() <= shapes.items()
  assert "block2/unit02/conv_proj/kernel" not in shapes
  # Layers are the stages.
  ranks, count = layers.ranks(shapes)
  assert count == 2 and ranks["root_block/conv_root/kernel"] == -1
  assert ranks["block2/unit01/gn1/bias"] == ranks["block2/unit02/gn1/bias"] == 1
  assert ranks["norm-pre-head/bias"] == ranks["head/bias"] == 2


def test_features_logits_and_kernels_of_any_scale():
  model = ResNet(3, width=32, depths=(1,), head_zeroinit=False)
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f"), shapes)
  apply = jax.jit(model.apply)
  logits, features = apply({"params": params}, IMAGES)
  assert logits.shape == (2, 3) and features.shape == (2, 128)
  assert logits.dtype == jnp.float32 and np.asarray(features).min() >= 0

  def moved(path, x):  # Scale and mean of a kernel do not matter.
    return 3 * x + 0.1 if "conv" in jax.tree_util.keystr(path) else x

  other = jax.tree_util.tree_map_with_path(moved, params)
  np.testing.assert_allclose(
    apply({"params": other}, IMAGES)[0], logits, rtol=1e-4, atol=1e-3
  )


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"width": 48}, "width=48 must be a multiple of 32"),
    ({"depths": (1, 0)}, r"depths=\(1, 0\) must be positive"),
    ({"depths": ()}, r"depths=\(\) must be positive"),
  ],
)
def test_sizes_that_cannot_be(changes, message):
  with pytest.raises(ValueError, match=message):
    specs_of(ResNet(**{**TINY, **changes}))


@pytest.mark.parametrize("name", ["51x1", "50", "50x0", "B/16"])
def test_variants_that_do_not_exist(name):
  with pytest.raises(ValueError, match=f"{name}.*such as '50x1'"):
    resnet_variant(name)
