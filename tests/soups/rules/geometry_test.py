# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import math

from helpers import mix_trees as mix
import numpy as np
import pytest

from soupjax.soups import rules
from soupjax.soups.engine import first_pass
from soupjax.soups.rules import geometry, thresholds

ROOT = math.sqrt(0.5)
ZERO = [0.0, 0.0]


def near(result, expected, size=2e-7):
  assert np.abs(result - np.asarray(expected)).max() <= size


def test_slerp_by_hand():
  a, b = [1.0, 0.0], [0.0, 1.0]
  near(mix(rules.slerp(0.5), [a, b])["w"], [ROOT, ROOT])
  near(mix(rules.slerp(1 / 3), [a, b])["w"], [math.sqrt(3) / 2, 0.5])
  assert mix(rules.slerp(0.0), [a, b])["w"].tolist() == a
  assert mix(rules.slerp(1.0), [a, b])["w"].tolist() == b


def test_slerp_of_parallel_opposite_and_zero_vectors():
  v = np.array([3.0, -4.0, 0.1], "f")
  assert np.array_equal(mix(rules.slerp(0.3), [v, v])["w"], v)
  near(mix(rules.slerp(0.25), [v, 2 * v])["w"], 1.25 * v, 1e-6)
  near(mix(rules.slerp(0.25), [v, -v])["w"], 0.5 * v)
  near(mix(rules.slerp(0.25), [v, 0 * v])["w"], 0.75 * v)


def test_slerp_nearly_parallel_is_nearly_lerp():
  rng = np.random.default_rng(0)
  a = rng.normal(size=1000).astype("f")
  for size in (1e-7, 1e-5, 1e-3):
    b = (a + size * rng.normal(size=1000)).astype("f")
    near(mix(rules.slerp(0.3), [a, b])["w"], 0.7 * a + 0.3 * b, 1e-6)


def test_slerp_scopes_and_shares_by_leaf():
  a = {"x": [1.0, 0.0], "y": [1.0, 0.0]}
  b = {"x": [0.0, 1.0], "y": [1.0, 0.0]}
  result = mix(rules.slerp(0.5), [a, b])
  near(result["x"], [ROOT, ROOT])
  near(result["y"], [1, 0])
  # Of the whole model: cosine 1/2, and sin(30) / sin(60) = 1 / sqrt(3).
  result = mix(rules.slerp(0.5, scope="model"), [a, b])
  near(result["x"], [3**-0.5, 3**-0.5])
  near(result["y"], [2 * 3**-0.5, 0])
  result = mix(rules.slerp({"x": 0.0, "": 1.0}), [a, b])
  assert result["x"].tolist() == a["x"]


def test_model_stock_by_hand():
  # Cosine 0.6: 2 * 0.6 / 1.6 = 0.75 of the way to the mean, (0.8, 0.4).
  result = mix(rules.model_stock(), [[1.0, 0.0], [0.6, 0.8]], ZERO)["w"]
  near(result, [0.6, 0.3])
  # Equal task vectors: the mean. Orthogonal or opposite: the base.
  base, tuned = [1.0, 2.0], [2.0, 4.0]
  assert mix(rules.model_stock(), [tuned] * 3, base)["w"].tolist() == tuned
  for other in ([-1.0, 2.5], [0.0, 0.0], base):
    assert mix(rules.model_stock(), [tuned, other], base)["w"].tolist() == base


def test_model_stock_of_three():
  trees = [[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]]
  cosines = np.array([0.6, 0.8, 0.96])
  mean = np.mean(trees, 0)
  for compat, c in [
    (None, cosines.mean()),
    ("fusion_bench", math.cos(np.arccos(cosines).mean())),
  ]:
    result = mix(rules.model_stock(compat=compat), trees, ZERO)["w"]
    near(result, 3 * c / (1 + 2 * c) * mean)


def test_model_stock_scopes():
  trees = [{"x": [1.0, 0.0], "y": [1.0, 0.0]}, {"x": [0, 1.0], "y": [1.0, 0]}]
  base = {"x": ZERO, "y": ZERO}
  result = mix(rules.model_stock(), trees, base)
  near(result["x"], ZERO)
  near(result["y"], [1, 0])
  result = mix(rules.model_stock(scope="model"), trees, base)  # Cosine 1/2.
  near(result["y"], [2 / 3, 0])


