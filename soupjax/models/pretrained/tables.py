# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Rows of the tables of `mappings`, and functions that make several of them.

A row has the name of one of our leaves, its names in a family, and the layout
of its array there. If a leaf has several rows, the first with a name that the
checkpoint has applies.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any, NamedTuple


class Layout(NamedTuple):
  """Conversion between the layouts of a family and of our models.

  Attributes:
    read: `read(array, shape)` converts to our layout, with that shape.
    write: `write(array)` converts from our layout.
    ndim: number of axes in the family; None for any.
  """

  read: Callable[[Any, tuple[int, ...]], Any]
  write: Callable[[Any], Any]
  ndim: int | None = None


def _patches(matrix: Any) -> tuple[int, ...]:
  """Returns (side, side, channels, width) for a matrix (width, values)."""
  width, pixels = matrix.shape
  for channels in (3, 1):
    side = math.isqrt(pixels // channels)
    if side**2 * channels == pixels:
      return (side, side, channels, width)
  raise ValueError(
    f"{pixels} values do not form a square patch of 3 or 1 channels."
  )


LAYOUTS = {
  "same": Layout(lambda x, _: x, lambda x: x),
  # PyTorch's (out, in) and (out, in, height, width).
  "dense": Layout(lambda x, _: x.T, lambda x: x.T),
  "conv": Layout(
    lambda x, _: x.transpose(2, 3, 1, 0),
    lambda x: x.transpose(3, 2, 0, 1),
    ndim=4,
  ),
  # Ours are (width, heads, size) and (heads, size, width).
  "to_heads": Layout(
    lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(len(x), -1).T
  ),
  "from_heads": Layout(
    lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(-1, x.shape[-1]).T
  ),
  "flat": Layout(lambda x, shape: x.reshape(shape), lambda x: x.reshape(-1)),
  # A matrix on flattened patches (height, width, channels).
  "patches": Layout(
    lambda x, shape: x.T.reshape(shape or _patches(x)),
    lambda x: x.reshape(-1, x.shape[-1]).T,
    ndim=2,
  ),
  # Position embeddings without a batch axis.
  "table": Layout(lambda x, _: x[None], lambda x: x[0]),
  # One value per channel, which we store as (1, 1, 1, channels).
  "channels": Layout(
    lambda x, _: x[None, None, None], lambda x: x.reshape(-1), ndim=1
  ),
  # A dense layer stored as a 1 x 1 convolution, in TensorFlow and PyTorch.
  "pixel_dense": Layout(lambda x, _: x[0, 0], lambda x: x[None, None], ndim=4),
  "dense_pixel": Layout(
    lambda x, _: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None], ndim=4
  ),
  # One number, with or without an axis.
  "scalar": Layout(lambda x, shape: x.reshape(shape), lambda x: x.reshape(())),
}


class Row(NamedTuple):
  """The names and layout of one leaf in a family.

  Attributes:
    leaf: our name.
    names: its names in the family; the first one is written.
    layout: a key of `LAYOUTS`.
    part: (k, n) if it is part k (from 0) of n equal parts of an array, along
      axis 0.
    packed: whether the row is only for gated MLPs whose two matrices are stored
      as one (True) or only for all others (False); None for any.
  """

  leaf: str
  names: tuple[str, ...]
  layout: str = "same"
  part: tuple[int, int] = (0, 1)
  packed: bool | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """A kind of checkpoint.

  Attributes:
    about: libraries and models, for errors.
    rows: the table.
    model: name of our model class.
    prefixes: strings that may precede all names.
    class_position: whether the class token has a position embedding, the
      first: "always", "usually" or "seldom". Reading adds it to the token.
    positioned: the tokens before the patches that have position embeddings if
      the class token has one, in order.
    resample: how the library resizes position embeddings, a key of
      `positions.METHODS`.
    without_positions: `posemb` of models without a leaf for positions.
    ignored: name of a rule -> regular expression of leaves that are left out,
      by their names after the prefix or any part of it.
    not_heads: regular expression of linear layers that are not a head of the
      pooled features, despite their name.
    first_norm: our leaf of the first norm of a block, by which the prefix of a
      model inside other modules is found.
    options: options of our model that reproduce the library's outputs.
    acts: activations that models of this family have.
  """

  about: str
  rows: tuple[Row, ...]
  model: str = "ViT"
  prefixes: tuple[str, ...] = ("", "module.")
  class_position: str = "always"
  positioned: tuple[str, ...] = ("cls",)
  resample: str = "corners"
  without_positions: str = "none"
  ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
  not_heads: str = r"^$"
  first_norm: str = "Transformer/encoderblock_{i}/LayerNorm_0/scale"
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  acts: tuple[str, ...] = ("gelu",)


