# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

import soupjax as sj
from soupjax.soups import rules


def models(count, seed=0):
  rng = np.random.default_rng(seed)
  return [
    {k: rng.normal(size=50).astype("f") for k in ("block_0", "block_1", "head")}
    for _ in range(count)
  ]


def mix(rule, base, trees, **more):
  return sj.mix(
    rule,
    [sj.Ingredient.from_params(f"m{k}", t) for k, t in enumerate(trees)],
    base=sj.Ingredient.from_params("base", base),
    **more,
  ).params


def test_sum_of_task_vectors():
  base, a, b = models(3)
  result = mix(rules.task_arithmetic(0.3), base, [a, b])["head"]
  exact = base["head"] + 0.3 * (
    a["head"].astype(np.float64) + b["head"] - 2.0 * base["head"]
  )
  assert np.abs(result - exact).max() < 3e-7
  result = mix(rules.task_arithmetic(weights=[2.0, -1.0]), base, [a, b])["head"]
  exact = 2.0 * a["head"].astype(np.float64) - b["head"]
  assert np.abs(result - exact).max() < 1e-6


def test_ends_bit_for_bit():
  base, a = models(2)
  for leaf, value in mix(rules.task_arithmetic(1.0), base, [a]).items():
    assert np.array_equal(value, a[leaf])
  for leaf, value in mix(rules.task_arithmetic(0.0), base, [a]).items():
    assert np.array_equal(value, base[leaf])


def test_coefficients_by_leaf():
  base, a = models(2)
  result = mix(rules.task_arithmetic({"head": 0, "": 1}), base, [a])
  assert np.array_equal(result["head"], base["head"])
  assert np.array_equal(result["block_0"], a["block_0"])
  result = mix(rules.task_arithmetic([0, 1]), base, [a])
  assert np.array_equal(result["block_0"], base["block_0"])
  assert np.array_equal(result["block_1"], a["block_1"])


def test_with_select():
  base, a = models(2)
  result = mix(
    rules.task_arithmetic({"block_1": 1.0}),
    base,
    [a],
    select={"head": "keep", "block_0": (1.0,)},
  )
  assert np.array_equal(result["head"], base["head"])
  assert np.array_equal(result["block_0"], a["block_0"])
  # A share of the way from the base to what the rule gives.
  half = mix(rules.task_arithmetic({"": 1.0}), base, [a], select={"": 0.5})
  expected = (base["head"].astype(np.float64) + a["head"]) / 2
  assert np.abs(half["head"] - expected).max() < 1e-7


def test_bad_input():
  base, a = models(2)
  with pytest.raises(ValueError, match="scale.*inf"):
    rules.task_arithmetic(float("inf"))
  for scale, text in [
    ({"x": 1.0}, "'x' in scale matches no leaf.*'block_0'"),
    ({"head": 1.0}, "2 leaves"),
    ({"": 1.0, "head": 2.0}, "'head' in scale is never used"),
    ({"(": 1.0}, r"'\('.*position 0"),
  ]:
    with pytest.raises(ValueError, match=text):
      mix(rules.task_arithmetic(scale), base, [a], dry_run=True)
  with pytest.raises(ValueError, match="1 ingredients"):
    mix(rules.task_arithmetic(weights=[1.0, 2.0]), base, [a])
