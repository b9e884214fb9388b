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


def within_one_ulp(found, exact):
  nearest = exact.astype(np.float32)
  return (np.abs(found - exact) <= np.spacing(np.abs(nearest))).all()


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
  found = apply(rules.lerp(alpha), stack, base)
  # Alpha itself is rounded to float32.
  assert np.abs(found - exact).max() < 1e-6
  if alpha == 0:
    assert np.array_equal(found, base)
  if alpha == 1 and count == 1:
    assert np.array_equal(found, stack[0])


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
