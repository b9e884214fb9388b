# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The update, against formulas, optax, and itself cut up."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soupjax.soups.core import tree
from soupjax.train import losses, optimizers
from soupjax.train import step as finetune


class Net(nn.Module):
  """Blocks named as those of a ViT, but quick to compile."""

  num_classes: int = 3

  @nn.compact
  def __call__(self, images, *, train=False):
    del train
    x = nn.Dense(8, name="embedding")(images.reshape(len(images), -1))
    for k in range(2):
      x = x + nn.tanh(nn.Dense(8, name=f"encoderblock_{k}")(x))
    return nn.Dense(self.num_classes, name="head")(x), x


MODEL = Net()
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(8, 8, 8, 1)), jnp.float32)
LABELS = jnp.array([0, 1, 2, 0, 1, 2, 0, 1])
KEY = jax.random.key(1)
BATCH = {"images": IMAGES, "labels": LABELS}
HYPER = {"learning_rate": 0.01, "total_steps": 10, "warmup_steps": 2}


def keep(key, images, targets, hyper):
  del key, hyper
  return images, targets


@functools.cache
def params():
  return MODEL.init(jax.random.key(0), IMAGES)["params"]


def run(steps=1, optimizer="adamw", options=(), num_ema=0, hyper=None, **kw):
  tx = optimizers.make(optimizer, **dict(options))
  update = jax.jit(finetune.make_step(MODEL, tx, keep, **kw))
  state = finetune.init_state(
    params(), tx, frozen=kw.get("frozen", ()), num_ema=num_ema
  )
  hyper = finetune.Hyper.of(**{**HYPER, **(hyper or {})})
  shared = {"start": params()} if kw.get("l2_sp") else None
  for _ in range(steps):
    state, metrics = update(state, BATCH, KEY, hyper, shared)
  return state, metrics


def gradient(at, loss=losses.softmax_loss):
  def loss_of(p):
    logits, _ = MODEL.apply({"params": p}, IMAGES)
    return loss(logits, jax.nn.one_hot(LABELS, 3))

  return jax.grad(loss_of)(at)


def close(a, b, atol=1e-6):
  chex.assert_trees_all_close(a, b, atol=atol, rtol=1e-5)


def test_adamw_is_that_of_optax():
  options = {"b2": 0.99}
  ours, metrics = run(
    options=options | {"clip_norm": 1.0}, hyper={"weight_decay": 0.1}
  )
  rate = 0.01 / 2  # The first of two steps of warmup.
  tx = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(
      rate,
      weight_decay=0.1,
      mask=lambda p: optimizers.matches(p, "kernel$"),
      **options,
    ),
  )
  grads = gradient(params())
  updates, _ = tx.update(grads, tx.init(params()), params())
  close(ours.params, optax.apply_updates(params(), updates))
  assert float(metrics["learning_rate"]) == pytest.approx(rate)
  assert float(metrics["grad_norm"]) == pytest.approx(
    float(optax.tree.norm(grads)), rel=1e-5
  )


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("sam", [False, True])
def test_parts_of_a_batch_give_the_numbers_of_the_whole(parts, sam):
  kw = {"optimizer": "sgd", "hyper": {"sam_rho": 0.1}, "steps": 3, "sam": sam}
  whole, metrics = run(**kw)
  parted, same = run(**kw, accumulate=parts)
  close(whole.params, parted.params)
  close(metrics, same)


def test_sam_takes_the_gradient_uphill():
  state, _ = run(
    optimizer="sgd", options={"momentum": 0.0}, sam=True, hyper={"sam_rho": 0.2}
  )
  grads = gradient(params())
  scale = 0.2 / optax.tree.norm(grads)
  uphill = jax.tree.map(lambda p, g: p + scale * g, params(), grads)
  expected = jax.tree.map(
    lambda p, g: p - 0.005 * g, params(), gradient(uphill)
  )
  close(state.params, expected)
  plain, _ = run(optimizer="sgd", options={"momentum": 0.0})
  moved = jax.tree.map(jnp.subtract, plain.params, state.params)
  assert float(optax.tree.norm(moved)) > 1e-4


def test_l2_sp_pulls_to_the_start():
  kw = {"optimizer": "sgd", "options": {"momentum": 0.0}, "steps": 2}
  state, _ = run(**kw, l2_sp=True, hyper={"l2_sp": 0.5})
  first = jax.tree.map(lambda p, g: p - 0.005 * g, params(), gradient(params()))
  expected = jax.tree.map(
    lambda p, g, o: p - 0.01 * (g + 0.5 * (p - o)),
    first,
    gradient(first),
    params(),
  )
  close(state.params, expected)


