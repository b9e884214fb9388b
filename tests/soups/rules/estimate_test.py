# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soupjax as sj


def log_probs(params, x):
  return jax.nn.log_softmax(x @ params["w"] + params["b"][None])


def model(seed=0):
  rng = np.random.default_rng(seed)
  return {
    "w": jnp.asarray(rng.normal(size=(3, 4)), np.float32),
    "b": jnp.asarray(rng.normal(size=4), np.float32),
  }


def test_diagonal_fisher_of_a_softmax():
  # For logits x W + b it is E x_i^2 p_j (1 - p_j), known in closed form.
  params = model()
  x = np.random.default_rng(1).normal(size=(4000, 3)).astype("f")
  result = sj.diagonal_fisher(log_probs, params, np.split(x, 4))
  p = np.exp(np.asarray(log_probs(params, x)))
  noise = p * (1 - p)
  for leaf, exact in [("b", noise.mean(0)), ("w", (x**2).T @ noise / len(x))]:
    assert np.abs(result[leaf] - exact).max() < 0.15 * exact.max()
  again = sj.diagonal_fisher(log_probs, params, np.split(x, 4))
  assert np.array_equal(result["w"], again["w"])
  other = sj.diagonal_fisher(log_probs, params, np.split(x, 4), seed=1)
  assert not np.array_equal(result["w"], other["w"])


def test_logits_are_as_good_as_log_probabilities():
  x = np.random.default_rng(1).normal(size=(50, 3)).astype("f")
  want = sj.diagonal_fisher(log_probs, model(), [x])
  result = sj.diagonal_fisher(
    lambda p, x: x @ p["w"] + p["b"][None] + 3.0, model(), [x]
  )
  for leaf in want:
    np.testing.assert_allclose(result[leaf], want[leaf], rtol=1e-4)


def test_fisher_merging_of_two_models():
  models = [model(k) for k in range(2)]
  x = np.random.default_rng(1).normal(size=(50, 3)).astype("f")
  fishers = [sj.diagonal_fisher(log_probs, m, [x]) for m in models]
  result = sj.mix(
    sj.rules.fisher(fishers),
    [sj.Ingredient.from_params(str(k), m) for k, m in enumerate(models)],
  ).params
  exact = sum(np.asarray(f["w"], "d") * m["w"] for f, m in zip(fishers, models))
  exact = exact / sum(np.asarray(f["w"], "d") for f in fishers)
  assert np.abs(result["w"] - exact).max() < 1e-5


def test_activation_grams():
  x = np.random.default_rng(0).normal(size=(6, 5, 3)).astype("f")
  result = sj.activation_grams(lambda p, b: {"w": b}, model(), [x[:2], x[2:]])
  flat = x.reshape(-1, 3)
  assert np.abs(result["w"] - flat.T @ flat / 30).max() < 1e-6


def test_nothing_to_estimate_from():
  with pytest.raises(ValueError, match="example"):
    sj.diagonal_fisher(log_probs, model(), [])
  with pytest.raises(ValueError, match="batch"):
    sj.activation_grams(lambda p, b: {}, model(), [])
