# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Every method on a small pool without training, and what each refuses."""

import dataclasses
import json

import helpers
import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax import config as config_lib
from soupjax import models
from soupjax.evaluators import evaluator
from soupjax.report import figures
from soupjax.tasks.search import config as search_config
from soupjax.tasks.search import inputs as inputs_lib
from soupjax.tasks.search import methods
from soupjax.tasks.search import run as search

CONFIG = str(helpers.ROOT / "configs" / "search.py")
SETS = "digits:minival=minival[:40]:test=test[:40]:head=initial"
TASKS = (
  f"a={SETS}|crop_border(1)|resize(16),b={SETS}|crop_border(3)|resize(16),"
  f"control={SETS}"
)


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
  """Draws at a low resolution, which is fast."""
  monkeypatch.setattr(figures, "DPI", 40)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
  """A random start with a head, and models of tasks a, b and a third."""
  folder = tmp_path_factory.mktemp("pool")
  model = models.ViT(
    num_classes=10, patch_size=8, width=8, depth=2, mlp_dim=8, num_heads=2,
    pool_type="gap", scan=False,
  )  # fmt: skip
  images = np.zeros((1, 16, 16, 3), np.float32)
  start = jax.jit(model.init)(jax.random.key(0), images)["params"]
  rng = np.random.default_rng(0)

  def near(scale):
    return jax.tree.map(
      lambda x: np.asarray(x) + scale * rng.normal(size=x.shape).astype("f"),
      start,
    )

  start = near(0.1)
  sj.save_params(folder / "start.safetensors", start)
  (folder / "tuned").mkdir()
  for name in "abc":
    sj.save_params(folder / "tuned" / f"{name}.safetensors", near(0.2))
  return folder


def values_of(pool, **changes):
  return {
    "initial": str(pool / "start.safetensors"),
    "ingredients": str(pool / "tuned" / "[ab].safetensors"),
    "tasks": TASKS,
    "data.eval_ops": "value_range(-1, 1)",
    "model.num_heads": 2,
    "data.batch_size": 40,
    **changes,
  }


def config_of(pool, method, **changes):
  return config_lib.load(CONFIG, method, **values_of(pool, **changes))


def run(pool, workdir, method, **changes):
  search.run(config_of(pool, method, **changes), workdir)
  return json.loads((workdir / "search.json").read_text())


# Method -> options, other inputs, title -> number of candidates.
ALL = {
  "negation": (
    {"points": 3, "control": "control", "show": "1"},
    {},
    {"negation": 3},
  ),
  "analogy": (
    {
      **{"points": 2, "a": "a", "b": "b", "c": "c", "choose_on": "control"},
      "show": "1",
    },
    {"ingredients": "[abc]"},
    {"analogy": 2},
  ),
  "paint": (
    {"points": 3, "show": "0.5+1"},
    {"ingredients": "a"},
    {"paint": 3},
  ),
  "paint_sequential": (
    {"points": 2, "patching": "b+a"},
    {},
    {"paint_1_b": 2, "paint_2_a": 2},
  ),
  "paint_parallel": (
    {"points": 2, "budget": 6},
    {},
    {"paint_parallel": 6},
  ),
  "diwa": ({}, {"ingredients": "[abc]"}, {}),
  "depth": (
    {"points": 2, "knots": 2, "budget": 5},
    {},
    {"depth": 5},
  ),
  "schedule": (
    {"kinds": "uniform+ema:0.5"},
    {"ingredients": "a,b,c"},  # Names without numbers: the order given.
    {"uniform": 3, "ema_0.5": 3},
  ),
  "ties": ({"budget": 4}, {}, {"ties": 4}),
  "signed": ({"steps": 2, "batch_size": 16, "choose_on": "a"}, {}, {}),
  "entropy": (
    {"steps": 2, "batch_size": 16, "choose_on": "a"},
    {},
    {},
  ),
}


