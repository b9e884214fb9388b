# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Few-shot and linear probes of frozen features, against scikit-learn."""

import helpers
import jax
import numpy as np
import PIL.Image
import pytest
from sklearn import linear_model, preprocessing

from soupjax import config as config_lib
from soupjax import data
from soupjax.models import tiny_clip
from soupjax.tasks import heads
from soupjax.tasks.cook import inputs
from soupjax.tasks.evaluate import run as evaluate
from soupjax.tasks.evaluate import transfer

CONFIG = str(helpers.ROOT / "configs" / "evaluate.py")


def made_up(n, seed, classes=4, width=12):
  """Features of overlapping classes and of different scales, and labels."""
  rng = np.random.default_rng(seed)
  means = np.random.default_rng(0).normal(size=(classes, width))
  labels = rng.integers(0, classes, n)
  features = means[labels] + 1.5 * rng.normal(size=(n, width))
  return (features * np.geomspace(0.01, 100, width)).astype("f"), labels


def test_linear_probes_choose_as_scikit_learn_would():
  train, minival, test = (
    made_up(n, k) for k, n in ((1, 80), (2, 200), (3, 1000))
  )
  penalties = (1e-4, 1e-2, 1.0)
  head, l2 = transfer.best_linear_probe(
    train, minival, penalties, 200, num_classes=4
  )
  scaler = preprocessing.StandardScaler().fit(train[0])
  fitted = {
    p: linear_model.LogisticRegression(C=1 / (80 * p), max_iter=1000).fit(
      scaler.transform(train[0]), train[1]
    )
    for p in penalties
  }
  scores = {
    p: model.score(scaler.transform(minival[0]), minival[1])
    for p, model in fitted.items()
  }
  assert len(set(scores.values())) > 1 and l2 == max(scores, key=scores.get)
  accuracy = (
    (test[0] @ head["kernel"] + head["bias"]).argmax(1) == test[1]
  ).mean()
  expected = fitted[l2].score(scaler.transform(test[0]), test[1])
  assert accuracy == pytest.approx(expected, abs=1e-3)


def test_few_shot_images_are_nested_and_of_every_class():
  labels = np.random.default_rng(0).integers(0, 3, 60)
  source = data.Source("made/up", 60, 3, ("ant", "bee", "cow"))
  source.label = lambda k: int(labels[k])
  shots = transfer.few_shot_images(source, (2, 5), 0, "transfer.x")
  assert set(shots[2]) < set(shots[5])
  for n, rows in shots.items():
    assert (np.bincount(labels[rows]) == n).all()
  other = transfer.few_shot_images(source, (5,), 1, "transfer.x")
  assert set(other[5]) != set(shots[5])
  labels[:] = 0
  labels[7] = 1
  with pytest.raises(ValueError, match="transfer.x: the class 'cow' has 0"):
    transfer.few_shot_images(source, (2,), 0, "transfer.x")


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("transfer") / "probed"
  evaluate.run(config_of(), workdir)
  return workdir


def config_of(**changes):
  values = {
    "tests": "test=test",
    "ingredients": str(helpers.three_members() / "member_00[12]/*/last"),
    "initial": "",
    "transfer": "same=digits:train=minival:test=test,"
    "fog=digits:train=minival:minival=new_writers:test=test"
    "|resize(16)",
    "fewshot.shots": (3, 6),
    "fewshot.l2": 4.0,
    "probe.l2": (1e-3, 1.0),
    "probe.steps": 40,
    **changes,
  }
  return config_lib.load(CONFIG, f"sweep={helpers.three_members()}", **values)


