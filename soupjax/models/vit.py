# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Vision Transformer (arXiv 2010.11929), from a toy to ViT-G (2106.04560).

Parameters have big_vision's names and shapes, so that its checkpoints fit
without renaming.
"""

from collections.abc import Mapping
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from soupjax.models import layers

POOLS = ("gap", "tok", "0", "map", "none")
# Table 2 of arXiv 2106.04560; mu is for tests, So400m is from 2305.13035.
VARIANTS = {
  "mu": {"width": 32, "depth": 1, "mlp_dim": 128, "num_heads": 2},
  "Ti": {"width": 192, "depth": 12, "mlp_dim": 768, "num_heads": 3},
  "S": {"width": 384, "depth": 12, "mlp_dim": 1536, "num_heads": 6},
  "M": {"width": 512, "depth": 12, "mlp_dim": 2048, "num_heads": 8},
  "B": {"width": 768, "depth": 12, "mlp_dim": 3072, "num_heads": 12},
  "L": {"width": 1024, "depth": 24, "mlp_dim": 4096, "num_heads": 16},
  "So400m": {"width": 1152, "depth": 27, "mlp_dim": 4304, "num_heads": 16},
  "H": {"width": 1280, "depth": 32, "mlp_dim": 5120, "num_heads": 16},
  "g": {"width": 1408, "depth": 40, "mlp_dim": 6144, "num_heads": 16},
  "G": {"width": 1664, "depth": 48, "mlp_dim": 8192, "num_heads": 16},
  "e": {"width": 1792, "depth": 56, "mlp_dim": 15360, "num_heads": 16},
}


def variant(name: str) -> dict[str, Any]:
  """Decodes a name like "B/16" into arguments of `ViT`.

  Args:
    name: a key of `VARIANTS`, a slash and the patch size in pixels.

  Returns:
    Keyword arguments: width, depth, mlp_dim, num_heads, patch_size.

  Raises:
    ValueError: if the variant does not exist, listing those that do.

  Examples:
    >>> variant("S/16")
    {'width': 384, 'depth': 12, 'mlp_dim': 1536, 'num_heads': 6,
     'patch_size': 16}
  """
  return layers.decode_variant("ViT", name, VARIANTS)


def sincos2d(height: int, width: int, dim: int) -> np.ndarray:
  """Returns fixed 2-D position embeddings (MoCo v3, arXiv 2104.02057).

  Args:
    height: rows of patches.
    width: columns of patches.
    dim: embedding size, a positive multiple of 4.

  Returns:
    (1, height * width, dim) float32.

  Raises:
    ValueError: if dim is not a positive multiple of 4.
  """
  if dim % 4 or dim < 4:
    raise ValueError(f"sincos2d needs a width divisible by 4, got {dim}.")
  y, x = np.mgrid[:height, :width]
  omega = 1.0 / 10_000.0 ** (np.arange(dim // 4) / max(dim // 4 - 1, 1))
  y, x = y.ravel()[:, None] * omega, x.ravel()[:, None] * omega
  table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
  return table[None].astype(np.float32)


class Block(nn.Module):
  """A pre-norm encoder block; its second result, None, is for `nn.scan`."""

  mlp_dim: int | None
  num_heads: int
  dropout: float = 0.0
  act: str = "gelu"
  norm_eps: float = 1e-6
  attention: str | None = None
  dtype_mm: str = "float32"
  causal: bool = False

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    deterministic: bool = True,
    drop_rate: jax.typing.ArrayLike | None = None,
  ):
    """Maps (batch, tokens, width) to the same shape."""
    y = nn.LayerNorm(epsilon=self.norm_eps)(x)
    y = _attention(self.num_heads, self.attention, self.dtype_mm, self.causal)(
      y, y
    )
    y = nn.Dropout(self.dropout)(y, deterministic)
    x = x + layers.DropPath()(y, drop_rate, deterministic)
    y = nn.LayerNorm(epsilon=self.norm_eps)(x)
    mlp = layers.MlpBlock(self.mlp_dim, self.dropout, self.act, self.dtype_mm)
    y = nn.Dropout(self.dropout)(mlp(y, deterministic), deterministic)
    return x + layers.DropPath()(y, drop_rate, deterministic), None


def _attention(num_heads, implementation, dtype, causal=False):
  attend = functools.partial(_attend, causal=True) if causal else _attend
  if implementation is not None:
    attend = functools.partial(
      jax.nn.dot_product_attention,
      implementation=implementation,
      is_causal=causal,
    )
  return nn.MultiHeadDotProductAttention(
    num_heads=num_heads,
    kernel_init=nn.initializers.xavier_uniform(),
    attention_fn=attend,
    dtype=dtype,
  )


def _attend(query, key, value, causal=False):
  """Computes `jax.nn.dot_product_attention`, for float32 without head groups.

  This makes the gradient of a ViT 3 to 6 % faster on a CPU.

  Args:
    query: (batch, tokens, heads, channels).
    key: (batch, other tokens, heads, channels).
    value: like `key`.
    causal: whether a token attends only to itself and to those before it.
  """
  if query.dtype != np.float32:
    return jax.nn.dot_product_attention(query, key, value, is_causal=causal)
  query = query * np.float32(query.shape[-1] ** -0.5)
  logits = jnp.einsum("bqhc,bkhc->bhqk", query, key)
  if causal:
    visible = np.tri(query.shape[1], key.shape[1], dtype=bool)
    logits = jnp.where(visible[None, None], logits, -np.inf)
  weights = nn.softmax(logits)
  return jnp.einsum("bhqk,bkhc->bqhc", weights, value)


class Encoder(nn.Module):
  """A stack of blocks with an optional final norm.

  Attributes:
    depth: number of blocks.
    block: arguments of `Block`.
    stochastic_depth: drop rate of the last block.
    norm: whether a norm follows the last block.
    scan: as in `ViT`.
    remat_policy: as in `ViT`.
  """

  depth: int
  block: Mapping[str, Any]
  stochastic_depth: float = 0.0
  norm: bool = True
  scan: bool = False
  remat_policy: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
    """Maps (batch, tokens, width) to the same shape."""
    block = Block
    if self.remat_policy is not None:
      block = nn.remat(
        Block,
        prevent_cse=not self.scan,
        static_argnums=(2,),  # deterministic; 0 is the module itself.
        policy=getattr(jax.checkpoint_policies, self.remat_policy),
      )
    rates = layers.drop_rates(self.stochastic_depth, self.depth)
    if self.scan:
      blocks = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast, 0),
        length=self.depth,
      )
      blocks = blocks(name="encoderblock", **self.block)
      x, _ = blocks(x, deterministic, rates)
    else:
      for i in range(self.depth):
        rate = None if rates is None else rates[i]
        layer = block(name=f"encoderblock_{i}", **self.block)
        x, _ = layer(x, deterministic, rate)
    if not self.norm:
      return x
    return nn.LayerNorm(self.block["norm_eps"], name="encoder_norm")(x)


class MAPHead(nn.Module):
  """Multi-head attention pooling (arXiv 2106.04560, section 3.3)."""

  mlp_dim: int | None
  num_heads: int
  act: str = "gelu"
  norm_eps: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, tokens, width) to (batch, width)."""
    # Always float32, as in big_vision: one query costs little.
    batch, _, width = x.shape
    init = nn.initializers.xavier_uniform()
    probe = self.param("probe", init, (1, 1, width), x.dtype)
    probe = jnp.tile(probe, (batch, 1, 1))
    x = _attention(self.num_heads, None, "float32")(probe, x)
    y = nn.LayerNorm(epsilon=self.norm_eps)(x)
    mlp = layers.MlpBlock(self.mlp_dim, act=self.act)
    return (x + mlp(y))[:, 0]


