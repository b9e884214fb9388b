# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
from helpers import mix_trees as mix
import numpy as np
import pytest

import soupjax as sj
from soupjax.soups import rules
from soupjax.soups.rules import random_masks, sparse


def zeros(n):
  return np.zeros(n, "f")


def test_breadcrumbs_by_hand():
  delta = np.array([5.0, -9.0, 1.0, -3.0, 7.0, 2.0, 4.0, 6.0, -8.0, 0.5])
  # The largest, -9, is dropped; the next 4, 5, 7, 6 and -8, are kept.
  result = mix(rules.breadcrumbs(0.4, 0.1), [delta], zeros(10))["w"]
  assert result.tolist() == [5, 0, 0, 0, 7, 0, 0, 6, -8, 0]
  result = mix(rules.breadcrumbs(0.4, 0.1, 0.5), [delta], zeros(10))["w"]
  assert result.tolist() == [2.5, 0, 0, 0, 3.5, 0, 0, 3, -4, 0]


def test_breadcrumbs_without_gamma_or_of_small_leaves():
  delta = np.array([5.0, -9.0, 1.0, -3.0])
  result = mix(rules.breadcrumbs(0.5, 0.0), [delta], zeros(4))["w"]
  assert result.tolist() == [5, -9, 0, 0]
  # 4 < 1 / gamma: nothing is dropped at the top.
  result = mix(rules.breadcrumbs(0.5, 0.1), [delta], zeros(4))["w"]
  assert result.tolist() == [5, -9, 0, 0]
  assert mix(rules.breadcrumbs(0.1, 0.1), [[2.0]], zeros(1))["w"] == 2
  assert mix(rules.breadcrumbs(1.0, 0.0), [delta], zeros(4))["w"].tolist() == (
    delta.tolist()
  )


def test_breadcrumbs_of_equal_magnitudes():
  delta = np.array([1.0, -1.0] * 10)
  result = mix(rules.breadcrumbs(0.5, 0.1), [delta], zeros(20))["w"]
  assert result.tolist() == delta.tolist()


@pytest.mark.parametrize("density,gamma", [(0.1, 0.01), (0.5, 0.3), (0.7, 0)])
def test_breadcrumbs_keeps_as_many_as_it_says(density, gamma):
  delta = np.random.default_rng(0).normal(size=999)
  result = mix(rules.breadcrumbs(density, gamma), [delta], zeros(999))["w"]
  assert (result != 0).sum() == int(density * 999)


def test_dare_by_hand():
  # The masks, made by another program; then sums of what they keep.
  keys = random_masks.keys(3, "w", ["m0", "m1"])
  place = np.stack([np.arange(50), np.zeros(50)]).astype(np.uint32)
  masks = np.stack(
    [random_masks.random_mask(k, place, np.float32(0.25)) for k in keys]
  )
  assert masks.sum(1).min() > 3
  deltas = np.random.default_rng(0).normal(size=(2, 50)).astype("f")
  result = mix(rules.dare(0.25, 0.5, seed=3), deltas, zeros(50))["w"]
  expected = 0.5 * (masks * deltas.astype(np.float64)).sum(0) / 0.25
  assert np.abs(result - expected).max() < 1e-6
  result = mix(rules.dare(0.25, rescale=False, seed=3), deltas, zeros(50))["w"]
  assert np.abs(result - (masks * deltas).sum(0)).max() < 1e-6


def test_dare_keeps_its_share_and_the_mean():
  ones = np.ones((200, 300), "f")
  result = mix(rules.dare(0.3), [ones], 0 * ones)["w"]
  kept = (result != 0).mean()
  assert abs(kept - 0.3) < 4 * (0.21 / 60000) ** 0.5
  assert np.unique(result).size == 2
  assert abs(result.mean() - 1) < 0.03


def test_dare_depends_on_seed_leaf_and_model_alone():
  ones = np.ones(500, "f")
  tree = {"a": ones, "b": ones}
  base = {"a": 0 * ones, "b": 0 * ones}
  first = mix(rules.dare(0.5, seed=1), [tree], base)
  again = mix(rules.dare(0.5, seed=1), [{"b": ones, "a": ones}], base)
  for leaf in tree:
    assert np.array_equal(first[leaf], again[leaf])
  other = mix(rules.dare(0.5, seed=2), [tree], base)
  both = mix(rules.dare(0.5, seed=1), [tree, tree], base)["a"]
  second = both - first["a"]
  for one in (first["b"], other["a"], second):
    assert 150 < (one != first["a"]).sum() < 350


