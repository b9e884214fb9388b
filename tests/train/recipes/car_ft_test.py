# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np
import pytest
import scipy.special

from soupjax.train import recipes


def test_the_divergence_is_that_of_the_formula():
  rng = np.random.default_rng(0)
  before, now = rng.normal(size=(2, 6, 4)).astype(np.float32)
  kernel = rng.normal(size=(4, 3)).astype(np.float32)
  p = scipy.special.softmax(before @ kernel, axis=1)
  q = scipy.special.softmax(now @ kernel, axis=1)
  expected = scipy.special.rel_entr(p, q).sum(axis=1).mean()
  value = recipes.context_kl(before, now, kernel)
  assert float(value) == pytest.approx(expected, rel=1e-5)
  assert float(recipes.context_kl(now, now, kernel)) == 0
  # The start is not trained.
  assert not jax.grad(recipes.context_kl)(before, now, kernel).any()
