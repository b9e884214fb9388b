# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Equation (1) of arXiv 2203.05482, against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soupjax.analysis import ensembles

RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.normal(size=(40, 6)), RNG.integers(0, 4, 40)


def mlp(params, images):
  return jnp.tanh(images @ params["hidden"]) @ params["head"]


def drawn(scale=1.0, rng=RNG):
  return {
    "hidden": scale * rng.normal(size=(6, 5)),
    "head": scale * rng.normal(size=(5, 4)),
  }


def moved(x, y, by):
  return x + by * y


def relation_of(first, second, share, beta, forward=mlp):
  values = jax.jit(
    lambda *trees: ensembles.terms(
      forward, *trees, IMAGES, LABELS, share=share, beta=beta
    )
  )(first, second)
  return ensembles.relation(jax.device_get(values), share)


@pytest.mark.parametrize("share,order", [(0.5, 4), (0.3, 3)])
def test_the_error_falls_with_the_expected_power_of_the_distance(share, order):
  rng = np.random.default_rng(1)
  start, step = drawn(1.0, rng), drawn(0.2, rng)
  with jax.enable_x64(True):
    errors, true = [], []
    for size in (1 / 4, 1 / 8, 1 / 16, 1 / 32):
      first, second = (
        jax.tree.map(functools.partial(moved, by=by * size), start, step)
        for by in (-share, 1 - share)
      )
      found = relation_of(first, second, share, 0.7)
      errors.append(abs(found.true - found.predicted))
      true.append(abs(found.true))
  powers = np.log2(np.array(errors)[:-1] / errors[1:])
  np.testing.assert_allclose(powers[1:], order, atol=0.1)
  np.testing.assert_allclose(np.log2(true[-2] / true[-1]), 2, atol=0.1)


def test_terms_are_those_of_their_definitions():
  with jax.enable_x64(True):
    first, second = drawn(), drawn()
    share, beta, h = 0.3, 0.7, 1e-4

    def mean_loss(a):
      params = jax.tree.map(lambda x, y: (1 - a) * x + a * y, first, second)
      logp = jax.nn.log_softmax(beta * mlp(params, IMAGES))
      return -logp[np.arange(40), LABELS].mean()

    found = relation_of(first, second, share, beta)
    bend = [mean_loss(share + h * k) for k in (-1, 0, 1)]
    want = (bend[0] - 2 * bend[1] + bend[2]) / h**2
    np.testing.assert_allclose(found.curvature, want, rtol=1e-5)
    ends = [mlp(p, IMAGES) for p in (first, second)]
    mixed = (1 - share) * ends[0] + share * ends[1]
    logp = jax.nn.log_softmax(beta * mixed)
    want = mean_loss(share) + logp[np.arange(40), LABELS].mean()
    np.testing.assert_allclose(found.true, want, rtol=1e-10)
    right = (np.argmax(mixed, axis=1) == LABELS).mean()
    assert found.ensemble_error == pytest.approx(1 - right)
    params = jax.tree.map(
      lambda x, y: (1 - share) * x + share * y, first, second
    )
    logits = np.asarray(mlp(params, IMAGES))
    chances = np.asarray(jax.nn.softmax(beta * logits))
    gaps = np.asarray(ends[1] - ends[0])
    variances = [
      np.cov(gap, aweights=p, ddof=0) for gap, p in zip(gaps, chances)
    ]
    want = beta**2 * np.mean(variances)
    np.testing.assert_allclose(found.variance, want, rtol=1e-9)
    want = share * (1 - share) / 2 * (found.variance - found.curvature)
    assert found.predicted == pytest.approx(want)


def test_both_are_zero_if_logits_are_linear_in_the_weights():
  with jax.enable_x64(True):
    heads = [{"head": RNG.normal(size=(6, 4))} for _ in range(2)]
    found = relation_of(*heads, 0.4, 1.3, lambda p, x: x @ p["head"])
  # Second derivative of the loss = b^2 variance of the gap of logits.
  np.testing.assert_allclose([found.true, found.predicted], 0, atol=1e-12)
  assert found.variance > 0.1


def test_narrow_weights_are_widened_and_integers_stay():
  def forward(params, images):
    assert params["head"].dtype == jnp.float32
    return (images @ params["head"]).at[:, params["class"]].add(1.0)

  heads = [
    {
      "head": jnp.asarray(RNG.normal(size=(6, 4)), "bfloat16"),
      "class": np.int32(2),
    }
    for _ in range(2)
  ]
  images = IMAGES.astype(np.float32)
  values = ensembles.terms(forward, *heads, images, LABELS)
  assert values["curvature"].dtype == jnp.float32
  found = ensembles.relation(jax.device_get(values))
  np.testing.assert_allclose([found.true, found.predicted], 0, atol=1e-5)


@pytest.mark.parametrize(
  "share,value,message",
  [
    (0.0, 1.0, "share must be between 0 and 1"),
    (0.5, np.nan, "The mean of curvature must be a finite number"),
  ],
)
def test_refuses(share, value, message):
  keys = ("curvature", "variance", "soup_loss", "ensemble_loss")
  values = dict.fromkeys((*keys, "soup_right", "ensemble_right"), np.ones(2))
  values["curvature"] = np.full(2, value)
  with pytest.raises(ValueError, match=message):
    ensembles.relation(values, share)
