# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Layers and checks that several models share."""

from collections.abc import Mapping
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from soupjax.registry import suggestion

# "gelu" is the tanh approximation, as in big_vision; PyTorch's default is
# "gelu_exact", and OpenAI's CLIP uses "quick_gelu".
ACTIVATIONS = {
  "gelu": nn.gelu,
  "gelu_exact": functools.partial(nn.gelu, approximate=False),
  "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
  "silu": nn.silu,
}


def check_choice(what: str, value: Any, choices: Any) -> None:
  """Checks that the value of an option named `what` is a valid choice.

  Raises:
    ValueError: if the value is not among the choices, listing the nearest.
  """
  if value not in choices:
    raise ValueError(f"Unknown {what} {value!r}{suggestion(value, choices)}")


def decode_variant(
  model: str, name: str, variants: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
  """Decodes a name like "B/16".

  Args:
    model: name of the model in errors.
    name: a variant, a slash and the patch size in pixels.
    variants: name -> keyword arguments.

  Returns:
    Keyword arguments of the variant, and patch_size.

  Raises:
    ValueError: if the variant does not exist, listing those that do.
  """
  size, _, patch = str(name).partition("/")
  if size not in variants or not patch.isdecimal() or int(patch) < 1:
    near = f": there are {', '.join(variants)}."
    near = near if size in variants else suggestion(size, variants)
    raise ValueError(
      f"Unknown {model} variant {name!r}{near} Give a size, a slash and the "
      "patch size, such as 'B/16'."
    )
  return {**variants[size], "patch_size": int(patch)}


def patch_conv(width: int, patch_size: int, **options: Any) -> nn.Conv:
  """Returns a layer that embeds square patches linearly."""
  size = (patch_size, patch_size)
  return nn.Conv(width, size, strides=size, padding="VALID", **options)


def check_patches(images: jax.Array, patch_size: int) -> None:
  """Checks that patches tile images (batch, height, width, channels).

  Raises:
    ValueError: if they do not.
  """
  height, width = images.shape[1:3]
  if height % patch_size or width % patch_size:
    raise ValueError(
      f"Patches of {patch_size} pixels do not tile images of {height} x "
      f"{width}: resize the images or change patch_size."
    )


def drop_rates(rate: float, depth: int) -> np.ndarray | None:
  """Returns the rates of stochastic depth, linear from 0 in the first block.

  Args:
    rate: the rate of the last block.
    depth: number of blocks.

  Returns:
    (depth,) float32, None if the rate is 0.

  Raises:
    ValueError: if the rate is not in [0, 1).
  """
  if not 0 <= rate < 1:
    raise ValueError(f"stochastic_depth must be in [0, 1), got {rate}.")
  return np.linspace(0, rate, depth, dtype=np.float32) if rate else None


class DropPath(nn.Module):
  """Drops a residual branch, independently per example (arXiv 1603.09382)."""

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    rate: jax.typing.ArrayLike | None,
    deterministic: bool = True,
  ) -> jax.Array:
    """Maps (batch, tokens, width) to the same shape.

    Args:
      x: output of the branch.
      rate: probability of dropping it, possibly traced; None drops nothing.
        Other branches are divided by 1 - rate, so the mean is unchanged.
      deterministic: drops nothing if True.
    """
    if rate is None or deterministic:
      return x
    keep = 1 - jnp.asarray(rate, x.dtype)
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    mask = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, shape)
    return jnp.where(mask, x / keep, jnp.zeros_like(x))


class MlpBlock(nn.Module):
  """Two dense layers with an activation between them.

  Attributes:
    mlp_dim: hidden size; None is 4 * width.
    dropout: rate after the activation.
    act: a key of `ACTIVATIONS`.
    dtype_mm: dtype of the matrix products.
    gated: whether the activation is applied to a second dense layer, whose
      output multiplies the hidden values (arXiv 2002.05202).
    norm_eps: epsilon of a norm of the hidden values; None for no norm.
  """

  mlp_dim: int | None = None
  dropout: float = 0.0
  act: str = "gelu"
  dtype_mm: str = "float32"
  gated: bool = False
  norm_eps: float | None = None

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
    """Maps (batch, tokens, width) to the same shape."""
    width = x.shape[-1]
    dense = functools.partial(
      nn.Dense,
      dtype=self.dtype_mm,
      kernel_init=nn.initializers.xavier_uniform(),
      bias_init=nn.initializers.normal(stddev=1e-6),
    )
    hidden, act = self.mlp_dim or 4 * width, ACTIVATIONS[self.act]
    if self.gated:
      x = act(dense(hidden, name="gate")(x)) * dense(hidden)(x)
    else:
      x = act(dense(hidden)(x))
    x = nn.Dropout(self.dropout)(x, deterministic)
    if self.norm_eps is not None:
      x = nn.LayerNorm(epsilon=self.norm_eps, name="norm")(x)
    return dense(width)(x)


def classify(
  x: jax.Array, num_classes: int | None, zeroinit: bool
) -> tuple[jax.Array, jax.Array]:
  """Applies the layer "head"; must be called in a compact method of a model.

  Args:
    x: (..., width).
    num_classes: outputs of the head; None for no head.
    zeroinit: whether the head starts at zero.

  Returns:
    Logits (..., num_classes) and features (..., width), both float32; without
    a head, the features twice.
  """
  # The head is in float32: it is cheap, and rounding may change predictions.
  features = x.astype(jnp.float32)
  if num_classes is None:
    return features, features
  lecun = nn.initializers.lecun_normal()
  init = nn.initializers.zeros if zeroinit else lecun
  head = nn.Dense(num_classes, name="head", kernel_init=init)
  return head(features), features
