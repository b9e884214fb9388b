# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Vision Transformer (arXiv 2010.11929), from a toy to ViT-G (2106.04560).

Parameters have big_vision's names and shapes, so that checkpoints published in
that form fit without renaming.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

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
    ValueError: if there is no such variant, listing those there are.
  """
  size, _, patch = name.partition("/")
  if size not in VARIANTS or not patch.isdigit() or int(patch) < 1:
    raise ValueError(
      f"Unknown ViT variant {name!r}: give one of {', '.join(VARIANTS)}, then "
      "a slash and the patch size, as in 'B/16'."
    )
  return {**VARIANTS[size], "patch_size": int(patch)}


def sincos2d(height: int, width: int, dim: int) -> np.ndarray:
  """Fixed 2-D position embeddings (MoCo v3, arXiv 2104.02057).

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
    raise ValueError(f"sincos2d needs a width that 4 divides, got {dim}.")
  y, x = np.mgrid[:height, :width]
  omega = 1.0 / 10_000.0 ** (np.arange(dim // 4) / max(dim // 4 - 1, 1))
  y, x = y.ravel()[:, None] * omega, x.ravel()[:, None] * omega
  table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
  return table[None].astype(np.float32)


class MlpBlock(nn.Module):
  """Two dense layers with a GELU between them."""

  mlp_dim: int | None = None
  dropout: float = 0.0
  dtype_mm: str = "float32"

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
    x = nn.gelu(dense(self.mlp_dim or 4 * width)(x))
    x = nn.Dropout(self.dropout)(x, deterministic)
    return dense(width)(x)


class Block(nn.Module):
  """A pre-norm encoder block; the second result is what `nn.scan` asks for."""

  mlp_dim: int | None
  num_heads: int
  dropout: float = 0.0
  dtype_mm: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool = True):
    """Maps (batch, tokens, width) to the same shape."""
    y = nn.LayerNorm()(x)
    y = nn.MultiHeadDotProductAttention(
      num_heads=self.num_heads,
      kernel_init=nn.initializers.xavier_uniform(),
      deterministic=deterministic,
      dtype=self.dtype_mm,
    )(y, y)
    x = x + nn.Dropout(self.dropout)(y, deterministic)
    y = nn.LayerNorm()(x)
    y = MlpBlock(self.mlp_dim, self.dropout, self.dtype_mm)(y, deterministic)
    return x + nn.Dropout(self.dropout)(y, deterministic), None


class Encoder(nn.Module):
  """A stack of blocks and a final norm."""

  depth: int
  mlp_dim: int | None
  num_heads: int
  dropout: float = 0.0
  scan: bool = False
  remat_policy: str | None = None
  dtype_mm: str = "float32"

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
    options = {
      "mlp_dim": self.mlp_dim,
      "num_heads": self.num_heads,
      "dropout": self.dropout,
      "dtype_mm": self.dtype_mm,
    }
    if self.scan:
      blocks = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,
        length=self.depth,
      )
      x, _ = blocks(name="encoderblock", **options)(x, deterministic)
    else:
      for i in range(self.depth):
        x, _ = block(name=f"encoderblock_{i}", **options)(x, deterministic)
    return nn.LayerNorm(name="encoder_norm")(x)


