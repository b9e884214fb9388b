# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax.soups.core import tree


def trees():
  return [
    {
      "block": {"w": np.full(2, float(k), np.float32), "none": None},
      "heads": [np.full(3, 10.0 * k, np.float32)],
      "step": np.array(7),
      "count": np.arange(3),
    }
    for k in range(3)
  ]


def ruin(params):
  """Changes everything that can be changed in a tree of these."""
  params["step"] *= 0
  params["count"][:] = -1
  for holder, key in ((params["block"], "w"), (params["heads"], 0)):
    if isinstance(holder[key], np.ndarray):
      holder[key][...] = 50
    holder[key] = holder[key] * 0 + 99
  params["heads"].append("more")
  params.pop("block")


class Ruins:
  """Evaluates honestly, then ruins the tree."""

  def __call__(self, params):
    score = -abs(float(params["block"]["w"][0]) - 1.2)
    ruin(params)
    return score

  def evaluate_until(self, params, can_reach):
    from soupjax.soups.greedy import Trial

    return Trial(score=self(params))

  def set_incumbent(self):
    pass


def finetune(params, name):
  ruin(params)
  return trees()[1]


def by_name(evaluate):
  return lambda params: {"x": evaluate(params), "y": 0.0}


ORDERS = [["model_0", "model_1", "model_2"], ["model_2", "model_1", "model_0"]]
RECIPES = {
  "greedy": lambda m, e: sj.greedy_soup(m, e).params,
  "greedy, all data": lambda m, e: (
    sj.greedy_soup(m, e, early_reject=False).params
  ),
  "best_order": lambda m, e: sj.best_order(m, e, ORDERS).soup.params,
  "diwa": lambda m, e: sj.search.diwa(m, e).params,
  "diwa, uniform": lambda m, e: sj.search.diwa(m, e, average="uniform").params,
  "ratatouille": lambda m, e: sj.search.ratatouille(m, finetune, e).params,
  "wise_ft_curve": lambda m, e: (
    sj.search.wise_ft_curve(m[0], m[2], e, [0, 0.5, 1]).params
  ),
  "curve from disk": lambda m, e: (
    sj.search.wise_ft_curve(m[0], m[2], e, [0, 0.5], in_memory=False).params
  ),
  "analogy": lambda m, e: sj.search.analogy(*m, e, [0, 0.5]).params,
  "task_scale": lambda m, e: sj.search.task_scale(m[0], m[1:], e, [0.3]).params,
  "paint_sequential": lambda m, e: (
    sj.search.paint_sequential(
      m[0], finetune, by_name(e), [0, 1], patching=["x"], supported=["y"]
    ).params
  ),
  "paint_parallel": lambda m, e: (
    sj.search.paint_parallel(
      m[0],
      m[1:],
      by_name(e),
      [0, 0.5],
      patching=["x"],
      supported=["y"],
      budget=4,
    ).params
  ),  # fmt: skip
  "diagnose": lambda m, e: list(sj.diagnose(m, e).scores.values()),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_evaluator_that_changes_its_tree_changes_nothing_else(recipe):
  models, honest = trees(), Ruins()
  honest_result = RECIPES[recipe](
    trees(), lambda p: -abs(float(p["block"]["w"][0]) - 1.2)
  )
  result = RECIPES[recipe](models, honest)
  jax.tree.map(np.testing.assert_array_equal, result, honest_result)
  jax.tree.map(np.testing.assert_array_equal, models, trees())


def test_a_loss_that_changes_its_tree_changes_nothing_else():
  def loss(params, beta):
    value = ((params["block"]["w"] - 1.2) ** 2).sum()
    ruin(params)
    return value

  models = trees()
  soup = sj.learned_soup(models, loss, steps=2).params
  assert int(soup["step"]) == 7
  assert soup["count"].tolist() == [0, 1, 2]
  assert soup["block"]["w"].shape == (2,)
  jax.tree.map(np.testing.assert_array_equal, models, trees())


@pytest.mark.parametrize("make", [
  lambda m: sj.uniform_soup(m),
  lambda m: sj.wise_ft(m[0], m[1], 0),
  lambda m: sj.greedy_soup(m[:1], lambda params: 1.0).params,
  lambda m: sj.mix(sj.rules.linear(), m[:1]).params,
  lambda m: sj.search.wise_ft_curve(
    m[0], m[1], lambda params: 1.0, [0]
  ).params,
])  # fmt: skip
def test_a_soup_shares_no_memory_with_its_ingredients(make):
  # Of a size and alignment with which JAX takes memory of NumPy as it is.
  memory = np.zeros(4096 + 64, np.uint8)
  start = -memory.ctypes.data % 64
  models = trees()[:2]
  for model in models:
    model["block"]["w"] = np.zeros(1024, np.float32)
  models[0]["block"]["w"] = memory[start : start + 4096].view(np.float32)
  soup = make(models)
  for leaf in jax.tree.leaves(models):
    leaf[...] = 5
  assert float(soup["block"]["w"][0]) == 0
  assert int(soup["step"]) == 7
  assert soup["count"].tolist() == [0, 1, 2]


def test_an_evaluator_of_logits_may_change_them():
  def evaluate(logits):
    logits -= logits.mean()
    return float(logits[0, 0])

  logits = {"a": np.eye(2), "b": np.eye(2) * 3}
  best = sj.greedy_ensemble(logits, evaluate)
  assert best.selected == ("a", "b")
  np.testing.assert_array_equal(best.logits, 2 * np.eye(2))


def test_donated_parameters_are_refused():
  step = jax.jit(lambda tree: tree["w"] * 2, donate_argnums=0)

  def evaluate(params):
    return float(step({"w": params["w"]})[0])

  with pytest.raises(ValueError, match="evaluate donated.*donate_argnums"):
    sj.greedy_soup([{"w": np.ones(2, "f")}] * 2, evaluate)


def test_an_owned_tree_keeps_types_and_nones():
  params = ({"a": None, "b": ()}, [np.float32(1), np.ones(2, np.int8)])
  owned = tree.owned(params)
  assert jax.tree.structure(owned) == jax.tree.structure(params)
  assert owned[1][1] is not params[1][1]
  assert owned[1][1].dtype == np.int8
