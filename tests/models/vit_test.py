# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from soupjax.models import VARIANTS, ViT, encoder, layers, variant, vit
from soupjax.soups.core import layers as core_layers
from soupjax.soups.core import tree

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


def init(model, images=IMAGES):
  """Random parameters: quicker than those of `model.init`."""
  rng = np.random.default_rng(0)
  made = jax.eval_shape(model.init, jax.random.key(0), images)["params"]

  def values(path, x):
    noise = rng.normal(size=x.shape) / np.sqrt(max(x.shape[0], 4))
    return jnp.asarray(noise + (path[-1].key == "scale"), x.dtype)

  return jax.tree_util.tree_map_with_path(values, made)


@functools.cache
def compiled(model, train):
  """As a whole, which is quicker than one operation at a time."""
  return jax.jit(functools.partial(model.apply, train=train))


def apply(model, params, images=IMAGES, train=False, rngs=None):
  return compiled(model, train)({"params": params}, images, rngs=rngs)


def num_params(model, size):
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, size, size, 3))
  )
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
  # With 1000 classes, as timm counts them, where the class token has a position
  # embedding of its own; So400m is vit_so400m_patch14_siglip_224.
  "name,pool,count",
  [
    ("Ti/16", "tok", 5_717_416),
    ("S/16", "tok", 22_050_664),
    ("B/16", "tok", 86_567_656),
    ("B/32", "tok", 88_224_232),
    ("L/16", "tok", 304_326_632),
    ("H/14", "tok", 632_045_800),
    ("g/14", "tok", 1_012_611_432),
    ("G/14", "tok", 1_844_440_680),
    ("So400m/14", "map", 427_680_704),
  ],
)
def test_sizes_are_the_published_ones(name, pool, count):
  classes = 1000 if pool == "tok" else None
  model = ViT(num_classes=classes, pool_type=pool, **variant(name), scan=True)
  size = num_params(model, 224)
  assert size + (model.width if pool == "tok" else 0) == count


@pytest.mark.parametrize(
  # Table 2 of arXiv 2106.04560; M is from 2106.10270's repository and e from
  # 2209.06794, in millions and rounded there.
  "name,millions,rel",
  [
    ("M/16", 38, 0.02),
    ("g/14", 1011, 2e-3),
    ("G/14", 1843, 2e-3),
    ("e/14", 3900, 0.03),
  ],
)
def test_sizes_are_those_of_the_papers(name, millions, rel):
  model = ViT(**variant(name), scan=True)
  assert num_params(model, 224) / 1e6 == pytest.approx(millions, rel=rel)


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
  expected, _ = apply(loop, params)
  logits, _ = apply(scan, stacked)
  np.testing.assert_allclose(logits, expected, atol=1e-5)
  # Blocks differ, or the order of the stack would not be tested.
  assert not np.allclose(*(jax.tree.leaves(b)[5] for b in blocks))


@pytest.mark.parametrize("scan", [False, True])
def test_remat_changes_no_gradient(scan):
  options = {**TINY, "scan": scan, "dropout": 0.2, "stochastic_depth": 0.5}
  plain, remat = ViT(**options), ViT(**options, remat_policy="dots_saveable")
  params = init(plain)
  rngs = {"dropout": jax.random.key(3)}

  @functools.partial(jax.jit, static_argnums=1)
  def gradient(params, model):
    def loss(params):
      out = model.apply({"params": params}, IMAGES, train=True, rngs=rngs)
      return (out[0] ** 2).sum()

    return jax.grad(loss)(params)

  expected, actual = (gradient(params, model) for model in (plain, remat))
  chex.assert_trees_all_close(actual, expected, atol=1e-5)
  jaxpr = jax.make_jaxpr(gradient, static_argnums=1)
  assert "remat" in str(jaxpr(params, remat))
  assert "remat" not in str(jaxpr(params, plain))


@pytest.mark.parametrize("pool", ["gap", "tok", "map"])
@pytest.mark.parametrize("posemb", ["learn", "sincos2d"])
def test_options_run_in_bfloat16_with_float32_parameters(pool, posemb):
  model = ViT(**TINY, pool_type=pool, posemb=posemb)
  params = init(model)
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}
  exact, _ = apply(model, params)
  logits, features = apply(model.clone(dtype_mm="bfloat16"), params)
  assert logits.dtype == features.dtype == jnp.float32
  assert 1e-6 < float(jnp.abs(logits - exact).max()) < 0.3
  assert ("pos_embedding" in params) == (posemb == "learn")


