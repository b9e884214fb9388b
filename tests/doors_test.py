# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Every function of models accepts them in any form, with the same bits."""

import pathlib

import jax
import numpy as np
import pytest

import soupjax as sj

TREES = [
  {
    "head": {"w": np.random.default_rng(k).normal(size=(3, 2)).astype("f")},
    "blocks": [np.full(2, float(k), np.float32), np.float32(k) / 3],
  }
  for k in range(3)
]


def score(params):
  return float(-np.abs(np.asarray(params["head"]["w"]) - 0.2).mean())


def loss(params, beta):
  return ((params["head"]["w"] - 0.2) ** 2).mean() * beta


def save(params):
  sj.save_params("saved.npz", params)
  return sj.load_params("saved.npz")


# Name -> function of three models in one form. Its result is compared with its
# result for trees.
ONE_MODEL = {
  "base of uniform_soup": lambda a, b, c: sj.uniform_soup(
    [b, c], base=a, select={"w": 0.25}
  ),
  "base of greedy_soup": lambda a, b, c: (
    sj.greedy_soup([b, c], score, base=a, select={"w": 0.25}).params
  ),
  "base of learned_soup": lambda a, b, c: (
    sj.learned_soup([b, c], loss, steps=1, base=a).params
  ),
  "base of mix": lambda a, b, c: (
    sj.mix(sj.rules.lerp(0.5), [b, c], base=a).params
  ),
  "wise_ft": lambda a, b, c: sj.wise_ft(a, b, 0.5),
  "search.wise_ft_curve": lambda a, b, c: (
    sj.search.wise_ft_curve(a, b, score).params
  ),
  "search.analogy": lambda a, b, c: sj.search.analogy(a, b, c, score).params,
  "search.paint": lambda a, b, c: (
    sj.search.paint(
      a, b, lambda p: {"x": score(p), "y": 0}, patching=["x"], supported=["y"]
    ).params
  ),
  "search.paint_sequential": lambda a, b, c: (
    sj.search.paint_sequential(
      a,
      lambda params, task: b,
      lambda p: {"x": score(p), "y": 0},
      patching=["x"],
      supported=["y"],
    ).params
  ),
  "TaskVector": lambda a, b, c: sj.TaskVector(a, b).apply_to(c),
  "TaskVector of itself": lambda a, b, c: sj.TaskVector(a, b).apply_to(a),
  "diagnose": lambda a, b, c: sj.diagnose([b, c], score, a).geometry.gram,
  "load_params": lambda a, b, c: sj.load_params(a),
  "save_params": lambda a, b, c: save(a),
}
# Name -> function of several models.
MODELS = {
  "uniform_soup": sj.uniform_soup,
  "greedy_soup": lambda m: sj.greedy_soup(m, score).params,
  "learned_soup": lambda m: sj.learned_soup(m, loss, steps=1).params,
  "mix": lambda m: sj.mix(sj.rules.linear(), m).params,
  "diagnose": lambda m: sj.diagnose(m, score).geometry.gram,
  "search.diwa": lambda m: sj.search.diwa(m, score).params,
  "search.ratatouille": lambda m: (
    sj.search.ratatouille(m, lambda params, name: params, score).params
  ),
  "search.task_scale": lambda m: (
    sj.search.task_scale(TREES[0], m, score, [0.1, 0.3]).params
  ),
  "search.paint_parallel": lambda m: (
    sj.search.paint_parallel(
      TREES[0],
      m,
      lambda p: {"x": score(p), "y": 0},
      [0.1, 0.3],
      patching=["x"],
      supported=["y"],
      budget=3,
    ).params
  ),
  "search.Blend": lambda m: sj.search.Blend(TREES[0], m)([0.1, 0.2, 0.3]),
}


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for k, tree in enumerate(TREES):
    sj.save_params(f"m{k}.safetensors", tree)


def named(k):
  return sj.Ingredient.from_params(f"model_{k}", TREES[k])


def path(k):
  return f"m{k}.safetensors"


FORMS = {
  "Ingredient": named,
  "str": path,
  "PathLike": lambda k: pathlib.Path(path(k)),
  "pattern": lambda k: f"m[{k}].*",
  "list of one path": lambda k: [path(k)],
}
LISTS = {
  "Ingredients": lambda: [named(k) for k in range(3)],
  "paths": lambda: [path(k) for k in range(3)],
  "pattern": lambda: "m*.safetensors",
  "PathLike pattern": lambda: pathlib.Path("m*.safetensors"),
  "tuple": lambda: tuple(TREES),
  "generator": lambda: (tree for tree in TREES),
  "mix of forms": lambda: [TREES[0], path(1), named(2)],
  "patterns and trees": lambda: [TREES[0], "m[12].safetensors"],
}


def check_equal(got, want):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("door", ONE_MODEL)
def test_one_model(door, form):
  function, as_form = ONE_MODEL[door], FORMS[form]
  # Lists are not nested: the other models are given by path.
  others = path if form == "list of one path" else as_form
  got = function(as_form(0), others(1), others(2))
  pathlib.Path("saved.npz").unlink(missing_ok=True)
  check_equal(got, function(*TREES))


@pytest.mark.parametrize("form", LISTS)
@pytest.mark.parametrize("door", MODELS)
def test_models(door, form):
  check_equal(MODELS[door](LISTS[form]()), MODELS[door](list(TREES)))


def test_a_tree_that_is_a_list_is_one_model_where_one_is_asked_for():
  trees = [
    [np.full(2, float(k), np.float32), {"b": np.ones(1)}] for k in (0, 1)
  ]
  trees = jax.tree.map(np.float32, trees)
  soup = sj.wise_ft(*trees, 0.5)
  np.testing.assert_array_equal(soup[0], [0.5, 0.5])


