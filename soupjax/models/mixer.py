# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""MLP-Mixer (arXiv 2105.01601).

Parameters have the names and shapes of the vision_transformer repository, so
its checkpoints load without renaming.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from soupjax.models import layers

# Table 1 of arXiv 2105.01601; mu is for tests.
MIXER_VARIANTS = {
  "mu": {"width": 32, "depth": 2, "tokens_dim": 16, "channels_dim": 64},
  "S": {"width": 512, "depth": 8, "tokens_dim": 256, "channels_dim": 2048},
  "B": {"width": 768, "depth": 12, "tokens_dim": 384, "channels_dim": 3072},
  "L": {"width": 1024, "depth": 24, "tokens_dim": 512, "channels_dim": 4096},
  "H": {"width": 1280, "depth": 32, "tokens_dim": 640, "channels_dim": 5120},
}


def mixer_variant(name: str) -> dict[str, Any]:
  """Decodes a name like "B/16" into arguments of `Mixer`.

  Args:
    name: a key of `MIXER_VARIANTS`, a slash and the patch size in pixels.

  Returns:
    Keyword arguments: width, depth, tokens_dim, channels_dim, patch_size.

  Raises:
    ValueError: if the variant does not exist, listing those that do.

  Examples:
    >>> mixer_variant("S/16")
    {'width': 512, 'depth': 8, 'tokens_dim': 256, 'channels_dim': 2048,
     'patch_size': 16}
  """
  return layers.decode_variant("Mixer", name, MIXER_VARIANTS)


class MixerBlock(nn.Module):
  """Mixes tokens, then channels."""

  tokens_dim: int
  channels_dim: int
  dtype_mm: str = "float32"
  act: str = "gelu"

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    deterministic: bool = True,
    drop_rate: jax.typing.ArrayLike | None = None,
  ) -> jax.Array:
    """Maps (batch, tokens, width) to the same shape."""

    def mlp(dim, name):
      return layers.MlpBlock(
        dim, act=self.act, dtype_mm=self.dtype_mm, name=name
      )

    y = nn.LayerNorm()(x).swapaxes(1, 2)
    y = mlp(self.tokens_dim, "token_mixing")(y).swapaxes(1, 2)
    x = x + layers.DropPath()(y, drop_rate, deterministic)
    y = mlp(self.channels_dim, "channel_mixing")(nn.LayerNorm()(x))
    return x + layers.DropPath()(y, drop_rate, deterministic)


class Mixer(nn.Module):
  """MLP-Mixer with a linear head on the mean of the tokens.

  Attributes:
    num_classes: outputs of the head; None for features only.
    patch_size: side of a patch in pixels.
    width: size of a token.
    depth: number of blocks.
    tokens_dim: hidden size of the MLPs over tokens.
    channels_dim: hidden size of the MLPs over channels.
    stochastic_depth: as in `ViT`.
    head_zeroinit: whether the head starts at zero.
    dtype_mm: dtype of the matrix products; parameters stay float32.
    act: activation of the MLPs, as in `ViT`: "gelu_exact" for timm's weights.
  """

  num_classes: int | None = None
  patch_size: int = 16
  width: int = 768
  depth: int = 12
  tokens_dim: int = 384
  channels_dim: int = 3072
  stochastic_depth: float = 0.0
  head_zeroinit: bool = True
  dtype_mm: str = "float32"
  act: str = "gelu"

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """Classifies images of one fixed size, on which the parameters depend.

    Args:
      images: (batch, height, width, channels) floats; the patch size divides
        height and width.
      train: whether stochastic depth is on; needs the rng "dropout" then.

    Returns:
      Logits (batch, num_classes) in float32, and the features (batch, width)
      that the head receives; the features twice if num_classes is None.

    Raises:
      ValueError: if the sizes do not fit.
    """
    layers.check_patches(images, self.patch_size)
    layers.check_choice("act", self.act, layers.ACTIVATIONS)
    stem = layers.patch_conv(
      self.width, self.patch_size, name="stem", dtype=self.dtype_mm
    )
    x = stem(images)
    # The residual stream is always float32, as in ViT.
    x = x.reshape(x.shape[0], -1, self.width).astype(jnp.float32)
    rates = layers.drop_rates(self.stochastic_depth, self.depth)
    for i in range(self.depth):
      block = MixerBlock(
        self.tokens_dim, self.channels_dim, self.dtype_mm, self.act
      )
      x = block(x, not train, None if rates is None else rates[i])
    x = nn.LayerNorm(name="pre_head_layer_norm")(x)
    features = x.mean(axis=1)
    return layers.classify(features, self.num_classes, self.head_zeroinit)
