# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soupjax.models import ViT
from soupjax.train import adapters, optimizers

OPTIONS = {"patch_size": 4, "width": 8, "depth": 2, "mlp_dim": 12}
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("f")


def start(scan=False):
  model = ViT(num_classes=3, num_heads=2, scan=scan, **OPTIONS)
  shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
  rng = np.random.default_rng(2)
  return model, jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype("f") / 3, shapes
  )


def randomised(params, adapter):
  leaves = helpers.flat_leaves(params)
  own = adapter.leaves_of("")
  rng = np.random.default_rng(1)
  for leaf, value in leaves.items():
    if leaf.endswith(own):
      noise = rng.normal(size=value.shape).astype("f")
      params = adapters._with(params, leaf.split("/"), jnp.asarray(noise))
  return params


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("kind", adapters.KINDS)
def test_new_leaves_change_nothing(kind, scan):
  _, params = start(scan)
  adapter = adapters.Adapter(kind, rank=2)
  merged = adapter.merged(adapter.added(params, jax.random.key(1)))
  helpers.flat_leaves(merged)
  assert jax.tree.structure(merged) == jax.tree.structure(params)
  for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(params)):
    np.testing.assert_array_equal(a, b)


def test_a_scanned_model_is_adapted_like_its_blocks():
  """The product of the first block, by hand."""
  _, params = start(scan=True)
  adapter = adapters.Adapter("lora", rank=2, alpha=6, targets="out/kernel$")
  added = randomised(adapter.added(params, jax.random.key(1)), adapter)
  leaves = helpers.flat_leaves(added)
  (name,) = [k for k in leaves if k.endswith("out/kernel")]
  a, b = (np.asarray(leaves[k]) for k in adapter.leaves_of(name))
  assert a.shape == (2, 8, 2) and b.shape == (2, 2, 8)
  merged = helpers.flat_leaves(adapter.merged(added))[name]
  for k in range(2):
    expected = leaves[name][k] + 3 * (a[k] @ b[k]).reshape(2, 4, 8)
    np.testing.assert_allclose(merged[k], expected, atol=1e-5)


def test_vectors_scale_activations():
  model, params = start()
  adapter = adapters.Adapter("ia3", targets="Dense_[01]/kernel$")
  added = randomised(adapter.added(params, jax.random.key(1)), adapter)
  leaves, merged = (
    helpers.flat_leaves(p) for p in (added, adapter.merged(added))
  )
  block = "Transformer/encoderblock_1/MlpBlock_0"
  outputs, inputs = (leaves[f"{block}/Dense_{k}/kernel_ia3"] for k in range(2))
  for leaf, factor in {
    "Dense_0/kernel": outputs,
    "Dense_0/bias": outputs,
    "Dense_1/kernel": inputs[:, None],
    "Dense_1/bias": 1.0,
  }.items():
    expected = leaves[f"{block}/{leaf}"] * factor
    np.testing.assert_allclose(merged[f"{block}/{leaf}"], expected, rtol=1e-6)
  adapted = adapters.Adapted(model, adapter)
  logits, _ = adapted.apply({"params": added}, IMAGES)
  expected, _ = model.apply({"params": adapter.merged(added)}, IMAGES)
  np.testing.assert_allclose(logits, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", adapters.KINDS)
def test_only_the_adapter_and_the_head_are_trained(kind):
  _, params = start()
  adapter = adapters.Adapter(kind, rank=2)
  trained, _ = optimizers.split(
    adapter.added(params, jax.random.key(1)), [adapter.frozen]
  )
  names = set(helpers.flat_leaves(trained))
  kernels = adapter.kernels(params)
  expected = {leaf for k in kernels for leaf in adapter.leaves_of(k)}
  assert len(kernels) == {"lora": 4, "ia3": 6}[kind]
  assert names == expected | {"head/kernel", "head/bias"}


@pytest.mark.parametrize("targets", ["nothing", "bias$", "head/kernel"])
def test_bad_targets_are_named(targets):
  _, params = start()
  adapter = adapters.Adapter("lora", targets=targets)
  with pytest.raises(ValueError, match=f"targets='{targets[:4]}"):
    adapter.added(params, jax.random.key(0))
