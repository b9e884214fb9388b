# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soupjax as sj
from soupjax.soups import rules


def apply(rule, stack, base=None):
  values = rule.values(len(stack))
  stack = jnp.stack([jnp.asarray(x) for x in stack])
  base = None if base is None else jnp.asarray(base)
  with jax.numpy_dtype_promotion("strict"):
    return np.asarray(jax.jit(rule.combine)(stack, base, values))


def arrays(count, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.normal(size=1000).astype(np.float32) for _ in range(count)]


def within_one_ulp(result, exact):
  nearest = exact.astype(np.float32)
  return (np.abs(result - exact) <= np.spacing(np.abs(nearest))).all()


@pytest.mark.parametrize("count", [1, 2, 3, 17])
def test_uniform(count):
  stack = arrays(count)
  exact = np.mean(np.stack(stack).astype(np.float64), 0)
  assert within_one_ulp(apply(rules.linear(), stack), exact)


def test_weighted():
  weights = [0.25, 3.0, 0.0, 1e-3]
  stack = arrays(4)
  exact = np.average(np.stack(stack).astype(np.float64), 0, weights)
  assert within_one_ulp(apply(rules.linear(weights), stack), exact)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0, 1.5, -0.5])
@pytest.mark.parametrize("count", [1, 3])
def test_lerp(alpha, count):
  base, *stack = arrays(count + 1)
  mean = np.mean(np.stack(stack).astype(np.float64), 0)
  exact = (1 - alpha) * base + alpha * mean
  result = apply(rules.lerp(alpha), stack, base)
  # Alpha itself is rounded to float32.
  assert np.abs(result - exact).max() < 1e-6
  if alpha == 0:
    assert np.array_equal(result, base)
  if alpha == 1 and count == 1:
    assert np.array_equal(result, stack[0])


def test_lerp_is_wise_ft():
  base, tuned = arrays(2)
  expected = sj.wise_ft({"w": base}, {"w": tuned}, 0.3)["w"]
  assert np.array_equal(apply(rules.lerp(0.3), [tuned], base), expected)


def test_bad_numbers():
  with pytest.raises(ValueError, match="alpha.*nan"):
    rules.lerp(float("nan"))
  for weights, text in [
    ([1.0, float("nan")], "finite"),
    ([1.0, -1.0], "sum to zero"),
    ([1.0], "shape"),
  ]:
    with pytest.raises(ValueError, match=text):
      rules.linear(weights).values(2)
  with pytest.warns(UserWarning, match="negative"):
    rules.linear([2.0, -1.0]).values(2)


def test_sum_without_normalising():
  stack = arrays(3)
  rule = rules.linear([2.0, -0.5, 0.3], normalize=False)
  exact = np.tensordot([2.0, -0.5, 0.3], np.stack(stack).astype("d"), 1)
  assert np.abs(apply(rule, stack) - exact).max() < 1e-6
  # Weights that sum to 1 leave equal models as they are.
  rule = rules.linear([0.3, 0.3, 0.4], normalize=False)
  assert np.array_equal(apply(rule, [stack[0]] * 3), stack[0])
  with pytest.raises(ValueError, match="2 ingredients"):
    rules.linear([1.0], normalize=False).values(2)
  with pytest.raises(ValueError, match="normalize=False"):
    rules.linear(normalize=False)


@pytest.mark.parametrize(
  "weights", [[[1, 2, 3]], "123", ["1", "2"], [1.0, True], 3.0, [1, np.inf]]
)
@pytest.mark.parametrize(
  "make",
  [
    rules.linear,
    rules.geometric_median,
    rules.karcher,
    lambda weights: rules.task_arithmetic(weights=weights),
    lambda weights: rules.ties(weights=weights),
    lambda weights: rules.fisher([{}], weights=weights),
  ],
)
def test_weights_are_a_flat_sequence_of_numbers(make, weights):
  with pytest.raises(ValueError, match="weights"):
    make(weights)


def test_normalize_is_a_boolean():
  for value in ("no", 0, None):
    with pytest.raises(ValueError, match="normalize"):
      rules.linear([1.0, 2.0], normalize=value)


def test_schedules_by_hand():
  assert rules.schedule("uniform", 4) == [0.25] * 4
  assert rules.schedule("uniform", 4, last=2) == [0, 0, 0.5, 0.5]
  assert rules.schedule("linear", 3) == [1 / 6, 2 / 6, 3 / 6]
  result = rules.schedule("minus-sqrt", 4)
  assert np.allclose(result, np.diff(np.sqrt([0, 0.25, 0.5, 0.75, 1])))
  assert result[0] == 0.5 and sorted(result, reverse=True) == result
  # a, then 0.9 a + 0.1 b, then 0.81 a + 0.09 b + 0.1 c.
  assert np.allclose(rules.schedule("ema", 3, decay=0.9), [0.81, 0.09, 0.1])
  for kind in ("uniform", "linear", "minus-sqrt"):
    assert abs(sum(rules.schedule(kind, 7, last=5)) - 1) < 1e-12
  assert rules.linear(rules.schedule("linear", 3)).values(3)


def test_bad_schedules():
  for arguments, text in [
    (("cosine", 3), "kind='cosine'"),
    (("uniform", 3, 4), "last=4.* 3"),
    (("uniform", 3, 0), "last=0.* 3"),
    (("ema", 3), "decay.*ema"),
    (("linear", 3, None, 0.9), "decay.*ema"),
    (("ema", 3, None, 1.5), "decay"),
    (("uniform", 2.5), "count"),
    (("uniform", 3, True), "last"),
  ]:
    kind, count, last, decay = (*arguments, None, None)[:4]
    with pytest.raises(ValueError, match=text):
      rules.schedule(kind, count, last=last, decay=decay)
