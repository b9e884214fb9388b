# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""One notion of `select` in every function that merges models."""

import ast
import re

import numpy as np
import pytest

import soupjax as sj
from soupjax.soups.core import select, tree


def model(k, **leaves):
  return sj.Ingredient.from_params(
    f"m{k}",
    {
      "conv": {"w": np.full(2, float(k), np.float32)},
      "norm": {"mean": np.ones(2, np.float32), "count": np.int64(10 + k)},
      **leaves,
    },
  )


def one(params):
  return float(params["conv"]["w"][0])


def two(params):
  return {"x": one(params), "y": 0.0}


def loss(params, beta):
  return ((params["conv"]["w"] - 1) ** 2).sum() * beta


TASKS = {"patching": ["x"], "supported": ["y"]}
# Name -> function of three models and settings; returns a tree.
DOORS = {
  "mix": lambda m, **s: sj.mix(sj.rules.linear(), m, **s).params,
  "mix with base": lambda m, **s: (
    sj.mix(sj.rules.lerp(0.5), m[1:], base=m[0], **s).params
  ),
  "uniform_soup": sj.uniform_soup,
  "weighted": lambda m, **s: sj.uniform_soup(m, [1, 2, 3], **s),
  "greedy_soup": lambda m, **s: sj.greedy_soup(m, one, **s).params,
  "best_order": lambda m, **s: (
    sj.best_order(m, one, [["m2", "m0", "m1"]], **s).soup.params
  ),
  "learned_soup": lambda m, **s: sj.learned_soup(m, loss, steps=1, **s).params,
  "learned_soup with base": lambda m, **s: (
    sj.learned_soup(m[1:], loss, base=m[0], steps=1, **s).params
  ),
  "wise_ft": lambda m, **s: sj.wise_ft(m[0], m[1], 0.5, **s),
  "Blend": lambda m, **s: sj.search.Blend(m[0], m[1:], **s)([0.5, 0]),
  "wise_ft_curve": lambda m, **s: (
    sj.search.wise_ft_curve(m[0], m[1], one, [0, 1], **s).params
  ),
  "analogy": lambda m, **s: sj.search.analogy(*m, one, [0.5], **s).params,
  "task_scale": lambda m, **s: (
    sj.search.task_scale(m[0], m[1:], one, [0.5], **s).params
  ),
  "paint": lambda m, **s: (
    sj.search.paint(m[0], m[1], two, [0.5], **TASKS, **s).params
  ),
  "paint_sequential": lambda m, **s: (
    sj.search.paint_sequential(
      m[0], lambda params, task: m[1], two, [0.5], **TASKS, **s
    ).params
  ),
  "paint_parallel": lambda m, **s: (
    sj.search.paint_parallel(
      m[0], m[1:], two, [0.5], budget=1, **TASKS, **s
    ).params
  ),
  "diwa": lambda m, **s: sj.search.diwa(m, one, **s).params,
  "diwa, uniform": lambda m, **s: (
    sj.search.diwa(m, one, average="uniform", **s).params
  ),
  "ratatouille": lambda m, **s: (
    sj.search.ratatouille(m, lambda params, name: params, one, **s).params
  ),
  "diagnose": lambda m, **s: seen_by_diagnose(m, **s),
  "diagnose with start": lambda m, **s: seen_by_diagnose(m[1:], m[0], **s),
  "TaskVector": lambda m, **s: sj.TaskVector(m[0], m[1]).apply_to(m[2], **s),
}


def seen_by_diagnose(*models, **settings):
  trees = []

  def score(params):
    trees.append(params)
    return one(params)

  sj.diagnose(models[0], score, *models[1:], **settings)
  counts = {str(t["norm"].get("count")) for t in trees}
  assert len(counts) == 1  # The same in all models.
  return trees[-1]


@pytest.mark.parametrize("door", DOORS)
def test_the_error_gives_the_select_that_helps(door):
  models = [model(k) for k in range(3)]
  with pytest.raises(ValueError, match="norm/count.*int64.*disagree") as error:
    DOORS[door](models)
  found = re.search(
    r"select=(\{.*?\}) .*--config.select='(.*)'\)", str(error.value)
  )
  advice = ast.literal_eval(found[1])
  assert list(advice) == ["count$"]
  assert found[2] == "count$=" + str(advice["count$"])
  merged = DOORS[door](models, select=advice)
  assert int(merged["norm"]["count"]) in (10, 11, 12)
  assert merged["norm"]["count"].dtype == np.int64
  skipped = DOORS[door](models, select={"count$": "skip"})
  assert list(skipped["norm"]) == ["mean"]
  np.testing.assert_array_equal(skipped["conv"]["w"], merged["conv"]["w"])


