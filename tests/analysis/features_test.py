# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""CKA, class separation and the features of layers, against definitions."""

import itertools

import flax.linen as nn
import jax
import numpy as np
import pytest

from soupjax import models
from soupjax.analysis import features as lib

RNG = np.random.default_rng(0)


def test_hsic_is_the_mean_over_four_different_images():
  """The U-statistic that the formula is the closed form of."""
  x, y = RNG.normal(size=(7, 3)) + 5, RNG.normal(size=(7, 2))
  a, b = x @ x.T, y @ y.T
  terms = [
    a[i, j] * (b[i, j] + b[q, r] - 2 * b[i, q])
    for i, j, q, r in itertools.permutations(range(7), 4)
  ]
  found = lib.hsic([x, y])
  np.testing.assert_allclose(found[0, 1], np.mean(terms), rtol=1e-10)
  np.testing.assert_allclose(found, found.T)


def test_cka_ignores_rotations_scales_and_shifts():
  x = RNG.normal(size=(40, 5))
  turn, _ = np.linalg.qr(RNG.normal(size=(5, 5)))
  found = lib.cka([x, 3 * x @ turn + 7, x[:, :2]])
  np.testing.assert_allclose(found[0, 1], 1, rtol=1e-10)
  np.testing.assert_allclose(np.diag(found), 1)
  assert 0.2 < found[0, 2] < 0.95


def test_cka_is_unbiased_and_sums_over_minibatches(monkeypatch):
  # Independent features with more channels than images: 0, not near 1.
  x, y = RNG.normal(size=(2, 512, 400))
  assert abs(lib.cka([x, y])[0, 1]) < 0.05
  parts = [lib.hsic([x[a:b], y[a:b]]) for a, b in ((0, 256), (256, 512))]
  want = sum(parts)
  want = want[0, 1] / np.sqrt(want[0, 0] * want[1, 1])
  np.testing.assert_allclose(lib.cka([x, y])[0, 1], want)


def test_constant_features_have_no_similarity():
  found = lib.cka([np.ones((8, 2)), RNG.normal(size=(8, 2))])
  assert np.isnan(found[0]).all() and found[1, 1] == pytest.approx(1)


def test_class_separation_is_that_of_all_pairs():
  x, labels = RNG.normal(size=(12, 4)) + 0.5, np.repeat([0, 1, 4], [3, 4, 5])
  unit = x / np.linalg.norm(x, axis=1, keepdims=True)
  distance = 1 - unit @ unit.T

  def mean(j, k):
    return distance[np.ix_(labels == j, labels == k)].mean()

  within = np.mean([mean(k, k) for k in (0, 1, 4)])
  total = np.mean([mean(j, k) for j in (0, 1, 4) for k in (0, 1, 4)])
  found = lib.class_separation(x, labels)
  assert found == pytest.approx(1 - within / total)
  # A class with one image does not count.
  more = np.concatenate([x, RNG.normal(size=(1, 4))])
  assert lib.class_separation(more, [*labels, 7]) == pytest.approx(found)


def test_class_separation_is_one_for_classes_of_one_direction():
  x = np.repeat(np.eye(3), 2, axis=0) * np.arange(1, 7)[:, None]
  assert lib.class_separation(x, np.repeat(range(3), 2)) == pytest.approx(1)


SMALL = dict(
  num_classes=3, patch_size=2, width=8, depth=3, mlp_dim=8, num_heads=2
)


def named_layers(model, params, images):
  return dict(lib.layer_features(model, params, images))


def test_layers_come_in_order_and_scanned_ones_are_the_same():
  images = RNG.normal(size=(3, 4, 4, 3)).astype(np.float32)
  model = models.ViT(**SMALL, pool_type="gap")
  params = model.init(jax.random.key(0), images)["params"]
  found = named_layers(model, params, images)
  blocks = [f"Transformer/encoderblock_{k}" for k in range(3)]
  rest = ["Transformer/encoder_norm", "head"]
  assert list(found) == ["embedding", *blocks, *rest]
  logits, features = model.apply({"params": params}, images)
  np.testing.assert_allclose(found["head"], logits, rtol=1e-5, atol=1e-5)
  last = found["Transformer/encoder_norm"]
  np.testing.assert_allclose(last, features, rtol=1e-5, atol=1e-5)
  # The same weights in a scan; as many images as blocks are no trap.
  scanned = models.ViT(**SMALL, pool_type="gap", scan=True)
  encoder = dict(params["Transformer"])
  parts = [encoder.pop(f"encoderblock_{k}") for k in range(3)]
  encoder["encoderblock"] = jax.tree.map(lambda *x: np.stack(x), *parts)
  other = named_layers(scanned, {**params, "Transformer": encoder}, images)
  assert list(other) == list(found)
  for name in found:
    np.testing.assert_allclose(other[name], found[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  "model,names",
  [
    (
      models.Mixer(
        num_classes=3, patch_size=4, width=4, depth=2, tokens_dim=4,
        channels_dim=4,
      ),
      ["stem", "MixerBlock_0", "MixerBlock_1", "pre_head_layer_norm", "head"],
    ),
    (
      models.ResNet(num_classes=3, width=32, depths=(1, 2)),
      ["root_block/conv_root", "block1/unit01", "block2/unit01"]
      + ["block2/unit02", "norm-pre-head", "head"],
    ),
  ],
)  # fmt: skip
def test_layers_of_other_models(model, names):
  images = np.ones((2, 8, 8, 3), np.float32)
  found = []

  def collect(params):
    layers = lib.layer_features(model, params["params"], images)
    found.extend(name for name, _ in layers)
    return 0

  jax.eval_shape(collect, jax.eval_shape(model.init, jax.random.key(0), images))
  assert found == names


class Odd(nn.Module):
  @nn.compact
  def __call__(self, images):
    return images * self.param("w", nn.initializers.ones, ()), None


def test_a_model_without_layers_is_refused():
  with pytest.raises(ValueError, match="Odd has no module"):
    lib.layer_features(Odd(), {"w": np.float32(1)}, np.ones((2, 3)))


@pytest.mark.parametrize(
  "call,message",
  [
    (lambda: lib.cka([np.ones((3, 2))]), "at least four"),
    (lambda: lib.hsic([np.ones((4, 2)), np.ones((5, 2))]), "same images"),
    (lambda: lib.class_separation(np.eye(3), [0, 1, 2]), "got 0 of 3"),
    (lambda: lib.class_separation(np.eye(3), [0, 1]), "and .2,."),
    (
      lambda: lib.class_separation(np.ones((4, 2)), [0, 0, 1, 1]),
      "same direct",
    ),
    (
      lambda: lib.class_separation(np.full((4, 2), np.nan), [0, 0, 1, 1]),
      "not finite",
    ),
  ],
)
def test_refuses(call, message):
  with pytest.raises(ValueError, match=message):
    call()