def test_geometric_median_by_hand():
  # The Fermat point of an equilateral triangle is its centre; of points on a
  # line, the middle one; an obtuse corner (> 120 degrees) is one itself.
  corners = [[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]]
  result = mix(rules.geometric_median(), corners)["w"]
  near(result, [0.5, math.sqrt(3) / 6])
  result = mix(rules.geometric_median(), [[0.0, 0], [1.0, 0], [9.0, 0]])["w"]
  near(result, [1, 0], 1e-6)
  result = mix(rules.geometric_median(), [[-5.0, 0.1], ZERO, [5.0, 0.1]])["w"]
  near(result, ZERO, 1e-6)
  result = mix(rules.geometric_median([1.0, 5.0]), [[0.0, 0], [1.0, 0]])["w"]
  near(result, [1, 0], 1e-6)


def test_geometric_median_of_equal_models_and_of_a_stray():
  v = np.array([0.1, -3.0], "f")
  assert np.array_equal(mix(rules.geometric_median(), [v] * 3)["w"], v)
  result = mix(rules.geometric_median(), [v, v, v + 1000])["w"]
  near(result, v, 1e-3)


def test_karcher_by_hand():
  a, b = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
  near(mix(rules.karcher(), [a, b])["w"], [ROOT, ROOT, 0])
  result = mix(rules.karcher([2.0, 1.0]), [a, b])["w"]
  near(result, [math.sqrt(3) / 2, 0.5, 0])
  # The mean norm, (1 + 3) / 2.
  near(
    mix(rules.karcher(), [a, [0, 3.0, 0]])["w"], [2 * ROOT, 2 * ROOT, 0], 1e-6
  )
  result = mix(rules.karcher(), [a, b, [0.0, 0.0, 1.0]])["w"]
  near(result, [3**-0.5] * 3)
  v = np.array([0.1, -3.0], "f")
  assert np.array_equal(mix(rules.karcher(), [v] * 3)["w"], v)


def test_both_formulas_of_the_median_agree(monkeypatch):
  rng = np.random.default_rng(0)
  gram = thresholds.gram(rng.normal(size=(20, 300)).astype("f"), None)
  weights = rng.uniform(0.1, 1, 20)
  few = geometry.median_weights(gram, weights)
  monkeypatch.setattr(geometry, "_EXPLICIT", 19)
  near(geometry.median_weights(gram, weights), few, 1e-11)


def test_units_and_threads(monkeypatch):
  rng = np.random.default_rng(0)
  trees = [{"a": rng.normal(size=(9, 31)), "b": [1.0, 2.0]} for _ in range(2)]
  expected = mix(rules.slerp(0.3, scope="model"), trees)
  monkeypatch.setattr(first_pass, "_UNIT_BYTES", 0)
  monkeypatch.setattr(first_pass, "_UNIT_ELEMENTS", 10)
  runs = [
    mix(rules.slerp(0.3, scope="model"), trees, threads=threads)
    for threads in (1, 4, 4, 4)
  ]
  for run in runs:
    for leaf, value in expected.items():
      near(run[leaf], value, 1e-6)
      assert np.array_equal(run[leaf], runs[0][leaf])


def test_bad_input():
  a = [1.0, 2.0]
  with pytest.raises(ValueError, match="slerp.* 2 .*got 3"):
    mix(rules.slerp(0.5), [a] * 3)
  with pytest.raises(ValueError, match="'x'"):
    mix(rules.slerp({"x": 0.5}), [a] * 2, dry_run=True)
  with pytest.raises(ValueError, match="2 ingredients.*1"):
    mix(rules.model_stock(), [a], a)
  with pytest.raises(ValueError, match="needs a base"):
    mix(rules.model_stock(), [a, a])
  for make in (rules.geometric_median, rules.karcher):
    with pytest.raises(ValueError, match="2 ingredients"):
      mix(make([1.0]), [a, a])
    with pytest.raises(ValueError, match="positive"):
      mix(make([1.0, -1.0]), [a, a])
    with pytest.raises(ValueError, match="scope"):
      make(scope="x")
  with pytest.raises(ValueError, match="compat"):
    rules.model_stock(compat="peft")
