# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Diagnoses from a config, of a sweep on disk."""

import json

import helpers
import pytest

import soupjax as sj
from soupjax.tasks import diagnose
from soupjax.tasks.cook import evaluate, inputs
from soupjax.tasks.reasons import base


@pytest.fixture(scope="module")
def sweep():
  return helpers.three_members()


@pytest.fixture(scope="module")
def whole(sweep, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("diagnose") / "why"
  assert (
    diagnose.run(helpers.diagnose_config(sweep), workdir)
    == workdir / "diagnosis.txt"
  )
  return workdir


def test_it_is_what_the_library_says(sweep, whole):
  opened = inputs.open_inputs(helpers.diagnose_config(sweep))
  score = evaluate.Evaluations(opened, whole / "elsewhere").minival("prec@1")
  scores = {i.name: score(i.load()) for i in opened.ingredients}
  result = json.loads((whole / "diagnosis.json").read_text())
  assert result["scores"] == scores and len(set(scores.values())) > 1
  pool = {i.name: i for i in opened.ingredients}
  assert len(result["midpoints"]) == 3
  for entry in result["midpoints"]:
    both = [pool[name] for name in entry["pair"]]
    assert entry["score"] == score(sj.uniform_soup(both))
  order = sorted(scores, key=lambda name: -scores[name])
  greedy = sj.greedy_soup([pool[name] for name in order], score)
  want = sj.diagnose(
    [pool[name] for name in order], score, opened.initial, greedy=greedy
  )
  assert tuple(result["findings"]) == want.findings
  assert (whole / "diagnosis.txt").read_text() == want.table() + "\n"
  assert "distance: from pretrained" not in want.table()
  assert (whole / "diagnosis.png").read_bytes()[:4] == b"\x89PNG"
  record = json.loads((whole / "greedy.json").read_text())
  assert record["selected"] == list(greedy.selected)


def test_a_second_start_prints_it_again(sweep, whole, capsys, monkeypatch):
  monkeypatch.setattr(
    evaluate.Evaluations, "evaluate", lambda *_, **__: pytest.fail("evaluated")
  )
  diagnose.run(helpers.diagnose_config(sweep), whole)
  assert (whole / "diagnosis.txt").read_text() in capsys.readouterr().out


def test_a_run_that_was_killed_goes_on(sweep, whole, tmp_path, monkeypatch):
  config, calls = helpers.diagnose_config(sweep), []

  def dying(self, params):
    if len(calls) == 4:
      raise KeyboardInterrupt
    calls.append(1)
    return call(self, params)

  call = base.Resumed.__call__
  with monkeypatch.context() as patch:
    patch.setattr(base.Resumed, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
      diagnose.run(config, tmp_path / "why")
  state = json.loads((tmp_path / "why" / "scores.json").read_text())
  assert len(state["values"]) == 4
  fresh = []
  cls = evaluate.Evaluator
  original = cls.__call__
  monkeypatch.setattr(
    cls, "__call__", lambda s, p: fresh.append(1) or original(s, p)
  )
  diagnose.run(config, tmp_path / "why")
  assert len(fresh) == 2  # Of three models and three midpoints.
  assert (tmp_path / "why" / "diagnosis.json").read_text() == (
    whole / "diagnosis.json"
  ).read_text()
  left = {path.name for path in (tmp_path / "why").glob("*")}
  assert not {"scores.json", "greedy_trace.json"} & left


def test_a_dry_run_evaluates_and_writes_nothing(sweep, tmp_path, capsys):
  config = helpers.diagnose_config(sweep, max_pairs=2)
  assert diagnose.run(config, tmp_path / "why", dry_run=True) is None
  assert "3 ingredients and 2 midpoints, on 300" in capsys.readouterr().out
  assert not (tmp_path / "why").exists()


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"max_pairs": -1}, "max_pairs"),
    ({"data.name": ""}, "data.name"),
    ({"ingredients": "{sweep}/member_000/ingredients/last"}, "is only one"),
  ],
)
def test_refuses_settings(sweep, tmp_path, changes, message):
  changes = {
    k: v.format(sweep=sweep) if isinstance(v, str) else v
    for k, v in changes.items()
  }
  with pytest.raises(ValueError, match=message):
    diagnose.run(helpers.diagnose_config(sweep, **changes), tmp_path / "why")


def test_selected_leaves_are_those_of_the_start_in_every_model(sweep, tmp_path):
  config = helpers.diagnose_config(
    sweep, select="head/kernel=keep", max_pairs=1
  )
  diagnose.run(config, tmp_path / "why")
  opened = inputs.open_inputs(config)
  score = evaluate.Evaluations(opened, tmp_path / "x").minival("prec@1")
  head = opened.initial.load()["head"]["kernel"]

  def with_head(params):
    return {**params, "head": {**params["head"], "kernel": head}}

  result = json.loads((tmp_path / "why" / "diagnosis.json").read_text())
  models = {i.name: i.load() for i in opened.ingredients}
  assert result["scores"] == {
    name: score(with_head(params)) for name, params in models.items()
  }
  for entry in result["midpoints"]:
    soup = sj.uniform_soup([models[name] for name in entry["pair"]])
    assert entry["score"] == score(with_head(soup))


def test_selected_weights_follow_their_ingredients(sweep):
  config = helpers.cook_config(
    sweep, select="head/kernel=[3, 1, 0],head=[1, 1, 1]",
    **{"cook.wise_ft_points": 0},
  )  # fmt: skip
  opened = inputs.open_inputs(config)
  selection = opened.selection(opened.ingredients[::-1])
  assert selection["select"] == {"head/kernel": [0, 1, 3], "head": [1, 1, 1]}
  assert selection["base"] is opened.initial


@pytest.mark.parametrize(
  "task,select,message",
  [
    ("diagnose", "head=skip", "cannot be evaluated"),
    ("diagnose", "nothing=keep", "'nothing' in select matches no leaf"),
    ("diagnose", "head=[1, 0]", "weights of shape .2,. for 3 ingredients"),
    ("cook", "head=[1, 0, 0]", "cook.wise_ft_points=0"),
    ("cook", "head=keep", r"cook.learned.granularities=\(\)"),
  ],
)
def test_refuses_selections_before_any_work(sweep, task, select, message):
  make = {"diagnose": helpers.diagnose_config, "cook": helpers.cook_config}
  with pytest.raises(ValueError, match=message):
    inputs.open_inputs(make[task](sweep, select=select))
