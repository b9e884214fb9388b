# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest

import soupjax as sj
from soupjax.soups.search import blackbox

PRE = {"w": np.zeros(3, "f")}
SUPPORT = {"patching": ["a", "b"], "supported": ["old"]}


def unit(k):
  return {"w": np.eye(3, dtype="f")[k]}


def evaluate(params):
  """a wants the first weight at 0.8, b the second at 0.3; old wants zeros."""
  w = np.float64(params["w"])
  return {
    "a": 1 - (w[0] - 0.8) ** 2,
    "b": 1 - (w[1] - 0.3) ** 2,
    "old": 1 - 0.1 * np.square(w).sum(),
  }


def test_single_maximises_the_mean_of_two_means():
  search = sj.search.paint(
    PRE, unit(0), evaluate, patching=["a"], supported=["old"]
  )
  # (1 - (x - .8)^2 + 1 - .1 x^2) / 2 is highest at .8 / 1.1 = .727.
  assert search.best.coefficients == (pytest.approx(0.7),)
  # Supported tasks count together as much as patching ones.
  scores = {"a": 0.5, "b": 0.7, "old": 0.9}
  search = sj.search.paint(PRE, unit(0), lambda p: scores, **SUPPORT)
  assert search.best.value == pytest.approx(((0.5 + 0.7) / 2 + 0.9) / 2)


def test_sequential_starts_from_the_model_patched_before():
  started, tasks = [], ["a", "b"]

  def finetune(params, task):
    started.append((task, np.array(params["w"])))
    return {"w": params["w"] + np.eye(3, dtype="f")[tasks.index(task)]}

  search = sj.search.paint_sequential(PRE, finetune, evaluate, **SUPPORT)
  assert [task for task, _ in started] == tasks
  np.testing.assert_array_equal(started[0][1], PRE["w"])
  np.testing.assert_array_equal(started[1][1], search.rounds[0].params["w"])
  assert search.params is search.rounds[1].params
  # In the first round only task a counts: as single patching.
  alone = sj.search.paint(
    PRE, unit(0), evaluate, patching=["a"], supported=["old"]
  )
  assert search.rounds[0].history == alone.history
  assert 0.1 < search.rounds[1].best.coefficients[0] < 0.5
  assert search.params["w"][0] == alone.params["w"][0]


def test_sequential_takes_ingredients():
  pre = sj.Ingredient.from_params("pre", PRE)
  search = sj.search.paint_sequential(
    pre,
    lambda params, task: sj.Ingredient.from_params(task, unit(0)),
    evaluate,
    **SUPPORT,
  )
  assert len(search.rounds) == 2


@pytest.mark.parametrize("budget", [11, 30, 50])
def test_parallel_beats_equal_coefficients_within_the_budget(budget):
  calls = []
  search = sj.search.paint_parallel(
    PRE,
    [unit(0), unit(1)],
    lambda p: calls.append(1) or evaluate(p),
    budget=budget,
    **SUPPORT,
  )
  assert len(calls) == len(search.history) <= budget
  equal = [c.value for c in search.history[:11]]
  assert all(len(set(c.coefficients)) == 1 for c in search.history[:11])
  assert all(0 <= x <= 1 for c in search.history for x in c.coefficients)
  if budget == 11:
    assert search.best.value == max(equal)
  else:
    # The optimum, .8 / 1.2 and .3 / 1.2, by hand.
    near = 0.08 if budget == 30 else 0.03
    assert search.best.coefficients == pytest.approx((0.667, 0.25), abs=near)
    assert search.best.value > max(equal)


def test_parallel_is_deterministic_and_resumes():
  def run(**settings):
    return sj.search.paint_parallel(
      PRE, [unit(0), unit(1)], budget=40, **SUPPORT, **settings
    )

  want = run(evaluate=evaluate)
  assert run(evaluate=evaluate).history == want.history
  for cut in (5, 20, 40):
    calls = []
    got = run(
      evaluate=lambda p: calls.append(1) or evaluate(p),  # noqa: B023
      resume=[dataclasses.asdict(c) for c in want.history[:cut]],
    )
    assert got.history == want.history
    assert len(calls) == len(want.history) - cut


