# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Vision Transformer (arXiv 2010.11929), from a toy to ViT-e (2209.06794).

Parameters have big_vision's names and shapes, so its checkpoints load without
renaming.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from soupjax.models import encoder, layers, rope

POOLS = ("gap", "tok", "tok+gap", "0", "map", "none")
# Table 2 of arXiv 2106.04560, except So400m (2305.13035), e (2209.06794), and
# mu, which is for tests.
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


class ViT(nn.Module):
  """Vision Transformer with a linear head.

  The defaults are big_vision's. Options from `act` to `rope_grid` are for
  models of other libraries: `pretrained.detect` returns their values.

  Attributes:
    num_classes: outputs of the head; None for features only.
    patch_size: side of a patch in pixels.
    width: size of a token.
    depth: number of blocks.
    mlp_dim: hidden size of the MLPs; None is 4 * width.
    num_heads: attention heads; None raises an error that asks for it.
    posemb: position embeddings, "learn", "sincos2d" (fixed) or "none".
    pool_type: "gap" (mean), "tok" (class token), "tok+gap" (both,
      concatenated), "0" (first patch), "map" (attention) or "none" (logits for
      every token).
    class_token: adds a class token even if `pool_type` does not need one.
    rep_size: size of a tanh layer before the head; 0 for none.
    proj_size: size of a projection without bias before the head (CLIP); 0 for
      none.
    normalize: whether features are scaled to length 1 before the head, as
      zero-shot weights of CLIP require; None (not specified) does not scale.
    dropout: rate, in training.
    stochastic_depth: probability that an example skips the last block in
      training; it grows linearly from 0 in the first block.
    head_zeroinit: whether the head starts at zero.
    act: "gelu" (the tanh approximation), "gelu_exact", "quick_gelu" or "silu".
    norm_eps: epsilon of all norms.
    pre_norm: adds a norm before the first block (CLIP).
    post_norm: whether the norms of a block follow its branches instead of
      preceding them.
    final_norm: whether a norm follows the last block.
    fc_norm: applies the final norm after pooling instead of before (timm).
    patch_bias: whether the patch embedding has a bias.
    qkv_bias: which projections have a bias: initials of query, key and value.
    qk_norm: adds norms of queries and keys, per head (arXiv 2302.05442).
    attention_norm: adds a norm before the output projection of attention.
    gated: whether MLPs are gated; SwiGLU if act="silu" (2002.05202).
    mlp_norm: adds a norm of the hidden values of MLPs.
    layer_scale: initial value of the learned factors of the channels of each
      branch (2103.17239); 0 for no factors.
    registers: number of register tokens (2309.16588).
    distilled: adds a distillation token (2012.12877).
    distilled_head: whether that token has its own head; logits are then the
      mean of both heads.
    pool_prefix: whether "gap" and "map" include the tokens before the patches.
    pool_heads: heads of attention pooling; None is num_heads.
    pool_mlp_dim: hidden size in attention pooling; None is mlp_dim.
    rope: rotary position embeddings, a key of `rope.ROPES`; "" for none. None
      raises an error that asks for it.
    rope_grid: side of the grid that coordinates of patches are scaled to; 0 for
      no scaling.
    attention: implementation of `jax.nn.dot_product_attention`: "xla", "cudnn"
      (GPU, 16-bit dtypes), or None for the default.
    scan: scans over one block with stacked parameters instead of unrolling
      `depth` blocks; compile time then does not depend on depth.
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
  post_norm: bool = False
  final_norm: bool = True
  fc_norm: bool = False
  patch_bias: bool = True
  qkv_bias: str = "qkv"
  qk_norm: bool = False
  attention_norm: bool = False
  gated: bool = False
  mlp_norm: bool = False
  layer_scale: float = 0.0
  registers: int = 0
  distilled: bool = False
  distilled_head: bool = True
  pool_prefix: bool = False
  pool_heads: int | None = None
  pool_mlp_dim: int | None = None
  rope: str | None = ""
  rope_grid: int = 0
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
      Logits (batch, num_classes) and features (batch, size), the input of the
      head, in float32; the features twice if num_classes is None. Their size is
      that of the last layer before the head. With pool_type "none" both have an
      axis for tokens after the first. The features of a distilled model are
      those of its class token.

    Raises:
      ValueError: if an option is unknown or the sizes do not fit.
    """
    self._check(images)
    x, prefix = self._tokens(images)
    x = nn.Dropout(self.dropout)(x, not train)
    x = encoder.Encoder(
      depth=self.depth,
      block={name: getattr(self, name) for name in encoder.BLOCK},
      stochastic_depth=self.stochastic_depth,
      norm=self.final_norm and not self.fc_norm,
      scan=self.scan,
      remat_policy=self.remat_policy,
      name="Transformer",
    )(x, not train, self._turns(images, prefix))
    tokens = x
    first = 0 if self.pool_prefix else prefix
    if self.pool_type == "map":
      x = encoder.MAPHead(
        self.pool_mlp_dim or self.mlp_dim,
        self.pool_heads or self.num_heads,
        self.act,
        self.norm_eps,
      )(x[:, first:])
    elif self.pool_type == "gap":
      x = x[:, first:].mean(axis=1)
    elif self.pool_type == "0":
      x = x[:, prefix]
    elif self.pool_type == "tok":
      x = x[:, 0]
    elif self.pool_type == "tok+gap":
      x = jnp.concatenate([x[:, 0], x[:, first:].mean(axis=1)], axis=-1)
    if self.fc_norm:
      x = nn.LayerNorm(self.norm_eps, name="fc_norm")(x)
    logits, features = self._head(x)
    if self.distilled and self.distilled_head and self.num_classes is not None:
      head = nn.Dense(self.num_classes, name="head_dist")
      logits = (logits + head(tokens[:, 1].astype(jnp.float32))) / 2
    return logits, features

  def _tokens(self, images):
    """Returns (batch, tokens, width), and how many precede the patches."""
    x = layers.patch_conv(
      self.width,
      self.patch_size,
      use_bias=self.patch_bias,
      name="embedding",
      dtype=self.dtype_mm,
    )(images)
    batch, rows, columns, width = x.shape
    x = x.reshape(batch, rows * columns, width)
    if self.posemb != "none":
      x = x + self._position_embedding(rows, columns)
    # The residual stream is float32.
    x = x.astype(jnp.float32)
    extra = []
    for name, count in (
      ("cls", int("tok" in self.pool_type or self.class_token)),
      ("dist_token", int(self.distilled)),
      ("reg_tokens", self.registers),
    ):
      if count:
        init = nn.initializers.zeros
        if name == "reg_tokens":  # Equal tokens would stay equal.
          init = nn.initializers.normal(0.02)
        token = self.param(name, init, (1, count, width), x.dtype)
        extra.append(jnp.tile(token, (batch, 1, 1)))
    patches = x.shape[1]
    if extra:
      x = jnp.concatenate([*extra, x], axis=1)
    if self.pre_norm:
      x = nn.LayerNorm(self.norm_eps, name="pre_norm")(x)
    return x, x.shape[1] - patches

  def _turns(self, images, prefix):
    """Returns the angles of all tokens for `rope.rotate`, None for no rope."""
    if not self.rope:
      return None
    rows, columns = (n // self.patch_size for n in images.shape[1:3])
    size = self.width // self.num_heads
    rope.check_size(size)
    kind = rope.ROPES[self.rope]
    if kind.learned:
      frequencies = self.param(
        "pos_frequencies",
        rope.initial_frequencies,
        (2, self.depth, self.num_heads, size // 2),
        kind.temperature,
      )
      turns = rope.learned_angles(self.rope, frequencies, rows, columns)
    else:
      turns = rope.angles(self.rope, rows, columns, size, self.rope_grid)
    # Tokens before the patches are not rotated.
    pads = [(0, 0)] * turns.ndim
    pads[-3] = (prefix, 0)
    return jnp.pad(turns, pads)

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
        f"There are position embeddings for {given.shape[1]} patches, but the "
        f"images have {rows} x {columns} = {shape[1]}: resize the images, or "
        f"load the weights with image_size=({rows * self.patch_size}, "
        f"{columns * self.patch_size})."
      )
    init = nn.initializers.normal(stddev=1 / np.sqrt(self.width))
    return self.param("pos_embedding", init, shape, jnp.float32)

  def _check(self, images):
    if self.rope is None:
      raise ValueError(
        "It is unknown whether queries and keys are rotated: this does not "
        "follow from the weights. Give rope=, one of "
        f"{', '.join(map(repr, rope.ROPES))}, or '' for none; or put the "
        "model's config.json beside the weights."
      )
    for option, choices in (
      ("pool_type", POOLS),
      ("posemb", ("learn", "sincos2d", "none")),
      ("act", tuple(layers.ACTIVATIONS)),
      ("attention", (None, "xla", "cudnn")),
      ("qkv_bias", ("", "q", "k", "v", "qk", "qv", "kv", "qkv")),
      ("rope", ("", *rope.ROPES)),
    ):
      layers.check_choice(option, getattr(self, option), choices)
    if self.remat_policy is not None:
      policies = [p for p in dir(jax.checkpoint_policies) if p[0] != "_"]
      layers.check_choice("remat_policy", self.remat_policy, policies)
    if self.class_token and self.pool_type in ("tok", "tok+gap", "0"):
      raise ValueError(
        "class_token needs pool_type 'gap', 'map' or 'none', not "
        f"{self.pool_type!r}. 'tok' and 'tok+gap' always have a class token."
      )
    if self.distilled and self.pool_type != "tok":
      raise ValueError(
        f"distilled=True needs pool_type 'tok', not {self.pool_type!r}."
      )
    if self.num_heads is None:
      raise ValueError(
        "The number of attention heads is unknown: it does not follow from the "
        f"weights. Give num_heads=, a divisor of the width {self.width}."
      )
    for key in ("num_heads", "pool_heads"):
      if self.width % (getattr(self, key) or 1):
        raise ValueError(
          f"width {self.width} is not divisible by {key}={getattr(self, key)}."
        )
    layers.check_patches(images, self.patch_size)
