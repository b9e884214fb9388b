# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
from helpers import COUNT, IMAGES, POOL, logits_of, make
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soupjax as sj


def test_entropy_of_known_predictions():
  logits = jnp.log(jnp.array([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0]]))
  loss = sj.entropy_loss(lambda params, images: params["scale"] * images)
  params = {"scale": jnp.float32(1)}
  value, grad = jax.value_and_grad(loss)(params, 1.0, logits[:1])
  np.testing.assert_allclose(value, np.log(4), rtol=1e-6)
  # Masked classes count for nothing, in the gradient too.
  value, grad = jax.value_and_grad(
    lambda x: sj.entropy_loss(lambda params, images: params, images=0)(x, 1.0)
  )(logits[1:])
  np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
  assert np.isfinite(grad).all()
  both = sj.entropy_loss(lambda params, images: images, logits)({}, 1.0)
  np.testing.assert_allclose(both, (np.log(4) + np.log(2)) / 2, rtol=1e-6)


def test_tasks_are_summed_and_beta_has_no_part():
  def predict(params, images):
    return {"a": images, "b": (images[:2], images * 0)}

  images = jnp.array(np.random.default_rng(0).normal(size=(4, 3)))
  loss = sj.entropy_loss(lambda params, images: images)
  want = loss({}, 1.0, images) + loss({}, 1.0, images[:2]) + np.log(3)
  for beta in (1.0, 9.0):
    got = sj.entropy_loss(predict)({}, beta, images)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("granularity", ["model", "layer"])
def test_adamerging_lowers_entropy_and_leaves_beta(granularity):
  base = sj.Ingredient.from_params("base", make(COUNT))
  loss = sj.entropy_loss(logits_of, IMAGES)
  soup = sj.learned_soup(
    POOL,
    loss,
    base=base,
    granularity=granularity,
    steps=20,
    optimizer=sj.CoefficientOptimizer(learning_rate=0.01),
  )
  assert soup.beta == 1
  assert float(loss(soup.params, 1.0)) < 0.9 * soup.history[0]["loss"]
  batched = sj.learned_soup(
    POOL,
    sj.entropy_loss(logits_of),
    base=base,
    granularity=granularity,
    steps=20,
    optimizer=sj.CoefficientOptimizer(learning_rate=0.01),
    batches=[IMAGES] * 20,
  )
  np.testing.assert_allclose(
    [entry["loss"] for entry in batched.history],
    [entry["loss"] for entry in soup.history],
    rtol=1e-4,
  )
