# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Reasons on request, of a diagnosis from a config."""

import dataclasses
import json

import helpers
import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax.analysis import features as features_lib
from soupjax.evaluators import statistics
from soupjax.tasks import diagnose
from soupjax.tasks.cook import evaluate, inputs
from soupjax.tasks.reasons import base
from soupjax.tasks.reasons import run as reasons

SMALL = {
  "max_pairs": 3,
  "plane.points": 2,
  "plane.margin": 0.0,
  "pairs.curves": 1,
  "pairs.points": 3,
  "ensemble.pairs": 1,
  "greedy.orders": 1,
  "greedy.points": 2,
}


@pytest.fixture(scope="module")
def sweep():
  return helpers.three_members()


@pytest.fixture(scope="module")
def opened(sweep):
  return inputs.open_inputs(helpers.diagnose_config(sweep))


@pytest.fixture(scope="module")
def whole(sweep, tmp_path_factory):
  """A diagnosis with all reasons, asked for at the start."""
  workdir = tmp_path_factory.mktemp("reasons") / "why"
  names = ",".join(reasons.REASONS)
  config = helpers.diagnose_config(sweep, reasons=names, **SMALL)
  assert diagnose.run(config, workdir) == workdir / "diagnosis.txt"
  return workdir


def record_of(workdir, name):
  return json.loads((workdir / "reasons" / f"{name}.json").read_text())


def test_the_page_has_a_figure_of_every_reason(whole):
  page = (whole / "diagnosis.html").read_text()
  for name, reason in reasons.REASONS.items():
    assert f"<h2>{reason.heading}</h2>" in page
    png = (whole / "reasons" / f"{name}.png").read_bytes()
    assert png[:4] == b"\x89PNG"
    assert len(reason.describe(record_of(whole, name))) > 0
  assert "<pre>ingredient " in page
  assert not list((whole / "reasons").glob("*_values.json"))


def test_the_plane_goes_through_the_start_and_the_two_best(
  opened, whole, tmp_path
):
  minival = evaluate.Evaluations(opened, tmp_path / "x").minival("prec@1")
  pool = {i.name: i for i in opened.ingredients}
  record = record_of(whole, "plane")
  scores = json.loads((whole / "diagnosis.json").read_text())["scores"]
  best = sorted(scores, key=lambda name: -scores[name])[:2]
  assert record["names"] == ["initial", *best]
  start = minival.totals(opened.initial.load())
  corners = record["at_corners"]
  assert corners["loss"][0] == pytest.approx(start["loss"])
  want = [start["prec@1"], *(scores[name] for name in best)]
  np.testing.assert_allclose(corners["error"], 1 - np.array(want), atol=1e-7)
  # Without a margin, the first point of the grid is a corner.
  low = np.min(record["corners"], axis=0)
  assert (record["xs"][0], record["ys"][0]) == pytest.approx(tuple(low))
  plane = sj.analysis.Plane(
    names=tuple(record["names"]), corners=np.array(record["corners"]),
    xs=np.array(record["xs"]), ys=np.array(record["ys"]), values={},
    at_corners={},
  )  # fmt: skip
  weights = plane.weights(record["xs"][0], record["ys"][1])
  trees = [opened.initial.load(), *(pool[name].load() for name in best)]
  point = jax.tree.map(
    lambda *x: sum(w * y for w, y in zip(weights, x)), *trees
  )
  value = record["values"]["loss"][1][0]
  assert minival.totals(point)["loss"] == pytest.approx(value, rel=1e-4)


def test_pairs_are_the_midpoints_of_the_diagnosis(opened, whole):
  diagnosis = json.loads((whole / "diagnosis.json").read_text())
  record = record_of(whole, "pairs")
  assert record["metric"] == "prec@1"
  models = {i.name: i for i in opened.ingredients}
  for pair, entry in zip(record["pairs"], diagnosis["midpoints"], strict=True):
    assert pair["pair"] == entry["pair"]
    assert pair["gain"] == -entry["barrier"]
    trees = [models[name].load() for name in pair["pair"]]
    gap = jax.tree.map(np.subtract, *trees)
    assert pair["distance"] == pytest.approx(
      float(np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(gap)))), rel=1e-3
    )
    rates = [models[n].hyperparameters["learning_rate"] for n in pair["pair"]]
    assert pair["color"] == max(rates) and not pair["seed_only"]
  (curve,) = record["curves"]
  assert curve["pair"] == record["pairs"][0]["pair"]
  scores = [diagnosis["scores"][name] for name in curve["pair"]]
  want = [scores[0], diagnosis["midpoints"][0]["score"], scores[1]]
  np.testing.assert_allclose(curve["error"], 1 - np.array(want), atol=1e-7)