class ViT(nn.Module):
  """Vision Transformer with a linear head.

  The defaults are big_vision's. `act`, `norm_eps`, `pre_norm`, `patch_bias`,
  `class_token`, `fc_norm`, `proj_size` and `normalize` are for models of other
  libraries: `pretrained.options` returns their values.

  Attributes:
    num_classes: outputs of the head; None for features only.
    patch_size: side of a patch in pixels.
    width: size of a token.
    depth: number of blocks.
    mlp_dim: hidden size of the MLPs; None is 4 * width.
    num_heads: attention heads; None raises an error that asks for it.
    posemb: position embeddings, "learn" or "sincos2d" (fixed).
    pool_type: "gap" (mean), "tok" (class token), "0" (first patch), "map"
      (attention) or "none" (every token has its logits).
    class_token: adds a class token even if `pool_type` does not need one;
      "gap" and "map" exclude it.
    rep_size: size of a tanh layer before the head; 0 for none.
    proj_size: size of a projection without bias before the head (CLIP); 0 for
      none.
    normalize: whether features are scaled to length 1 before the head, as for
      zero-shot weights of CLIP; None (not specified) does not scale.
    dropout: rate, in training.
    stochastic_depth: probability that an example skips the last block in
      training; it grows linearly from 0 in the first block.
    head_zeroinit: whether the head starts at zero.
    act: "gelu" (the tanh approximation), "gelu_exact" or "quick_gelu".
    norm_eps: epsilon of all norms.
    pre_norm: adds a norm before the first block (CLIP).
    patch_bias: whether the embedding of patches has a bias.
    fc_norm: applies the final norm after pooling instead of before (timm).
    attention: implementation of `jax.nn.dot_product_attention`: "xla", "cudnn"
      (GPU, 16 bits), or None for the default.
    scan: scans one block with stacked parameters, which compiles in constant
      time, instead of `depth` blocks.
    remat_policy: a name in `jax.checkpoint_policies`, such as
      "nothing_saveable", to recompute blocks in the backward pass; None keeps
      all activations.
    dtype_mm: dtype of the matrix products; parameters, attention pooling and
      head stay float32.
  """

  num_classes: int | None = None
  patch_size: int = 16
  width: int = 768
  depth: int = 12
  mlp_dim: int | None = None
  num_heads: int | None = 12
  posemb: str = "learn"
  pool_type: str = "gap"
  class_token: bool = False
  rep_size: int = 0
  proj_size: int = 0
  normalize: bool | None = None
  dropout: float = 0.0
  stochastic_depth: float = 0.0
  head_zeroinit: bool = True
  act: str = "gelu"
  norm_eps: float = 1e-6
  pre_norm: bool = False
  patch_bias: bool = True
  fc_norm: bool = False
  attention: str | None = None
  scan: bool = False
  remat_policy: str | None = None
  dtype_mm: str = "float32"

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """Classifies images.

    Args:
      images: (batch, height, width, channels) floats; the patch size divides
        height and width.
      train: whether dropout and stochastic depth are on; needs the rng
        "dropout" then.

    Returns:
      Logits (batch, num_classes) in float32, and the input of the head (batch,
      width, rep_size or proj_size); the latter twice if num_classes is None.
      With pool_type "none" both have an axis for tokens after the first.

    Raises:
      ValueError: if an option is unknown or the sizes do not fit.
    """
    self._check(images)
    head = {
      "mlp_dim": self.mlp_dim,
      "num_heads": self.num_heads,
      "act": self.act,
      "norm_eps": self.norm_eps,
    }
    block = {**head, "attention": self.attention, "dtype_mm": self.dtype_mm}
    x = self._tokens(images)
    x = nn.Dropout(self.dropout)(x, not train)
    x = Encoder(
      depth=self.depth,
      block={**block, "dropout": self.dropout},
      stochastic_depth=self.stochastic_depth,
      norm=not self.fc_norm,
      scan=self.scan,
      remat_policy=self.remat_policy,
      name="Transformer",
    )(x, not train)
    if self.pool_type == "map":
      x = MAPHead(**head)(x[:, int(self.class_token) :])
    elif self.pool_type == "gap":
      x = x[:, int(self.class_token) :].mean(axis=1)
    elif self.pool_type in ("tok", "0"):
      x = x[:, 0]
    if self.fc_norm:
      x = nn.LayerNorm(self.norm_eps, name="fc_norm")(x)
    return self._head(x)

  def _tokens(self, images):
    """Embeds patches into (batch, tokens, width)."""
    x = layers.patch_conv(
      self.width,
      self.patch_size,
      use_bias=self.patch_bias,
      name="embedding",
      dtype=self.dtype_mm,
    )(images)
    batch, rows, columns, width = x.shape
    x = x.reshape(batch, rows * columns, width)
    x = x + self._position_embedding(rows, columns)
    if self.pool_type == "tok" or self.class_token:
      cls = self.param("cls", nn.initializers.zeros, (1, 1, width), x.dtype)
      x = jnp.concatenate([jnp.tile(cls, (batch, 1, 1)), x], axis=1)
    if self.pre_norm:
      x = nn.LayerNorm(self.norm_eps, name="pre_norm")(x)
    return x

  def _head(self, x):
    """Maps the pooled tokens to logits and features."""
    if self.rep_size:
      x = jnp.tanh(nn.Dense(self.rep_size, name="pre_logits")(x))
    if self.proj_size:
      x = nn.Dense(self.proj_size, use_bias=False, name="proj")(x)
    if self.normalize:
      x = x / jnp.linalg.norm(x.astype(jnp.float32), axis=-1, keepdims=True)
    return layers.classify(x, self.num_classes, self.head_zeroinit)

  def _position_embedding(self, rows, columns):
    if self.posemb == "sincos2d":
      return sincos2d(rows, columns, self.width)
    shape = (1, rows * columns, self.width)
    given = self.get_variable("params", "pos_embedding")
    if given is not None and given.shape[1] != shape[1]:
      raise ValueError(
        f"The position embeddings are of {given.shape[1]} patches, and images "
        f"of {rows} x {columns} patches have {shape[1]}: resize the images, or "
        f"load the weights with image_size=({rows * self.patch_size}, "
        f"{columns * self.patch_size})."
      )
    init = nn.initializers.normal(stddev=1 / np.sqrt(self.width))
    return self.param("pos_embedding", init, shape, jnp.float32)

  def _check(self, images):
    for option, choices in (
      ("pool_type", POOLS),
      ("posemb", ("learn", "sincos2d")),
      ("act", tuple(layers.ACTIVATIONS)),
      ("attention", (None, "xla", "cudnn")),
    ):
      layers.check_choice(option, getattr(self, option), choices)
    if self.remat_policy is not None:
      policies = [p for p in dir(jax.checkpoint_policies) if p[0] != "_"]
      layers.check_choice("remat_policy", self.remat_policy, policies)
    if self.class_token and self.pool_type in ("tok", "0"):
      raise ValueError(
        f"class_token goes with pool_type 'gap', 'map' or 'none', not with "
        f"{self.pool_type!r}. 'tok' always has a class token."
      )
    if self.num_heads is None:
      raise ValueError(
        "The number of attention heads is unknown: it does not follow from the "
        f"weights. Give num_heads=, a divisor of the width {self.width}."
      )
    if self.width % self.num_heads:
      raise ValueError(
        f"width {self.width} is not divisible by num_heads={self.num_heads}."
      )
    layers.check_patches(images, self.patch_size)
