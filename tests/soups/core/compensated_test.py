# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import fractions
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soupjax as sj
from soupjax.soups.core import compensated

AxisType = jax.sharding.AxisType
P = jax.sharding.PartitionSpec


def make_stack(seed, count, shape=(257,), spread=1e-3, dtype=np.float32):
  """Models with a common part and small differences."""
  rng = np.random.default_rng(seed)
  base = rng.normal(size=shape)
  return [
    np.asarray(base + spread * rng.normal(size=shape)).astype(dtype)
    for _ in range(count)
  ]


def mean_of(stack, weights=None):
  weighted = weights is not None
  weights = np.asarray(weights if weighted else [1] * len(stack), np.float64)
  scale = compensated.reciprocal(weights)
  weights = compensated.pair(weights)
  return np.asarray(
    compensated.linear(stack, weights, scale, weighted=weighted)
  )


def truth_of(stack, weights=None):
  """The exact mean, rounded to float64 once."""
  weights = [1.0] * len(stack) if weights is None else weights
  weights = [fractions.Fraction(float(w)) for w in weights]
  out = []
  for values in zip(*(leaf.ravel() for leaf in stack)):
    pairs = zip(weights, values)
    total = sum(w * fractions.Fraction(float(v)) for w, v in pairs)
    out.append(float(total / sum(weights)))
  return np.array(out).reshape(stack[0].shape)


def ulps(got, truth):
  """Distance from the truth in units of the last place of float32."""
  return np.abs(got.astype(np.float64) - truth) / np.spacing(
    np.abs(truth).astype(np.float32)
  )


def plain_numpy(stack, weights, scale, weighted):
  """The formula of the module, one rounded operation at a time."""

  def two_sum(a, b):
    total = a + b
    added = total - a
    return total, (a - (total - added)) + (b - added)

  def head(x):
    return (x.view(np.uint32) & np.uint32(0xFFFFF000)).view(np.float32)

  first = stack[0].astype(np.float32)
  high = low = np.zeros_like(first)
  weights = compensated.pair(weights)
  for leaf, weight, rest in zip(stack[1:], weights[0, 1:], weights[1, 1:]):
    delta, error = two_sum(leaf.astype(np.float32), -first)
    if not weighted:
      high, lost = two_sum(high, delta)
      low = low + (lost + error)
      continue
    w, d = head(weight[None]), head(delta)
    v, c = weight - w, delta - d
    high, lost = two_sum(high, w * d)
    fine = (v * c + w * head(error)) + head(rest[None]) * d
    low = low + ((lost + (w * c + v * d)) + fine)
  high, low = two_sum(high, low)
  a, b, c = scale[:3]
  h = head(high)
  t = high - h
  rest = (a * t + b * h) + ((b * t + c * h) + a * head(low))
  near, lost = two_sum(first, a * h)
  return np.where((high == 0) & (low == 0), first, near + (lost + rest))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("spread", [1e-5, 1e-2, 1.0])
def test_within_one_ulp_of_exact_rational_mean(count, spread):
  stack = make_stack(count, count, spread=spread)
  truth = truth_of(stack)
  assert (np.abs(truth) > 1e-3 * np.max(np.abs(stack), axis=0)).mean() > 0.9
  large = np.abs(truth) > 1e-3 * np.max(np.abs(stack), axis=0)
  assert ulps(mean_of(stack), truth)[large].max() <= 1


@pytest.mark.parametrize("seed", range(3))
def test_weighted_within_one_ulp_of_exact_rational_mean(seed):
  weights = np.random.default_rng(seed).uniform(0.01, 1, 6)
  stack = make_stack(seed, 6, spread=0.1)
  truth = truth_of(stack, weights)
  large = np.abs(truth) > 1e-3 * np.max(np.abs(stack), axis=0)
  assert ulps(mean_of(stack, weights), truth)[large].max() <= 1


