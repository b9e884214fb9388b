# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Models of images and texts: CLIP (arXiv 2103.00020), LiT (2111.07991) and
SigLIP (2303.15343).

Parameters have the names of big_vision's two_towers: `img`, `txt`, `t` (the
logarithm of the logit scale) and `b` (the logit bias).
"""

from collections.abc import Mapping
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from soupjax.models import text as text_lib
from soupjax.models import vit


class CLIP(nn.Module):
  """An image tower and a text tower with embeddings of the same size.

  Attributes:
    image: options of `ViT`; its embedding is the input of the head, or the
      logits if `num_classes` is not None.
    text: options of `Text`.
    bias: whether logits have a bias (SigLIP).
    init_scale: initial scale of the logits.
    init_bias: initial bias of the logits.
  """

  image: Mapping[str, Any]
  text: Mapping[str, Any]
  bias: bool = False
  init_scale: float = 10.0
  init_bias: float = -10.0

  @property
  def txt_length(self) -> int:
    """The maximum number of tokens of a text."""
    return text_lib.Text(**self.text).context_length

  def setup(self):
    """Makes the towers, the logit scale and, if any, the logit bias."""
    self.img = vit.ViT(**self.image)
    self.txt = text_lib.Text(**self.text)
    scale = nn.initializers.constant(math.log(self.init_scale))
    self.t = self.param("t", scale, (1,), jnp.float32)
    if self.bias:
      bias = nn.initializers.constant(self.init_bias)
      self.b = self.param("b", bias, (1,), jnp.float32)

  def __call__(
    self, images: jax.Array, tokens: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Embeds images and texts and compares all pairs.

    Args:
      images: (batch, height, width, channels), as for `ViT`.
      tokens: (texts, tokens), as for `Text`.
      train: as for `ViT`.

    Returns:
      Embeddings (batch, size) and (texts, size) of length 1, and logits (batch,
      texts).

    Raises:
      ValueError: as for `ViT` and `Text`, or if the sizes of the embeddings
        differ.
    """
    zimg = self.embed_images(images, train=train)
    ztxt, logits = self.compare(zimg, tokens, train=train)
    return zimg, ztxt, logits

  def compare(
    self, zimg: jax.Array, tokens: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """Embeds texts and compares them with embedded images.

    Args:
      zimg: (batch, size) embeddings of length 1.
      tokens: as for `__call__`.
      train: as for `__call__`.

    Returns:
      Embeddings (texts, size) of length 1, and logits (batch, texts).

    Raises:
      ValueError: as for `__call__`.
    """
    ztxt = self.embed_texts(tokens, train=train)
    if zimg.shape[-1] != ztxt.shape[-1]:
      raise ValueError(
        f"Image embeddings have size {zimg.shape[-1]}, but text embeddings "
        f"{ztxt.shape[-1]}: give both towers projections of the same size."
      )
    logits = self.scale() * zimg @ ztxt.T
    return ztxt, logits + self.b[0] if self.bias else logits

  def embed_images(self, images: jax.Array, *, train: bool = False):
    """Returns the embeddings (batch, size) of images, of length 1."""
    logits, _ = self.img(images, train=train)
    return normalized(logits)

  def embed_texts(self, tokens: jax.Array, *, train: bool = False):
    """Returns the embeddings (texts, size) of texts, of length 1."""
    return normalized(self.txt(tokens, train=train))

  def scale(self) -> jax.Array:
    """Returns the scale of the logits, exp(t)."""
    return jnp.exp(self.t[0])


def normalized(x: jax.Array) -> jax.Array:
  """Scales the vectors along the last axis to length 1."""
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
