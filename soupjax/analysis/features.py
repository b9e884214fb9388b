# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Layer features: similarity between models (CKA), separation of classes."""

from collections.abc import Sequence
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any

# Maximum depth of layers in the module tree: Transformer/encoderblock has 2.
_DEPTH = 2
_SCANNED = "encoderblock"
# Modules that do nothing at evaluation time.
_IDLE = ("Dropout", "DropPath")
# Minimum number of images per CKA minibatch, if there are that many.
_BATCH = 256


def layer_features(
  model: nn.Module, params: PyTree, images: jax.Array
) -> list[tuple[str, jax.Array]]:
  """Returns the outputs of the layers of a model, from input to output.

  Layers are the modules at the first two levels of the model, such as the
  embedding, the encoder blocks and the head, but not the parts of a numbered
  block. Can be traced.

  Args:
    model: any Linen module.
    params: parameters of the model.
    images: (n, ...) inputs of the model.

  Returns:
    (name, (n, channels) float32) for each layer. Outputs with more axes, such
    as tokens, are averaged over the axes between the first and the last.

  Raises:
    ValueError: if no module returns an array with n rows.
  """

  def is_layer(module, method):
    path = module.path
    return (
      method == "__call__"
      and 0 < len(path) <= _DEPTH
      and type(module).__name__ not in _IDLE
      # The parts of a block, such as MixerBlock_0/LayerNorm_0.
      and not any(re.search(r"_\d+$", name) for name in path[:-1])
    )

  _, state = model.apply(
    {"params": params}, images, capture_intermediates=is_layer,
    mutable=["intermediates"],
  )  # fmt: skip
  scanned = bool(getattr(model, "scan", False))
  layers = []
  for path, values in _leaves(state.get("intermediates", {})):
    outputs = jax.tree.leaves(values)[:1]
    if scanned and path[-1] == _SCANNED:
      stacked = [(f"{'/'.join(path)}_{k}", x) for k, x in enumerate(*outputs)]
    else:
      stacked = [("/".join(path), x) for x in outputs]
    for name, x in stacked:
      if jnp.issubdtype(x.dtype, jnp.floating) and x.ndim > 1:
        if len(x) == len(images):
          x = x.astype(jnp.float32).reshape(len(x), -1, x.shape[-1])
          layers.append((name, x.mean(axis=1)))
  names = [name for name, _ in layers]
  layers = [
    (name, x)
    for name, x in layers
    # The output of a stack of layers is that of its last layer.
    if not any(other.startswith(f"{name}/") for other in names)
  ]
  if not layers:
    raise ValueError(
      f"{type(model).__name__} has no module whose output has one row per "
      "image, so there are no layers to compare."
    )
  return layers


def _leaves(tree, path=()):
  """Yields the path and the outputs of every module, in call order."""
  for key, value in tree.items():
    if key == "__call__":
      yield path, value
    else:
      yield from _leaves(value, (*path, key))


def hsic(features: Sequence[np.ndarray]) -> np.ndarray:
  """Returns unbiased HSIC estimates (linear kernel) for all pairs of features.

  With K = X X^T and L = Y Y^T, whose diagonals are set to zero (Song et al.
  2012, JMLR 13, equation 5):

    HSIC = (tr(K L) + 1'K1 1'L1 / ((n-1)(n-2)) - 2/(n-2) 1'K L1) / (n(n-3))

  Args:
    features: M arrays (n, channels) for the same images; n is at least 4.

  Returns:
    (M, M) float64.

  Raises:
    ValueError: for fewer than four images, or different numbers of images.
  """
  counts = {len(x) for x in features}
  if len(counts) != 1 or (n := counts.pop()) < 4:
    raise ValueError(
      "HSIC needs features of the same images, at least four of them, got "
      f"shapes {[np.shape(x) for x in features]}."
    )
  flat, sums = [], []
  for x in features:
    x = np.asarray(x, np.float64)
    x = x - x.mean(axis=0)  # Only reduces rounding errors.
    gram = x @ x.T
    np.fill_diagonal(gram, 0)
    flat.append(gram.ravel())
    sums.append(gram.sum(axis=1))
  flat, sums = np.stack(flat), np.stack(sums)
  total = sums.sum(axis=1)
  value = flat @ flat.T + np.outer(total, total) / ((n - 1) * (n - 2))
  return (value - 2 / (n - 2) * sums @ sums.T) / (n * (n - 3))


def cka(features: Sequence[np.ndarray]) -> np.ndarray:
  """Computes the minibatch CKA of all pairs of features; 1 is most similar.

  HSIC is averaged over minibatches before it is normalised (arXiv 2010.15327,
  section 2.1), so small minibatches do not bias it. CKA is invariant to
  rotation and scaling of the features.

  Args:
    features: M arrays (n, channels) for the same images, in random order; the
      numbers of channels may differ.

  Returns:
    (M, M) float64; NaN for features whose HSIC with themselves is not positive,
    such as constant ones.

  Raises:
    ValueError: as for `hsic`.
  """
  count = max(1, min(map(len, features), default=0) // _BATCH)
  parts = zip(*(np.array_split(np.asarray(x), count) for x in features))
  total = sum(hsic(part) for part in parts)
  # The unbiased estimate may be negative, by chance or rounding.
  own = np.diag(total)
  scale = np.sqrt(np.where(own > 0, own, np.nan))
  return total / np.outer(scale, scale)


def class_separation(features: np.ndarray, labels: np.ndarray) -> float:
  """Returns 1 - (mean cosine distance within classes) / (mean over all pairs).

  Both means weight classes equally (R^2 of arXiv 2010.16402, section 3.3). The
  result is 1 if all images of a class have the same direction, and 0 if classes
  do not differ. In that paper, models with higher values transferred worse.

  Args:
    features: (n, channels).
    labels: (n,) class indices. Classes with a single image are left out.

  Raises:
    ValueError: if fewer than two classes have two images, shapes do not match,
      a feature is not finite, or all have the same direction.
  """
  features = np.asarray(features, np.float64)
  labels = np.asarray(labels)
  if features.ndim != 2 or labels.shape != (len(features),):
    raise ValueError(
      f"features must be (n, channels) and labels (n,), got {features.shape} "
      f"and {labels.shape}."
    )
  classes, counts = np.unique(labels, return_counts=True)
  classes = classes[counts > 1]
  if len(classes) < 2:
    raise ValueError(
      "Class separation needs at least two classes with two images each, got "
      f"{len(classes)} of {len(counts)}."
    )
  if not np.isfinite(features).all():
    raise ValueError("The features are not finite: the model diverged.")
  norms = np.linalg.norm(features, axis=1, keepdims=True)
  units = features / np.where(norms > 0, norms, 1)
  means = np.stack([units[labels == k].mean(axis=0) for k in classes])
  # The mean cosine over pairs is the inner product of the means.
  within = 1 - (means**2).sum(axis=1).mean()
  total = 1 - (means.mean(axis=0) ** 2).sum()
  if total <= 1e-12:
    raise ValueError("All features have the same direction.")
  return float(1 - within / total)
