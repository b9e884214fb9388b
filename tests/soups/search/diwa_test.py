# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

import soupjax as sj


def runs(*values):
  return [
    sj.Ingredient.from_params(f"r{k}", {"w": np.float32(v)})
    for k, v in enumerate(values)
  ]


def near_zero(params):
  return -abs(float(params["w"]))


def test_diwa_ranks_and_averages_what_helps():
  pool = sj.search.diwa(runs(3.0, -1.0, 1.0), near_zero)
  assert [r.name for r in pool.runs] == ["r1", "r2", "r0"]
  assert [r.metrics["held-out"] for r in pool.runs] == [-1, -1, -3]
  assert pool.selected == ("r1", "r2")
  assert (float(pool.params["w"]), pool.score) == (0.0, 0.0)
  assert [d.accepted for d in pool.greedy.history] == [True, True, False]


def test_diwa_uniform():
  pool = sj.search.diwa(runs(3.0, -1.0, 1.0), near_zero, average="uniform")
  assert pool.selected == ("r1", "r2", "r0")
  assert float(pool.params["w"]) == 1.0 and pool.score == -1.0
  assert pool.greedy is None


def loss(params):
  return abs(float(params["w"]))


@pytest.mark.parametrize("average", ["greedy", "uniform"])
def test_diwa_of_losses_is_that_of_negated_scores(average):
  pool = sj.search.diwa(runs(3.0, -1.0, 1.0), loss, average=average, mode="min")
  want = sj.search.diwa(runs(3.0, -1.0, 1.0), near_zero, average=average)
  assert [r.name for r in pool.runs] == ["r1", "r2", "r0"]
  assert pool.selected == want.selected and pool.score == -want.score
  assert pool.params["w"] == want.params["w"]


def test_ratatouille_of_losses():
  pool = sj.search.ratatouille(
    runs(4.0, -2.0, 2.0), lambda p, name: p, loss, mode="min"
  )
  assert pool.runs[0].name == "r1" and pool.score == 0


class Loss:
  mode = "min"

  def __call__(self, params):
    pytest.fail("called")


@pytest.mark.parametrize("average", ["greedy", "uniform"])
def test_evaluators_of_losses_are_not_taken_for_scores(average):
  settings = {"average": average}
  message = "'max'.*mode='min'"
  with pytest.raises(ValueError, match=message):
    sj.search.diwa(runs(1, 2), Loss(), **settings)
  with pytest.raises(ValueError, match=message):
    sj.search.ratatouille(runs(1, 2), Loss(), Loss(), **settings)
<<<<<<< HEAD
  with pytest.raises(ValueError, match="mode"):
=======
  with pytest.raises(ValueError, match="mode .*'low'"):
>>>>>>> learn2
    sj.search.diwa(runs(1, 2), near_zero, mode="low", **settings)


@pytest.mark.parametrize("value", [None, {"a": 1}, float("nan")])
def test_diwa_says_which_run_has_no_score(value):
  with pytest.raises(ValueError, match="'r0'"):
    sj.search.diwa(runs(1, 2), lambda p: value)


def test_diwa_passes_settings_to_the_greedy_soup():
  pool = sj.search.diwa(runs(0, 3, 4, 5), near_zero, turns=sj.Turns(patience=1))
  assert len(pool.greedy.history) == 2


@pytest.mark.parametrize("as_ingredient", [True, False])
def test_ratatouille_fine_tunes_every_start(as_ingredient):
  seen = []

  def finetune(params, name):
    seen.append((name, float(params["w"])))
    tuned = {"w": np.float32(params["w"] / 2)}
    return sj.Ingredient.from_params("saved", tuned) if as_ingredient else tuned

  pool = sj.search.ratatouille(
    runs(4.0, -2.0, 2.0), finetune, near_zero, average="uniform"
  )
  assert seen == [("r0", 4.0), ("r1", -2.0), ("r2", 2.0)]
  assert pool.selected == ("r1", "r2", "r0")
  assert float(pool.params["w"]) == pytest.approx(2 / 3)


def test_bad_input_comes_before_any_work():
  def never(*args):
    pytest.fail("called")

  for search in (
    lambda **s: sj.search.diwa(runs(1, 2), never, **s),
    lambda **s: sj.search.ratatouille(runs(1, 2), never, never, **s),
  ):
<<<<<<< HEAD
    with pytest.raises(ValueError, match="'greedy'.*'uniform'.*'best'"):
=======
    with pytest.raises(ValueError, match="'best'"):
>>>>>>> learn2
      search(average="best")
    with pytest.raises(ValueError, match="'turns'"):
      search(average="uniform", turns=sj.Turns(patience=3))
    with pytest.raises(ValueError, match="accept .*'maybe'"):
      search(accept="maybe")
  with pytest.raises(ValueError, match="at least one"):
    sj.search.diwa([], never)
  two = [*runs(1), sj.Ingredient.from_params("b", {"v": np.float32(1)})]
<<<<<<< HEAD
  with pytest.raises(ValueError, match="'b'.*'w'"):
=======
  with pytest.raises(ValueError, match="'b' .*'w'"):
>>>>>>> learn2
    sj.search.ratatouille(two, never, never)
