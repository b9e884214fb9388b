# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np
import optax
import pytest

from soupjax.train import losses

RNG = np.random.default_rng(0)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def test_losses_agree_with_optax():
  logits = RNG.normal(size=(6, 3)).astype(np.float32)
  targets = losses.smooth_labels(LABELS, 3, 0.3)
  np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
  np.testing.assert_allclose(
    targets, optax.smooth_labels(jax.nn.one_hot(LABELS, 3), 0.3), rtol=1e-6
  )
  expected = optax.softmax_cross_entropy(logits, targets).mean()
  assert float(losses.softmax_loss(logits, targets)) == pytest.approx(
    float(expected), rel=1e-6
  )