class MAPHead(nn.Module):
  """Multi-head attention pooling (arXiv 2106.04560, section 3.3)."""

  mlp_dim: int | None
  num_heads: int
  dtype_mm: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, tokens, width) to (batch, width)."""
    batch, _, width = x.shape
    init = nn.initializers.xavier_uniform()
    probe = self.param("probe", init, (1, 1, width), x.dtype)
    x = nn.MultiHeadDotProductAttention(
      num_heads=self.num_heads, kernel_init=init, dtype=self.dtype_mm
    )(jnp.tile(probe, (batch, 1, 1)), x)
    y = nn.LayerNorm()(x)
    return (x + MlpBlock(self.mlp_dim, dtype_mm=self.dtype_mm)(y))[:, 0]


class ViT(nn.Module):
  """Vision Transformer with a linear head.

  Attributes:
    num_classes: outputs of the head; None for features only.
    patch_size: side of a patch in pixels.
    width: size of a token.
    depth: number of blocks.
    mlp_dim: hidden size of the MLPs; None is 4 * width.
    num_heads: attention heads.
    posemb: position embeddings, "learn" or "sincos2d" (fixed).
    pool_type: "gap" (mean), "tok" (class token) or "map" (attention).
    rep_size: size of a tanh layer before the head; 0 for none.
    dropout: rate, in training.
    head_zeroinit: whether the head starts at zero.
    scan: one scanned block with stacked parameters instead of `depth` blocks:
      compiles in constant time.
    remat_policy: a name in `jax.checkpoint_policies`, as "nothing_saveable",
      to recompute blocks in the backward pass; None keeps all activations.
    dtype_mm: dtype of the matrix products; parameters stay float32.
  """

  num_classes: int | None = None
  patch_size: int = 16
  width: int = 768
  depth: int = 12
  mlp_dim: int | None = None
  num_heads: int = 12
  posemb: str = "learn"
  pool_type: str = "gap"
  rep_size: int = 0
  dropout: float = 0.0
  head_zeroinit: bool = True
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
      train: whether dropout is on; needs the rng "dropout" then.

    Returns:
      Logits (batch, num_classes) in float32, and the features (batch, width or
      rep_size) that the head saw; the features twice if num_classes is None.

    Raises:
      ValueError: if an option is unknown or the sizes do not fit.
    """
    self._check(images)
    p = self.patch_size
    x = nn.Conv(
      self.width,
      (p, p),
      strides=(p, p),
      padding="VALID",
      name="embedding",
      dtype=self.dtype_mm,
    )(images)
    batch, rows, columns, width = x.shape
    x = x.reshape(batch, rows * columns, width)
    x = x + self._position_embedding(rows, columns)
    if self.pool_type == "tok":
      cls = self.param("cls", nn.initializers.zeros, (1, 1, width), x.dtype)
      x = jnp.concatenate([jnp.tile(cls, (batch, 1, 1)), x], axis=1)
    x = nn.Dropout(self.dropout)(x, not train)
    x = Encoder(
      depth=self.depth,
      mlp_dim=self.mlp_dim,
      num_heads=self.num_heads,
      dropout=self.dropout,
      scan=self.scan,
      remat_policy=self.remat_policy,
      dtype_mm=self.dtype_mm,
      name="Transformer",
    )(x, not train)
    if self.pool_type == "map":
      x = MAPHead(self.mlp_dim, self.num_heads, self.dtype_mm)(x)
    else:
      x = x[:, 0] if self.pool_type == "tok" else x.mean(axis=1)
    if self.rep_size:
      x = jnp.tanh(nn.Dense(self.rep_size, name="pre_logits")(x))
    # The head stays in float32: its few operations decide.
    features = x.astype(jnp.float32)
    if self.num_classes is None:
      return features, features
    init = (
      nn.initializers.zeros
      if self.head_zeroinit
      else nn.initializers.lecun_normal()
    )
    head = nn.Dense(self.num_classes, name="head", kernel_init=init)
    return head(features), features

  def _position_embedding(self, rows, columns):
    if self.posemb == "sincos2d":
      return sincos2d(rows, columns, self.width)
    return self.param(
      "pos_embedding",
      nn.initializers.normal(stddev=1 / np.sqrt(self.width)),
      (1, rows * columns, self.width),
      jnp.float32,
    )

  def _check(self, images):
    for option, choices in (
      ("pool_type", ("gap", "tok", "map")),
      ("posemb", ("learn", "sincos2d")),
    ):
      if getattr(self, option) not in choices:
        raise ValueError(
          f"{option} must be one of {choices}, got {getattr(self, option)!r}."
        )
    if self.width % self.num_heads:
      raise ValueError(
        f"width {self.width} is not divisible by {self.num_heads} heads."
      )
    height, width = images.shape[1:3]
    if height % self.patch_size or width % self.patch_size:
      raise ValueError(
        f"Patches of {self.patch_size} pixels do not tile images of {height} x "
        f"{width}: resize the images or change patch_size."
      )