@pytest.fixture(scope="module")
def found(pool, tmp_path_factory):
  """Runs a method once; returns its workdir and record."""
  done = {}

  def once(method):
    if method not in done:
      options, inputs, _ = ALL[method]
      changes = {f"search.{k}": v for k, v in options.items()}
      if "ingredients" in inputs:
        changes["ingredients"] = ",".join(
          f"{pool}/tuned/{part}.safetensors"
          for part in inputs["ingredients"].split(",")
        )
      workdir = tmp_path_factory.mktemp("methods") / method
      done[method] = workdir, run(pool, workdir, method, **changes)
    return done[method]

  return once


@pytest.mark.parametrize("method", ALL)
def test_every_method_ends_with_a_table_a_picture_and_a_model(found, method):
  workdir, record = found(method)
  counts = {title: len(h) for title, h in record["searches"].items()}
  assert counts == ALL[method][2]
  for history in record["searches"].values():
    best = next(c for c in history if c["chosen"])
    allowed = [c for c in history if "below" not in c["reason"]]
    assert best["value"] >= max(c["value"] for c in allowed)
  assert (workdir / "report.html").exists()
  assert any((workdir / "figures").glob("*.png"))
  first = record["tables"][0]
  assert first["columns"][:4] == ["a", "b", "control", "mean"]
  assert "chosen" in first["rows"]
  assert sj.provenance(workdir / "chosen")["search"] == method
  exported = sj.load_params(workdir / "chosen")
  assert "head" not in exported and "Transformer" in exported


def leaf(params, block=0):
  block = params["Transformer"][f"encoderblock_{block}"]
  return np.asarray(block["MlpBlock_0"]["Dense_0"]["kernel"], np.float64)


def tuned(pool, name="start"):
  folder = pool if name == "start" else pool / "tuned"
  return sj.load_params(folder / f"{name}.safetensors")


def test_chosen_models_are_those_of_their_coefficients(pool, found):
  start, a, b, c = (leaf(tuned(pool, n)) for n in ("start", *"abc"))
  expected = {
    "negation": lambda k: start - k[0] * (a + b - 2 * start),
    "analogy": lambda k: c + k[0] * (b - a),
    "paint": lambda k: start + k[0] * (a - start),
    "paint_parallel": lambda k: start + k[0] * (a - start) + k[1] * (b - start),
    # The first block is the first layer after the embedding, of three.
  }
  for method, of in expected.items():
    workdir, record = found(method)
    (history,) = record["searches"].values()
    best = next(x for x in history if x["chosen"])["coefficients"]
    chosen = leaf(sj.load_params(workdir / "chosen"))
    np.testing.assert_allclose(chosen, of(best), atol=1e-6, err_msg=method)
  workdir, record = found("depth")
  best = next(x for x in record["searches"]["depth"] if x["chosen"])
  rule = sj.rules.task_arithmetic(best["coefficients"])
  names = [pool / "tuned" / f"{name}.safetensors" for name in "ab"]
  mixed = sj.mix(rule, names, base=pool / "start.safetensors").params
  chosen = sj.load_params(workdir / "chosen")
  for block in (0, 1):
    np.testing.assert_allclose(
      leaf(chosen, block), leaf(mixed, block), atol=1e-6
    )


def test_combined_accuracy_and_the_control(found):
  _, record = found("paint_parallel")
  for candidate in record["searches"]["paint_parallel"]:
    s = candidate["scores"]
    combined = ((s["a"] + s["b"]) / 2 + s["control"]) / 2
    assert candidate["value"] == pytest.approx(combined)
  minival = record["tables"][2]
  assert minival["columns"][-1] == "combined"
  best = next(c for c in record["searches"]["paint_parallel"] if c["chosen"])
  assert minival["rows"]["chosen"][-1] == pytest.approx(best["value"])
  _, record = found("negation")
  curve = record["searches"]["negation"]
  start = curve[0]["scores"]["control"]
  chosen = next(c for c in curve if c["chosen"])
  assert chosen["scores"]["control"] >= 0.95 * start


