# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Logits are written, and taken in again in place of checkpoints."""

import json
import shutil

import helpers
import numpy as np
import pytest

import soupjax as sj
from soupjax import config as config_lib
from soupjax.evaluators import by_command, statistics
from soupjax.tasks.evaluate import run as evaluate

CONFIG = str(helpers.ROOT / "configs" / "evaluate.py")
TESTS = "test=test,some=new_writers:classes=present|resize(16)"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A run of the three members that kept their logits."""
  sweep = helpers.three_members()
  workdir = tmp_path_factory.mktemp("logits") / "saved"
  config = config_lib.load(
    CONFIG, f"sweep={sweep}", tests=TESTS, save_logits=True
  )
  evaluate.run(config, workdir)
  return workdir


def of_logits(pattern, **changes):
  return config_lib.load(CONFIG, ingredients=str(pattern), **changes)


def test_a_file_says_what_it_holds(saved):
  sweep = helpers.three_members()
  with np.load(saved / "logits" / "member_002@test.npz") as stored:
    assert stored["logits"].dtype == np.float32
    assert stored["logits"].shape == (499, 10)
    assert stored["images"][3] == "example 3 of digits/test"
    assert (str(stored["model"]), str(stored["set"])) == ("member_002", "test")
    params = sj.load_params(sweep / "member_002/ingredients/last")
    assert str(stored["weights"]) == by_command.weights_digest(params)
    right = stored["logits"].argmax(-1) == stored["labels"]
    loss = statistics.nll(stored["logits"], stored["labels"])
  values = helpers.result_values(saved)
  assert right.mean() == values["member_002", "digits/test"]
  losses = helpers.result_values(saved, "loss")
  assert loss == pytest.approx(losses["member_002", "digits/test"], rel=1e-6)


def test_logits_give_the_results_of_their_models(saved, tmp_path):
  evaluate.run(
    of_logits(saved / "logits/*.npz", reference="member_000"),
    tmp_path / "again",
  )
  expected, rows = helpers.result_rows(saved), helpers.result_rows(
    tmp_path / "again"
  )  # fmt: skip
  assert len(rows) == len(expected)
  for row, other in zip(rows, expected):
    for key, value in other.items():
      if isinstance(value, float):  # The mean loss is that of other batches.
        assert row[key] == pytest.approx(value, rel=1e-6, abs=1e-9)
      else:
        assert row[key] == value
  choices = [w / "choices.json" for w in (saved, tmp_path / "again")]
  assert choices[0].read_bytes() == choices[1].read_bytes()
  assert "images changed by resize" in choices[0].read_text()
  for name in ("member_002", "pretrained"):
    files = [w / "correct" / f"{name}.npz" for w in (saved, tmp_path / "again")]
    one, two = (dict(np.load(file)) for file in files)
    assert all((one[key] == two[key]).all() for key in one)


def write(folder, name, **changes):
  """Writes made-up logits of five images of three classes."""
  folder.mkdir(exist_ok=True)
  logits = np.random.default_rng(len(name)).normal(size=(5, 3))
  values = {"logits": logits.astype("f"), "labels": np.array([0, 1, 2, 1, 0])}
  values |= {"classes": ["ant", "bee", "cat"], "images": list("vwxyz")}
  values |= changes
  np.savez(folder / name, **{k: v for k, v in values.items() if v is not None})


def test_logits_of_other_programs(tmp_path, capsys):
  bare = {"classes": None, "images": None}
  write(tmp_path / "a", "torch@test.npz", **bare)
  write(tmp_path / "a", "mine@test.npz")
  write(tmp_path / "b", "mine@test.npz", **bare)
  evaluate.run(of_logits(tmp_path / "*/*.npz"), tmp_path / "run")
  rows = helpers.result_rows(tmp_path / "run")
  assert {row["model"] for row in rows} == {"a.mine", "b.mine", "torch"}
  assert {row["metric"] for row in rows} == {"prec@1", "loss", "ece"}
  with np.load(tmp_path / "a/mine@test.npz") as stored:
    value = statistics.ece(stored["logits"], stored["labels"])
  eces = helpers.result_values(tmp_path / "run", "ece")
  assert eces["a.mine", "logits/test"] == value
  assert "a.mine (reference)" in capsys.readouterr().out


def test_wide_logits_keep_their_differences(tmp_path):
  logits = np.random.default_rng(1).normal(size=(5, 3))
  write(tmp_path, "plain@test.npz", logits=logits)
  write(tmp_path, "shifted@test.npz", logits=logits + 1e9)
  evaluate.run(of_logits(tmp_path / "*.npz"), tmp_path / "run")
  for metric in ("prec@1", "loss", "ece"):
    plain, shifted = helpers.result_values(tmp_path / "run", metric).values()
    assert shifted == pytest.approx(plain, rel=1e-5)


def test_a_mean_with_a_set_of_one_image_has_no_difference(tmp_path):
  for name in ("a", "bb"):
    write(tmp_path, f"{name}@test.npz")
    write(tmp_path, f"{name}@two.npz")
    one = {"logits": np.eye(3)[[len(name)]], "labels": [1], "images": ["v"]}
    write(tmp_path, f"{name}@one.npz", **one)
  evaluate.run(of_logits(tmp_path / "*.npz"), tmp_path / "run")
  found = {
    row["dataset"]: "difference" in row
    for row in helpers.result_rows(tmp_path / "run")
    if (row["model"], row["metric"]) == ("bb", "prec@1")
  }
  # The mean over shifts, "one" and "two", has no line.
  assert found == {
    "logits/test": True, "logits/two": True, "logits/one": False,
  }  # fmt: skip
  assert helpers.result_values(tmp_path / "run")["bb", "logits/one"] == 0


def test_probabilities_in_place_of_logits_are_pointed_out(tmp_path, capsys):
  write(tmp_path, "a@test.npz", logits=np.full((5, 3), 1 / 3))
  write(tmp_path, "b@test.npz")
  evaluate.run(of_logits(tmp_path / "*.npz"), None, dry_run=True)
  text = capsys.readouterr().out
  assert "a@test.npz" in text and "b@test.npz" not in text
  assert "probabilities" in text and "logarithms" in text


def test_metrics_are_over_the_outputs_of_the_space(tmp_path):
  space = {"space": json.dumps({"groups": [[0, 2], [1]]})}
  labels = np.array([0, 1, 0, 1, 1])
  for name in ("a@some.npz", "bb@some.npz"):
    write(tmp_path / "x", name, labels=labels, **space)
  evaluate.run(of_logits(tmp_path / "x/*"), tmp_path / "run")
  for name in ("a", "bb"):
    with np.load(tmp_path / f"x/{name}@some.npz") as stored:
      logits = stored["logits"]
    joined = np.stack([logits[:, [0, 2]].max(1), logits[:, 1]], 1)
    found = helpers.result_values(tmp_path / "run")[name, "logits/some"]
    assert found == (joined.argmax(1) == labels).mean()
    loss = helpers.result_values(tmp_path / "run", "loss")[name, "logits/some"]
    assert loss == pytest.approx(statistics.nll(joined, labels), rel=1e-6)


@pytest.mark.parametrize(
  "changes, problem",
  [
    ({"logits": np.zeros((5, 4)), "classes": None}, "3 and 4 classes"),
    ({"classes": ["bee", "ant", "cat"]}, "output 0 is 'ant' and 'bee'"),
    ({"images": list("vwxzy")}, "image 3 is 'y' and 'z'"),
    ({"images": list("vwx")}, r"images has the shape \(3,\)"),
    ({"labels": np.array([0, 1, 2, 0, 1])}, "image 3 has label 1 and 0"),
    ({"labels": np.array([0, 1, 3, 1, 0])}, "from 0 to 3, but must be"),
    ({"labels": np.zeros(5)}, "labels must be integers"),
    ({"labels": np.zeros(4, int)}, r"\(5, 3\) and labels \(4,\) do not match"),
    ({"logits": np.full((5, 3), np.nan)}, "image 0 are NaN"),
    (
      {"space": json.dumps({"groups": [[0], [1]]})},
      "label 2, .* the 2 outputs",
    ),
    ({"space": json.dumps({"groups": [[0, 7], [1, 2]]})}, "groups .* 7"),
    ({"space": json.dumps({"groups": [[-1], [0, 1]]})}, "groups .* -1"),
    ({"space": json.dumps({"answers": [[0], [1], [9]]})}, "answers .* 9"),
    ({"space": "[1]"}, "must be an object"),
    ({"space": json.dumps({"groups": 3})}, "must be an object"),
    ({"logits": np.full((5, 3), "1.0")}, "real numbers, got <U3"),
    ({"logits": np.ones((5, 3), complex)}, "real numbers, got complex"),
    ({"space": "no"}, "is not a file of logits"),
    ({"set": "other"}, "'other', but 'a' has none"),
    ({"set": "te st"}, "'te st'.* letters"),
    ({"set": "../y"}, "'../y'.* letters"),
    ({"set": "shifts"}, "shifts: this name is reserved"),
    ({"model": ""}, "the model ''"),
    ({"model": ".."}, "the model '..'"),
    ({"labels": None}, "no 'labels'"),
    ({"logits": None}, "no 'logits'"),
    ({"logits": np.full((5, 3), -np.inf)}, "logit of image 0 .* is -inf"),
    ({"space": json.dumps({"group": [[0]]})}, "the key 'group'"),
    ({"test": json.dumps({"split": "t", "clases": "all"})}, "clases"),
    ({"test": json.dumps(["t"])}, "test="),
  ],
)
def test_files_that_do_not_fit_are_named(tmp_path, changes, problem):
  write(tmp_path / "x", "a@test.npz")
  write(tmp_path / "x", "b@test.npz", **changes)
  with pytest.raises(ValueError, match=f"b@test.npz.*{problem}"):
    evaluate.run(of_logits(tmp_path / "x/*"), None, dry_run=True)


def test_the_name_of_a_file_without_a_model(tmp_path):
  write(tmp_path, "..@test.npz", model=None)
  with pytest.raises(ValueError, match="the model '..': give a name"):
    evaluate.run(of_logits(tmp_path / "..@test.npz"), None, dry_run=True)


def test_logits_and_other_settings_that_exclude_each_other(saved, tmp_path):
  logits = shutil.copytree(saved / "logits", tmp_path / "logits")
  for key, value in (("tests", "test=test"), ("save_logits", True)):
    with pytest.raises(ValueError, match=f"leave --config.{key} out"):
      evaluate.run(of_logits(logits / "*.npz", **{key: value}), tmp_path)
  weights = tmp_path / "weights.npz"
  sj.save_params(weights, {"w": np.zeros(2, "f")})
  with pytest.raises(ValueError, match="weights.npz is a checkpoint"):
    evaluate.run(of_logits(f"{logits}/*.npz,{weights}"), tmp_path)
  shutil.copy(logits / "member_000@test.npz", logits / "copy.npz")
  with pytest.raises(
    ValueError, match="copy.npz and .* 'member_000' on 'test'"
  ):
    evaluate.run(of_logits(logits / "*.npz"), tmp_path)