def test_equal_coefficients_of_one_over_k_are_the_uniform_soup():
  seen = []
  sj.search.paint_parallel(
    PRE,
    [unit(0), unit(1)],
    lambda p: seen.append(p) or evaluate(p),
    [0.5],
    budget=1,
    **SUPPORT,
  )
  soup = sj.uniform_soup(
    [sj.Ingredient.from_params(str(k), unit(k)) for k in (0, 1)]
  )
  np.testing.assert_array_equal(seen[0]["w"], soup["w"])


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_black_box_search_steps_over_stairs(size):
  place = np.linspace(0.2, 0.9, size)
  tried = []

  def stairs(x):
    tried.append(tuple(x))
    return float(np.floor(20 * (1 - np.abs(np.array(x) - place).mean())))

  start = [0.5] * size
  blackbox.maximize(stairs, start, 60)
  assert len(set(tried)) <= 60
  assert max(map(stairs, list(tried))) >= stairs(start) + (1 if size > 1 else 0)


def test_the_black_box_search_stays_in_the_box_and_ends():
  tried = []
  blackbox.maximize(
    lambda x: tried.append(tuple(x)) or float(sum(x)), [0.9, 0.95], 500
  )
  assert 20 < len(set(tried)) <= 500
  assert np.min(tried) >= 0 and np.max(tried) <= 1
  assert max(map(sum, tried)) > 1.98
  # Known scores cost nothing.
  before, again = set(tried), []
  blackbox.maximize(
    lambda x: again.append(tuple(x)) or float(sum(x)),
    [0.9, 0.95],
    0,
    known=before,
  )
  assert again == tried[: len(again)] and len(again) > 20


@pytest.mark.parametrize(
  "change,message",
  [
    ({"patching": []}, r"patching .*\[\]"),
    ({"supported": "old"}, "supported .*'old'"),
    ({"patching": ["a", "old"]}, r"\['old'\].*patching"),
    ({"patching": ["c"]}, r"patching .*\['c'\]"),
    ({"supported": ["new"]}, r"supported .*\['new'\]"),
  ],
)
def test_refuses_tasks(change, message):
  with pytest.raises(ValueError, match=message):
    sj.search.paint(PRE, unit(0), evaluate, **{**SUPPORT, **change})
  with pytest.raises(ValueError, match=message):
    sj.search.paint_parallel(PRE, [unit(0)], evaluate, **{**SUPPORT, **change})


def test_a_budget_covers_the_alphas():
  with pytest.raises(ValueError, match="budget=5 .*11 alphas"):
    sj.search.paint_parallel(
      PRE, [unit(0)], lambda p: pytest.fail("called"), budget=5, **SUPPORT
    )


def test_the_best_equal_alpha_is_not_evaluated_again():
  def score(params):
    # Highest at 0.3, which np.linspace writes as 0.30000000000000004.
    return {"a": -float(np.abs(params["w"][:2] - 0.3).max()), "old": 0.0}

  search = sj.search.paint_parallel(
    PRE,
    [unit(0), unit(1)],
    score,
    patching=["a"],
    supported=["old"],
    budget=20,
  )
  at = [tuple(np.round(c.coefficients, 4)) for c in search.history]
  assert search.history[3].coefficients == (0.30000000000000004,) * 2
  assert len(at) == len(set(at)) == 20


def test_parallel_refuses_alphas_outside_of_its_box_and_numbers():
  with pytest.raises(ValueError, match=r"alphas .*\[-0.1, 1.5\]"):
    sj.search.paint_parallel(
      PRE, [unit(0)], evaluate, [-0.1, 0, 1.5], **SUPPORT
    )
  with pytest.raises(TypeError, match="int: 3"):
    sj.search.paint_parallel(PRE, 3, evaluate, **SUPPORT)
