# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Text Transformer, the text tower of CLIP (arXiv 2103.00020, section 2.4).

Its blocks are the ViT's. Parameters have the names and shapes of big_vision's
text_transformer.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from soupjax.models import encoder, layers

POOLS = ("last", "first", "gap", "argmax", "eos", "map")
# Pools that take the end-of-text token: with a causal mask, the tokens after it
# change nothing.
END_POOLS = ("argmax", "eos")


class Text(nn.Module):
  """A Transformer over the tokens of a text.

  Attributes:
    vocab_size: rows of the token embedding.
    context_length: number of positions, the maximum tokens of a text.
    width: size of a token.
    depth: number of blocks.
    mlp_dim: hidden size of the MLPs; None is 4 * width.
    num_heads: attention heads; None raises an error that asks for it.
    causal: whether a token attends only to itself and to those before it.
    pool_type: the token that represents the text: "last" (big_vision), "first",
      "argmax" (with the highest id, OpenAI's end of text) or "eos" (the first
      with `eos_id`); or "gap" (mean of the tokens) or "map" (attention).
    eos_id: id of the end-of-text token, for `pool_type` "eos".
    proj_size: size of a projection without bias (CLIP); 0 for none.
    num_classes: size of a projection with bias (big_vision, SigLIP); None for
      none.
    act: as in `ViT`.
    norm_eps: epsilon of all norms.
    scan: as in `ViT`.
    remat_policy: as in `ViT`.
    dtype_mm: as in `ViT`.
  """

  vocab_size: int = 32_000
  context_length: int = 64
  width: int = 512
  depth: int = 12
  mlp_dim: int | None = None
  num_heads: int | None = 8
  causal: bool = False
  pool_type: str = "last"
  eos_id: int | None = None
  proj_size: int = 0
  num_classes: int | None = None
  act: str = "gelu"
  norm_eps: float = 1e-6
  scan: bool = False
  remat_policy: str | None = None
  dtype_mm: str = "float32"

  @nn.compact
  def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
    """Embeds texts.

    Args:
      tokens: (batch, tokens) integers in [0, vocab_size), at most
        `context_length` tokens per text.
      train: as for `ViT`, but without effect: there is no dropout.

    Returns:
      (batch, size) in float32, where size is num_classes if that is set, else
      proj_size if that is set, else width.

    Raises:
      ValueError: if an option is unknown or the sizes do not fit.
    """
    self._check(tokens)
    embed = nn.Embed(self.vocab_size, self.width, name="Embed_0")
    init = nn.initializers.normal(stddev=1 / np.sqrt(self.width))
    shape = (1, self.context_length, self.width)
    positions = self.param("pos_embedding", init, shape, jnp.float32)
    x = embed(tokens) + positions[:, : tokens.shape[1]]
    head = {
      "mlp_dim": self.mlp_dim,
      "num_heads": self.num_heads,
      "act": self.act,
      "norm_eps": self.norm_eps,
    }
    x = encoder.Encoder(
      depth=self.depth,
      block={**head, "dtype_mm": self.dtype_mm, "causal": self.causal},
      scan=self.scan,
      remat_policy=self.remat_policy,
      name="Encoder_0",
    )(x, not train)
    if self.pool_type == "map":
      x = encoder.MAPHead(**head, name="MAPHead_0")(x)
    elif self.pool_type == "gap":
      x = x.mean(axis=1)
    else:
      x = x[jnp.arange(len(x)), self._position(tokens)]
    x = x.astype(jnp.float32)
    if self.proj_size:
      x = nn.Dense(self.proj_size, use_bias=False, name="proj")(x)
    if self.num_classes:
      x = nn.Dense(self.num_classes, name="head")(x)
    return x

  def _position(self, tokens):
    """Returns the position of the token that represents each text."""
    if self.pool_type == "argmax":
      return jnp.argmax(tokens, axis=1)
    if self.pool_type == "eos":
      return jnp.argmax(tokens == self.eos_id, axis=1)
    return 0 if self.pool_type == "first" else tokens.shape[1] - 1

  def _check(self, tokens):
    layers.check_choice("pool_type of the text tower", self.pool_type, POOLS)
    layers.check_choice("act", self.act, tuple(layers.ACTIVATIONS))
    if self.num_heads is None:
      raise ValueError(
        "The number of attention heads of the text tower is unknown: it does "
        "not follow from the weights. Give num_heads=, a divisor of the width "
        f"{self.width}."
      )
    if self.width % self.num_heads:
      raise ValueError(
        f"width {self.width} of the text tower is not divisible by "
        f"num_heads={self.num_heads}."
      )
    if self.pool_type == "eos" and self.eos_id is None:
      raise ValueError("pool_type='eos' needs eos_id=, the id of that token.")
    if tokens.shape[1] > self.context_length:
      raise ValueError(
        f"The texts have {tokens.shape[1]} tokens, but the text tower has "
        f"{self.context_length} positions: cut them to "
        f"context_length={self.context_length}."
      )
