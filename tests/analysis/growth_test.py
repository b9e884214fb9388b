# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Greedy soups of growing sweeps, against `greedy_soup`."""

import numpy as np
import pytest

import soupjax as sj
from soupjax.analysis import growth as growth_lib

RNG = np.random.default_rng(0)
TARGET = RNG.normal(size=6)
POOL = [
  sj.Ingredient.from_params(
    f"m{k}", {"w": (TARGET + RNG.normal(size=6)).astype(np.float32)}
  )
  for k in range(6)
]


def score_of(params):
  return -float(np.round(((params["w"] - TARGET) ** 2).sum(), 4))


NAMES = [i.name for i in sorted(POOL, key=lambda i: -score_of(i.load()))]


def test_every_soup_is_that_of_greedy_soup_and_no_subset_is_evaluated_twice():
  named, calls = {i.name: i for i in POOL}, []

  def evaluate(names):
    calls.append(names)
    assert list(names) == sorted(names, key=NAMES.index)
    return score_of(sj.uniform_soup([named[name] for name in names]))

  orders = sj.random_orders(POOL, 3, seed=1)
  counts = [1, 3, 6]
  found = growth_lib.growth(NAMES, evaluate, orders, counts)
  for p, order in enumerate(orders):
    for c, count in enumerate(counts):
      pool = [named[n] for n in NAMES if n in order[:count]]
      want = sj.greedy_soup(pool, score_of)
      assert found.sizes[p, c] == len(want.selected)
      assert found.scores[p, c] == pytest.approx(want.score, abs=2e-4)
      best = max(score_of(i.load()) for i in pool)
      assert found.best[p, c] == pytest.approx(best, abs=2e-4)
  assert len(calls) == len(set(calls))
  assert (found.scores >= found.best).all() and found.sizes.max() > 1
  assert np.ptp(found.sizes[:, -1]) == 0  # All models, in any order.


def test_hyperparameters_that_differ_are_split_by_the_choice():
  found = growth_lib.hyperparameters_of(
    ["a"], {"a": {"lr": 1, "wd": 0}, "b": {"lr": 2, "wd": 0, "x": "y"}}
  )
  assert found == {"lr": ([1], [2]), "x": ([None], ["y"])}


@pytest.mark.parametrize(
  "change,message",
  [
    ({"orders": [["a"]]}, "all 2 names"),
    ({"counts": [0]}, "counts from 1 to 2, got .0."),
    ({"counts": [3]}, "counts from 1 to 2, got .3."),
    ({"counts": [1.5]}, "counts from 1 to 2, got .1.5"),
    ({"orders": []}, "0 orders"),
    ({"accept": "lt"}, "'lt'"),
    ({"evaluate": lambda names: np.nan}, "scores nan"),
  ],
)
def test_refuses(change, message):
  settings = {
    "names": ["a", "b"], "evaluate": len, "orders": [["b", "a"]],
    "counts": [2], **change,
  }  # fmt: skip
  with pytest.raises(ValueError, match=message):
    growth_lib.growth(**settings)