def test_a_soup_is_compared_with_the_ensemble_of_its_models(
  opened, whole, tmp_path
):
  minival = evaluate.Evaluations(opened, tmp_path / "x").minival("prec@1")
  (found,) = record_of(whole, "ensemble")["pairs"]
  models = {i.name: i for i in opened.ingredients}
  trees = [models[name].load() for name in found["pair"]]
  logits, labels = zip(*map(minival.logits, [*trees, sj.uniform_soup(trees)]))
  beta = 1 / found["temperature"]
  assert beta == pytest.approx(1 / statistics.temperature(logits[2], labels[2]))
  ensemble = (logits[0] + logits[1]) / 2
  want = statistics.nll(beta * logits[2], labels[2])
  want -= statistics.nll(beta * ensemble, labels[0])
  assert found["true"] == pytest.approx(want, abs=1e-5)
  error = (ensemble.argmax(axis=1) != labels[0]).mean()
  assert found["ensemble_error"] == pytest.approx(error)
  # The second derivative, from values on the line.
  h = 0.05

  def loss_at(share):
    soup = sj.uniform_soup(trees, [1 - share, share])
    return statistics.nll(beta * minival.logits(soup)[0], labels[0])

  bend = (loss_at(0.5 - h) - 2 * loss_at(0.5) + loss_at(0.5 + h)) / h**2
  assert found["curvature"] == pytest.approx(bend, rel=0.05, abs=2e-3)


def test_features_are_those_of_the_layers(opened, whole):
  record = record_of(whole, "features")
  names = record["names"]
  assert names[0] == "initial" and len(names) == 4
  assert record["layers"][0] == "embedding" and record["layers"][-1] == "head"
  # The head of the start is a probe of zeros or not; all others differ.
  splits = sj.data.load_digits().minival
  images = np.repeat(splits.images, 3, axis=-1)
  images = np.round((images + 1) * 127.5) / np.float32(127.5) - 1
  models = {i.name: i.load() for i in [opened.initial, *opened.ingredients]}
  features = [
    dict(features_lib.layer_features(opened.model, models[name], images))
    for name in names
  ]
  layer = "Transformer/encoderblock_0"
  order = np.random.default_rng(0).permutation(len(images))
  values = [np.asarray(f[layer])[order] for f in features]
  np.testing.assert_allclose(
    record["cka"][layer], features_lib.cka(values), rtol=1e-3
  )
  want = [
    features_lib.class_separation(f[layer], splits.labels) for f in features
  ]
  np.testing.assert_allclose(record["separation"][layer], want, rtol=1e-3)


def test_the_greedy_soup_of_all_is_the_last_point(opened, whole):
  record = record_of(whole, "greedy")
  greedy = json.loads((whole / "greedy.json").read_text())
  assert record["counts"] == [1, 3]
  assert record["selected"] == greedy["selected"]
  assert record["sizes"][0][1] == len(greedy["selected"])
  scores = json.loads((whole / "diagnosis.json").read_text())["scores"]
  assert record["best"][0][1] == max(scores.values())
  assert record["best"][0][0] == record["scores"][0][0]
  last = [d["score"] for d in greedy["history"] if d["accepted"]][-1]
  assert record["scores"][0][1] == last
  rates = {
    i.name: i.hyperparameters["learning_rate"] for i in opened.ingredients
  }
  chosen = record["hyperparameters"]["learning_rate"]["chosen"]
  assert sorted(chosen) == sorted(rates[name] for name in greedy["selected"])
  assert "seed" not in record["hyperparameters"]
  assert "weight_decay" not in record["hyperparameters"]  # All are the same.
  text = "\n".join(reasons.REASONS["greedy"].describe(record))
  assert "learning_rate: selected" in text and "Of the first 3 models" in text