def test_weights_of_select_belong_to_the_ingredients_as_given():
  models = [model(k) for k in range(3)]
  settings = {"select": {"count": [0, 1, 0], "mean": [1, 0, 0]}}
  for average in ("greedy", "uniform"):  # Tried in the order 2, 1, 0.
    soup = sj.search.diwa(models, one, average=average, **settings)
    assert [run.name for run in soup.runs] == ["m2", "m1", "m0"]
    assert int(soup.params["norm"]["count"]) == 11


def test_buffers_that_differ_in_shape_or_are_missing():
  wide, lacking = model(1, ids=np.arange(4)), model(1)
  first = model(0, ids=np.arange(3))
  for other in (wide, lacking):
    with pytest.raises(ValueError, match="'ids'.*\n.*'ids\\$': .1, 0") as error:
      sj.uniform_soup([first, other], select={"count": (1, 0)})
    assert "keep" not in str(error.value)
    soup = sj.uniform_soup(
      [first, other], select={"count": (1, 0), "ids": (1, 0)}
    )
    assert soup["ids"].tolist() == [0, 1, 2]
  lacking = model(0)
  with pytest.raises(ValueError, match="Leave it out with select=.*'skip'"):
    sj.uniform_soup([lacking, wide], select={"count": (1, 0)})
  with pytest.raises(ValueError, match="'ids'.*'m0' lacks it"):
    sj.uniform_soup([lacking, wide], select={"count": (1, 0), "ids": (1, 0)})


def test_the_advice_never_takes_a_float_leaf_along():
  specs = {
    name: np.zeros(1, dtype)
    for name, dtype in {
      "a.w": "f", "b.w": "i4", "a.n": "i8", "b.n": "i8", "odd+n": "i8",
    }.items()
  }  # fmt: skip
  assert "{'^b\\\\.w$': 'keep'}" in tree.advice(["b.w"], specs, 2, True)
  assert "{'n$': [1, 0, 0]}" in tree.advice(["a.n", "b.n"], specs, 3, False)
  assert "{'odd\\\\+n$'" in tree.advice(["odd+n"], specs, 3, False)


def test_a_selection_in_another_order():
  given = {"a": "keep", "b": 0.5, "c": (1, 2, 3)}
  moved = select.reordered(given, [2, 0, 1])
  assert moved == {"a": "keep", "b": 0.5, "c": [3, 1, 2]}
  assert select.reordered(None, [0]) == {}


@pytest.mark.parametrize(
  "given",
  [
    *({"conv/w": action} for action in (["1", "0"], [[1, 0]], {1, 0}, 1j, [])),
    ["conv/w"],
    "conv/w=keep",
  ],
)
@pytest.mark.parametrize("door", ["uniform_soup", "mix"])
def test_refuses_what_is_no_selection(door, given):
  models = [model(k, norm={"mean": np.ones(2, np.float32)}) for k in range(2)]
  with pytest.raises(ValueError, match="select"):
    DOORS[door](models, select=given)


def test_a_base_with_nan_is_named():
  models = [{"w": np.full(2, x, np.float32)} for x in (0, 1, np.nan)]
  with pytest.raises(
    ValueError, match="'base' has NaN or infinity in leaf 'w'"
  ):
    sj.uniform_soup(models[:2], base=models[2], select={"w": 0.5})


def test_tied_embeddings_that_one_ingredient_saved_twice():
  w = np.ones((4, 2), "f")
  twice = sj.Ingredient.from_params(
    "twice", {"lm_head.weight": w, "model.embed_tokens.weight": w}
  )
  once = sj.Ingredient.from_params("once", {"model.embed_tokens.weight": w})
  for models in ([twice, once], [once, twice]):
    copy = r"'lm_head.weight' may be a second copy of 'model.embed_tokens"
    with pytest.raises(ValueError, match=copy):
      sj.uniform_soup(models)
    soup = sj.uniform_soup(models, select={r"lm_head\.weight": "skip"})
    assert [*soup] == ["model.embed_tokens.weight"]
