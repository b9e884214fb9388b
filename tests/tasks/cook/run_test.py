# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import re
import shutil

import chex
import helpers
import jax
import numpy as np
import PIL.Image
import pytest
from scipy import stats

import soupjax as sj
from soupjax import config as config_lib
from soupjax.evaluators import statistics
from soupjax.models import pretrained
from soupjax.tasks import records
from soupjax.tasks.cook import config as cook_config
from soupjax.tasks.cook import evaluate, inputs, needs
from soupjax.tasks.cook import run as cook
from soupjax.tasks.finetune import config as finetune_config


@pytest.fixture(scope="module")
def sweep():
  return helpers.three_members()


@pytest.fixture(scope="module")
def cooked(sweep, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("cook") / "soups"
  cook.run(helpers.cook_config(sweep), workdir)
  return workdir


def accuracy_of(config, split):
  """Accuracy by other means: arrays in memory, a plain loop."""
  splits = sj.data.load_digits()
  result = {d.name: d for d in splits.evaluations}[f"digits/{split}"]
  model = finetune_config.build_model(config)
  # Sources have 256 levels.
  images = np.round((result.images + 1) * 127.5).astype(np.float32) / 127.5 - 1
  images = np.broadcast_to(images, (*images.shape[:3], 3))

  def accuracy(params):
    logits = model.apply({"params": params}, images)[0]
    return float((np.asarray(logits).argmax(-1) == result.labels).mean())

  return accuracy


def test_every_model_is_evaluated_on_every_set(cooked):
  kinds = {row["model"]: row["kind"] for row in helpers.result_rows(cooked)}
  assert kinds == {
    "pretrained": "pretrained",
    **{f"member_00{k}": "ingredient" for k in range(3)},
    **dict.fromkeys(
      ("uniform", "greedy", "greedy_loss", "learned_layer", "wise_ft"), "soup"
    ),
    **{f"wise_ft_{a}": "interpolation" for a in ("0.00", "0.50", "1.00")},
    **dict.fromkeys(("ensemble", "greedy_ensemble"), "ensemble"),
  }
  sizes = {row["dataset"]: row["n"] for row in helpers.result_rows(cooked)}
  assert sizes == {
    "digits/minival": 300, "digits/test": 499, "digits/blur": 499,
    "digits/shifts": 499,
  }  # fmt: skip
  # Two metrics and three of calibration for three sets, one temperature; the
  # mean over shifts has one metric, but not for the best.
  rows = len(kinds) * (3 * 5 + 1) + len(kinds) - 1
  assert len(helpers.result_rows(cooked)) == rows
  assert "greedy" in (cooked / "report.html").read_text()
  assert not list(cooked.glob("*_trace.json")) + list(cooked.glob("*_state*"))
  assert not (cooked / "export").exists()  # They have our names already.


def test_numbers_are_those_of_the_saved_models(sweep, cooked):
  config, result = helpers.cook_config(sweep), helpers.result_values(cooked)
  for split in ("minival", "test", "blur"):
    accuracy = accuracy_of(config, split)
    for name in ("uniform", "greedy", "learned_layer"):
      params = sj.load_params(cooked / "soups" / name)
      assert accuracy(params) == result[name, f"digits/{split}"]
    start = sj.load_params(sweep / "initial")
    assert accuracy(start) == result["pretrained", f"digits/{split}"]
    assert accuracy(start) == result["wise_ft_0.00", f"digits/{split}"]
  ingredients = sj.find_ingredients(sweep / "member_*/ingredients/last")
  for i in ingredients:  # Measured by the sweep itself.
    assert i.metrics["minival/prec@1"] == result[i.name, "digits/minival"]


def test_wise_ft_is_a_soup_chosen_on_minival(sweep, cooked):
  record = json.loads((cooked / "soups/wise_ft/wise_ft.json").read_text())
  values = helpers.result_values(cooked)
  curve = {a: values[f"wise_ft_{a:.2f}", "digits/minival"] for a in (0, 0.5, 1)}
  assert curve[record["alpha"]] == max(curve.values())
  best = sweep / record["fine-tuned"] / "ingredients" / "last"
  expected = sj.wise_ft(sweep / "initial", best, record["alpha"])
  soup = sj.load_params(cooked / "soups" / "wise_ft")
  jax.tree.map(np.testing.assert_array_equal, soup, expected)
  for split in ("minival", "test", "blur"):
    name = f"wise_ft_{record['alpha']:.2f}"
    shown = values["wise_ft", f"digits/{split}"]
    assert shown == values[name, f"digits/{split}"]
  page = (cooked / "report.html").read_text()
  assert f"WiSE-FT, alpha {record['alpha']:g} (by minival)" in page


def test_accuracies_are_compared_with_the_best_ingredient(cooked):
  best = json.loads((cooked / "choices.json").read_text())["best"]["prec@1"]
  values = helpers.result_values(cooked)

  def right(name, split):
    with np.load(cooked / "correct" / f"{name}.npz") as stored:
      return np.unpackbits(stored[split])[:499].astype(int)

  shown = {}
  for row in helpers.result_rows(cooked):
    key = row["model"], row["dataset"]
    assert ("difference" in row) == (
      row["metric"] == "prec@1" and row["model"] != best
    )
    if "difference" in row:
      shown[key] = row
      gain = row["value"] - values[best, "digits/blur"]
      if row["dataset"] in ("digits/shifts", "digits/blur"):
        assert row["difference"] == pytest.approx(gain)
      assert row["low"] <= row["difference"] <= row["high"]
  change = right("greedy", "test") - right(best, "test")
  expected = stats.binomtest(
    int((change > 0).sum()), max(int((change != 0).sum()), 1)
  ).pvalue
  found = shown["greedy", "digits/test"]["p"]
  assert found == pytest.approx(expected if change.any() else 1)
  assert shown["pretrained", "digits/shifts"]["p"] is None
  assert shown["pretrained", "digits/shifts"]["low"] == pytest.approx(
    shown["pretrained", "digits/blur"]["low"]  # The only shift.
  )


def test_calibration_is_that_of_the_logits(cooked):
  def read(name):
    with np.load(cooked / "logits" / f"{name}.npz") as stored:
      return {split: stored[split] for split in ("minival", "test")}

  labels, logits = read(evaluate.LABELS), read("member_001")
  t = statistics.temperature(logits["minival"], labels["minival"])
  found = {
    row["metric"]: row["value"]
    for row in helpers.result_rows(cooked)
    if (row["model"], row["dataset"]) == ("member_001", "digits/test")
  }
  scaled = logits["test"].astype(np.float64) / t
  assert found["ece"] == statistics.ece(logits["test"], labels["test"])
  assert found["ece_t"] == statistics.ece(scaled, labels["test"])
  assert found["loss_t"] == statistics.nll(scaled, labels["test"])
  assert helpers.result_values(cooked, "temperature")[
    "member_001", "digits/minival"
  ] == pytest.approx(t)
  assert ("uniform", "digits/blur") in helpers.result_values(cooked, "ece")
  assert ("ensemble", "digits/test") in helpers.result_values(cooked, "ece_t")


def test_soups_are_those_of_the_library(sweep, cooked):
  ingredients = sj.find_ingredients(sweep / "member_*/ingredients/last")
  measured = helpers.result_values(cooked)
  chosen = {i.name: measured[i.name, "digits/minival"] for i in ingredients}
  assert len(set(chosen.values())) > 1, "a test that could not tell the order"
  soup = sj.load_params(cooked / "soups" / "uniform")
  order = sorted(ingredients, key=lambda i: -chosen[i.name])
  chex.assert_trees_all_close(soup, sj.uniform_soup(order), rtol=1e-6)
  record = json.loads((cooked / "soups/greedy/greedy.json").read_text())
  assert [d["name"] for d in record["history"]][0] == order[0].name
  best = measured[order[0].name, "digits/minival"]
  assert measured["greedy", "digits/minival"] >= best
  taken = [i for i in ingredients if i.name in record["selected"]]
  chex.assert_trees_all_close(
    sj.load_params(cooked / "soups" / "greedy"),
    sj.uniform_soup(taken),
    rtol=1e-5,
    atol=1e-7,
  )
  alphas = json.loads(
    (cooked / "soups/learned_layer/learned.json").read_text()
  )["alphas"]
  assert "Transformer/encoderblock_0" in alphas
  assert any(len(set(a)) > 1 for a in alphas.values()), "nothing was learned"


def test_goes_on_where_it_was(sweep, cooked, tmp_path):
  workdir = tmp_path / "soups"
  shutil.copytree(cooked, workdir)
  before = (workdir / "results.jsonl").read_bytes()
  # As a kill leaves it between any two of its writes.
  for path in ("results.jsonl", "report.html", "metrics/greedy.json"):
    (workdir / path).unlink()
  for path in ("soups/greedy", "soups/learned_layer"):
    shutil.rmtree(workdir / path)
  (workdir / "logits/member_001.npz").unlink()
  kept = workdir / "soups/uniform/params"
  written = kept.stat().st_mtime_ns
  cook.run(helpers.cook_config(sweep), workdir)
  assert (workdir / "results.jsonl").read_bytes() == before
  assert kept.stat().st_mtime_ns == written
  with pytest.raises(ValueError, match="another config"):
    cook.run(
      helpers.cook_config(sweep, **{"cook.greedy.accept": "gt"}), workdir
    )


def test_other_checkpoints_need_another_directory(sweep, cooked, tmp_path):
  shutil.copytree(sweep, tmp_path / "sweep", copy_function=shutil.copy2)
  sweep, workdir = tmp_path / "sweep", tmp_path / "soups"
  shutil.copytree(cooked, workdir)
  config = helpers.cook_config(sweep)
  # The same config, of a directory that was moved.
  (workdir / "config.json").write_text(json.dumps(config_lib.to_dict(config)))
  (workdir / "cooked_from.json").unlink()
  cook.run(config, workdir)
  shutil.rmtree(sweep / "member_001")
  with pytest.raises(ValueError, match="member_001.*gone.*--workdir"):
    cook.run(config, workdir)


def test_other_images_need_another_directory(sweep, tmp_path):
  helpers.write_image_folder(tmp_path / "images/val", {"a": 1, "b": 1})
  config = helpers.cook_config(sweep)

  def start():
    source = sj.data.open_source(f"folder:{tmp_path}/images", "val")
    opened = dataclasses.replace(
      inputs.open_inputs(config), tests={"x": source}
    )
    records.check_unchanged(config, opened, tmp_path / "record.json")

  start()
  start()
  image = next((tmp_path / "images/val/a").iterdir())
  image.write_bytes(image.read_bytes())
  with pytest.raises(ValueError, match="the set x changed"):
    start()


@pytest.mark.filterwarnings("ignore:Models of")
def test_checkpoints_of_another_library(sweep, tmp_path, capsys):
  config = helpers.cook_config(sweep)
  model = finetune_config.build_model(config)
  for k in range(3):
    params = sj.load_params(sweep / f"member_00{k}/ingredients/last")
    path = tmp_path / f"runs/{k}/model.safetensors"
    path.parent.mkdir(parents=True)
    pretrained.save_exported(path, params, model, "timm")
  start = tmp_path / "start/1"  # Called like an ingredient.
  start.mkdir(parents=True)
  params = sj.load_params(sweep / "initial")
  pretrained.save_exported(start / "x.safetensors", params, model, "timm")
  foreign = config_lib.updated(
    config,
    {
      "ingredients": str(tmp_path / "runs/*/model.safetensors"),
      "initial": str(start),
      "tests": "test=test",
      "cook.learned.granularities": (),
      "cook.ensembles_gb": 0.0,
      "data.cache_gb": 0.0,
    },
  )
  cook.run(foreign, tmp_path / "soups")
  assert "read as 'timm'" in capsys.readouterr().out
  result = helpers.result_values(tmp_path / "soups")
  for k in range(3):
    theirs = sj.open_ingredient(sweep / f"member_00{k}/ingredients/last")
    assert result[str(k), "digits/minival"] == theirs.metrics["minival/prec@1"]
  names = {name for name, _ in result}
  assert {name for name in names if not name.startswith("wise_ft")} == {
    *("0", "1", "2", "pretrained", "uniform", "greedy", "greedy_loss")
  }
  # With their names, as the average of their files.
  soup = sj.open_ingredient(tmp_path / "soups/export/uniform.safetensors")
  files = sj.find_ingredients(tmp_path / "runs/*/model.safetensors")
  assert "blocks.0.attn.qkv.weight" in soup.specs
  flat = sj.uniform_soup(files)
  for leaf in soup.specs:
    np.testing.assert_allclose(
      soup.read(leaf), flat[leaf], rtol=1e-5, atol=1e-6, err_msg=leaf
    )


def test_dry_run_touches_nothing(sweep, tmp_path, capsys):
  before = sorted(tmp_path.rglob("*"))
  assert cook.run(helpers.cook_config(sweep), None, dry_run=True) is None
  text = capsys.readouterr().out
  assert "3 ingredients" in text and "digits/blur, 499 images" in text
  assert "uniform, greedy, greedy_loss, learned_layer, wise_ft" in text
  assert "12 models on all 1,298 images; at most 6 candidates" in text
  # 12 x 1,298 and 6 x 300 images.
  line = r"forward passes ([\d.]+) (s|min|h|days): 17,376 images at ([\d,]+)/s"
  seconds, unit, speed = re.search(line, text).groups()
  if unit == "s":
    assert abs(17376 / int(speed.replace(",", "")) - float(seconds)) <= 1
  assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"tests": "minival=test"}, "tests.minival"),
    ({"tests": {"shifts": "test"}}, "tests.shifts"),
    ({"tests": {"test": "mnist/"}}, "tests.test='mnist/'"),
    ({"cook.metric": "prec@2"}, "'prec@2'"),
    ({"cook.metric": "loss,loss"}, "'loss,loss'"),
    ({"tests": "test=test,again=minival"}, "300 images"),
    ({"tests": "test=nowhere"}, "'nowhere'"),
    ({"data.name": ""}, "data.name"),
    ({"ingredients": ""}, "ingredients must be"),
    ({"ingredients": "/nowhere/*"}, "'/nowhere/\\*'"),
    ({"cook.learned.granularities": ("block",)}, "model, layer, tensor"),
    ({"cook.learned.memory_gb": -2.0}, "memory_gb .*-2.0"),
    ({"cook.wise_ft_points": 1}, "0, or at least 2"),
    ({"family": "tim"}, "'tim'"),
    ({"cook.learned.batch_size": 100}, "cook.learned.batch_size"),
    ({"data.num_classes": 7}, "head/"),
    ({"model.width": 24}, "embedding/kernel"),
  ],
)
def test_what_does_not_fit_is_said_before_any_work(
  sweep, tmp_path, changes, message
):
  with pytest.raises(ValueError, match=message):
    cook.run(helpers.cook_config(sweep, **changes), tmp_path / "soups")
  assert not (tmp_path / "soups").exists()