@pytest.mark.parametrize(
  "method,at", [("negation", 1), ("analogy", 1), ("paint", 0.5)]
)
def test_tables_show_other_coefficients(found, method, at):
  _, record = found(method)
  (curve,) = record["searches"].values()
  scores = next(c for c in curve if c["coefficients"] == [at])["scores"]
  minival = record["tables"][2]
  row = dict(zip(minival["columns"], minival["rows"][f"at_{at}"]))
  for task in scores.keys() & row.keys():
    assert row[task] == scores[task]
  if method == "paint":
    assert minival["rows"]["at_1"] == minival["rows"]["a.safetensors"]


def test_the_best_equal_coefficients_are_shown(found):
  _, record = found("paint_parallel")
  (history,) = record["searches"].values()
  equal = [c["value"] for c in history if len(set(c["coefficients"])) == 1]
  shown = record["tables"][2]["rows"]["at_equal"][-1]
  assert shown == pytest.approx(max(equal))


def test_stages_of_sequential_patching(pool, found, tmp_path):
  workdir, record = found("paint_sequential")
  start, a, b = (leaf(tuned(pool, n)) for n in ("start", "a", "b"))
  alphas = [
    next(c for c in history if c["chosen"])["coefficients"][0]
    for history in record["searches"].values()
  ]
  patched = start + alphas[0] * (b - start)
  np.testing.assert_allclose(
    leaf(sj.load_params(workdir / "stages/a")), patched, atol=1e-6
  )
  assert "head" in sj.load_params(workdir / "stages/a")
  np.testing.assert_allclose(
    leaf(sj.load_params(workdir / "chosen")),
    patched + alphas[1] * (a - patched),
    atol=1e-6,
  )
  # Without the second ingredient it ends there, and says how to go on.
  record = run(
    pool,
    tmp_path / "run",
    "paint_sequential",
    ingredients=str(pool / "tuned" / "b.safetensors"),
    **{"search.points": 2, "search.patching": "b+a"},
  )
  assert list(record["searches"]) == ["paint_1_b"]
  following = tmp_path / "run/stages/a"
  assert f"--config.init.path={following}" in record["summary"]
  np.testing.assert_allclose(
    leaf(sj.load_params(following)), patched, atol=1e-6
  )


def test_diwa_is_that_of_the_library(pool, found):
  workdir, record = found("diwa")
  trace = record["greedy"]["greedy"]
  scores = [d["score"] for d in trace["history"]]
  assert scores[0] == max(scores[0], trace["history"][0]["score"])
  taken = [pool / "tuned" / name for name in trace["selected"]]
  np.testing.assert_allclose(
    leaf(sj.load_params(workdir / "chosen")),
    leaf(sj.uniform_soup(taken)),
    atol=1e-6,
  )
  assert "uniform" in record["tables"][0]["rows"]


def test_learned_coefficients_have_a_base(pool, found):
  for method in ("signed", "entropy"):
    _, record = found(method)
    learned = record["learned"][method]
    alphas = np.array(list(learned["alphas"].values()))
    assert len(learned["history"]) == 2 and learned["names"] == [
      "a.safetensors",
      "b.safetensors",
    ]
    assert np.abs(alphas - 0.3).max() > 0 and abs(alphas.mean() - 0.3) < 0.1


def test_one_compilation_for_each_dataset(pool, opened, tmp_path):
  evaluator._compiled.cache_clear()
  run(pool, tmp_path / "run", "addition", **{"search.points": 5})
  programs = evaluator._compiled.cache_info()
  # All three tasks have one model; candidates and checkpoints share it.
  assert programs.currsize == 1
  model, names = opened.tasks["a"].model, ("prec@1", "loss")
  program = evaluator._compiled(model, names, False, opened.mesh)
  assert program._cache_size() == 1


@pytest.fixture(scope="module")
def opened(pool):
  """The inputs of a search, opened once."""
  return inputs_lib.open_inputs(config_of(pool, "addition"))