def test_weights_count_as_they_were_given():
  # In float32, 0.1 is 1.5e-8 too large: hundreds of ulp of a small mean.
  rng = np.random.default_rng(0)
  stack = [rng.normal(size=4000).astype(np.float32) for _ in range(3)]
  truth = truth_of(stack, [0.1, 0.2, 0.7])
  large = np.abs(truth) > 1e-3 * np.max(np.abs(stack), axis=0)
  assert ulps(mean_of(stack, [0.1, 0.2, 0.7]), truth)[large].max() <= 1.2


def test_better_than_naive_float32_sum():
  # Shows that the tolerance is strict: the plain formula is off by more.
  stack = make_stack(0, 72, spread=1e-3)
  naive = np.sum(stack, axis=0, dtype=np.float32) / np.float32(72)
  truth = truth_of(stack)
  assert ulps(naive, truth).max() > 1 >= ulps(mean_of(stack), truth).max()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16])
def test_same_bits_as_plain_numpy(dtype, weighted):
  stack = make_stack(1, 5, shape=(31, 17), spread=0.3, dtype=dtype)
  weights = np.array([0.3, 1.7, -0.4, 1e-3, 2.0] if weighted else [1] * 5)
  scale = compensated.reciprocal(weights.sum())
  pairs = compensated.pair(weights)
  got = np.asarray(compensated.linear(stack, pairs, scale, weighted=weighted))
  want = plain_numpy(stack, weights, scale, weighted)
  assert got.dtype == want.dtype == np.float32
  np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


def test_same_bits_with_and_without_jit_and_strict_promotion():
  stack = [jnp.asarray(leaf) for leaf in make_stack(2, 4, spread=0.3)]
  weights = jnp.float32([1, 2, 3, 4])
  scale = compensated.reciprocal(10)
  want = np.asarray(compensated.linear(stack, weights, scale))
  with jax.numpy_dtype_promotion("strict"):
    strict = compensated.linear(stack, weights, scale)
  with jax.disable_jit():
    eager = compensated.linear(stack, weights, scale)
  np.testing.assert_array_equal(strict, want)
  np.testing.assert_array_equal(eager, want)


@pytest.mark.parametrize(
  "weights,dtype,count",
  [
    (None, np.float32, 18),
    ("by model", jnp.bfloat16, 26),
    ("by element", np.float32, 25),
    ("by model", np.float64, 18),
  ],
)
def test_a_loop_over_models_keeps_the_bits(weights, dtype, count, monkeypatch):
  stack = make_stack(8, count, shape=(3, 11), spread=0.3, dtype=dtype)
  # A sum that cancels, and one that overflows.
  stack[-1][0, :2], stack[1][0, 1] = stack[0][0, :2], np.inf
  stack = np.stack(stack)
  rng = np.random.default_rng(8)
  shape = (count,) if weights == "by model" else (count, 3, 1)
  arguments = {
    "weights": compensated.pair(rng.uniform(-0.5, 1, shape)),
    "scale": compensated.reciprocal(1.5),
    "weighted": weights is not None,
  }

  def bits(kind):
    models = kind(map(jnp.asarray, stack))
    return np.asarray(compensated.linear(models, **arguments)).tobytes()

  with jax.enable_x64(dtype == np.float64):
    got = bits(list), bits(lambda models: jnp.stack(list(models)))
    monkeypatch.setattr(compensated, "UNROLLED", count)
    with jax.disable_jit():
      assert got == (bits(list),) * 2