def test_masks_go_by_the_name_of_the_ingredient():
  base = sj.Ingredient.from_params("base", {"w": np.zeros(500, "f")})
  one, two, three = (
    sj.Ingredient.from_params(name, {"w": np.full(500, size, "f")})
    for name, size in (("one", 1.0), ("two", 4.0), ("three", 16.0))
  )

  def merged(rule, *models):
    return np.asarray(sj.mix(rule, models, base=base).params["w"])

  for rule in (
    rules.dare(0.5, rescale=False),
    rules.della(0.5, 0.0, elect=False),
  ):
    result = merged(rule, one, two, three)
    assert np.array_equal(merged(rule, three, one, two), result)
    # Nor do the others matter.
    alone = merged(rule, one) + merged(rule, two) + merged(rule, three)
    assert np.array_equal(alone, result)
    assert len(np.unique(result)) == 8


def test_dare_of_everything():
  tuned = np.random.default_rng(0).normal(size=99).astype("f")
  base = np.random.default_rng(1).normal(size=99).astype("f")
  assert np.array_equal(mix(rules.dare(1.0), [tuned], base)["w"], tuned)


def test_dare_with_election():
  deltas = [[2.0, 2.0], [4.0, -3.0]]
  result = mix(rules.dare(1.0, elect=True), deltas, zeros(2))["w"]
  assert result.tolist() == [3, -3]


def test_della_drops_small_changes_more_often():
  sizes = np.array([7, 1, 5, 10, 2, 8, 4, 9, 3, 6], "f")
  delta = np.tile(sizes, (2000, 1))
  result = mix(rules.della(0.5, 0.8), [delta], 0 * delta)["w"]
  kept = (result != 0).mean(0)
  expected = 0.1 + 0.8 * (sizes - 1) / 9
  assert np.abs(kept - expected).max() < 0.05
  # Divided by its probability.
  assert np.abs(result.max(0) - delta[0] / expected).max() < 1e-4
  assert np.array_equal(
    mix(rules.della(1.0, 0.0), [delta], 0 * delta)["w"], delta
  )


def test_della_as_mergekit():
  sizes = np.array([7, 1, 5, 10, 2, 8, 4, 9, 3, 6], "f")
  delta = np.tile(sizes, (2000, 1))
  rule = rules.della(0.5, 0.4, compat="mergekit")
  result = mix(rule, [delta], 0 * delta)["w"]
  kept = (result != 0).mean(0)
  assert np.abs(kept - (0.1 + 0.8 * (sizes - 1) / 9)).max() < 0.05
  # Scaled to the norm it had, all elements alike.
  assert abs(result.sum() / delta.sum() - 1) < 1e-5
  ratio = result[result != 0] / delta[result != 0]
  assert np.ptp(ratio) < 1e-6 and 1 < ratio[0] < 2
  # An even election goes up, and weights weigh the mean: 2 with weight 1.
  rule = rules.della(1.0, 0.0, weights=[2, 4], compat="mergekit")
  result = mix(rule, [[2.0, 2.0], [-1.0, 5.0]], zeros(2))["w"]
  assert np.allclose(result, [2, 4])
  with pytest.raises(ValueError, match="-0.1"):
    rules.della(0.3, 0.4, compat="mergekit")
  with pytest.raises(ValueError, match="compat='peft'"):
    rules.della(0.3, compat="peft")


