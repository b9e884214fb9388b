# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Small models, data and a differentiable mixture for learned soups."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import soupjax as sj
from soupjax import models

COUNT = 4
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(32, 5)).astype(np.float32)
LABELS = RNG.integers(3, size=32)


def vit_specs(**options):
  """Shapes of a tiny ViT's parameters, as a tree."""
  model = models.ViT(
    num_classes=3, patch_size=4, num_heads=2, pool_type="map", **options
  )
  image = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)["params"]


def make(seed, dtype=np.float32):
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return rng.normal(size=shape).astype(dtype)

  return {
    "embed": {"kernel": normal(5, 8), "bias": normal(8)},
    "blocks": {
      "dense": {"kernel": 0.5 * normal(2, 8, 8), "bias": normal(2, 8)}
    },
    "head": {"kernel": normal(8, 3), "bias": normal(3)},
    "count": np.int32(3),
  }


def logits_of(params, images=IMAGES):
  x = images @ params["embed"]["kernel"] + params["embed"]["bias"][None]
  for k in range(2):
    dense = jax.tree.map(lambda leaf, k=k: leaf[k], params["blocks"]["dense"])
    x = x + jnp.tanh(x @ dense["kernel"] + dense["bias"][None])
  return x @ params["head"]["kernel"] + params["head"]["bias"][None]


def loss_of(params, beta, keep=None):
  logits = beta * logits_of(params)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
  return losses.mean() if keep is None else (losses * keep).sum() / keep.sum()


TREES = [make(k) for k in range(COUNT)]
POOL = [sj.Ingredient.from_params(f"m{k}", t) for k, t in enumerate(TREES)]

# (granularity, stacked): the groups of every leaf, one or one a layer.
LAYERS = ["blocks[0]", "blocks[1]"]
GROUPS = {
  ("model", None): dict.fromkeys(
    [
      "embed/kernel",
      "embed/bias",
      "blocks/dense/kernel",
      "blocks/dense/bias",
      "head/kernel",
      "head/bias",
    ],
    "model",
  ),
  ("layer", None): {
    "embed/kernel": "embed",
    "embed/bias": "embed",
    "blocks/dense/kernel": "blocks/dense",
    "blocks/dense/bias": "blocks/dense",
    "head/kernel": "head",
    "head/bias": "head",
  },
  ("layer", "blocks/"): {
    "embed/kernel": "embed",
    "embed/bias": "embed",
    "blocks/dense/kernel": LAYERS,
    "blocks/dense/bias": LAYERS,
    "head/kernel": "head",
    "head/bias": "head",
  },
  ("tensor", None): {
    name: name
    for name in (
      "embed/kernel",
      "embed/bias",
      "blocks/dense/kernel",
      "blocks/dense/bias",
      "head/kernel",
      "head/bias",
    )
  },
  ("tensor", "blocks/"): {
    "embed/kernel": "embed/kernel",
    "embed/bias": "embed/bias",
    "blocks/dense/kernel": [f"blocks/dense/kernel[{k}]" for k in range(2)],
    "blocks/dense/bias": [f"blocks/dense/bias[{k}]" for k in range(2)],
    "head/kernel": "head/kernel",
    "head/bias": "head/bias",
  },
}
# A model-wide coefficient does not care how layers are stored.
GROUPS["model", "blocks/"] = GROUPS["model", None]


def mixture(logits, groups, trees=None):
  """The soup as one differentiable expression that holds all models."""
  trees = TREES if trees is None else trees

  def mix(path, *leaves):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if name not in groups:
      return leaves[0]
    group = groups[name]
    if isinstance(group, str):
      return jnp.tensordot(jax.nn.softmax(logits[group]), jnp.stack(leaves), 1)
    alphas = jnp.stack([jax.nn.softmax(logits[g]) for g in group])  # (L, K)
    return jnp.einsum("lk,kl...->l...", alphas, jnp.stack(leaves))

  return jax.tree_util.tree_map_with_path(mix, *trees)