def test_attention_pooling_is_exact_in_bfloat16():
  model = ViT(**TINY, pool_type="map", dtype_mm="bfloat16")
  params = init(model)
  _, state = model.apply(
    {"params": params},
    IMAGES,
    capture_intermediates=True,
    mutable="intermediates",
  )
  tokens = state["intermediates"]["Transformer"]["__call__"][0]
  exact = encoder.MAPHead(model.mlp_dim, model.num_heads).apply(
    {"params": params["MAPHead_0"]}, tokens.astype(np.float32)
  )
  pooled = state["intermediates"]["MAPHead_0"]["__call__"][0]
  np.testing.assert_allclose(pooled, exact, atol=1e-6)


def test_attention_pooling_excludes_the_class_token():
  model = ViT(**{**TINY, "depth": 0}, pool_type="map", class_token=True)
  params = init(model)
  logits, _ = apply(model, params)
  changed = {**params, "cls": params["cls"] + 1}
  np.testing.assert_array_equal(apply(model, changed)[0], logits)


def test_without_classes_it_returns_the_features_of_the_head():
  params = init(ViT(**TINY))
  logits, features = apply(ViT(**TINY), params)
  bare = {k: v for k, v in params.items() if k != "head"}
  same, _ = apply(ViT(**{**TINY, "num_classes": None}), bare)
  np.testing.assert_array_equal(same, features)
  by_hand = features @ params["head"]["kernel"] + params["head"]["bias"][None]
  np.testing.assert_allclose(logits, by_hand, atol=1e-6)


def test_dropout_is_on_in_training_only():
  model = ViT(**TINY, dropout=0.5)
  params = init(model)

  def logits(train, key):
    rngs = {"dropout": jax.random.key(key)}
    return apply(model, params, train=train, rngs=rngs)[0]

  np.testing.assert_array_equal(logits(False, 0), logits(False, 1))
  assert not np.allclose(logits(True, 0), logits(True, 1))


def test_sincos2d_tells_positions_apart():
  table = vit.sincos2d(3, 5, 16)[0]
  assert table.shape == (15, 16)
  gram = table @ table.T
  assert (gram.argmax(axis=1) == np.arange(15)).all()


@pytest.mark.parametrize(
  "change,message",
  [
    ({"pool_type": "max"}, "pool_type.*'max'.*'map'"),
    ({"posemb": "rope"}, "posemb 'rope'"),
    ({"num_heads": 3}, "width 16 .*=3"),
    ({"patch_size": 5}, "5 pixels .* 8 x 12"),
    ({"width": 18, "posemb": "sincos2d"}, "got 18"),
    ({"act": "quickgelu"}, "'quickgelu'.*'quick_gelu'"),
    ({"attention": "flash"}, "attention 'flash'"),
    (
      {"remat_policy": "nothing_savable"},
      "remat_policy .*'nothing_saveable'",
    ),
    ({"stochastic_depth": -0.1}, "stochastic_depth .*-0.1"),
    (
      {"class_token": True, "pool_type": "tok"},
      "class_token .*'tok'",
    ),
  ],
)
def test_bad_options(change, message):
  with pytest.raises(ValueError, match=message):
    init(ViT(**{**TINY, **change}))


@pytest.mark.parametrize("name", ["X/16", "B", "B/", "B/x", "B/0", "b/16"])
def test_unknown_variants(name):
  with pytest.raises(ValueError, match=f"{name!r}.*B"):
    variant(name)


@pytest.mark.parametrize(
  "name,near", [("b/16", "'B'"), ("So400/14", "'So400m'"), ("tiny/16", "'Ti'")]
)
def test_unknown_variants_with_suggestions(name, near):
  with pytest.raises(ValueError, match=near):
    variant(name)


def test_variants_have_whole_heads():
  for sizes in VARIANTS.values():
    assert sizes["width"] % sizes["num_heads"] == 0


def test_sincos2d_of_the_smallest_width():
  table = vit.sincos2d(2, 3, 4)
  assert table.shape == (1, 6, 4) and np.isfinite(table).all()
  np.testing.assert_allclose(table[0, :, 0], np.sin([0, 1, 2, 0, 1, 2]), 1e-6)
  with pytest.raises(ValueError, match="got 0"):
    vit.sincos2d(2, 3, 0)


def encoded(model, params):
  """Returns the input of pooling, (batch, tokens, width)."""
  bare = {k: v for k, v in params.items() if k != "head"}
  tokens = model.clone(pool_type="none", num_classes=None)
  return apply(tokens, bare)[0]


