# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""LoRA and IA3: a few trained leaves beside the frozen weights they change."""

from collections.abc import Callable
import dataclasses
import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from soupjax.soups.core import layers, tree

PyTree = Any

KINDS = ("lora", "ia3")
# Default targets, as in the paper of each method, by their names in our models.
_TARGETS = {
  "lora": r"(query|value)/kernel$",
  "ia3": r"(key|value|Dense_1)/kernel$",
}
_LEAVES = {"lora": ("_lora_a", "_lora_b"), "ia3": ("_ia3",)}
# IA3 scales the inputs of the second layer of an MLP, and outputs elsewhere.
_INPUTS = re.compile(r"(^|/)Dense_1/kernel$")


@dataclasses.dataclass(frozen=True)
class Adapter:
  """An adapter of a model.

  Attributes:
    kind: "lora" (arXiv 2106.09685) or "ia3" (arXiv 2205.05638).
    rank: rank of LoRA's factors.
    alpha: the product of LoRA's factors is multiplied by alpha / rank.
    targets: regular expression of the kernels to adapt; "" takes queries and
      values for LoRA, and keys, values and the second layers of MLPs for IA3.
  """

  kind: str
  rank: int = 8
  alpha: float = 8.0
  targets: str = ""

  @property
  def scale(self) -> float:
    """Returns the number that multiplies the product of the factors."""
    return self.alpha / self.rank

  def leaves_of(self, kernel: str) -> tuple[str, ...]:
    """Returns the names of the leaves that change a kernel."""
    return tuple(kernel + suffix for suffix in _LEAVES[self.kind])

  def kernels(self, params: PyTree) -> dict[str, Any]:
    """Returns the kernels to adapt, by name.

    Raises:
      ValueError: if there are none, or a target is not a kernel.
    """
    pattern = self.targets or _TARGETS[self.kind]
    leaves, _ = tree.flatten(params)
    kernels = {k: v for k, v in leaves.items() if re.search(pattern, k)}
    bad = [k for k in kernels if not k.endswith("/kernel") or _is_head(k)]
    if bad or not kernels:
      raise ValueError(
        f"adapter.targets={pattern!r} matches {bad[:3] or 'no leaf'}: it must "
        "match kernels of layers below the head, such as "
        f"{[k for k in leaves if k.endswith('/kernel')][:3]}."
      )
    return kernels

  @property
  def frozen(self) -> str:
    """A regular expression of the leaves that are not trained."""
    suffixes = "|".join(_LEAVES[self.kind])
    return rf"^(?!head(_dist)?/)(?!.*({suffixes})$)"

  def added(self, params: PyTree, key: jax.Array) -> PyTree:
    """Returns parameters with adapter leaves that do not change the model yet.

    Args:
      params: parameters of the model, as nested dicts.
      key: random key of LoRA's first factors.
    """
    for k, (name, kernel) in enumerate(self.kernels(params).items()):
      count, inputs, outputs = _sizes(name, kernel)
      outer = (count,) if count else ()
      if self.kind == "lora":
        bound = 1 / math.sqrt(inputs)
        values = (
          jax.random.uniform(
            jax.random.fold_in(key, k),
            (*outer, inputs, self.rank),
            minval=-bound,
            maxval=bound,
          ),
          jnp.zeros((*outer, self.rank, outputs)),
        )
      else:
        size = inputs if _INPUTS.search(name) else outputs
        values = (jnp.ones((*outer, size)),)
      for leaf, value in zip(self.leaves_of(name), values):
        params = _with(params, leaf.split("/"), value)
    return params

  def merged(self, params: PyTree) -> PyTree:
    """Returns the model's parameters, with the adapter merged into them."""
    own = tuple(_LEAVES[self.kind])
    leaves, _ = tree.flatten(params)
    for name in [k for k in leaves if k.endswith(own[0])]:
      kernel = name.removesuffix(own[0])
      values = [leaves[leaf] for leaf in self.leaves_of(kernel)]
      parts = kernel.split("/")
      for leaf in self.leaves_of(kernel):
        params = _without(params, leaf.split("/"))
      old = leaves[kernel]
      if self.kind == "lora":
        delta = self.scale * jnp.matmul(
          *values, precision=jax.lax.Precision.HIGHEST
        )
        new = old + delta.reshape(old.shape).astype(old.dtype)
        params = _with(params, parts, new)
        continue
      params = _with(params, parts, _scaled(kernel, old, values[0]))
      bias = kernel.removesuffix("kernel") + "bias"
      if bias in leaves and not _INPUTS.search(kernel):
        scaled = leaves[bias] * values[0].reshape(leaves[bias].shape)
        params = _with(params, bias.split("/"), scaled)
    return params


def _scaled(name, kernel, vector):
  count, inputs, outputs = _sizes(name, kernel)
  outer = (count,) if count else ()
  matrix = kernel.reshape(*outer, inputs, outputs)
  axis = -1 if _INPUTS.search(name) else -2
  return (matrix * jnp.expand_dims(vector, axis)).reshape(kernel.shape)


def scales_inputs(kernel: str) -> bool:
  """Whether IA3 scales the inputs of a kernel rather than its outputs."""
  return _INPUTS.search(kernel) is not None


class Adapted:
  """A model whose parameters include the leaves of an adapter.

  It has the methods and attributes that a training step uses.
  """

  def __init__(self, model: nn.Module, adapter: Adapter):
    """Wraps a model.

    Args:
      model: the model without adapter.
      adapter: the adapter to merge before each call.
    """
    self._model, self._adapter = model, adapter
    self.num_classes = model.num_classes
    self.apply: Callable[..., Any] = self._apply

  def _apply(self, variables, *args, **kwargs):
    params = self._adapter.merged(variables["params"])
    return self._model.apply({**variables, "params": params}, *args, **kwargs)


def _is_head(name: str) -> bool:
  return name.startswith(("head/", "head_dist/"))


def _sizes(name: str, kernel: Any) -> tuple[int, int, int]:
  """Returns the number of stacked blocks (0 if none), inputs and outputs."""
  stacked = bool(layers.block_names(name, kernel.shape[0]))
  shape = kernel.shape[int(stacked) :]
  # Kernels of attention are (width, heads, size), "out" (heads, size, width).
  split = len(shape) - 1 if name.endswith("/out/kernel") else 1
  count = kernel.shape[0] if stacked else 0
  return count, math.prod(shape[:split]), math.prod(shape[split:])


def _with(params, path, value):
  first, *rest = path
  inner = _with(params[first], rest, value) if rest else value
  return {**params, first: inner}


def _without(params, path):
  first, *rest = path
  if rest:
    return {**params, first: _without(params[first], rest)}
  return {k: v for k, v in params.items() if k != first}