def test_a_test_set_of_other_classes(sweep, tmp_path):
  source = tmp_path / "images" / "test"
  for name in ("a", "b"):
    (source / name).mkdir(parents=True)
    image = PIL.Image.fromarray(np.zeros((16, 16, 3), np.uint8))
    image.save(source / name / "1.png")
  config = helpers.cook_config(
    sweep, tests=f"test=folder:{tmp_path}/images/test"
  )
  with pytest.raises(ValueError, match="2 classes"):
    cook.run(config, tmp_path / "soups")


def test_ingredients_of_two_sweeps(sweep, tmp_path):
  shutil.copytree(sweep / "member_000/ingredients/last", tmp_path / "other")
  record = tmp_path / "other/hyperparameters.json"
  values = json.loads(record.read_text())
  record.write_text(json.dumps({**values, "init_hash": "0123456789"}))
  both = f"{sweep}/member_*/ingredients/last,{tmp_path}/other"
  with pytest.raises(ValueError, match="different weights"):
    cook.run(helpers.cook_config(sweep, ingredients=both), tmp_path / "soups")


def test_names_of_soups_are_taken(sweep, tmp_path):
  for k, name in enumerate(("greedy", "uniform", "mine")):
    shutil.copytree(sweep / f"member_00{k}/ingredients/last", tmp_path / name)
  config = helpers.cook_config(sweep, ingredients=f"{tmp_path}/*")
  result = inputs.open_inputs(config).ingredients
  assert [i.name for i in result] == [
    "ingredient_greedy", "mine", "ingredient_uniform",
  ]  # fmt: skip


