# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import chex
import jax
import numpy as np
import pytest

from soupjax.models import ViT
from soupjax.train import probe

RNG = np.random.default_rng(0)


def test_linear_probe_reaches_the_optimum_of_scikit_learn():
  linear_model = pytest.importorskip("sklearn.linear_model")
  features = RNG.normal(size=(60, 5)).astype(np.float32)
  labels = (features @ RNG.normal(size=(5, 3))).argmax(axis=1)
  head = probe.linear_probe(features, labels, num_classes=3, l2=1e-2)
  # C multiplies the summed loss: 1 / (n * l2).
  reference = linear_model.LogisticRegression(C=1 / (60 * 1e-2), tol=1e-8)
  reference.fit(features, labels)
  np.testing.assert_allclose(head["kernel"], reference.coef_.T, atol=2e-3)
  bias = head["bias"] - head["bias"].mean()
  expected = reference.intercept_ - reference.intercept_.mean()
  np.testing.assert_allclose(bias, expected, atol=2e-3)


def test_a_linear_probe_is_a_head():
  model = ViT(
    num_classes=3, patch_size=4, width=16, depth=1, mlp_dim=32, num_heads=2
  )
  images = RNG.normal(size=(6, 8, 8, 1)).astype(np.float32)
  labels = np.array([0, 1, 2, 0, 1, 2])
  params = model.init(jax.random.key(0), images)["params"]
  _, features = model.apply({"params": params}, images)
  head = probe.linear_probe(features, labels, num_classes=3, l2=1e-3)
  chex.assert_trees_all_equal_shapes(head, params["head"])
  logits, _ = model.apply({"params": {**params, "head": head}}, images)
  assert (logits.argmax(axis=1) == labels).all()


@pytest.mark.parametrize("n, width", [(40, 9), (9, 40)])
def test_ridge_probe_is_scikit_learns(n, width):
  linear_model = pytest.importorskip("sklearn.linear_model")
  preprocessing = pytest.importorskip("sklearn.preprocessing")
  scales = np.geomspace(1e-2, 1e2, width)
  features = (RNG.normal(size=(n, width)) + 3) * scales
  labels = np.arange(n) % 3
  head = probe.ridge_probe(features, labels, num_classes=3, l2=5.0)
  scaler = preprocessing.StandardScaler().fit(features)
  scaler.scale_ = scaler.scale_ + 1e-5
  reference = linear_model.Ridge(alpha=5.0)
  reference.fit(scaler.transform(features), 2 * np.eye(3)[labels] - 1)
  new = (RNG.normal(size=(50, width)) + 3) * scales
  expected = reference.predict(scaler.transform(new))
  found = new @ head["kernel"] + head["bias"]
  np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
  assert head["kernel"].dtype == np.float64


def test_ridge_probe_rejects_what_has_no_solution():
  features, labels = np.ones((2, 3)), np.array([0, 1])
  with pytest.raises(ValueError, match="l2 .*got 0"):
    probe.ridge_probe(features, labels, num_classes=2, l2=0)
  with pytest.raises(ValueError, match="not finite"):
    probe.ridge_probe(features * np.nan, labels, num_classes=2, l2=1.0)
  for wrong in ([0, 2], [0, -1], [0, 1, 1], [0.0, 1.0]):
    with pytest.raises(ValueError, match="2 class indices from 0 to 1"):
      probe.ridge_probe(features, np.array(wrong), num_classes=2, l2=1.0)