def test_names_of_mixed_forms():
  models = [TREES[0], path(1), named(2)]
  soup = sj.greedy_soup(models, lambda params: 1.0)
  assert soup.selected == ("model_0", "m1.safetensors", "model_2")


def test_submodules_are_attributes():
  for name in ("metric_writers", "progress", "tasks.finetune", "train.step"):
    module = sj
    for part in name.split("."):
      module = getattr(module, part)
    assert module.__name__ == f"soupjax.{name}"
  with pytest.raises(AttributeError, match="nothing_there"):
    sj.tasks.nothing_there  # noqa: B018


# select= and dtype= mean the same in every function that makes a model.


BASE = jax.tree.map(lambda x: x + np.float32(1), TREES[0])
SELECTIONS = [
  {"select": {"head": "keep"}},
  {"select": {"head": "skip"}},
  {"select": {"blocks/0": 0.3}},
  {"select": {"head": "keep", "blocks/0": "skip", "blocks/1": 0.5}},
  {"dtype": "bfloat16"},
  {"select": {"head": 0.7}, "dtype": "float16"},
]
MAKERS = {
  "uniform_soup": (
    lambda **s: sj.uniform_soup(TREES, base=BASE, **s),
    lambda **s: sj.mix(sj.rules.linear(), TREES, base=BASE, **s),
  ),
  "greedy_soup": (
    lambda **s: sj.greedy_soup(TREES, lambda _: 1.0, base=BASE, **s).params,
    lambda **s: sj.mix(sj.rules.linear(), TREES, base=BASE, **s),
  ),
  "wise_ft": (
    lambda **s: sj.wise_ft(BASE, TREES[1], 0.4, **s),
    lambda **s: sj.mix(sj.rules.lerp(0.4), TREES[1:2], base=BASE, **s),
  ),
  "TaskVector": (
    lambda **s: sj.TaskVector(TREES[0], TREES[1]).apply_to(BASE, **s),
    lambda **s: sj.mix(
      sj.rules.task_arithmetic(weights=[1, -1]),
      [TREES[1], TREES[0]],
      base=BASE,
      **s,
    ),
  ),
}


@pytest.mark.parametrize("settings", SELECTIONS, ids=str)
@pytest.mark.parametrize("door", MAKERS)
def test_selections(door, settings):
  made, mixed = MAKERS[door]
  got, want = made(**settings), mixed(**settings).params
  check_equal(got, want)
  dtypes = [[x.dtype for x in jax.tree.leaves(t)] for t in (got, want)]
  assert dtypes[0] == dtypes[1]


@pytest.mark.parametrize("settings", SELECTIONS, ids=str)
def test_selections_of_learned_soups(settings):
  seen = []

  def of_blocks(params, beta):
    seen.append(jax.tree.structure(params))
    return sum((x**2).sum() for x in jax.tree.leaves(params)) * beta

  soup = sj.learned_soup(
    TREES, of_blocks, steps=2, granularity="model", base=BASE, **settings
  )
  rule = sj.rules.task_arithmetic(weights=soup.alphas["model"])
  want = sj.mix(rule, TREES, base=BASE, **settings).params
  check_equal(soup.params, want)
  assert set(seen) == {jax.tree.structure(soup.params)}


@pytest.mark.parametrize("door", ["uniform_soup", "greedy_soup"])
def test_selected_weights(door):
  settings = {"select": {"head": [0, 1, 3]}, "dtype": "bfloat16"}
  made, mixed = MAKERS[door]
  check_equal(made(**settings), mixed(**settings).params)


def test_candidates_are_what_the_soup_is():
  seen = []

  def evaluate(params):
    seen.append(params)
    return 1.0

  soup = sj.greedy_soup(
    TREES, evaluate, base=BASE, select={"head": "keep"}, dtype="float16"
  )
  assert len(seen) == 3
  for params in seen:
    check_equal(params["head"], jax.tree.map(np.float16, BASE["head"]))
  check_equal(seen[-1], soup.params)


@pytest.mark.parametrize(
  "settings,culprit",
  [
    ({"select": {"head": "leave"}}, "'leave'"),
    ({"select": {"nothing": "skip"}}, "'nothing'"),
    ({"select": {"head": np.nan}}, "nan"),
    ({"select": {"head": [1, 2]}}, "'head'"),
    ({"select": {"": "skip"}}, "select="),
    ({"dtype": "int8"}, "int8"),
    ({"dtype": "float99"}, "float99"),
  ],
  ids=str,
)
@pytest.mark.parametrize("door", ["uniform_soup", "greedy_soup", "wise_ft"])
def test_bad_selections(door, settings, culprit):
  if settings.get("select") == {"head": [1, 2]} and door == "wise_ft":
    settings = {"select": {"head": [1, 2, 3]}}
  for make in MAKERS[door]:
    with pytest.raises(ValueError, match=culprit):
      make(**settings)


def test_what_refers_to_a_base_needs_one():
  for make in (sj.uniform_soup, lambda m, **s: sj.greedy_soup(m, score, **s)):
    with pytest.raises(ValueError, match="base="):
      make(TREES, select={"head": "keep"})


def test_heads_that_differ_are_left_out():
  other = {**TREES[1], "head": {"w": np.zeros((7, 7), np.float32)}}
  soup = sj.uniform_soup([TREES[0], other], select={"head": "skip"})
  want = sj.uniform_soup(TREES[:2])
  check_equal(soup["blocks"], want["blocks"])
