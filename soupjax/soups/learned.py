# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Learned soups (arXiv 2203.05482, Appendix I) in the memory of a few models.

The soup is theta = sum_i a_i theta_i with a = softmax(g). With G the gradient
of the held-out loss at theta,

  dL/dg_i = a_i <G, theta_i - theta>

(for every group of leaves that has coefficients of its own, over the leaves of
that group). So a step is one ordinary gradient and, for every ingredient in
turn, one dot product: no graph over K models, and never two ingredients besides
the soup at a time.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import functools
import itertools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups import tree
from soupjax.soups.ingredient import Ingredient, check_finite, check_ingredients

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedSoup:
  """A learned soup.

  Attributes:
    params: the soup, with the dtypes of the first ingredient.
    names: the ingredients, in the order of the coefficients.
    alphas: group of leaves -> (K,) coefficients, positive, of sum 1. The one
      group is "model" for granularity "model".
    beta: the learned logit scale. It changes no prediction.
    history: for every step `{"step", "loss", "beta"}`; the loss before the
      step, so the first is that of the uniform soup.
  """

  params: PyTree
  names: tuple[str, ...]
  alphas: dict[str, np.ndarray]
  beta: float
  history: tuple[dict[str, float], ...]


def layer_of(leaf: str) -> str:
  """Names the layer a leaf belongs to: its numbered block, or its module.

  Args:
    leaf: a name like "Transformer/encoderblock_3/LayerNorm_0/scale" or
      "blocks.3.norm1.weight".

  Returns:
    The path up to the first numbered part ("Transformer/encoderblock_3",
    "blocks.3"); without one, the path less its last part ("head" for
    "head/kernel"); for a leaf by itself, its name.
  """
  parts = list(re.finditer(r"[^/.]+", leaf))
  for part in parts:
    if re.fullmatch(r"(.*[_-])?\d+", part.group()):
      return leaf[: part.end()]
  return leaf[: parts[-2].end()] if len(parts) > 1 else leaf


@dataclasses.dataclass(frozen=True)
class _Layout:
  """Where each leaf's coefficients are in one flat vector of slots."""

  groups: tuple[str, ...]
  slot_groups: tuple[int, ...]
  leaves: tuple[tuple[int, int] | None, ...]  # (first slot, count); None: int

  def spread(self, leaf: int, slots: jax.Array, ndim: int) -> jax.Array:
    """The coefficients of one leaf, shaped to multiply it."""
    start, count = self.leaves[leaf]
    if count is None:
      return slots[start]
    return slots[start : start + count].reshape((count,) + (1,) * (ndim - 1))

  def sums(self, leaf: int, products: jax.Array) -> jax.Array:
    """Sums a leaf's products into its slots."""
    if self.leaves[leaf][1] is None:
      return products.sum()[None]
    return products.reshape(products.shape[0], -1).sum(1)


def _make_layout(specs, granularity, layer_of, stacked) -> _Layout:
  groups: dict[str, int] = {}
  slot_groups, leaves = [], []
  for leaf, spec in specs.items():
    if not tree.is_float(spec):
      leaves.append(None)
      continue
    found = stacked is not None and re.search(stacked, leaf)
    is_stack = found and granularity != "model" and spec.shape
    if granularity != "layer":
      name = {"model": "model", "tensor": leaf}[granularity]
    elif is_stack:
      # The layers of a loop over blocks: one for all modules of a block.
      name = leaf[: found.end()].rstrip("/.")
    else:
      name = layer_of(leaf)
    names = (
      [f"{name}[{i}]" for i in range(spec.shape[0])] if is_stack else [name]
    )
    leaves.append((len(slot_groups), len(names) if is_stack else None))
    slot_groups += [groups.setdefault(n, len(groups)) for n in names]
  return _Layout(tuple(groups), tuple(slot_groups), tuple(leaves))


@functools.partial(jax.jit, static_argnames="layout")
def _accumulate(total, first, params, slots, *, layout):
  """Adds coefficient * (params - first), leaf by leaf; total None is zero."""
  out = []
  for k, (a, b) in enumerate(zip(first, params)):
    if layout.leaves[k] is None:
      out.append(None)
      continue
    delta = b.astype(jnp.float32) - a.astype(jnp.float32)
    step = layout.spread(k, slots, delta.ndim) * delta
    out.append(step if total is None else total[k] + step)
  return out


