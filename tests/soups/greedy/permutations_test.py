# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np
import pytest

import soupjax as sj


def pool_of(seed, count=6):
  rng = np.random.default_rng(seed)
  return [
    sj.Ingredient.from_params(f"m{k}", {"w": rng.normal(size=4).astype("f")})
    for k in range(count)
  ]


def loss(params):
  return float(np.square(np.float64(params["w"])).sum())


def test_random_orders_depend_on_names_and_seed_alone():
  pool = pool_of(0)
  orders = sj.random_orders(pool, 5, seed=1)
  assert all(sorted(o) == [f"m{k}" for k in range(6)] for o in orders)
  assert len({tuple(o) for o in orders}) == 5
  assert sj.random_orders(pool[::-1], 3, seed=1) == orders[:3]
  assert sj.random_orders(pool, 5, seed=2) != orders


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_best_order_is_one_of_the_greedy_soups(mode):
  sign = 1 if mode == "min" else -1
  pool = pool_of(3)
  orders = sj.random_orders(pool, 6, seed=0)
  told = []
  best = sj.best_order(
    pool,
    lambda p: sign * loss(p),
    orders,
    mode=mode,
    on_decision=lambda k, d: told.append((k, d)),
  )
  singles = [
    sj.greedy_soup(
      pool, lambda p: sign * loss(p), turns=sj.Turns(order=o), mode=mode
    )
    for o in orders
  ]
  assert best.scores == tuple(s.score for s in singles)
  assert len(set(best.scores)) > 1
  best_score = (min if mode == "min" else max)(best.scores)
  assert best.soup.score == best_score == best.scores[best.chosen]
  assert best.histories == tuple(s.history for s in singles)
  jax.tree.map(
    np.testing.assert_array_equal,
    best.soup.params,
    singles[best.chosen].params,
  )
  assert [d for k, d in told if k == 4] == list(best.histories[4])
  assert best.orders == tuple(map(tuple, orders))


def test_of_equal_soups_the_first():
  pool = pool_of(0)
  best = sj.best_order(pool, lambda _: 0.5, sj.random_orders(pool, 3, seed=0))
  assert best.chosen == 0


def test_resumes_order_by_order():
  pool = pool_of(5)
  orders = sj.random_orders(pool, 3, seed=0)
  want = sj.best_order(pool, loss, orders, mode="min")
  calls = []
  past = [want.histories[0], want.histories[1][:2]]
  got = sj.best_order(
    pool,
    lambda p: calls.append(1) or loss(p),
    orders,
    mode="min",
    resume=past,
  )
  assert got.histories == want.histories and got.chosen == want.chosen
  assert len(calls) == 4 + 6


def test_bad_input():
  pool = pool_of(0)
  with pytest.raises(ValueError, match="order"):
    sj.best_order(pool, loss, [])
<<<<<<< HEAD
  with pytest.raises(ValueError, match="2 orders.*1"):
    sj.best_order(pool, loss, [["m0"]], resume=[[], []])
  with pytest.raises(ValueError, match=r"Missing: \['m1'"):
    sj.best_order(pool, loss, [["m0"]])
  with pytest.raises(ValueError, match="count"):
    sj.random_orders(pool, 0, seed=0)
  with pytest.raises(ValueError, match="ingredients"):
=======
  with pytest.raises(ValueError, match="2 orders.* 1 orders"):
    sj.best_order(pool, loss, [["m0"]], resume=[[], []])
  with pytest.raises(ValueError, match=r"Missing: \['m1'"):
    sj.best_order(pool, loss, [["m0"]])
  with pytest.raises(ValueError, match="count .*0"):
    sj.random_orders(pool, 0, seed=0)
  with pytest.raises(ValueError, match="no ingredients"):
>>>>>>> learn2
    sj.random_orders([], 1, seed=0)


def test_an_evaluator_knows_which_way_is_better():
  class Loss:
    mode = "min"

    def __call__(self, params):
      return loss(params)

  pool = pool_of(0)
  orders = sj.random_orders(pool, 3, seed=0)
<<<<<<< HEAD
  with pytest.raises(ValueError, match="mode.*'max'"):
=======
  with pytest.raises(ValueError, match="'max'.*'min'"):
>>>>>>> learn2
    sj.best_order(pool, Loss(), orders)
  best = sj.best_order(pool, Loss(), orders, mode="min")
  assert best.soup.score == min(best.scores)
