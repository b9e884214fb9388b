# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Inputs of the linear layers of any Linen model."""

from collections.abc import Callable
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def linear_inputs(
  model: nn.Module,
) -> Callable[[Any, jax.Array], dict[str, jax.Array]]:
  """Returns a function that computes the inputs of all linear layers.

  Linear layers are `nn.Dense` and `nn.DenseGeneral`, such as the attention
  projections. They are found by `nn.intercept_methods` while the model runs. If
  the input has several feature axes, such as attention heads, they are merged.

  Args:
    model: a model of (batch, height, width, channels) images, without
      `nn.scan` over layers.

  Returns:
    A function of parameters and images, for `soupjax.activation_grams`. It
    returns kernel name ("Transformer/encoderblock_0/.../kernel") -> (rows,
    inputs), with a row for each token of each example. If the model scans its
    layers, calling it raises a ValueError.
  """

  def activations(params, images):
    if getattr(model, "scan", False):
      raise ValueError(
        "The inputs of scanned layers cannot be recorded: set scan=False."
      )
    found: dict[str, list[jax.Array]] = {}

    def record(call, args, kwargs, context):
      module = context.module
      is_linear = isinstance(module, nn.Dense | nn.DenseGeneral)
      if is_linear and context.method_name == "__call__":
        name = "/".join((*module.path, "kernel"))
        found.setdefault(name, []).append(_rows(module, args[0]))
      return call(*args, **kwargs)

    with nn.intercept_methods(record):
      model.apply({"params": params}, images)
    return {name: jnp.concatenate(rows) for name, rows in found.items()}

  return activations


def _rows(module, x: jax.Array) -> jax.Array:
  """Returns the input of a layer as (rows, inputs)."""
  axes = getattr(module, "axis", -1)
  axes = axes if isinstance(axes, tuple | list) else (axes,)
  axes = tuple(np.arange(x.ndim)[list(axes)].tolist())
  x = jnp.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))
  return x.reshape(-1, math.prod(x.shape[x.ndim - len(axes) :]))