def test_pooling_heads():
  plain = ViT(**TINY)
  params = init(plain)
  tokens = encoded(plain, params)
  assert tokens.shape == (3, 6, 16)
  for pool, expected in (
    ("gap", tokens.mean(axis=1)),
    ("0", tokens[:, 0]),
    ("none", tokens),
  ):
    logits, features = apply(plain.clone(pool_type=pool), params)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    head = jax.tree.map(np.asarray, params["head"])
    by_hand = np.asarray(expected) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, by_hand, atol=1e-5)


def test_class_token_beside_a_mean():
  model = ViT(**TINY, class_token=True)
  params = init(model)
  tokens = encoded(model, params)
  assert tokens.shape == (3, 7, 16)
  _, features = apply(model, params)
  np.testing.assert_allclose(features, tokens[:, 1:].mean(axis=1), atol=1e-5)
  # It is not in the mean, but the others see it.
  moved = {**params, "cls": params["cls"] * -1}
  assert not np.allclose(apply(model, moved)[1], features, atol=1e-3)
  # With pool_type "tok" the class token is pooled.
  token = model.clone(pool_type="tok", class_token=False)
  np.testing.assert_allclose(apply(token, params)[1], tokens[:, 0], atol=1e-5)


def test_norm_after_pooling():
  model = ViT(**TINY, fc_norm=True)
  params = init(model)
  assert "encoder_norm" not in params["Transformer"]
  _, features = apply(model, params)
  norm = jax.tree.map(np.asarray, params["fc_norm"])
  features = (np.asarray(features) - norm["bias"]) / norm["scale"]
  np.testing.assert_allclose(features.mean(axis=-1), 0, atol=1e-4)
  np.testing.assert_allclose(features.std(axis=-1), 1, atol=1e-3)
  _, before = apply(ViT(**TINY), init(ViT(**TINY)))
  assert np.abs(before.std(axis=-1) - 1).max() > 1e-2


def test_projection_is_a_matrix():
  params = init(ViT(**TINY, proj_size=7))
  assert params["proj"]["kernel"].shape == (16, 7) and len(params["proj"]) == 1
  _, features = apply(ViT(**TINY, proj_size=7), params)
  bare = {k: v for k, v in params.items() if k not in ("proj", "head")}
  _, pooled = apply(ViT(**{**TINY, "num_classes": None}), bare)
  np.testing.assert_allclose(
    features, pooled @ params["proj"]["kernel"], atol=1e-5
  )


@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pool", ["map", "tok"])
def test_attention_is_that_of_linen(implementation, dtype, pool, monkeypatch):
  options = {**TINY, "pool_type": pool, "dtype_mm": dtype}
  model = ViT(**options, attention=implementation)
  params = init(model)
  seen = []

  def attend(*args, implementation=None, is_causal=False):
    seen.append(implementation)
    return nn.dot_product_attention(*args)

  logits = apply(model, params)[0]
  monkeypatch.setattr(jax.nn, "dot_product_attention", attend)
  compiled.cache_clear()
  apply(model, params)
  # In float32 there is one of our own.
  ours = implementation is None and dtype == "float32"
  assert set(seen) == (set() if ours else {implementation})
  expected = apply(ViT(**options, attention="xla"), params)[0]
  atol = 1e-5 if dtype == "float32" else 0.05
  np.testing.assert_allclose(logits, expected, atol=atol)


@pytest.mark.parametrize("scan", [False, True])
def test_stochastic_depth_drops_examples(scan):
  """Blocks that are dropped leave tokens as they were."""
  options = {**TINY, "depth": 3, "num_classes": None, "pool_type": "none"}
  model = ViT(**options, scan=scan, stochastic_depth=0.6)
  images = np.repeat(IMAGES[:1], 500, axis=0)
  params = init(model)
  rngs = {"dropout": jax.random.key(1)}
  out = np.asarray(apply(model, params, images, train=True, rngs=rngs)[0])
  _, kinds = np.unique(out[:, 0, 0].round(3), return_counts=True)
  # Rates 0, 0.3 and 0.6, two branches each, drawn for every example.
  assert len(kinds) == 16
  frequencies = [
    a * b for a in (0.49, 0.21, 0.21, 0.09) for b in (0.16, 0.24, 0.24, 0.36)
  ]
  np.testing.assert_allclose(
    np.sort(kinds) / 500, np.sort(frequencies), atol=0.03
  )
  plain = model.clone(stochastic_depth=0.0)
  np.testing.assert_array_equal(*(apply(m, params)[0] for m in (model, plain)))