def test_reasons_are_added_to_a_finished_diagnosis(
  sweep, whole, monkeypatch, capsys
):
  def names(n):
    return f"initial,{n[0]},{n[1]}"

  last = list(json.loads((whole / "diagnosis.json").read_text())["scores"])[1:]
  before = (whole / "diagnosis.json").read_bytes()
  calls = []
  cls = evaluate.Evaluator
  original = cls.totals
  monkeypatch.setattr(
    cls, "totals", lambda s, p: calls.append(1) or original(s, p)
  )
  # The pairs are there already, and are not evaluated again.
  changes = {**SMALL, "reasons": "pairs,plane", "plane.models": names(last)}
  config = helpers.diagnose_config(sweep, **changes)

  def dying(self, params):
    if len(calls) == 3:
      raise KeyboardInterrupt
    return call(self, params)

  call = base.Resumed.__call__
  with monkeypatch.context() as patch:
    patch.setattr(base.Resumed, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
      diagnose.run(config, whole)
  diagnose.run(config, whole)
  assert len(calls) == 4 + 3  # Three of them by the run that was killed.
  assert record_of(whole, "plane")["names"] == ["initial", *last]
  assert "The lowest loss on the grid is" in capsys.readouterr().out
  assert (whole / "diagnosis.json").read_bytes() == before


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"reasons": "plain"}, "no reason 'plain': did you mean 'plane'"),
    ({"plane.points": 1}, "plane.points must be a whole number >= 2"),
    ({"plane.margin": -1.0}, "plane.margin must be"),
    ({"pairs.points": 1}, "pairs.points must be"),
    ({"pairs.curves": -1}, "pairs.curves must be"),
    ({"features.images": 3}, "features.images must be"),
    ({"greedy.orders": 0}, "greedy.orders must be"),
    ({"greedy.points": 0}, "greedy.points must be"),
    ({"ensemble.pairs": 0}, "ensemble.pairs must be"),
    ({"ensemble.share": 1.0}, "ensemble.share must be between 0 and 1"),
  ],
)
def test_refuses_settings(sweep, tmp_path, changes, message):
  config = helpers.diagnose_config(sweep, **{"reasons": "plane", **changes})
  with pytest.raises(ValueError, match=message):
    diagnose.run(config, tmp_path / "why")


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"plane.models": "initial"}, "'initial' must name three models"),
    ({"plane.models": "initial,initial,{name}"}, "names 'initial' twice"),
    ({"plane.models": "initial,{name},mender_001"}, "no model 'mender_001': d"),
    ({"count": 2, "initial": None}, "there are only"),
    ({"reasons": "pairs", "max_pairs": 0}, "'pairs' is .* max_pairs=0"),
    (
      {"reasons": "pairs", "pairs.color": "lerning_rate"},
      "pairs.color: no ingredient .* 'lerning_rate': did you mean 'learning_ra",
    ),
    ({"reasons": "features", "heads": {"minival": None}}, "whole CLIPs"),
    ({"reasons": "ensemble", "max_pairs": 0}, "'ensemble' is .* max_pairs=0"),
  ],
)
def test_refuses_what_inputs_do_not_have(sweep, opened, changes, message):
  count = changes.pop("count", 3)
  if "initial" in changes:
    opened = dataclasses.replace(opened, initial=changes.pop("initial"))
  if "heads" in changes:
    opened = dataclasses.replace(opened, heads=changes.pop("heads"))
  name = opened.ingredients[0].name
  changes = {
    key: value.format(name=name) if isinstance(value, str) else value
    for key, value in changes.items()
  }
  config = helpers.diagnose_config(sweep, **{"reasons": "plane", **changes})
  opened = dataclasses.replace(
    opened, config=config, ingredients=opened.ingredients[:count]
  )
  with pytest.raises(ValueError, match=message):
    reasons.check_inputs(opened)


def test_inputs_are_checked_before_any_work(sweep, tmp_path):
  config = helpers.diagnose_config(
    sweep, reasons="plane", **{"plane.models": "initial"}
  )
  with pytest.raises(ValueError, match="must name three models"):
    diagnose.run(config, tmp_path / "why", dry_run=True)


def test_values_of_other_settings_are_not_used(tmp_path):
  path = tmp_path / "values.json"
  base.Resumed(lambda x: x + 1, 2, path=path, key={"points": 2})(1)
  again = base.Resumed(pytest.fail, 2, path=path, key={"points": 2})
  assert again(1) == 2
  other = base.Resumed(lambda x: x + 5, 2, path=path, key={"points": 3})
  assert other(1) == 6