@pytest.mark.parametrize(
  "method,changes,message",
  [
    ("negation", {"search.control": "a"}, "'a' is both a control and in"),
    (
      "negation",
      {"search.control": "control", "cook.metric": "loss"},
      "cook.metric='loss'.*higher is better",
    ),
    ("negation", {}, "search.control='' must be one of the tasks a, b, contr"),
    (
      "paint_parallel",
      {"search.patching": "a+b", "search.supported": "b"},
      "'b' is both a control and in search.patching",
    ),
    ("paint_parallel", {"search.budget": 3}, "budget=3 does not cover 13"),
    ("paint_parallel", {"search.patching": "a+x"}, "search.patching: 'x'"),
    (
      "paint_parallel",
      {"search.patching": "a"},
      "needs at least two patching tasks",
    ),
    ("paint", {}, "one ingredient, but got 2"),
    (
      "paint_parallel",
      {"kept": 1},
      "'paint_parallel' needs at least 2 ingredients, .* only a.safetensors",
    ),
    ("diwa", {"kept": 1}, "'diwa' needs at least 2 ingredients"),
    ("analogy", {"search.show": "0.5+x"}, "search.show has 'x'"),
    ("diwa", {"search.average": "best"}, "search.average='best'"),
    ("window", {"search.kinds": "cosine"}, "search.kinds has 'cosine'"),
    ("analogy", {}, "'analogy' needs at least 3 ingredients"),
    ("dare", {"search.ranges": "scale=1"}, "'scale=1'"),
    ("wise_ft", {"initial": None}, "'wise_ft' needs .*--config.initial"),
    ("ties", {"search.budget": 2}, "budget=2 does not cover 3"),
    ("ties", {"search.ranges": "dense=0..1"}, "dense=0..1.*density"),
    ("ties", {"search.ranges": "scale=0..inf"}, "scale=0..inf"),
    ("ties", {"search.ranges": "density=0..2"}, "density=0..2.*rejects 0"),
    ("ties", {"initial": None}, "'ties' .* --config.initial"),
    ("depth", {"search.budget": 8}, "budget=8 does not cover 9"),
    ("signed", {"search.batch_size": 64}, "search.batch_size=64 .* 40 images"),
    ("signed", {"search.granularity": "head"}, "search.granularity='head'"),
  ],
)
def test_inputs_that_do_not_do(pool, opened, method, changes, message):
  kept = changes.pop("kept", 2)
  initial = changes.pop("initial", opened.initial)
  config = config_of(pool, method, **changes)
  inputs = dataclasses.replace(
    opened,
    config=config,
    initial=initial,
    ingredients=opened.ingredients[:kept],
  )
  with pytest.raises(ValueError, match=message):
    search_config.check(config)
    methods.check(inputs)


def test_two_processes_find_what_one_does(pool, found, tmp_path):
  alone, record = found("paint_parallel")
  options = {f"search.{k}": v for k, v in ALL["paint_parallel"][0].items()}
  values = {**values_of(pool), **options}
  values |= {"sharding.preset": "fsdp", "sharding.fsdp_min_size": 8}
  helpers.run_workers(
    helpers.ROOT / "tests" / "tasks" / "command_worker.py",
    tmp_path,
    f"--config={CONFIG}:paint_parallel",
    f"--workdir={tmp_path / 'run'}",
    *(f"--config.{key}={value}" for key, value in values.items()),
    "--distributed",
    LOGS=str(tmp_path),
    JAX_PLATFORMS="cpu",
  )
  together = json.loads((tmp_path / "run/search.json").read_text())
  assert together == record
  jax.tree.map(
    np.testing.assert_array_equal,
    sj.load_params(tmp_path / "run/chosen"),
    sj.load_params(alone / "chosen"),
  )
  printed = [(tmp_path / f"log_{k}").read_text() for k in range(2)]
  assert record["summary"] in printed[0]
  assert record["summary"] not in printed[1]
