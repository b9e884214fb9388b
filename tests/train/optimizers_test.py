# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soupjax.models import ViT
from soupjax.soups.core import tree
from soupjax.train import optimizers

RNG = np.random.default_rng(0)
PARAMS = {
  "kernel": jnp.asarray(RNG.normal(size=(40, 33)), jnp.float32),
  "bias": jnp.asarray(RNG.normal(size=(33,)), jnp.float32),
}
GRADS = [
  jax.tree.map(lambda p: jnp.asarray(RNG.normal(size=p.shape), p.dtype), PARAMS)
  for _ in range(3)
]


def directions(tx):
  state, result = tx.init(PARAMS), []
  for grads in GRADS:
    direction, state = tx.update(grads, state, PARAMS)
    result.append(direction)
  return result, state


def test_adamw_and_sgd_are_those_of_optax():
  for ours, theirs in (
    (optimizers.make("adamw", b2=0.98), optax.scale_by_adam(b2=0.98)),
    (optimizers.make("sgd", momentum=0.8), optax.trace(0.8)),
  ):
    for a, b in zip(directions(ours)[0], directions(theirs)[0]):
      for name in PARAMS:
        np.testing.assert_array_equal(a[name], b[name])


def reference_adafactor(grads, cap):
  """Written from the formulas of arXiv 1804.04235 and 2106.04560."""
  row = column = full = momentum = 0.0
  for t, grad in enumerate(grads, start=1):
    beta = min(cap, 1 - t**-0.8)
    square = grad.astype(np.float64) ** 2 + 1e-30
    if grad.ndim == 2:
      row = beta * row + (1 - beta) * square.mean(axis=1)
      column = beta * column + (1 - beta) * square.mean(axis=0)
      second = np.outer(row, column) / row.mean()
    else:
      second = full = beta * full + (1 - beta) * square
    momentum = 0.9 * momentum + 0.1 * grad / np.sqrt(second)
  return momentum


@pytest.mark.parametrize("cap", [0.999, 0.3])
def test_adafactor_follows_its_formulas(cap):
  tx = optimizers.make("adafactor", b2_cap=cap, momentum_dtype="float32")
  result, _ = directions(tx)
  for name in PARAMS:
    expected = reference_adafactor([np.asarray(g[name]) for g in GRADS], cap)
    np.testing.assert_allclose(result[-1][name], expected, rtol=2e-4, atol=1e-5)


def test_adafactor_keeps_little():
  _, state = directions(optimizers.make("adafactor"))
  leaves = [x for x in jax.tree.leaves(state) if x.size > 33 * 2]
  # A matrix has a first moment in half precision, a row and a column.
  assert [(x.shape, x.dtype) for x in leaves] == [((40, 33), jnp.bfloat16)]


def test_clipping_bounds_the_whole_gradient():
  tx = optimizers.make("sgd", momentum=0.0, clip_norm=0.5)
  result, _ = directions(tx)
  assert float(optax.tree.norm(result[0])) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize(
  "name,options,problem",
  [
    ("adam", {}, "'adam'.*adamw"),
    ("sgd", {"b1": 0.9}, "sgd"),
    ("sgd", {"clip_norm": -1.0}, "clip_norm"),
  ],
)
def test_bad_options_are_named(name, options, problem):
  with pytest.raises(ValueError, match=problem):
    optimizers.make(name, **options)


def test_frozen_leaves_come_back_as_they_were():
  trained, frozen = optimizers.split(PARAMS, ["^bias$"])
  assert trained["bias"] is None and frozen["kernel"] is None
  joined = optimizers.join(trained, frozen)
  assert joined["bias"] is PARAMS["bias"]
  assert joined["kernel"] is PARAMS["kernel"]


def test_expressions_that_freeze_nothing_or_all_are_refused():
  with pytest.raises(ValueError, match="'biass'"):
    optimizers.split(PARAMS, ["biass"])
  with pytest.raises(ValueError, match="freeze=.*kernel|freeze="):
    optimizers.split(PARAMS, ["."])


def vit(scan, **options):
  model = ViT(
    num_classes=3, patch_size=4, width=8, depth=3, num_heads=2, scan=scan,
    **{"pool_type": "map", **options},
  )  # fmt: skip
  image = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)["params"]


def test_layer_powers_fall_towards_the_head():
  powers, _ = tree.flatten(optimizers.layer_powers(vit(scan=False)))
  by_part = {
    "embedding/kernel": 4,
    "pos_embedding": 4,
    "Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel": 3,
    "Transformer/encoderblock_2/LayerNorm_0/scale": 1,
    "Transformer/encoder_norm/scale": 0,
    "MAPHead_0/MlpBlock_0/Dense_0/kernel": 0,
    "head/bias": 0,
  }
  assert {name: float(powers[name]) for name in by_part} == by_part


def test_the_norm_before_the_blocks_is_level_with_the_embedding():
  clip = vit(scan=False, pool_type="tok", pre_norm=True, proj_size=4)
  powers, _ = tree.flatten(optimizers.layer_powers(clip))
  by_part = {
    "pre_norm/scale": 4,
    "pre_norm/bias": 4,
    "cls": 4,
    "proj/kernel": 0,
  }
  assert {name: float(powers[name]) for name in by_part} == by_part


def test_layer_powers_of_scanned_blocks():
  params = vit(scan=True)
  powers, _ = tree.flatten(optimizers.layer_powers(params))
  name = "Transformer/encoderblock/MlpBlock_0/Dense_0/kernel"
  assert powers[name].ravel().tolist() == [3, 2, 1]
  for leaf, spec in tree.flatten(params)[0].items():
    assert np.broadcast_shapes(powers[leaf].shape, spec.shape) == spec.shape