def test_members_that_are_not_finished_are_named(sweep, tmp_path, caplog):
  shutil.copytree(sweep, tmp_path / "sweep")
  shutil.rmtree(tmp_path / "sweep/member_001/ingredients/last")
  with caplog.at_level("WARNING", logger="absl"):
    config = helpers.cook_config(tmp_path / "sweep")
  assert "leave out member_001" in caplog.text
  assert len(inputs.open_inputs(config).ingredients) == 2


def test_no_sweep_there(tmp_path):
  with pytest.raises(ValueError, match="no config.json"):
    config_lib.load(helpers.COOK_CONFIG, f"sweep={tmp_path}")
  (tmp_path / "config.json").write_text('{"task": "soup"}')
  with pytest.raises(ValueError, match="'soup'.*'finetune'"):
    config_lib.load(helpers.COOK_CONFIG, f"sweep={tmp_path}")


def test_tests_are_read():
  config = cook_config.default_config()
  config.data.name = "imagenet2012"
  config.tests.test = "validation"
  config.tests.r = "imagenet_r/test"
  config.tests.own = "folder:/a/b/val[:50%]"
  assert cook_config.tests(config) == {
    "test": cook_config.TestSet("imagenet2012", "validation"),
    "r": cook_config.TestSet("imagenet_r", "test"),
    "own": cook_config.TestSet("folder:/a/b", "val[:50%]"),
  }


