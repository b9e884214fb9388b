# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Weighted means whose bits depend on the numbers alone.

A compiler may turn `a * b + c` into one fused operation or leave it as two, and
XLA decides that anew for every program: the plain formula gives other last bits
for another block size, mesh or number of ingredients. Here every product is of
two 12-bit halves, hence exact in float32, so that fusing changes nothing, and
the rounding errors of the sums are carried along (the two-sum of Knuth, TAOCP
4.2.2). What comes out is

  t_0 + sum_k w_k (t_k - t_0) / sum_k w_k

in float32. Against the exact mean, the error is about 1 ulp of the result (1.11
is the most that was measured) unless the models cancel to less than a
thousandth of their size: it is a relative 2**-35 of the differences t_k - t_0.
Weights from `pair` are as good as 36 bits. What is below the normal numbers of
float32 (1.2e-38), a difference or a rounding error of a number below 1e-30, may
count as zero, as processors have it. Equal leaves come back bit for bit.

Integer and boolean leaves do not belong here.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Pair = tuple[jax.Array, jax.Array]
# High and low parts of the sums of all leaves.
Sums = tuple[list[jax.Array], list[jax.Array]]


def _two_sum(a, b):
  """a + b rounded, and the rounding error, exactly."""
  total = a + b
  seen = total - a
  return total, (a - (total - seen)) + (b - seen)


def _head(x):
  """x without the low half of its significand."""
  if x.dtype == np.float64:
    bits, mask = np.uint64, np.uint64(0xFFFFFFFFF8000000)
  else:
    bits, mask = np.uint32, np.uint32(0xFFFFF000)
  kept = jax.lax.bitcast_convert_type(x, bits) & mask
  return jax.lax.bitcast_convert_type(kept, x.dtype)


def wide(leaf: jax.Array) -> jax.Array:
  """Casts to the dtype of the accumulator: float32, or float64 for float64."""
  # Not jnp.promote_types, which refuses 8-bit floats.
  return leaf.astype(np.float64 if leaf.dtype == np.float64 else np.float32)


def zero(first: jax.Array) -> Pair:
  """The empty sum for a leaf."""
  nothing = jnp.zeros_like(wide(first))
  return nothing, nothing


def add(
  total: Pair,
  first: jax.Array,
  leaf: jax.Array,
  weight: jax.Array | None = None,
  rest: jax.Array | None = None,
) -> Pair:
  """Adds `(weight + rest) * (leaf - first)` to a sum.

  Args:
    total: so far.
    first: the leaf that differences are taken from.
    leaf: another.
    weight: a number, or one an element; None is 1.
    rest: what float32 cannot hold of the weight, see `pair`; None is 0.
  """
  high, low = total
  delta, error = _two_sum(wide(leaf), -wide(first))
  if weight is None:
    high, lost = _two_sum(high, delta)
    return high, low + (lost + error)
  weight = weight.astype(delta.dtype)
  w, d = _head(weight), _head(delta)
  v, c = weight - w, delta - d
  high, lost = _two_sum(high, w * d)
  fine = v * c + w * _head(error)
  if rest is not None:
    fine = fine + _head(rest.astype(delta.dtype)) * d
  return high, low + ((lost + (w * c + v * d)) + fine)


def mean(total: Pair, first: jax.Array, scale: jax.Array) -> jax.Array:
  """Returns `first + scale * total`, rounded once, in the wide dtype.

  Args:
    total: from `add`.
    first: the leaf that differences were taken from.
    scale: from `reciprocal`.
  """
  high, low = _two_sum(*total)
  a, b, c = scale.astype(high.dtype)
  h = _head(high)
  t = high - h
  rest = (a * t + b * h) + ((b * t + c * h) + a * _head(low))
  near, lost = _two_sum(wide(first), a * h)
  # Also keeps the sign of a zero and denormal numbers as they are.
  same = (high == 0) & (low == 0)
  return jnp.where(same, wide(first), near + (lost + rest))


def reciprocal(total: float) -> np.ndarray:
  """Returns 1 / total as three float32 numbers of 12 bits each, (3,)."""
  return parts(1.0 / float(total))


def parts(number: float) -> np.ndarray:
  """Returns a number as three float32 numbers of 12 bits each, (3,)."""
  rest, parts = float(number), []
  for _ in range(3):
    part = np.array(rest, np.float32).view(np.uint32) & np.uint32(0xFFFFF000)
    parts.append(part.view(np.float32))
    rest -= float(parts[-1])
  return np.stack(parts)