@jax.jit
def _finish(total, first):
  return [
    # Where all agree: keeps the sign of a zero and denormal numbers.
    a if s is None else jnp.where(s == 0, wide, wide + s)
    for s, a, wide in zip(total, first, [a.astype(jnp.float32) for a in first])
  ]


@functools.partial(jax.jit, static_argnames="layout")
def _dots(grads, params, soup, *, layout):
  """<G, theta_i - theta> for every slot."""
  return jnp.concatenate(
    [
      layout.sums(k, g * (b.astype(jnp.float32) - s))
      for k, (g, b, s) in enumerate(zip(grads, params, soup))
      if layout.leaves[k] is not None
    ]
  )


class _AdamW:
  """AdamW (arXiv 1711.05101) on a few numbers on the host, in float64."""

  def __init__(self, learning_rate, weight_decay, b1=0.9, b2=0.999, eps=1e-8):
    self.lr, self.wd, self.b1, self.b2 = learning_rate, weight_decay, b1, b2
    self.eps, self.step, self.mu, self.nu = eps, 0, 0.0, 0.0

  def update(self, x: np.ndarray, grad: np.ndarray) -> np.ndarray:
    self.step += 1
    self.mu = self.b1 * self.mu + (1 - self.b1) * grad
    self.nu = self.b2 * self.nu + (1 - self.b2) * grad**2
    mu = self.mu / (1 - self.b1**self.step)
    nu = self.nu / (1 - self.b2**self.step)
    return x - self.lr * (mu / (np.sqrt(nu) + self.eps) + self.wd * x)


