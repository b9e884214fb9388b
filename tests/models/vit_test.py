# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soupjax.models import VARIANTS, ViT, variant, vit
from soupjax.soups import tree

TINY = {
  "patch_size": 4,
  "width": 16,
  "depth": 2,
  "mlp_dim": 32,
  "num_heads": 2,
  "num_classes": 5,
  "head_zeroinit": False,
}
IMAGES = np.random.default_rng(0).normal(size=(3, 8, 12, 1)).astype(np.float32)


def init(model):
  return model.init(jax.random.key(0), IMAGES)["params"]


def count(model, size):
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, size, size, 3))
  )
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
  "name,pool,size,millions",
  [
    # timm vit_base_patch16_224, and arXiv 2106.04560 Table 2 without a head.
    ("B/16", "tok", 224, 86.567656),
    ("S/16", "tok", 224, 22.050664),
    ("L/16", "tok", 224, 304.326632),
    ("G/14", "gap", 224, 1844.0),
  ],
)
def test_sizes_are_the_published_ones(name, pool, size, millions):
  model = ViT(num_classes=1000, pool_type=pool, **variant(name))
  found = count(model, size) / 1e6
  # timm adds a position for the class token, big_vision does not.
  assert found == pytest.approx(millions, rel=2e-3)


def test_names_are_those_of_big_vision():
  leaves, _ = tree.flatten(init(ViT(**TINY, pool_type="map", rep_size=7)))
  block = "Transformer/encoderblock_1"
  expected = {
    "embedding/kernel": (4, 4, 1, 16),
    "pos_embedding": (1, 6, 16),
    "Transformer/encoder_norm/scale": (16,),
    f"{block}/LayerNorm_0/scale": (16,),
    f"{block}/LayerNorm_1/bias": (16,),
    f"{block}/MlpBlock_0/Dense_0/kernel": (16, 32),
    f"{block}/MlpBlock_0/Dense_1/bias": (16,),
    f"{block}/MultiHeadDotProductAttention_0/query/kernel": (16, 2, 8),
    f"{block}/MultiHeadDotProductAttention_0/out/kernel": (2, 8, 16),
    "MAPHead_0/probe": (1, 1, 16),
    "MAPHead_0/MlpBlock_0/Dense_0/kernel": (16, 32),
    "MAPHead_0/MultiHeadDotProductAttention_0/value/bias": (2, 8),
    "MAPHead_0/LayerNorm_0/scale": (16,),
    "pre_logits/kernel": (16, 7),
    "head/kernel": (7, 5),
  }
  assert {k: leaves[k].shape for k in expected} == expected
  cls, _ = tree.flatten(init(ViT(**TINY, pool_type="tok")))
  assert cls["cls"].shape == (1, 1, 16)


def test_scan_is_the_loop_with_stacked_parameters():
  loop, scan = ViT(**TINY), ViT(**TINY, scan=True)
  params = init(loop)
  stacked = dict(params["Transformer"])
  blocks = [stacked.pop(f"encoderblock_{i}") for i in range(2)]
  stacked["encoderblock"] = jax.tree.map(lambda *x: jnp.stack(x), *blocks)
  stacked = {**params, "Transformer": stacked}
  chex.assert_trees_all_equal_shapes(stacked, init(scan))
  expected, _ = loop.apply({"params": params}, IMAGES)
  found, _ = scan.apply({"params": stacked}, IMAGES)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  # Blocks differ, or the order of the stack would not be tested.
  assert not np.allclose(*(jax.tree.leaves(b)[5] for b in blocks))


@pytest.mark.parametrize("scan", [False, True])
def test_remat_changes_no_gradient(scan):
  plain = ViT(**TINY, scan=scan)
  remat = ViT(**TINY, scan=scan, remat_policy="nothing_saveable")
  params = init(plain)

  def loss(params, model):
    return (model.apply({"params": params}, IMAGES)[0] ** 2).sum()

  expected, found = (jax.grad(loss)(params, m) for m in (plain, remat))
  chex.assert_trees_all_close(found, expected, atol=1e-5)
  jaxpr = jax.make_jaxpr(jax.grad(loss), static_argnums=1)
  assert "remat" in str(jaxpr(params, remat))
  assert "remat" not in str(jaxpr(params, plain))


@pytest.mark.parametrize("pool", ["gap", "tok", "map"])
@pytest.mark.parametrize("posemb", ["learn", "sincos2d"])
def test_options_run_in_bfloat16_with_float32_parameters(pool, posemb):
  model = ViT(**TINY, pool_type=pool, posemb=posemb)
  params = init(model)
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}
  exact, _ = model.apply({"params": params}, IMAGES)
  low = model.clone(dtype_mm="bfloat16")
  logits, features = low.apply({"params": params}, IMAGES)
  assert logits.dtype == features.dtype == jnp.float32
  assert 1e-6 < float(jnp.abs(logits - exact).max()) < 0.3
  assert ("pos_embedding" in params) == (posemb == "learn")


def test_without_classes_it_returns_the_features_of_the_head():
  params = init(ViT(**TINY))
  logits, features = ViT(**TINY).apply({"params": params}, IMAGES)
  bare = {k: v for k, v in params.items() if k != "head"}
  same, _ = ViT(**{**TINY, "num_classes": None}).apply({"params": bare}, IMAGES)
  np.testing.assert_array_equal(same, features)
  by_hand = features @ params["head"]["kernel"] + params["head"]["bias"][None]
  np.testing.assert_allclose(logits, by_hand, atol=1e-6)


def test_dropout_is_on_in_training_only():
  model = ViT(**TINY, dropout=0.5)
  params = init(model)

  def apply(train, key):
    return model.apply(
      {"params": params},
      IMAGES,
      train=train,
      rngs={"dropout": jax.random.key(key)},
    )[0]

  np.testing.assert_array_equal(apply(False, 0), apply(False, 1))
  assert not np.allclose(apply(True, 0), apply(True, 1))


def test_sincos2d_tells_positions_apart():
  table = vit.sincos2d(3, 5, 16)[0]
  assert table.shape == (15, 16)
  gram = table @ table.T
  assert (gram.argmax(axis=1) == np.arange(15)).all()


@pytest.mark.parametrize(
  "change,message",
  [
    ({"pool_type": "max"}, "pool_type must be one of .*'max'"),
    ({"posemb": "rope"}, "posemb must be one of .*'rope'"),
    ({"num_heads": 3}, "width 16 is not divisible by 3 heads"),
    ({"patch_size": 5}, "Patches of 5 pixels do not tile images of 8 x 12"),
    ({"width": 18, "posemb": "sincos2d"}, "4 divides, got 18"),
  ],
)
def test_bad_options(change, message):
  with pytest.raises(ValueError, match=message):
    init(ViT(**{**TINY, **change}))


@pytest.mark.parametrize("name", ["X/16", "B", "B/", "B/x", "B/0", "b/16"])
def test_unknown_variants(name):
  with pytest.raises(ValueError, match="Unknown ViT variant.*So400m"):
    variant(name)


def test_variants_have_whole_heads():
  for sizes in VARIANTS.values():
    assert sizes["width"] % sizes["num_heads"] == 0


def test_sincos2d_of_the_smallest_width():
  table = vit.sincos2d(2, 3, 4)
  assert table.shape == (1, 6, 4) and np.isfinite(table).all()
  np.testing.assert_allclose(table[0, :, 0], np.sin([0, 1, 2, 0, 1, 2]), 1e-6)
  with pytest.raises(ValueError, match="a width that 4 divides, got 0"):
    vit.sincos2d(2, 3, 0)