def test_layer_decay_shrinks_steps_from_the_head_down():
  kw = {"optimizer": "sgd", "options": {"momentum": 0.0}}
  full, _ = run(**kw)
  decayed, _ = run(**kw, hyper={"layer_decay": 0.5})
  moves = [
    tree.flatten(jax.tree.map(jnp.subtract, s.params, params()))[0]
    for s in (full, decayed)
  ]
  for name, power in (
    ("head/kernel", 0),
    ("encoderblock_1/kernel", 1),
    ("encoderblock_0/kernel", 2),
    ("embedding/kernel", 3),
  ):
    np.testing.assert_allclose(
      moves[1][name], moves[0][name] * 0.5**power, rtol=1e-2, atol=1e-7
    )


def test_weight_decay_is_decoupled_and_follows_the_expression():
  kw = {"optimizer": "sgd", "options": {"momentum": 0.0}}
  plain, _ = run(**kw)
  decayed, _ = run(**kw, hyper={"weight_decay": 0.1}, decay="head/kernel$")
  expected = plain.params["head"]["kernel"]
  expected = expected - 0.005 * 0.1 * params()["head"]["kernel"]
  close(decayed.params["head"]["kernel"], expected)
  close(decayed.params["embedding"], plain.params["embedding"])


def test_frozen_leaves_have_no_state_and_do_not_move():
  state, _ = run(
    steps=2, frozen=("^embedding", "block_0"), num_ema=1,
    hyper={"ema": (0.9,)},
  )  # fmt: skip
  chex.assert_trees_all_equal(
    state.params["encoderblock_0"], params()["encoderblock_0"]
  )
  moved = state.params["head"]["kernel"] - params()["head"]["kernel"]
  assert float(jnp.abs(moved).max()) > 0
  sizes = {x.shape for x in jax.tree.leaves((state.opt_state, state.ema))}
  assert params()["embedding"]["kernel"].shape not in sizes
  whole = finetune.ema_params(state, 0)
  chex.assert_trees_all_equal_shapes(whole, params())
  chex.assert_trees_all_equal(whole["embedding"], params()["embedding"])


def test_averages_move_by_their_rates():
  seen = []
  for steps in range(1, 4):
    state, _ = run(steps=steps, num_ema=2, hyper={"ema": (0.5, 0.9999999)})
    seen.append(state)
  low = high = params()["head"]["kernel"]
  for n, state in enumerate(seen):
    p = state.params["head"]["kernel"]
    limit = (1 + n) / (10 + n)
    low = min(0.5, limit) * low + (1 - min(0.5, limit)) * p
    high = limit * high + (1 - limit) * p
    close(state.ema[0]["head"]["kernel"], low)
    close(state.ema[1]["head"]["kernel"], high)


def test_the_sigmoid_loss_is_that_of_optax():
  _, metrics = run(loss="sigmoid")
  logits, _ = MODEL.apply({"params": params()}, IMAGES)
  expected = optax.sigmoid_binary_cross_entropy(
    logits, jax.nn.one_hot(LABELS, 3)
  )
  expected = float(expected.sum(axis=-1).mean())
  assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)
  with pytest.raises(ValueError, match="'hinge'"):
    finetune.make_step(MODEL, optax.identity(), keep, loss="hinge")


def test_randomness_follows_from_key_and_step():
  seen = []

  def augment(key, images, targets, hyper):
    del hyper
    jax.debug.callback(lambda x: seen.append(int(x)), jax.random.bits(key))
    return images, targets

  tx = optimizers.make("sgd")
  update = jax.jit(finetune.make_step(MODEL, tx, augment))
  hyper = finetune.Hyper.of(**HYPER)
  for seed in (0, 0, 1):
    state = finetune.init_state(params(), tx)
    for _ in range(2):
      key = jax.random.key(seed)
      state, _ = update(state, BATCH, key, hyper, None)
      jax.effects_barrier()
  assert seen[:2] == seen[2:4] and len(set(seen)) == 4


def test_members_side_by_side_give_the_numbers_of_each_alone():
  tx = optimizers.make("adamw", b2=0.98, clip_norm=1.0)
  step = finetune.make_step(MODEL, tx, keep)
  members = [
    finetune.Hyper.of(
      **{**HYPER, "learning_rate": 0.003 * (k + 1), "weight_decay": 0.1 * k},
      schedule=("cosine", "rsqrt", "linear")[k],
      ema=(0.9, 0.99),
    )
    for k in range(3)
  ]
  keys = jax.random.split(KEY, 3)
  batches = [
    jax.tree.map(lambda x, k=k: jnp.roll(x, k, 0), BATCH) for k in range(3)
  ]
  state = finetune.init_state(params(), tx, num_ema=2)

  def stack(trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)

  together = stack([state] * 3)
  batch = stack(batches)
  update = jax.jit(jax.vmap(step, in_axes=(0, 0, 0, 0, None)))
  for _ in range(3):
    together, _ = update(together, batch, keys, stack(members), None)
  alone = jax.jit(step)
  for k, hyper in enumerate(members):
    one = state
    for _ in range(3):
      one, _ = alone(one, batches[k], keys[k], hyper, None)
    mine = jax.tree.map(lambda x, k=k: x[k], together)
    close(mine, one)