BLOCK = "Transformer/encoderblock_{i}/"
BLOCK_0 = BLOCK.format(i=0)
ATTENTION = "MultiHeadDotProductAttention_0/"

QKV = ("query", "key", "value")
# Kind of layer -> name of its weight, layout of its weight and of its bias.
_KINDS = {
  "norm": ("scale", "same", "same"),
  "dense": ("kernel", "dense", "same"),
  "conv": ("kernel", "conv", "same"),
  "to_heads": ("kernel", "to_heads", "flat"),
  "from_heads": ("kernel", "from_heads", "same"),
}


def layer(
  kind: str,
  ours: str,
  *modules: str,
  part: tuple[int, int] = (0, 1),
  packed: bool | None = None,
) -> tuple[Row, ...]:
  """Returns the rows of a weight and a bias, in any of PyTorch's `modules`."""
  weight, layout, bias_layout = _KINDS[kind]
  weights = tuple(f"{module}weight" for module in modules)
  biases = tuple(f"{module}bias" for module in modules)
  return (
    Row(f"{ours}/{weight}", weights, layout, part, packed),
    Row(f"{ours}/bias", biases, bias_layout, part, packed),
  )


def fused(ours: str, parts: tuple[str, ...], *modules: str) -> tuple[Row, ...]:
  """Returns the rows of projections that are stored as one matrix."""
  rows: tuple[Row, ...] = ()
  for k, name in enumerate(parts):
    leaf, part = f"{ours}{ATTENTION}{name}", (k, len(parts))
    rows += layer("to_heads", leaf, *modules, part=part)
  return rows


def split(ours: str, modules: Mapping[str, tuple[str, ...]]):
  """Returns the rows of projections that are stored as separate matrices."""
  rows: tuple[Row, ...] = ()
  for name, names in modules.items():
    rows += layer("to_heads", f"{ours}{ATTENTION}{name}", *names)
  return rows


def block(
  projections: tuple[Row, ...],
  out: tuple[str, ...],
  norms: tuple[tuple[str, ...], tuple[str, ...]],
  mlp: tuple[tuple[str, ...], tuple[str, ...]],
  packed: bool | None = None,
) -> tuple[Row, ...]:
  """Returns the rows of an encoder block, from the names of its modules."""
  return (
    *projections,
    *layer("from_heads", f"{BLOCK}{ATTENTION}out", *out),
    *layer("norm", f"{BLOCK}LayerNorm_0", *norms[0]),
    *layer("norm", f"{BLOCK}LayerNorm_1", *norms[1]),
    *layer("dense", f"{BLOCK}MlpBlock_0/Dense_0", *mlp[0], packed=packed),
    *layer("dense", f"{BLOCK}MlpBlock_0/Dense_1", *mlp[1]),
  )


def scales(*names: tuple[str, ...]) -> tuple[Row, ...]:
  """Returns the rows of the layer scales after attention and after the MLP."""
  return tuple(
    Row(f"{BLOCK}LayerScale_{k}/gamma", n) for k, n in enumerate(names)
  )


def same(*names: str) -> tuple[Row, ...]:
  """Returns the rows of leaves that have our names."""
  return tuple(Row(name, (name,)) for name in names)


def weights(*layers: str, weight: str = "kernel") -> list[str]:
  """Returns the names of a weight and a bias in each of our layers."""
  return [f"{layer}/{p}" for layer in layers for p in (weight, "bias")]
