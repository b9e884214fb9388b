# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soupjax as sj
from soupjax.models import MIXER_VARIANTS, Mixer, mixer_variant
from soupjax.soups.core import tree
from soupjax.train import optimizers
from soupjax.train import step as train_step

TINY = {
  "patch_size": 4,
  "width": 12,
  "depth": 2,
  "tokens_dim": 5,
  "channels_dim": 16,
  "num_classes": 3,
}
IMAGES = np.random.default_rng(0).normal(size=(4, 8, 12, 1)).astype(np.float32)


def init(model, images=IMAGES):
  return jax.jit(model.init)(jax.random.key(0), images)["params"]


@pytest.mark.parametrize(
  # Table 1 of arXiv 2105.01601, which leaves the head out.
  "name,millions",
  [
    ("S/32", 19),
    ("S/16", 18),
    ("B/32", 60),
    ("B/16", 59),
    ("L/32", 206),
    ("L/16", 207),
    ("H/14", 431),
  ],
)
def test_sizes_are_the_published_ones(name, millions):
  model = Mixer(**mixer_variant(name))
  images = jnp.zeros((1, 224, 224, 3))
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
  assert abs(count / 1e6 - millions) < 0.6


def test_names_are_those_of_vision_transformer():
  made = jax.eval_shape(Mixer(**TINY).init, jax.random.key(0), IMAGES)
  leaves, _ = tree.flatten(made["params"])
  expected = {
    "stem/kernel": (4, 4, 1, 12),
    "MixerBlock_0/LayerNorm_0/scale": (12,),
    "MixerBlock_0/token_mixing/Dense_0/kernel": (6, 5),
    "MixerBlock_0/token_mixing/Dense_1/bias": (6,),
    "MixerBlock_1/LayerNorm_1/bias": (12,),
    "MixerBlock_1/channel_mixing/Dense_0/kernel": (12, 16),
    "MixerBlock_1/channel_mixing/Dense_1/kernel": (16, 12),
    "pre_head_layer_norm/scale": (12,),
    "head/kernel": (12, 3),
    "head/bias": (3,),
  }
  assert {k: leaves[k].shape for k in expected} == expected
  assert len(leaves) == 2 + 2 * (4 + 8) + 2 + 2


def by_hand(p, images):
  """One block after the other, in NumPy."""

  def norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"]

  def mlp(x, p):
    x = x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    x = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]

  b, h, w, _ = images.shape
  x = images.reshape(b, h // 4, 4, w // 4, 4, 1).transpose(0, 1, 3, 2, 4, 5)
  x = x.reshape(b, -1, 16) @ p["stem"]["kernel"].reshape(16, -1)
  for i in range(2):
    q = p[f"MixerBlock_{i}"]
    y = norm(x, q["LayerNorm_0"]).swapaxes(1, 2)
    x = x + mlp(y, q["token_mixing"]).swapaxes(1, 2)
    x = x + mlp(norm(x, q["LayerNorm_1"]), q["channel_mixing"])
  x = norm(x, p["pre_head_layer_norm"]).mean(axis=1)
  return x @ p["head"]["kernel"], x


def test_equals_a_computation_by_hand():
  model = Mixer(**TINY, head_zeroinit=False)
  params = jax.tree.map(np.asarray, init(model))
  # Biases of norms and of the ends are zero at the beginning.
  logits, features = jax.jit(model.apply)({"params": params}, IMAGES)
  expected, pooled = by_hand(params, IMAGES)
  np.testing.assert_allclose(features, pooled, atol=1e-4)
  np.testing.assert_allclose(logits, expected, atol=1e-4)
  low = jax.jit(model.clone(dtype_mm="bfloat16").apply)
  low, _ = low({"params": params}, IMAGES)
  assert low.dtype == jnp.float32
  assert 1e-6 < float(jnp.abs(low - logits).max()) < 0.3
  # Without a head.
  made = jax.eval_shape(
    model.clone(num_classes=None).apply, {"params": params}, IMAGES
  )
  assert [x.shape for x in made] == [(4, 12), (4, 12)]


def test_it_trains_and_two_of_them_make_a_soup():
  """Trains with the loop for ViTs, and averages the results."""
  model = Mixer(**TINY, stochastic_depth=0.1)
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 96)
  images = rng.normal(size=(96, 8, 12, 1)).astype(np.float32)
  images += labels[:, None, None, None] * np.linspace(-1, 1, 12)[:, None]
  images = images.astype(np.float32)
  tx = optimizers.make("adamw")
  train = jax.jit(
    train_step.make_step(model, tx, lambda key, x, y, values: (x, y))
  )
  hyper = train_step.Hyper.of(
    learning_rate=1e-2, weight_decay=1e-4, total_steps=30, warmup_steps=3
  )
  start = init(model)

  predict = jax.jit(model.apply)

  def accuracy(params):
    logits, _ = predict({"params": params}, images)
    return float((logits.argmax(-1) == labels).mean())

  batch = {"images": images, "labels": labels}
  models = []
  for seed in range(2):
    state, losses = train_step.init_state(start, tx), []
    key = jax.random.key(seed)
    for _ in range(30):
      state, metrics = train(state, batch, key, hyper, None)
      losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.6 * losses[0]
    models.append(sj.Ingredient.from_params(f"seed{seed}", state.params))
  result = sj.greedy_soup(models, accuracy)
  soup = sj.uniform_soup(models)
  assert accuracy(start) < 0.6
  assert accuracy(soup) > 0.8 and accuracy(result.params) > 0.8
  assert not np.array_equal(
    *(m.read("MixerBlock_0/token_mixing/Dense_0/kernel") for m in models)
  )


def test_stochastic_depth_is_for_training():
  model = Mixer(**TINY, stochastic_depth=0.5, head_zeroinit=False)
  params = init(model)

  @functools.partial(jax.jit, static_argnums=0)
  def logits(train, seed):
    rngs = {"dropout": jax.random.key(seed)}
    return model.apply({"params": params}, IMAGES, train=train, rngs=rngs)[0]

  np.testing.assert_array_equal(logits(False, 0), logits(False, 1))
  assert not np.allclose(logits(True, 0), logits(True, 1))


def test_bad_arguments():
  with pytest.raises(ValueError, match="5 pixels"):
    init(Mixer(**{**TINY, "patch_size": 5}))
  with pytest.raises(ValueError, match="'B16'"):
    mixer_variant("B16")
  with pytest.raises(ValueError, match="stochastic_depth.*got 1"):
    init(Mixer(**TINY, stochastic_depth=1))
  assert mixer_variant("mu/4") == {**MIXER_VARIANTS["mu"], "patch_size": 4}
