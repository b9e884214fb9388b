# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Step directions (AdamW, SGD, Adafactor), frozen leaves, layer-wise decay.

The transformations do not include learning rate and weight decay: the step
takes both from a `Hyper`, so that a sweep over them compiles once.
"""

from collections.abc import Sequence
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from soupjax.soups.core import layers, tree

PyTree = Any


def make(
  name: str, *, clip_norm: float = 0.0, **options: Any
) -> optax.GradientTransformation:
  """Makes the transformation from gradients to the direction of a step.

  Args:
    name: "adamw", "sgd" or "adafactor".
    clip_norm: largest global norm of a gradient; 0 is off.
    **options: keyword arguments of the optimizer, such as `momentum`.

  Raises:
    ValueError: if the optimizer or an option does not exist.
  """
  makers = {"adamw": _adamw, "sgd": _sgd, "adafactor": _adafactor}
  if name not in makers:
    raise ValueError(f"optimizer={name!r} must be one of {', '.join(makers)}.")
  if not clip_norm >= 0:
    raise ValueError(f"clip_norm must be 0 (off) or positive, got {clip_norm}.")
  try:
    scale = makers[name](**options)
  except TypeError as e:
    raise ValueError(f"The options {options} do not fit {name}: {e}.") from e
  if not clip_norm:
    return scale
  return optax.chain(optax.clip_by_global_norm(clip_norm), scale)


def _adamw(b1=0.9, b2=0.999, eps=1e-8, momentum_dtype="float32"):
  return optax.scale_by_adam(
    b1=b1, b2=b2, eps=eps, mu_dtype=jnp.dtype(momentum_dtype)
  )


def _sgd(momentum=0.9, nesterov=False, momentum_dtype="float32"):
  return optax.trace(
    momentum, nesterov, accumulator_dtype=jnp.dtype(momentum_dtype)
  )


def _adafactor(
  momentum=0.9,
  momentum_dtype="bfloat16",
  decay_exponent=0.8,
  b2_cap=0.999,
  clip_block_rms=0.0,
  min_dim_size_to_factor=32,
):
  """Makes Adafactor as in arXiv 2106.04560, section 3.4, and big_vision.

  The second moment of a matrix is factored into a row and a column; by default,
  the first moment is in bfloat16. Updates are not scaled by the parameters.
  """

  def decay(step, exponent):
    t = jnp.asarray(step, jnp.float32) + 1
    return jnp.minimum(b2_cap, 1 - t**-exponent)

  parts = [
    optax.scale_by_factored_rms(
      decay_rate=decay_exponent,
      min_dim_size_to_factor=min_dim_size_to_factor,
      decay_rate_fn=decay,
    )
  ]
  if clip_block_rms:
    parts.append(optax.clip_by_block_rms(clip_block_rms))
  if momentum:
    parts.append(
      optax.ema(
        momentum, debias=False, accumulator_dtype=jnp.dtype(momentum_dtype)
      )
    )
  return optax.chain(*parts)


def split(params: PyTree, frozen: Sequence[str]) -> tuple[PyTree, PyTree]:
  """Splits a tree into trained and frozen leaves.

  Args:
    params: any pytree of arrays.
    frozen: regular expressions that match part of the names of frozen leaves.

  Returns:
    Two trees like `params`, with None for the leaves of the other; see `join`.

  Raises:
    ValueError: if an expression matches no leaf, or no leaf is left to train.
  """
  leaves, treedef = tree.flatten(params)
  for pattern in frozen:
    if not any(re.search(pattern, name) for name in leaves):
      raise ValueError(
        f"freeze={pattern!r} does not match any leaf; names look like "
        f"{next(iter(leaves))!r}."
      )
  is_frozen = {n: any(re.search(p, n) for p in frozen) for n in leaves}
  if all(is_frozen.values()):
    raise ValueError(f"freeze={list(frozen)} leaves nothing to train.")
  return (
    treedef.unflatten([None if is_frozen[n] else leaves[n] for n in leaves]),
    treedef.unflatten([leaves[n] if is_frozen[n] else None for n in leaves]),
  )


def join(trained: PyTree, frozen: PyTree) -> PyTree:
  """Joins the two trees of `split`; takes `frozen` where `trained` is None."""
  return jax.tree.map(
    lambda a, b: b if a is None else a,
    trained,
    frozen,
    is_leaf=lambda x: x is None,
  )


def matches(params: PyTree, pattern: str) -> PyTree:
  """Returns a tree of bools: whether part of each leaf's name matches."""
  leaves, treedef = tree.flatten(params)
  return treedef.unflatten([bool(re.search(pattern, n)) for n in leaves])


def layer_powers(params: PyTree) -> PyTree:
  """Counts the layers from each leaf to the head, for layer-wise decay.

  Layers are those of `soups.core.layers.ranks`; a leaf of scanned blocks
  ("encoderblock") has one number per layer. Embeddings, and CLIP's norm after
  them, are below the first block; other leaves, and all leaves of a model
  without such layers, are level with the head, as in arXiv 2106.08254 (BEiT),
  A.2.

  Args:
    params: any pytree of arrays.

  Returns:
    A tree of numpy arrays that broadcast against the leaves.
  """
  leaves, treedef = tree.flatten(params)
  blocks = {
    name: layers.block_names(name, leaf.shape[0]) if leaf.shape else []
    for name, leaf in leaves.items()
  }
  names = [block for leaf in leaves for block in blocks[leaf] or [leaf]]
  try:
    ranks, count = layers.ranks(names)
  except ValueError:
    ranks, count = dict.fromkeys(names, 0), 0
  powers = []
  for name, leaf in leaves.items():
    power = np.float32([count - ranks[k] for k in blocks[name] or [name]])
    rank = len(leaf.shape) if blocks[name] else 0
    powers.append(power.reshape(-1, *[1] * (rank - 1)) if rank else power[0])
  return treedef.unflatten(powers)