def learned_soup(
  ingredients: Sequence[Ingredient],
  loss: Callable[..., jax.Array],
  *,
  granularity: str = "layer",
  steps: int,
  learning_rate: float = 0.1,
  weight_decay: float = 0.0,
  learn_beta: bool = True,
  batches: Iterable[Any] | None = None,
  layer_of: Callable[[str], str] = layer_of,
  stacked: str | None = None,
  sharding: Any = None,
  on_step: Callable[[dict[str, float]], None] | None = None,
) -> LearnedSoup:
  """Learns mixing coefficients on held-out data, from the uniform soup on.

  Memory: the soup, its gradient, the first ingredient and the one being read,
  whatever their number. Every ingredient is read twice a step; for a small
  model pass `[i.in_memory() for i in ingredients]`.

  Args:
    ingredients: at least two.
    loss: `loss(params, beta)`, the loss on all held-out data with logits
      multiplied by the scalar beta; `loss(params, beta, batch)` if `batches`
      is given. Must be traceable: it is compiled once.
    granularity: "model" learns K coefficients, "layer" K for every layer,
      "tensor" K for every leaf (as the paper's released code does).
    steps: optimisation steps, a positive number.
    learning_rate: of AdamW, constant.
    weight_decay: of AdamW, decoupled; pulls towards the uniform soup.
    learn_beta: whether the logit scale is learned or stays 1.
    batches: an iterable with at least `steps` batches.
    layer_of: leaf name -> layer name, for granularity "layer".
    stacked: regex of leaves whose leading axis counts layers (a scanned
      encoder, `"encoderblock/"`), for granularity "layer" and "tensor". For
      "layer", what is left of the leaf's name at the end of the match names
      the layers: "Transformer/encoderblock[3]", for all modules of a block.
    sharding: where ingredients go, as in `Ingredient.load`.
    on_step: called with every entry of the history.

  Returns:
    The soup, its coefficients and the losses on the way.

  Raises:
    ValueError: if there are fewer than two ingredients, trees differ, one has
      NaN or infinity, an argument is out of range, batches run out, or the
      loss becomes NaN.
  """
  ingredients = list(ingredients)
  _check_arguments(ingredients, granularity, steps, learning_rate, weight_decay)
  check_ingredients(ingredients)
  check_finite(ingredients)
  specs, treedef = ingredients[0].specs, ingredients[0].treedef
  layout = _make_layout(specs, granularity, layer_of, stacked)
  slot_groups = np.asarray(layout.slot_groups)

  def leaves_of(ingredient):
    return jax.tree.leaves(ingredient.load(sharding=sharding))

  first = leaves_of(ingredients[0])

  def mix(alphas):
    # The first ingredient's difference from itself is zero: skip it.
    total = None
    for k, ingredient in enumerate(ingredients[1:], start=1):
      slots = np.float32(alphas[slot_groups, k])
      total = _accumulate(
        total, first, leaves_of(ingredient), slots, layout=layout
      )
    return _finish(total, first)

  def loss_of(floats, beta, *batch):
    leaves = list(first)
    for k, value in floats.items():
      leaves[k] = value
    return loss(jax.tree.unflatten(treedef, leaves), beta, *batch)

  value_and_grad = jax.jit(jax.value_and_grad(loss_of, argnums=(0, 1)))

  logits = np.zeros((len(layout.groups), len(ingredients)))
  log_beta, history = np.zeros(()), []
  adamw = _AdamW(learning_rate, weight_decay)
  adamw_beta = _AdamW(learning_rate, 0.0)
  batches = _endless() if batches is None else _checked(batches, steps)
  for step, batch in zip(range(steps), batches):
    alphas = _softmax(logits)
    soup = mix(alphas)
    floats = {k: s for k, s in enumerate(soup) if layout.leaves[k] is not None}
    value, (grads, beta_grad) = value_and_grad(
      floats, np.float32(np.exp(log_beta)), *batch
    )
    if not math.isfinite(float(value)):
      raise ValueError(
        f"The held-out loss is {float(value)} at step {step} of the learned "
        "soup. Lower learning_rate, or look for a model that diverged."
      )
    all_grads = [grads.get(k) for k in range(len(first))]
    dots = np.stack(
      [_dots(all_grads, leaves_of(i), soup, layout=layout) for i in ingredients]
    ).astype(np.float64)
    grad = np.zeros_like(logits)
    np.add.at(grad, slot_groups, dots.T)
    history.append(
      {"step": step, "loss": float(value), "beta": float(np.exp(log_beta))}
    )
    if on_step:
      on_step(history[-1])
    logits = adamw.update(logits, alphas * grad)
    if learn_beta:
      scaled = float(beta_grad) * np.exp(log_beta)
      log_beta = adamw_beta.update(log_beta, scaled)

  alphas = _softmax(logits)
  params = [
    # Not through a compiled function, which would cut int64 to int32.
    leaf.astype(spec.dtype) if tree.is_float(spec) else unchanged
    for leaf, spec, unchanged in zip(mix(alphas), specs.values(), first)
  ]
  return LearnedSoup(
    params=jax.tree.unflatten(treedef, params),
    names=tuple(i.name for i in ingredients),
    alphas=dict(zip(layout.groups, alphas)),
    beta=float(np.exp(log_beta)),
    history=tuple(history),
  )


def _softmax(x: np.ndarray) -> np.ndarray:
  e = np.exp(x - x.max(axis=1, keepdims=True))
  return e / e.sum(axis=1, keepdims=True)


def _endless():
  return itertools.repeat(())


def _checked(batches, steps):
  count = 0
  for batch in batches:
    count += 1
    yield (batch,)
  if count < steps:
    raise ValueError(
      f"Got {count} batches for {steps} steps: repeat the held-out data, or "
      "take fewer steps."
    )


def _check_arguments(ingredients, granularity, steps, learning_rate, decay):
  if len(ingredients) < 2:
    raise ValueError(
      f"A learned soup needs at least two ingredients, got {len(ingredients)}."
    )
  if granularity not in ("model", "layer", "tensor"):
    raise ValueError(
      f"granularity must be 'model', 'layer' or 'tensor', got {granularity!r}."
    )
  if steps < 1:
    raise ValueError(f"steps must be positive, got {steps}.")
  if not (math.isfinite(learning_rate) and learning_rate > 0):
    raise ValueError(f"learning_rate must be positive, got {learning_rate}.")
  if not (math.isfinite(decay) and decay >= 0):
    raise ValueError(f"weight_decay must not be negative, got {decay}.")
