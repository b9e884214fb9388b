# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""ResNet-v2 of Big Transfer (BiT, arXiv 1912.11370).

Pre-activation bottleneck units with group normalisation and weight
standardisation (arXiv 1903.10520). Parameters have the names and shapes of
big_vision's `bit_paper`, so its checkpoints load without renaming.
"""

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from soupjax.models import layers

# Number of layers -> units per stage.
_DEPTHS = {
  26: (2, 2, 2, 2),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
  200: (3, 24, 36, 3),
}
# Groups and epsilon of all group norms.
_GROUPS, _NORM_EPS = 32, 1e-5


def resnet_variant(name: str) -> dict[str, Any]:
  """Decodes a name like "50x1" into arguments of `ResNet`.

  Args:
    name: number of layers, "x" and the width multiplier.

  Returns:
    Keyword arguments: depths, width.

  Raises:
    ValueError: if the variant does not exist, listing those that do.

  Examples:
    >>> resnet_variant("R101x3")
    {'depths': (3, 4, 23, 3), 'width': 192}
  """
  match = re.fullmatch(r"R?(\d+)x([1-9]\d?)", str(name))
  if not match or int(match[1]) not in _DEPTHS:
    raise ValueError(
      f"Unknown ResNet variant {name!r}: give the number of layers "
      f"({', '.join(map(str, _DEPTHS))}), x and the width multiplier, such "
      "as '50x1'."
    )
  return {"depths": _DEPTHS[int(match[1])], "width": 64 * int(match[2])}


def _standardized(x: jax.Array, axes: tuple[int, ...], eps: float) -> jax.Array:
  """Normalises to mean 0 and variance 1 over axes."""
  x = x - x.mean(axes, keepdims=True)
  return x * jax.lax.rsqrt(jnp.square(x).mean(axes, keepdims=True) + eps)


class StdConv(nn.Module):
  """Convolution with a standardised kernel and no bias (arXiv 1903.10520).

  Attributes:
    features: output channels.
    kernel_size: side length of the kernel; images are padded by half of it.
    stride: stride in both directions.
    eps: added to the variance of each output channel's kernel.
    dtype_mm: dtype of the convolution; the kernel is standardised in float32.
  """

  features: int
  kernel_size: int
  stride: int = 1
  eps: float = 1e-8
  dtype_mm: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, height, width, channels) to float32 images."""
    side, pad = self.kernel_size, self.kernel_size // 2
    kernel = self.param(
      "kernel",
      nn.initializers.lecun_normal(),
      (side, side, x.shape[-1], self.features),
    )
    kernel = _standardized(kernel, (0, 1, 2), self.eps)
    y = jax.lax.conv_general_dilated(
      x.astype(self.dtype_mm),
      kernel.astype(self.dtype_mm),
      (self.stride, self.stride),
      [(pad, pad), (pad, pad)],
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.astype(jnp.float32)


class GroupNorm(nn.Module):
  """Group normalisation (arXiv 1803.08494) in float32, then ReLU."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, height, width, channels) to the same shape."""
    channels = x.shape[-1]
    shape = (1, 1, 1, channels)
    scale = self.param("scale", nn.initializers.ones, shape)
    bias = self.param("bias", nn.initializers.zeros, shape)
    grouped = x.reshape(*x.shape[:-1], _GROUPS, channels // _GROUPS)
    x = _standardized(grouped, (1, 2, 4), _NORM_EPS).reshape(x.shape)
    return nn.relu(x * scale + bias)


class RootBlock(nn.Module):
  """A strided convolution and max pooling."""

  width: int
  conv_eps: float
  dtype_mm: str = "float32"

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Maps (batch, height, width, channels) to a quarter of the resolution."""
    conv = StdConv(
      self.width, 7, 2, self.conv_eps, self.dtype_mm, name="conv_root"
    )
    # Zero padding as in the original code and timm, although values can be
    # negative; big_vision pads with -inf.
    x = jnp.pad(conv(images), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return nn.max_pool(x, (3, 3), strides=(2, 2))


class Unit(nn.Module):
  """A bottleneck unit: three convolutions, each after a group norm."""

  width: int
  stride: int
  conv_eps: float
  dtype_mm: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, height, width, channels) to 4 * `self.width` channels."""
    conv = functools.partial(StdConv, eps=self.conv_eps, dtype_mm=self.dtype_mm)
    outputs = 4 * self.width
    y = GroupNorm(name="gn1")(x)
    if x.shape[-1] != outputs or self.stride != 1:
      x = conv(outputs, 1, self.stride, name="conv_proj")(y)
    y = conv(self.width, 1, name="conv1")(y)
    y = GroupNorm(name="gn2")(y)
    y = conv(self.width, 3, self.stride, name="conv2")(y)
    y = GroupNorm(name="gn3")(y)
    return x + conv(outputs, 1, name="conv3")(y)


class _Stage(nn.Module):
  """Units at one resolution."""

  depth: int
  width: int
  stride: int
  conv_eps: float
  dtype_mm: str

  @nn.compact
  def __call__(self, x):
    for k in range(self.depth):
      x = Unit(
        self.width,
        self.stride if k == 0 else 1,
        self.conv_eps,
        self.dtype_mm,
        name=f"unit{k + 1:02d}",
      )(x)
    return x


class ResNet(nn.Module):
  """BiT's ResNet-v2, with a linear head on the mean of the last stage.

  Attributes:
    num_classes: outputs of the head; None for features only.
    width: channels after the first convolution, a multiple of 32; the outputs
      of the stages have 4, 8, 16 and 32 times as many.
    depths: units per stage.
    conv_eps: epsilon of the standardised kernels: 1e-8 in timm, 1e-10 in the
      original code.
    head_zeroinit: whether the head starts at zero.
    dtype_mm: dtype of the convolutions; parameters and norms stay float32.
  """

  num_classes: int | None = None
  width: int = 64
  depths: tuple[int, ...] = (3, 4, 6, 3)
  conv_eps: float = 1e-8
  head_zeroinit: bool = True
  dtype_mm: str = "float32"

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """Classifies images of any size.

    Args:
      images: (batch, height, width, channels) floats.
      train: unused, since training and evaluation do not differ.

    Returns:
      Logits (batch, num_classes) in float32, and the features (batch, channels
      of the last stage) that the head receives; the features twice if
      num_classes is None.

    Raises:
      ValueError: if the width is not a multiple of 32, or a stage is empty.
    """
    del train
    if self.width < _GROUPS or self.width % _GROUPS:
      raise ValueError(
        f"width={self.width} must be a multiple of {_GROUPS}, the number of "
        "groups of the norms."
      )
    if not self.depths or min(self.depths) < 1:
      raise ValueError(f"depths={self.depths} must be positive integers.")
    rest = (self.conv_eps, self.dtype_mm)
    x = RootBlock(self.width, *rest, name="root_block")(images)
    for k, depth in enumerate(self.depths):
      stride = 1 if k == 0 else 2
      stage = _Stage(
        depth, self.width * 2**k, stride, *rest, name=f"block{k + 1}"
      )
      x = stage(x)
    x = GroupNorm(name="norm-pre-head")(x)
    features = x.mean(axis=(1, 2))
    return layers.classify(features, self.num_classes, self.head_zeroinit)