def test_probes_of_checkpoints(probed, capsys):
  rows = helpers.result_rows(probed)
  values = helpers.result_values(probed)
  names = {row["dataset"].removeprefix("digits/") for row in rows}
  probes = {"same_3shot", "same_6shot", "fog_3shot", "fog_6shot", "fog_probe"}
  assert names == {"minival", "test", "3shot", "6shot", *probes}
  opened = inputs.open_inputs(config_of())
  model, source = opened.model, data.open_source("digits", "minival")
  chosen = transfer.few_shot_images(source, (6,), 0, "")[6]
  parts = {}
  for name, rows_of in (("train", chosen), ("test", range(499))):
    of = source if name == "train" else data.open_source("digits", "test")
    examples = [of[int(k)] for k in rows_of]
    images = np.stack([e["image"] for e in examples]).astype("f") / 127.5 - 1
    parts[name] = images, np.array([e["label"] for e in examples])
  params = opened.ingredients[1].load()
  features = {
    name: np.asarray(model.apply({"params": params}, images)[1], np.float64)
    for name, (images, _) in parts.items()
  }
  scaler = preprocessing.StandardScaler().fit(features["train"])
  ridge = linear_model.Ridge(alpha=4.0).fit(
    scaler.transform(features["train"]), np.eye(10)[parts["train"][1]] * 2 - 1
  )
  guesses = ridge.predict(scaler.transform(features["test"])).argmax(1)
  accuracy = (guesses == parts["test"][1]).mean()
  name = opened.ingredients[1].name
  found = values[name, "digits/same_6shot"]
  assert found == pytest.approx(accuracy, abs=1e-3) and found > 0.3
  mean = (found + values[name, "digits/fog_6shot"]) / 2
  assert values[name, "digits/6shot"] == pytest.approx(mean)
  ranks = helpers.result_values(probed, "mean_rank")
  assert ranks[name, "digits/6shot"] + ranks["member_001", "digits/6shot"] == 3
  gains = {
    row["dataset"]: row for row in rows if "low" in row and row["model"] == name
  }
  assert {"digits/fog_probe", "digits/6shot"} <= set(gains)
  page = (probed / "report.html").read_text()
  assert "Probes on other datasets" in page and "mean rank" in page
  evaluate.run(config_of(), probed)
  assert "mean logit" in capsys.readouterr().out


def test_images_that_cannot_be_decoded(tmp_path):
  rng = np.random.default_rng(0)
  for split, count in (("train", 6), ("val", 4), ("test", 9)):
    for k, name in enumerate(("ant", "bee")):
      folder = tmp_path / "photos" / split / name
      folder.mkdir(parents=True)
      for i in range(count):
        pixels = rng.integers(90 * k, 90 * k + 150, (16, 16, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{split}_{i}.png")
  photos = f"folder:{tmp_path}/photos"
  config = config_of(transfer=f"x={photos}:minival=val")
  source = data.open_source(photos, "train")
  few = transfer.few_shot_images(source, (3,), 0, "")[3]
  others = np.setdiff1d(np.arange(12), few)

  def accuracies(name):
    evaluate.run(config, tmp_path / name)
    values = helpers.result_values(tmp_path / name)
    return {key: value for key, value in values.items() if "3shot" in key[1]}

  config.unlock()
  config.fewshot.shots = (3,)
  expected = accuracies("whole")
  for index in (others[0], few[0]):
    (tmp_path / "photos" / source.describe(int(index))).write_bytes(b"no image")
    if index in few:
      with pytest.raises(ValueError, match="x: .*train_.*3shot.*decoded"):
        accuracies("few")
    else:
      assert accuracies("other") == expected


@pytest.mark.parametrize(
  "changes, problem",
  [
    ({"tests": "fog_3shot=test"}, "transfer.fog: .*'fog_3shot'.*rename"),
    ({"means": "3shot=test"}, "transfer: .*'3shot'.*rename"),
    ({"transfer": "x=digits:train=minival:tset=test"}, "transfer.x"),
    ({"transfer": "x=digits:train=minival:test=minival"}, "x: .* 300 images"),
    ({"fewshot.shots": (5, 500)}, "fog: the class 7 has 19 images .* 500"),
    ({"fewshot.shots": (5, 1)}, r"\(5, 1\) must be ascending"),
    ({"fewshot.shots": ()}, "transfer.same: .*minival=SPLIT"),
    ({"fewshot.l2": 0.0}, "fewshot.l2"),
    ({"tests": {}, "data.train": "", "data.minival": ""}, "add tests="),
  ],
)
def test_bad_inputs(changes, problem):
  with pytest.raises(ValueError, match=problem):
    evaluate.run(config_of(**changes), None, dry_run=True)


def test_features_of_a_whole_clip_are_its_embeddings():
  model = tiny_clip.model()
  images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype("f")
  tokens = np.ones((1, 32), np.int32)
  params = model.init(jax.random.key(0), images, tokens)["params"]
  found = heads.features_program(model)(params, images)
  expected = model.apply({"params": params}, images, method="embed_images")
  found = np.array(found)
  found /= np.linalg.norm(found, axis=1, keepdims=True)
  np.testing.assert_allclose(found, expected, atol=1e-6)
