# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Weighted means whose bits depend only on the numbers.

A compiler may fuse `a * b + c` into one operation, and XLA decides this for
every program separately: the last bits of the plain formula change with block
size, mesh and number of ingredients. Here every product has two 12-bit factors
and is exact in float32, so fusing changes nothing. The rounding errors of the
sums are carried along (Knuth's two-sum, TAOCP 4.2.2). The result is

  t_0 + sum_k w_k (t_k - t_0) / sum_k w_k

in float32. Its error is about 1 ulp (the largest measured is 1.11) unless the
models cancel to less than a thousandth of their size; in general it is 2**-35
relative to the differences t_k - t_0. Weights from `pair` have 36 bits.
Differences, and rounding errors of numbers below 1e-30, may count as zero if
they are below the smallest normal float32 (1.2e-38); this depends on the
processor. The mean of equal leaves has exactly their bits.

Leaves of float64 are treated the same way, with 26-bit halves and 53-bit
weights; the error is 2**-70 of the differences.

Integer and boolean leaves are not supported.
"""

from collections.abc import Callable, Sequence
import fractions
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Factor of `of_large`, small enough for the differences of 2**30 models.
SMALLER = 2.0**-40
# More models than this are added in a loop, `_STEP` at a time, so that programs
# and the time and memory of their compilation do not grow with the number of
# models. For fewer models, compiling a loop would take 10 MB more.
UNROLLED = 32
_STEP = 8

Pair = tuple[jax.Array, jax.Array]
# High and low parts of the sums, for all leaves.
Sums = tuple[list[jax.Array], list[jax.Array]]


def _two_sum(a, b):
  """Returns a + b rounded, and the exact rounding error."""
  total = a + b
  added = total - a
  return total, (a - (total - added)) + (b - added)


def _head(x):
  """Returns x without the low half of its significand."""
  if x.dtype == np.float64:
    bits, mask = np.uint64, np.uint64(0xFFFFFFFFF8000000)
  else:
    bits, mask = np.uint32, np.uint32(0xFFFFF000)
  masked = jax.lax.bitcast_convert_type(x, bits) & mask
  return jax.lax.bitcast_convert_type(masked, x.dtype)


def wide(leaf: jax.Array) -> jax.Array:
  """Casts to the dtype of the accumulator: float32, or float64 for float64."""
  # jnp.promote_types would reject 8-bit floats.
  return leaf.astype(np.float64 if leaf.dtype == np.float64 else np.float32)


def zero(first: jax.Array) -> Pair:
  """Returns the empty sum for a leaf."""
  zeros = jnp.zeros_like(wide(first))
  return zeros, zeros


def add(
  total: Pair,
  first: jax.Array,
  leaf: jax.Array,
  weight: jax.Array | None = None,
  rest: jax.Array | None = None,
  last: jax.Array | None = None,
) -> Pair:
  """Adds `(weight + rest + last) * (leaf - first)` to a sum.

  Args:
    total: the sum so far.
    first: the reference leaf.
    leaf: the same leaf of another model.
    weight: a number, or one per element; None is 1.
    rest: the part of the weight beyond float32, see `pair`; None is 0.
    last: the part beyond `rest`, which only float64 leaves need.
  """
  high, low = total
  delta, error = _two_sum(wide(leaf), -wide(first))
  if weight is None:
    high, lost = _two_sum(high, delta)
    return high, low + (lost + error)
  weight = weight.astype(delta.dtype)
  if delta.dtype == np.float64 and rest is not None:
    # float64 holds the weight in one number.
    weight = (weight + rest.astype(np.float64)) + last.astype(np.float64)
    rest = None
  w, d = _head(weight), _head(delta)
  v, c = weight - w, delta - d
  high, lost = _two_sum(high, w * d)
  fine = v * c + w * _head(error)
  if rest is not None:
    fine = fine + _head(rest.astype(delta.dtype)) * d
  return high, low + ((lost + (w * c + v * d)) + fine)


def over_models(
  count: int, step: Callable[[Any, Any], Any], state: jax.Array | Pair
) -> Any:
  """Applies `state = step(k, state)` for k = 0, ..., count - 1.

  The size of the program is bounded for any number of models. The bits are the
  same with a loop as without one.

  Args:
    count: number of models.
    step: k is traced in loops, so it must index with `of_model`.
    state: an array, or a pair of real arrays.
  """
  rounds = 0 if count <= UNROLLED else count // _STEP

  def several(i, state):
    state = unpacked(state)
    for j in range(_STEP):
      state = step(i * _STEP + j, state)
    return packed(state)

  if rounds:
    state = jax.lax.fori_loop(0, rounds, several, packed(state))
    state = unpacked(state)
  for k in range(rounds * _STEP, count):
    state = step(k, state)
  return state


def packed(state: jax.Array | Pair) -> jax.Array:
  """Returns a state of `over_models` as one array: pairs become complex.

  If there are several outputs, XLA's CPU compiler stores their common terms in
  memory, even in loops; that takes 2 to 10 times as long.
  """
  return jax.lax.complex(*state) if isinstance(state, tuple) else state


def unpacked(state: jax.Array) -> jax.Array | Pair:
  """Returns the state that was given to `packed`."""
  if jnp.iscomplexobj(state):
    return jax.lax.real(state), jax.lax.imag(state)
  return state


def of_model(models: Any, k: Any) -> Any:
  """Returns the k-th of several models; k may be traced.

  Args:
    models: an array (K, ...), or, unless k is traced, a sequence.
    k: position of the model.
  """
  return models[k] if isinstance(k, int) else jnp.asarray(models)[k]


def as_array(leaves: Sequence[jax.Array] | jax.Array) -> Any:
  """Returns K leaves as an array (K, ...)."""
  if hasattr(leaves, "ndim"):
    return leaves
  return jnp.stack([wide(leaf) for leaf in leaves])


def stacked(leaves: Sequence[jax.Array] | jax.Array) -> Any:
  """Returns K leaves in a form that `over_models` can index."""
  return leaves if len(leaves) <= UNROLLED else as_array(leaves)


def each(count: int, function: Callable[[Any], jax.Array]) -> jax.Array:
  """Stacks the values of a function of k, the position of a model."""
  if count <= UNROLLED:
    return jnp.stack([function(k) for k in range(count)])
  return jax.lax.map(function, jnp.arange(count))


def once(
  count: int, function: Callable[[Any], Any], *, store: bool = False
) -> Callable[[Any], Any]:
  """Prepares a function of the model for several calls of `over_models`.

  Args:
    count: number of models.
    function: takes k, which may be traced, and returns arrays.
    store: whether to keep the values of all models. False recomputes them in
      each loop, to save memory. (Without loops, the compiler decides.)

  Returns:
    The function of k to call instead.
  """
  if count <= UNROLLED:
    return [function(k) for k in range(count)].__getitem__
  if not store:
    return function
  values = jax.lax.map(function, jnp.arange(count))
  return lambda k: jax.tree.map(lambda value: value[k], values)


def sum_of(
  count: int,
  first: jax.Array,
  term: Callable[[Any], Sequence[Any]],
  total: Pair | None = None,
) -> Pair:
  """Sums the terms of several models; see `over_models`.

  Args:
    count: number of terms.
    first: the reference leaf.
    term: `term(k)` returns the arguments of `add` from `leaf` on.
    total: the sum so far.
  """
  return over_models(
    count,
    lambda k, total: add(total, first, *term(k)),
    zero(first) if total is None else total,
  )


def mean(total: Pair, first: jax.Array, scale: jax.Array) -> jax.Array:
  """Returns `first + scale * total`, rounded once, in the wide dtype.

  Args:
    total: from `add`.
    first: the reference leaf.
    scale: from `reciprocal`, `parts` or (float32 only) `halves`.
  """
  high, low = _two_sum(*total)
  if high.dtype == np.float64:
    scale = scale.astype(np.float64)
    a, b, c = (scale[k] + scale[k + 1] for k in (0, 2, 4))
  else:
    a, b, c = scale[0], scale[1], scale[2]
  h = _head(high)
  t = high - h
  rest = (a * t + b * h) + ((b * t + c * h) + a * _head(low))
  near, lost = _two_sum(wide(first), a * h)
  # Preserves the sign of zeros, and denormal numbers.
  same = (high == 0) & (low == 0)
  return jnp.where(same, wide(first), near + (lost + rest))


def reciprocal(
  total: float | np.ndarray, exact: fractions.Fraction | None = None
) -> np.ndarray:
  """Returns 1 / total in the form of `parts`.

  Args:
    total: a number, or (K,) numbers to sum.
    exact: the intended total, if rounded numbers may not sum to it exactly.
  """
  numbers = np.atleast_1d(np.asarray(total, np.float64))
  if exact is None:  # The exact sum, which may not be a float.
    near = math.fsum(numbers)
    rest = math.fsum([*numbers, -near])
    exact = fractions.Fraction(near) + fractions.Fraction(rest)
  return parts(1.0 / float(numbers.sum()), 1 / exact)


def parts(number: float, exact: fractions.Fraction | None = None) -> np.ndarray:
  """Splits a number into a sum of float32 numbers of 12 bits each, (6,).

  Means of float32 leaves use the first three of them.

  Args:
    number: the number.
    exact: its exact value, if it is not a float.
  """
  rest, numbers = float(number), []
  for k in range(6):
    if k == 3 and exact is not None:
      rest = float(exact - sum(fractions.Fraction(float(n)) for n in numbers))
    part = np.array(rest, np.float32).view(np.uint32) & np.uint32(0xFFFFF000)
    numbers.append(part.view(np.float32))
    rest -= float(numbers[-1])
  return np.stack(numbers)


def pair(numbers: Sequence[float] | np.ndarray) -> np.ndarray:
  """Splits float64 numbers into float32 and two remainders, (3, K) float32."""
  rest, rows = np.asarray(numbers, np.float64), []
  for _ in range(3):
    rows.append(rest.astype(np.float32))
    rest = rest - rows[-1]
  return np.stack(rows)


def mean_coefficients(
  weights: Sequence[float] | np.ndarray,
) -> dict[str, np.ndarray]:
  """Arguments of `linear` for `sum_k w_k t_k / sum_k w_k`.

  Args:
    weights: one number per model, of magnitude at most 1, from
      `arguments.soup_weights`.
  """
  weights = np.asarray(weights, np.float64)
  return {"weights": pair(weights), "scale": reciprocal(weights)}


def share_coefficients(weights: np.ndarray) -> dict[str, np.ndarray]:
  """Arguments of `linear` for `(1 - a) t_0 + a * mean(t_1, ...)`.

  Args:
    weights: (K,): 1 - a, and the share of every other model; all may be
      multiplied by a power of two. The rounding of 1 - a has no effect.
  """
  _, exponent = math.frexp(math.fsum(weights) * 0.75)  # 0.75 * 2**n is inside.
  total = fractions.Fraction(2) ** exponent
  return {"weights": pair(weights), "scale": reciprocal(weights, total)}


def delta_coefficients(
  weights: Sequence[float] | np.ndarray, scale: float = 1.0
) -> dict[str, np.ndarray]:
  """Arguments of `linear` for `t_0 + scale * sum_k w_k (t_k - t_0)`, k > 0.

  Args:
    weights: one number per model except the first.
    scale: the factor of the sum.
  """
  weights = np.append(0.0, np.asarray(weights, np.float64))
  return {"weights": pair(weights), "scale": parts(scale)}


def halves(numbers: jax.Array) -> jax.Array:
  """Splits float32 scales, one per element, for `mean`; returns (3, ...)."""
  head = _head(numbers)
  return jnp.stack([head, numbers - head, jnp.zeros_like(head)])


@functools.partial(jax.jit, static_argnames="weighted")
def linear(
  stack: Sequence[jax.Array] | jax.Array,
  weights: jax.Array,
  scale: jax.Array,
  *,
  first: jax.Array | None = None,
  weighted: bool = True,
) -> jax.Array:
  """Weighted mean of one leaf over K ingredients.

  Args:
    stack: (K, ...), or K float arrays of the same shape.
    weights: (K,) float32, or (3, K) from `pair`. Weights per element are
      (3, K, ...), with axes that broadcast to those of the leaf.
    scale: `reciprocal` of the sum of the weights, (6,) or (6, ...).
    first: the reference leaf, to which the first weight belongs; the stack then
      has one leaf fewer. None is the first leaf of the stack.
    weighted: False if all weights are 1, to save the products.

  Returns:
    An array of the same shape in float32 (float64 for float64 leaves).
  """
  stack, skipped = stacked(stack), int(first is None)
  first = stack[0] if first is None else first
  leaves = [stack] if hasattr(stack, "ndim") else stack
  if any(leaf.dtype == np.float64 for leaf in (first, *leaves)):
    first = first.astype(np.float64)
    stack = jax.tree.map(lambda leaf: leaf.astype(np.float64), stack)

  def term(k):
    leaf = of_model(stack, k + skipped)
    return (leaf, *weight_parts(weights, k + 1)) if weighted else (leaf,)

  return mean(sum_of(len(stack) - skipped, first, term), first, scale)


def of_large(combine: Callable[[Any], jax.Array], leaves: Any) -> jax.Array:
  """Evaluates an affine combination whose differences may overflow.

  Elements that are not finite are computed again from smaller leaves, so that
  the mean of 3e38 and -3e38 is 0. Takes twice the time of `combine`.

  Args:
    combine: returns the combination in the wide dtype.
    leaves: its argument, a tree of leaves or stacks.
  """
  # Exact, except for numbers that are negligible beside those that overflow.
  smaller = jax.tree.map(lambda leaf: wide(leaf) * SMALLER, leaves)
  small = combine(smaller) / SMALLER
  plain = combine(leaves)
  return jnp.where(jnp.isfinite(plain), plain, small)


@jax.jit
def running_zero(first: Sequence[jax.Array]) -> Sums:
  """Returns empty running sums with the shardings of `first`."""
  # Computed from the leaves: plain zeros would not have their shardings.
  sums = [add(zero(leaf), leaf, leaf) for leaf in first]
  return [high for high, _ in sums], [low for _, low in sums]


# One output per program: with two, XLA's CPU compiler stores their common terms
# in memory, which takes five times as long.
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

  With `mean` at the end, the bits are those of `linear`.

  Args:
    total: the sums so far; their memory is reused.
    first: leaves of the reference model.
    leaves: of the model to add.
    weights: passed to `weights_of`.
    weights_of: `weights_of(weights, k)` returns the weight of leaf k and its
      remainders; by default every leaf has weight 1. It is a static argument.
  """
  high, low = total
  low = _running_low(high, low, first, leaves, weights, weights_of=weights_of)
  high = _running_high(high, first, leaves, weights, weights_of=weights_of)
  return high, low


def weight_parts(weights: jax.Array, k: Any) -> Sequence[jax.Array]:
  """Returns the k-th weight, and its remainders if there are any.

  Args:
    weights: (K,), or (3, K, ...) from `pair`.
    k: position of the model; may be traced.
  """
  if weights.ndim == 1:
    return (of_model(weights, k),)
  return tuple(of_model(part, k) for part in weights)