def test_dare_as_mergekit():
  delta = np.random.default_rng(0).normal(size=(300, 9)).astype("f")
  result = mix(rules.dare(0.4, compat="mergekit"), [delta], 0 * delta)["w"]
  plain = mix(rules.dare(0.4, rescale=False), [delta], 0 * delta)["w"]
  # The same elements, scaled to the norm that the leaf had before.
  assert np.array_equal(result != 0, plain != 0)
  assert abs(np.abs(result).sum() / np.abs(delta).sum() - 1) < 1e-5
  ratio = result[plain != 0] / plain[plain != 0]
  assert np.ptp(ratio) < 1e-5 and abs(ratio[0] - 2.5) < 0.2
  # Every model by itself, and not by its weight.
  both = mix(
    rules.dare(0.4, compat="mergekit", weights=[2, -1]),
    [delta, 0 * delta],
    0 * delta,
  )["w"]
  assert np.allclose(both, 2 * result, atol=1e-6)
  # An even election goes up, and weights weigh the mean: 2 with weight 1.
  for rescale in (True, False):
    rule = rules.dare(
      1.0, weights=[2, 4], elect=True, rescale=rescale, compat="mergekit"
    )
    result = mix(rule, [[2.0, 2.0], [-1.0, 5.0]], zeros(2))["w"]
    assert np.allclose(result, [2, 4])
  nothing = mix(rules.dare(0.5, compat="mergekit"), [zeros(4)], zeros(4))["w"]
  assert np.array_equal(nothing, zeros(4))
  with pytest.raises(ValueError, match="compat='peft'"):
    rules.dare(0.3, compat="peft")


def test_ranks_are_those_of_a_stable_sort():
  rng = np.random.default_rng(0)
  bits = rng.integers(0, 5, size=(7, 40)).astype(np.uint32)
  order = np.argsort(bits, axis=-1, kind="stable")
  want = np.argsort(order, axis=-1) / 39
  assert np.array_equal(sparse._ranks(bits), want.astype(np.float32))
  assert np.array_equal(sparse._ranks(bits[0]), want[0].astype(np.float32))


def test_della_of_rows_of_one():
  # Neither the smallest nor the largest: kept as often as the others.
  delta = np.ones((20_000, 1), "f")
  result = mix(rules.della(0.5, 0.4), [delta], 0 * delta)["w"]
  assert abs((result != 0).mean() - 0.5) < 0.02
  assert set(np.unique(result)) == {0, 2}
  one = {f"b{k}": np.ones((), "f") for k in range(400)}
  base = {leaf: 0 * value for leaf, value in one.items()}
  result = mix(rules.della(0.5, 0.4), [one], base)
  assert 150 < sum(value != 0 for value in result.values()) < 250


@pytest.mark.parametrize("density", [0.0, 1.1, -1.0])
def test_bad_densities(density):
  for make in (rules.dare, rules.breadcrumbs, rules.della):
    with pytest.raises(ValueError, match="density"):
      make(density)


@pytest.mark.parametrize(
  "make,text",
  [
    (lambda: rules.dare(0.5, False), "scale"),
    (lambda: rules.dare(0.5, scale=True), "scale"),
    (lambda: rules.dare(True), "density"),
    (lambda: rules.dare("0.5"), "density"),
    (lambda: rules.dare(0.5, rescale="false"), "rescale"),
    (lambda: rules.dare(0.5, rescale=0), "rescale"),
    (lambda: rules.dare(0.5, elect="no"), "elect"),
    (lambda: rules.dare(0.5, seed=1.5), "seed"),
    (lambda: rules.dare(0.5, seed="a"), "seed"),
    (lambda: rules.della(0.5, seed=True), "seed"),
    (lambda: rules.della(0.5, elect="no"), "elect"),
    (lambda: rules.della(0.5, weights="12"), "weights"),
    (lambda: rules.breadcrumbs(elect=1), "elect"),
    (lambda: rules.breadcrumbs(gamma=False), "gamma"),
  ],
)
def test_booleans_and_words_are_not_numbers(make, text):
  with pytest.raises(ValueError, match=text):
    make()


def test_other_bad_input():
  for gamma in (-0.1, 1.1):
    with pytest.raises(ValueError, match="gamma"):
      rules.breadcrumbs(0.1, gamma)
  with pytest.raises(ValueError, match="density=0.9.*gamma=0.2"):
    rules.breadcrumbs(0.9, 0.2)
  with pytest.raises(ValueError, match="0.8 to 1.1"):
    rules.della(0.95, 0.3)
  with pytest.raises(ValueError, match="needs a base"):
    mix(rules.dare(0.5), [zeros(2)])
  with pytest.raises(ValueError, match="1 ingredients"):
    mix(rules.dare(0.5, weights=[1, 2]), [zeros(2)], zeros(2))