@pytest.mark.parametrize("weights", [None, [0.3, 1.1, 0.7]])
@pytest.mark.parametrize("block", [1, 7, 64, 100])
def test_bits_do_not_depend_on_blocks(block, weights):
  stack = make_stack(3, 3, shape=(200,), spread=0.1)
  whole = mean_of(stack, weights)
  blocks = [
    mean_of([leaf[i : i + block] for leaf in stack], weights)
    for i in range(0, 200, block)
  ]
  np.testing.assert_array_equal(np.concatenate(blocks), whole)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
  "shape,spec",
  [
    ((8,), P("x")),
    ((8,), P(None, "x")),
    ((8,), P()),
    ((2, 4), P("x", "y")),
    ((4, 2), P("y")),
    ((2, 2, 2), P(("x", "z"), "y")),
  ],
)
def test_bits_do_not_depend_on_the_mesh(shape, spec, axis_type):
  count = 20 if shape == (4, 2) else 6  # In a loop, or without one.
  stack = make_stack(4, count, shape=(16, 40), spread=0.1)
  weights = np.linspace(0.1, 1.5, count)
  mesh = jax.make_mesh(
    shape, ("x", "y", "z")[: len(shape)], axis_types=(axis_type,) * len(shape)
  )
  sharding = jax.sharding.NamedSharding(mesh, spec)
  sharded = [jax.device_put(leaf, sharding) for leaf in stack]
  for chosen in (None, weights):
    with jax.set_mesh(mesh):
      got = mean_of(sharded, chosen)
    np.testing.assert_array_equal(got, mean_of(stack, chosen))


def test_order_changes_at_most_one_ulp():
  stack = make_stack(5, 5, shape=(100,), spread=0.1)
  reference = mean_of(stack)
  apart = [
    ulps(mean_of([stack[i] for i in order]), reference.astype(np.float64))
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 7)
  ]
  assert np.max(apart) <= 1


@pytest.mark.parametrize("count", [1, 2, 11])
@pytest.mark.parametrize(
  "dtype",
  [np.float32, np.float16, jnp.bfloat16, jnp.float8_e4m3fn, jnp.float8_e5m2],
)
def test_identical_leaves_come_back_bit_for_bit(dtype, count):
  limits = jnp.finfo(dtype)
  special = [0.0, -0.0, limits.tiny, -limits.tiny, limits.max, limits.min]
  special += [limits.smallest_subnormal, -limits.smallest_subnormal, 1 / 3]
  special += list(np.random.default_rng(0).normal(size=50))
  leaf = np.asarray(special).astype(dtype)
  for weights in (None, np.linspace(0.1, 1, count)):
    got = mean_of([leaf] * count, weights).astype(dtype)
    bits = {1: np.uint8, 2: np.uint16, 4: np.uint32}[leaf.itemsize]
    np.testing.assert_array_equal(got.view(bits), leaf.view(bits))


@pytest.mark.parametrize("weights", [None, [0.1, 0.2, 0.7, -0.3, 1e-3]])
def test_float64_is_within_one_ulp(weights):
  stack = make_stack(6, 5, spread=0.3, dtype=np.float64)
  with jax.enable_x64(True):
    got = mean_of(stack, weights)
    same = mean_of([stack[0]] * 5, weights)
    strict = [jnp.asarray(leaf) for leaf in stack]
    with jax.numpy_dtype_promotion("strict"):
      np.testing.assert_array_equal(mean_of(strict, weights), got)
  assert got.dtype == np.float64
  truth = truth_of(stack, weights)
  large = np.abs(truth) > 1e-3 * np.max(np.abs(stack), axis=0)
  assert (np.abs(got - truth) / np.spacing(np.abs(truth)))[large].max() <= 1
  np.testing.assert_array_equal(same, stack[0])


@pytest.mark.parametrize("alpha", [0.3, 0.1, 1.7, -0.2])
def test_the_rounding_of_1_minus_alpha_does_not_count(alpha):
  a, b = make_stack(7, 2, spread=1.0, dtype=np.float64)
  share = fractions.Fraction(alpha)
  weights = np.array([1 - alpha, alpha]) / 4
  with jax.enable_x64(True):
    arguments = compensated.share_coefficients(weights)
    got = np.asarray(compensated.linear([a, b], **arguments))
  for value, x, y in zip(got.flat, a.flat, b.flat, strict=True):
    x, y = fractions.Fraction(float(x)), fractions.Fraction(float(y))
    assert abs(value - float(x + share * (y - x))) <= np.spacing(abs(value))


