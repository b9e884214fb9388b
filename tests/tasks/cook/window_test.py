# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The soup of the last checkpoints of a run: cook.window."""

import json
import shutil

import chex
import helpers
import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax import files
from soupjax.tasks import records
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook import inputs, window
from soupjax.tasks.cook import run as cook

RUN = "{run}/step_*,{run}/last"
CHANGES = {
  "tests": "test=test",
  "cook.metric": "loss",
  "cook.learned.granularities": (),
  "cook.wise_ft_points": 0,
  "cook.ensembles_gb": 0.0,
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
  """Three runs of four checkpoints; the last two are better together."""
  sweep = tmp_path_factory.mktemp("window") / "sweep"
  shutil.copytree(helpers.three_members(), sweep, copy_function=shutil.copy2)
  rng = np.random.default_rng(0)
  for member in members(sweep):
    path = member / "ingredients/last"
    trained = sj.load_params(path)
    noise = jax.tree.map(lambda x: rng.normal(size=x.shape) / 10, trained)
    record = files.read_json(path / "hyperparameters.json")
    shutil.rmtree(path)
    # Names sort as 10, 100, 9, last: the order is that of the steps.
    names = {"step_9": 5, "step_10": -3, "step_100": -1, "last": 1}
    for step, (name, scale) in enumerate(names.items()):
      workdir_lib.save_model(
        path.with_name(name),
        jax.tree.map(
          lambda x, e, s=scale: (x + s * e).astype(x.dtype), trained, noise
        ),
        hyperparameters=record | {"steps": 20 * step},
      )
  return sweep


def members(sweep):
  return sorted(sweep.glob("member_*"))


def config_of(sweep, window=RUN, **changes):
  return helpers.cook_config(
    sweep, **{**CHANGES, "cook.window": window, **changes}
  )


@pytest.fixture(scope="module")
def cooked(sweep, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("cooked") / "soups"
  cook.run(config_of(sweep), workdir)
  return workdir


def test_the_number_is_chosen_on_minival(sweep, cooked):
  record = json.loads((cooked / "soups/window/window.json").read_text())
  losses = helpers.result_values(cooked, "loss")
  best = json.loads((cooked / "choices.json").read_text())["best"]["loss"]
  names = ["step_9", "step_10", "step_100", "last"]
  assert record["checkpoints"] == names
  # Scores are negative losses, of the last 1, 2, 3 and 4.
  scores = {
    c["coefficients"][0]: c["scores"]["score"] for c in record["history"]
  }
  assert [*scores] == [1, 2, 3, 4]
  assert scores[1] == -losses[best, "digits/minival"]
  assert scores[record["last"]] == max(scores.values())
  assert -losses["window", "digits/minival"] == pytest.approx(
    max(scores.values())
  )
  assert record["last"] == 2
  assert record["selected"] == names[-record["last"] :]
  run = sweep / best / "ingredients"
  chex.assert_trees_all_close(
    sj.load_params(cooked / "soups/window"),
    sj.uniform_soup([run / name for name in record["selected"]]),
    rtol=1e-6,
    atol=1e-7,
  )


def test_it_is_shown(cooked, sweep, capsys):
  kinds = {row["model"]: row["kind"] for row in helpers.result_rows(cooked)}
  assert kinds["window"] == "soup"
  last = json.loads((cooked / "soups/window/window.json").read_text())["last"]
  label = f"Last {last} of 4 checkpoints"
  page = (cooked / "report.html").read_text()
  assert label in page and "The last checkpoints of a run" in page
  assert (cooked / "figures/window_curve.png").exists()
  cook.run(config_of(sweep), cooked)
  assert label in capsys.readouterr().out


def test_plan(sweep, capsys):
  cook.run(config_of(sweep), None, dry_run=True)
  text = capsys.readouterr().out
  order = "step_9, step_10, step_100, last"
  assert f"the last of {order}, if member_001 is the best ingredient" in text
  assert "uniform, greedy, window\n" in text
  # Three ingredients, the start and three soups; greedy and four windows.
  assert "7 models on all" in text and "at most 7 candidates" in text


def test_goes_on_after_a_kill(sweep, cooked, tmp_path):
  workdir = tmp_path / "soups"
  shutil.copytree(cooked, workdir)
  (workdir / "report.html").unlink()
  shutil.rmtree(workdir / "soups/window")
  (workdir / "metrics/window.json").unlink()
  known = [{"coefficients": [1.0], "scores": {"score": 5.0}}]
  (workdir / "window_state.json").write_text(json.dumps(known))
  cook.run(config_of(sweep), workdir)
  record = json.loads((workdir / "soups/window/window.json").read_text())
  assert record["last"] == 1  # Since the first is not evaluated again.
  assert not (workdir / "window_state.json").exists()


def test_other_checkpoints_along_the_run(sweep, cooked, tmp_path):
  shutil.copytree(sweep, tmp_path / "sweep", copy_function=shutil.copy2)
  sweep, workdir = tmp_path / "sweep", tmp_path / "soups"
  cook_config = config_of(sweep)
  opened = inputs.open_inputs(cook_config)
  record = tmp_path / "record.json"
  records.check_unchanged(
    cook_config, opened, record, records.along_files(opened)
  )
  assert records.is_finished(record, cook_config, ())
  shutil.rmtree(sweep / "member_001/ingredients/step_10")
  assert not records.is_finished(record, cook_config, ())
  opened = inputs.open_inputs(cook_config)
  message = "step_10 along the run member_001 is gone"
  with pytest.raises(ValueError, match=message):
    records.check_unchanged(
      cook_config, opened, record, records.along_files(opened)
    )
  assert not workdir.exists()


@pytest.mark.parametrize(
  "pattern, message",
  [
    ("{rum}/last", r"{rum} is unknown; {run} stands"),
    ("{run}/last", "for 'member_000'.*only .*last.* matches"),
    ("{sweep}/member_*/ingredients/last", "not from one run: .*learning_rate"),
    ("{run}/last,{run}/twin", "both record 60 steps"),
    ("{run}/nothing_*,{run}/last", "nothing matches .*nothing_"),
    ("{sweep}/unnamed/*", "order of .*unnamed/a and .*unnamed/b is unknown"),
    ("{sweep}/narrow/1,{sweep}/narrow/2", "narrow/1.*\n.*\n.*head/bias"),
  ],
)
def test_unsuitable_checkpoints(sweep, pattern, message):
  for member in members(sweep):
    twin = member / "ingredients/twin"
    if not twin.exists():
      shutil.copytree(member / "ingredients/last", twin)
  params = sj.load_params(sweep / "initial")
  for name in ("a", "b"):
    if not (sweep / "unnamed" / name).exists():
      sj.save_params(sweep / "unnamed" / name, params)
  params["head"]["bias"] = np.zeros(7, np.float32)
  for name in ("1", "2"):
    if not (sweep / "narrow" / name).exists():
      sj.save_params(sweep / "narrow" / name, params)
  config = config_of(sweep, pattern.replace("{sweep}", str(sweep)))
  with pytest.raises(ValueError, match=message):
    inputs.open_inputs(config)


def test_lists_of_numbers_are_for_ingredients(sweep):
  config = config_of(sweep, select="head/bias=[0, 1, 0]")
  with pytest.raises(ValueError, match="cook.window"):
    inputs.open_inputs(config)


def test_order_without_records(tmp_path):
  for name in ("e9", "e10", "best"):
    sj.save_params(tmp_path / name, {"w": np.zeros(2, np.float32)})
  given = [f"{tmp_path}/e*", f"{tmp_path}/best"]
  found = window.in_order(sj.find_ingredients(given), given)
  assert [i.name for i in found] == ["e9", "e10", "best"]