@pytest.mark.parametrize("text", ["test", "a=test,a=blur", "=test", "a b=c"])
def test_short_forms_that_cannot_be_read(sweep, text):
  with pytest.raises(ValueError, match=text):
    helpers.cook_config(sweep, tests=text)


def test_on_a_mesh_and_with_protocols(sweep, cooked, tmp_path):
  answers = {}
  for name in ("even", "odd", "other"):
    place = tmp_path / "images" / name
    place.mkdir(parents=True)
    for k in (1, 2):
      image = np.full((16, 16, 3), 100 * k, np.uint8)
      PIL.Image.fromarray(image).save(place / f"{name}_{k}.png")
      answers[f"{name}_{k}.png"] = list(range(10)) if k == 1 else []
  (tmp_path / "map.json").write_text(
    json.dumps({"even": [0, 2, 4, 6, 8], "odd": [1, 3, 5, 7, 9]})
  )
  (tmp_path / "real.json").write_text(json.dumps(answers))
  place = f"folder:{tmp_path}/images/all"
  config = helpers.cook_config(
    sweep,
    **{
      "sharding.preset": "fsdp",
      "sharding.fsdp_min_size": 64,
      "tests": 'test=test,fog=test|corrupt("fog", 3),'
      f"parity={place}:map={tmp_path}/map.json|crop_border(1)|resize(16),"
      f"real={place}:labels={tmp_path}/real.json",
      "cook.learned.granularities": (),
      "cook.wise_ft_points": 0,
      "means": "shifts=fog+parity,folders=parity+real",
    },
  )
  assert jax.device_count() > 1
  line = r'fog: digits/test, \d+ images; corrupt\("fog", 3\)\n'
  assert re.search(line, needs.plan(inputs.open_inputs(config)))
  cook.run(config, tmp_path / "soups")
  same = ("uniform", "pretrained", "member_000")
  here, there = (
    helpers.result_values(tmp_path / "soups"),
    helpers.result_values(cooked),
  )
  for name in same:
    assert here[name, "digits/test"] == there[name, "digits/test"]
  assert here["member_001", "digits/fog"] < here["member_001", "digits/test"]
  # Any label is right for the images with number 1; the others have none.
  for model in ("member_000", "ensemble"):
    rows = [r for r in helpers.result_rows(tmp_path / "soups")
            if r["model"] == model and r["metric"] == "prec@1"]  # fmt: skip
    by_set = {row["dataset"]: row for row in rows}
    assert by_set["digits/real"]["n"] == 3
    assert by_set["digits/real"]["value"] == 1
    assert by_set["digits/parity"]["n"] == 4
    # Each class has the same two pictures.
    assert by_set["digits/parity"]["value"] == 0.5
    mean = by_set["digits/shifts"]["value"]
    assert mean == (by_set["digits/fog"]["value"] + 0.5) / 2
    assert by_set["digits/folders"]["value"] == 0.75
  protocols = json.loads((tmp_path / "soups/choices.json").read_text())[
    "protocols"
  ]
  assert protocols == {
    "fog": 'images changed by corrupt("fog", 3)',
    "parity": "10 outputs joined to 2 classes by the highest logit; images "
    "changed by crop_border(1)|resize(16)",
    "real": "any of several right labels counts",
  }
  page = (tmp_path / "soups/report.html").read_text()
  assert "10 outputs joined to 2 classes" in page
  kept = "soups/uniform"
  chex.assert_trees_all_equal(
    sj.load_params(tmp_path / "soups" / kept), sj.load_params(cooked / kept)
  )