@pytest.mark.parametrize("total", [1, 3, 72, 0.7, 1e-3, 12345.678])
def test_reciprocal_has_36_bits_and_72_for_float64(total):
  parts = compensated.reciprocal(total)
  assert parts.dtype == np.float32 and parts.shape == (6,)
  assert not (parts.view(np.uint32) & 0xFFF).any()
  for count, bits in ((3, 34), (6, 68)):
    number = sum(fractions.Fraction(float(part)) for part in parts[:count])
    assert abs(number * fractions.Fraction(total) - 1) < 2.0**-bits


LARGE = {np.float32: 3.4e38, np.float64: 1.79e308, np.float16: 65504.0}
# Functions of two or more models, and the coefficients of their results.
MEANS = {
  "uniform_soup": (sj.uniform_soup, lambda n: [1 / n] * n),
  "weighted": (
    lambda m: sj.uniform_soup(m, [3] + [1] * (len(m) - 1)),
    lambda n: [3 / (n + 2)] + [1 / (n + 2)] * (n - 1),
  ),
  "half of a base": (
    lambda m: sj.uniform_soup(m[1:], base=m[0], select={"": 0.5}),
    lambda n: [0.5] + [0.5 / (n - 1)] * (n - 1),
  ),
  "wise_ft": (lambda m: sj.wise_ft(m[0], m[1], 0.5), lambda n: [0.5, 0.5]),
  "curve": (
    lambda m: sj.search.wise_ft_curve(m[0], m[1], lambda p: 1, [0.5]).params,
    lambda n: [0.5, 0.5],
  ),
  "linear": (
    lambda m: sj.mix(sj.rules.linear(), m).params, lambda n: [1 / n] * n
  ),
  "without normalisation": (
    lambda m: sj.mix(
      sj.rules.linear([1 / len(m)] * len(m), normalize=False), m
    ).params,
    lambda n: [1 / n] * n,
  ),
  "lerp": (
    lambda m: sj.mix(sj.rules.lerp(0.5), m[1:], base=m[0]).params,
    lambda n: [0.5] + [0.5 / (n - 1)] * (n - 1),
  ),
  "task_arithmetic": (
    lambda m: sj.mix(
      sj.rules.task_arithmetic(1 / len(m)), m[1:], base=m[0]
    ).params,
    lambda n: [1 / n] * n,
  ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", LARGE)
@pytest.mark.parametrize("signs", [(1, -1), (-1, 1), (0.6, 1, 1, -1, 1)])
def test_finite_means_of_large_numbers(signs, dtype):
  large = LARGE[dtype]
  models = [
    {"w": np.array([s * large, 1 / 3, -s * large, 0], dtype)} for s in signs
  ]
  for name, (merge, coefficients_of) in MEANS.items():
    got = np.asarray(merge(models)["w"])
    want = sum(c * s for c, s in zip(coefficients_of(len(signs)), signs))
    assert got.dtype == dtype, name
    error = np.abs(got[[0, 2]] / dtype(large) - [want, -want])
    assert error.max() <= 2 * np.finfo(dtype).eps, name
    assert got[1] == dtype(1 / 3) and got[3] == 0, name


def test_results_beyond_the_range_are_refused():
  models = [{"w": np.full(2, x, np.float32)} for x in (3e38, -3e38)]
  with pytest.raises(ValueError, match="overflows float32.*extrapolate less"):
    sj.mix(sj.rules.task_arithmetic(-1), models[1:], base=models[0])
  with pytest.raises(ValueError, match="the rule 'ties' cannot merge"):
    sj.mix(sj.rules.ties(density=1.0), models[1:], base=models[0])
