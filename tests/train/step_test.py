# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soupjax.models import ViT
from soupjax.soups.core import tree
from soupjax.train import losses, optim, probe, step

MODEL = ViT(
  num_classes=3, patch_size=4, width=16, depth=1, mlp_dim=32, num_heads=2
)
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(6, 8, 8, 1)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2])
KEY = jax.random.key(1)
HYPER = {
  "learning_rate": 0.01,
  "weight_decay": 0.1,
  "label_smoothing": 0.1,
  "mixup": 0.0,
  "augment": 0.0,
  "total_steps": 10,
  "warmup_steps": 2,
}


def keep(key, images, targets, hyper):
  del key, hyper
  return images, targets


def params():
  return MODEL.init(jax.random.key(0), IMAGES)["params"]


def run(steps=1, **changes):
  tx = optim.adamw(b2=0.99)
  train_step = step.make_train_step(MODEL, tx, keep)
  state = step.init_state(params(), tx)
  hyper = optim.Hyperparameters.of(**{**HYPER, **changes})
  for _ in range(steps):
    state, metrics = train_step(state, IMAGES, LABELS, KEY, hyper)
  return state, metrics


def test_one_step_is_golden():
  """If you meant to change training, put the new numbers here and say why."""
  state, metrics = run()
  assert float(metrics["loss"]) == pytest.approx(np.log(3), rel=1e-5)
  assert float(metrics["learning_rate"]) == pytest.approx(0.005)
  norm = float(optax.tree.norm(state.params))
  assert float(metrics["grad_norm"]) == pytest.approx(
    GOLDEN_GRAD_NORM, rel=1e-4
  )
  assert norm == pytest.approx(GOLDEN_PARAM_NORM, rel=1e-5)
  state, metrics = run(steps=5)
  assert float(metrics["loss"]) == pytest.approx(GOLDEN_LOSS, rel=1e-3)


GOLDEN_GRAD_NORM = 0.50283
GOLDEN_PARAM_NORM = 13.257714
GOLDEN_LOSS = 0.88797


def test_a_step_is_plain_adamw_on_the_smoothed_loss():
  state, _ = run(steps=3)
  schedule = [
    float(optim.warmup_cosine(i, peak=0.01, total_steps=10, warmup_steps=2))
    for i in range(3)
  ]
  expected = params()
  tx = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(
      lambda count: jnp.array(schedule)[count],
      b2=0.99,
      weight_decay=0.1,
      mask=optim.is_matrix,
    ),
  )
  opt_state = tx.init(expected)
  targets = jax.nn.one_hot(LABELS, 3) * 0.9 + 0.1 / 3

  def loss_of(p):
    logits = MODEL.apply({"params": p}, IMAGES)[0]
    return optax.softmax_cross_entropy(logits, targets).mean()

  for _ in range(3):
    updates, opt_state = tx.update(
      jax.grad(loss_of)(expected), opt_state, expected
    )
    expected = optax.apply_updates(expected, updates)
  # Softmax ignores the key's bias: its gradient is rounding noise, which Adam
  # blows up to steps of full size.
  noise = "key/bias"
  for name, leaf in tree.flatten(state.params)[0].items():
    if noise not in name:
      np.testing.assert_allclose(
        leaf, tree.flatten(expected)[0][name], atol=2e-5, err_msg=name
      )


def test_all_hyperparameters_share_one_compilation():
  tx = optim.adamw()
  train_step = step.make_train_step(MODEL, tx, keep)
  for k in range(3):
    hyper = optim.Hyperparameters.of(**{n: v * k for n, v in HYPER.items()})
    state = step.init_state(params(), tx)
    for _ in range(2):
      state, _ = train_step(state, IMAGES, LABELS, jax.random.key(k), hyper)
  assert train_step._cache_size() == 1


def test_starting_parameters_survive_the_first_step():
  start = params()
  tx = optim.adamw()
  state = step.init_state(start, tx)
  train_step = step.make_train_step(MODEL, tx, keep)
  train_step(state, IMAGES, LABELS, KEY, optim.Hyperparameters.of(**HYPER))
  chex.assert_trees_all_equal(start, params())


def test_randomness_follows_from_key_and_step():
  seen = []

  def augment(key, images, targets, hyper):
    del hyper
    jax.debug.callback(lambda x: seen.append(int(x)), jax.random.bits(key))
    return images, targets

  tx = optim.adamw()
  train_step = step.make_train_step(MODEL, tx, augment)
  hyper = optim.Hyperparameters.of(**HYPER)
  for key in (0, 0, 1):
    state = step.init_state(params(), tx)
    for _ in range(2):
      state, _ = train_step(state, IMAGES, LABELS, jax.random.key(key), hyper)
  jax.effects_barrier()
  assert seen[:2] == seen[2:4] and len(set(seen)) == 4


@pytest.mark.parametrize(
  "at,expected",
  [(0, 0.5), (1, 1.0), (2, 1.0), (6, 0.5), (10, 0.0), (12, 0.0)],
)
def test_warmup_cosine(at, expected):
  rate = optim.warmup_cosine(at, peak=1.0, total_steps=10, warmup_steps=2)
  assert float(rate) == pytest.approx(expected, abs=1e-6)
  assert float(
    optim.warmup_cosine(0, peak=1.0, total_steps=10, warmup_steps=0)
  ) == pytest.approx(1.0)


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
  logits, features = MODEL.apply({"params": params()}, IMAGES)
  head = probe.linear_probe(features, LABELS, num_classes=3, l2=1e-3)
  chex.assert_trees_all_equal_shapes(head, params()["head"])
  logits, _ = MODEL.apply({"params": {**params(), "head": head}}, IMAGES)
  assert (logits.argmax(axis=1) == LABELS).all()


def test_clipping_bounds_the_gradient_that_adam_sees():
  tx = optim.adamw(clip_norm=1e-3)
  start = {"w": jnp.ones((2, 2))}
  state = optim.with_rates(tx.init(start), learning_rate=1.0, weight_decay=0.0)
  _, state = tx.update({"w": jnp.full((2, 2), 100.0)}, state, start)
  mu = state.inner_state[1].mu["w"]
  assert float(optax.tree.norm(mu)) == pytest.approx(1e-4, rel=1e-4)