def test_stochastic_depth_keeps_the_mean():
  x = jnp.ones((20_000, 1, 1))
  drop = layers.DropPath()
  rngs = {"dropout": jax.random.key(0)}
  out = np.asarray(drop.apply({}, x, jnp.float32(0.3), False, rngs=rngs))
  np.testing.assert_allclose(np.unique(out), [0, 1 / 0.7], rtol=1e-6)
  assert abs(out.mean() - 1) < 0.02
  np.testing.assert_array_equal(drop.apply({}, x, 0.3, True), x)


def test_rates_of_stochastic_depth_are_linear():
  np.testing.assert_allclose(layers.drop_rates(0.3, 4), [0, 0.1, 0.2, 0.3])
  assert layers.drop_rates(0.0, 4) is None


def test_activations():
  x = np.linspace(-4, 4, 101).astype(np.float32)
  exact = 0.5 * x * (1 + special.erf(x / np.sqrt(2)))
  values = {k: np.asarray(f(x)) for k, f in layers.ACTIVATIONS.items()}
  np.testing.assert_allclose(values["gelu_exact"], exact, atol=1e-6)
  np.testing.assert_allclose(
    values["quick_gelu"], x / (1 + np.exp(-1.702 * x)), atol=1e-6
  )
  assert 1e-5 < np.abs(values["gelu"] - exact).max() < 1e-3


def test_options_reach_the_layers():
  model = ViT(**TINY, pool_type="map", pre_norm=True)
  params = init(model)
  exact = apply(model, params)[0]
  for change in ({"act": "quick_gelu"}, {"norm_eps": 0.1}):
    assert np.abs(apply(model.clone(**change), params)[0] - exact).max() > 1e-3
  assert "bias" not in init(ViT(**TINY, patch_bias=False))["embedding"]


PARTS = {
  "layer_scale": 0.1,
  "registers": 2,
  "gated": True,
  "qk_norm": True,
  "pool_type": "tok",
}


@pytest.mark.parametrize("name", ["eva02", "mixed"])
def test_scan_turns_the_same_tokens(name):
  options = {**TINY, **PARTS, "rope": name}
  loop, scan = ViT(**options), ViT(**options, scan=True)
  params = init(loop)
  stacked = dict(params["Transformer"])
  blocks = [stacked.pop(f"encoderblock_{i}") for i in range(2)]
  stacked["encoderblock"] = jax.tree.map(lambda *x: jnp.stack(x), *blocks)
  logits, _ = apply(scan, {**params, "Transformer": stacked})
  expected, _ = apply(loop, params)
  np.testing.assert_allclose(logits, expected, atol=1e-5)
  # Positions matter.
  plain, _ = apply(ViT(**{**options, "rope": ""}), params)
  assert np.abs(plain - expected).max() > 1e-3


def test_new_leaves_have_the_depth_of_their_layer():
  model = ViT(**TINY, **PARTS, rope="mixed", distilled=True)
  leaves, _ = tree.flatten(init(model))
  ranks, count = core_layers.ranks(leaves)
  assert count == 2
  assert ranks["Transformer/encoderblock_1/LayerScale_0/gamma"] == 1
  before = ("reg_tokens", "dist_token", "pos_frequencies", "cls")
  assert {ranks[leaf] for leaf in before} == {-1}
  assert ranks["head_dist/kernel"] == 2


@pytest.mark.parametrize(
  "options, message",
  [
    ({"rope": None}, "unknown whether.*'eva02'"),
    ({"rope": "eva2"}, "rope 'eva2'.*'eva02'"),
    ({"rope": "eva02", "num_heads": 8}, "multiple of 4 channels, got 2"),
    ({"distilled": True}, "pool_type 'tok'.*'gap'"),
    ({"pool_heads": 3}, "not divisible by pool_heads=3"),
    ({"qkv_bias": "qq"}, "qkv_bias 'qq'"),
  ],
)
def test_options_that_do_not_fit(options, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(ViT(**{**TINY, **options}).init, jax.random.key(0), IMAGES)


def test_registers_start_apart_and_layer_scale_as_given():
  params = ViT(**TINY, **PARTS).init(jax.random.key(0), IMAGES)["params"]
  first, second = params["reg_tokens"][0]
  assert np.abs(first - second).max() > 1e-3
  gamma = params["Transformer"]["encoderblock_0"]["LayerScale_1"]["gamma"]
  np.testing.assert_array_equal(gamma, np.full(16, np.float32(0.1)))