def test_effective_robustness_is_that_of_the_results(cooked):
  values = helpers.result_values(cooked)
  kinds = {r["model"]: r["kind"] for r in helpers.result_rows(cooked)}
  found = json.loads((cooked / "robustness.json").read_text())
  pool = [name for name, kind in kinds.items() if kind == "ingredient"]
  points = np.array(
    [[values[m, f"digits/{s}"] for s in ("test", "blur")] for m in pool]
  )
  x, y = np.log(points / (1 - points)).T
  slope, intercept = np.polyfit(x, y, 1)
  assert found["line"]["slope"] == pytest.approx(slope)
  accuracy, shifted = (
    values["uniform", f"digits/{s}"] for s in ("test", "blur")
  )
  height = intercept + slope * np.log(accuracy / (1 - accuracy))
  want = shifted - 1 / (1 + np.exp(-height))
  assert found["models"]["uniform"]["rho"] == pytest.approx(want)
  assert "Effective robustness" in (cooked / "report.html").read_text()


def test_baselines_are_checked_before_any_work(sweep, tmp_path):
  config = helpers.cook_config(sweep, **{"cook.baselines": "/no/where.csv"})
  with pytest.raises(ValueError, match="/no/where.csv"):
    cook.run(config, tmp_path / "soups")
  assert not (tmp_path / "soups").exists()


def test_other_baselines_need_another_directory(sweep, tmp_path, capsys):
  path = tmp_path / "baselines.csv"
  path.write_text("model,test,shifts\na,0.6,0.5\nb,0.7,0.6\nc,0.8,0.7\n")
  config = helpers.cook_config(
    sweep,
    **{
      "cook.baselines": str(path),
      "cook.learned.granularities": (),
      "cook.wise_ft_points": 0,
    },
  )
  for _ in range(2):
    cook.run(config, tmp_path / "soups")
  assert "Finished before" in capsys.readouterr().out
  path.write_text("model,test,shifts\na,0.6,0.5\nb,0.7,0.6\nc,0.8,0.65\n")
  with pytest.raises(ValueError, match="the baselines changed"):
    cook.run(config, tmp_path / "soups")