def pair(numbers: Sequence[float] | np.ndarray) -> np.ndarray:
  """Splits float64 numbers into float32 and what is left, (2, K) float32."""
  exact = np.asarray(numbers, np.float64)
  near = exact.astype(np.float32)
  return np.stack([near, (exact - near).astype(np.float32)])


def mean_coefficients(weights: Sequence[float]) -> dict[str, np.ndarray]:
  """Arguments of `linear` for `sum_k w_k t_k / sum_k w_k`.

  Args:
    weights: one number a model, of size 1 at most (`arguments.soup_weights`).
  """
  weights = np.asarray(weights, np.float64)
  return {"weights": pair(weights), "scale": reciprocal(weights.sum())}


def delta_coefficients(
  weights: Sequence[float], scale: float = 1.0
) -> dict[str, np.ndarray]:
  """Arguments of `linear` for `t_0 + scale * sum_k w_k (t_k - t_0)`, k > 0.

  Args:
    weights: one number for each model but the first, which differs from itself
      by zero.
    scale: of the sum.
  """
  weights = np.append(0.0, np.asarray(weights, np.float64))
  return {"weights": pair(weights), "scale": parts(scale)}


def halves(numbers: jax.Array) -> jax.Array:
  """Splits float32 numbers, one an element, for `mean`; (3, ...)."""
  head = _head(numbers)
  return jnp.stack([head, numbers - head, jnp.zeros_like(head)])


@functools.partial(jax.jit, static_argnames="weighted")
def linear(
  stack: Sequence[jax.Array],
  weights: jax.Array,
  scale: jax.Array,
  *,
  weighted: bool = True,
) -> jax.Array:
  """Weighted mean of one leaf over K ingredients.

  Args:
    stack: K float arrays of one shape.
    weights: (K,) float32, or (2, K) from `pair`; (2, K, ...) with axes that
      are broadcast to the leaves', where elements have weights of their own.
    scale: `reciprocal` of the sum of the weights, (3,) or (3, ...).
    weighted: False says that all weights are 1, and saves the products.

  Returns:
    An array of that shape in float32 (float64 if the leaves are).
  """
  first = stack[0]
  total = zero(first)
  for k in range(1, len(stack)):
    total = add(total, first, stack[k], *(_of(weights, k) if weighted else ()))
  return mean(total, first, scale)


@jax.jit
def running_zero(first: Sequence[jax.Array]) -> Sums:
  """Empty running sums of models, spread over devices as `first` is."""
  # Of the leaves themselves: plain zeros would not be spread as they are.
  sums = [add(zero(leaf), leaf, leaf) for leaf in first]
  return [high for high, _ in sums], [low for _, low in sums]


# One output a program: with two, XLA's CPU compiler keeps what they share in
# memory, which took five times as long.
@functools.partial(jax.jit, static_argnames="weights_of", donate_argnames="low")
def _running_low(high, low, first, leaves, weights, *, weights_of):
  return [
    add(s, a, b, *weights_of(weights, k))[1]
    for k, (s, a, b) in enumerate(zip(zip(high, low), first, leaves))
  ]


@functools.partial(
  jax.jit, static_argnames="weights_of", donate_argnames="high"
)
def _running_high(high, first, leaves, weights, *, weights_of):
  return [
    add(s, a, b, *weights_of(weights, k))[0]
    for k, (s, a, b) in enumerate(zip(zip(high, high), first, leaves))
  ]


def _unweighted(weights, k):
  return ()


def running_add(
  total: Sums,
  first: Sequence[jax.Array],
  leaves: Sequence[jax.Array],
  weights: Any = None,
  weights_of: Callable[[Any, int], Sequence[jax.Array]] = _unweighted,
) -> Sums:
  """Adds a model to running sums, in their memory; see `add`.

  With `mean` at the end the bits are those of `linear`.

  Args:
    total: so far; its memory is used again.
    first: leaves of the model that differences are taken from.
    leaves: of the model to add.
    weights: of all leaves.
    weights_of: `weights_of(weights, k)` returns the weight of leaf k and its
      rest; by default every leaf has weight 1. Compiled in.
  """
  high, low = total
  low = _running_low(high, low, first, leaves, weights, weights_of=weights_of)
  high = _running_high(high, first, leaves, weights, weights_of=weights_of)
  return high, low


def _of(weights, k):
  """The k-th weight, and its rest if there are rests."""
  return (weights[k],) if weights.ndim == 1 else weights[:, k]
