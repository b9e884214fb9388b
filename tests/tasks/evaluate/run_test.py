# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Comparisons of checkpoints of a sweep, without soups."""

import collections
import json
import re
import shutil

import helpers
import pytest

import soupjax as sj
from soupjax import config as config_lib
from soupjax import data
from soupjax.progress import Progress
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook import evaluate as evaluate_lib
from soupjax.tasks.cook import inputs
from soupjax.tasks.evaluate import run as evaluate

CONFIG = str(helpers.ROOT / "configs" / "evaluate.py")
TESTS = 'test=test,fog=test|corrupt("fog", 3)'


def config_of(sweep, **changes):
  changes = {"tests": "test=test", "reference": "member_001", **changes}
  return config_lib.load(CONFIG, f"sweep={sweep}", **changes)


@pytest.fixture(scope="module")
def sweep():
  return helpers.three_members()


@pytest.fixture(scope="module")
def compared(sweep, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("evaluate") / "compared"
  evaluate.run(config_of(sweep, tests=TESTS), workdir)
  return workdir


def test_every_model_is_compared_with_the_reference(compared, sweep):
  rows = helpers.result_rows(compared)
  assert {row["model"]: row["kind"] for row in rows} == {
    "pretrained": "pretrained",
    **{f"member_00{k}": "model" for k in range(3)},
  }
  values = helpers.result_values(compared)
  for row in rows:
    if row["metric"] == "prec@1" and row["dataset"] != "digits/shifts":
      assert ("difference" in row) == (row["model"] != "member_001")
      gain = row["value"] - values["member_001", row["dataset"]]
      assert row.get("difference", 0) == pytest.approx(gain, abs=1e-12)
      if "p" in row:
        assert row["low"] <= row["difference"] <= row["high"]
        assert 0 <= row["p"] <= 1
  for ingredient in sj.find_ingredients(sweep / "member_*/ingredients/last"):
    expected = ingredient.metrics["minival/prec@1"]
    assert values[ingredient.name, "digits/minival"] == expected
  page = (compared / "report.html").read_text()
  assert "member_001 (reference)" in page
  assert "soup" not in page.partition("<h2>Configuration")[0].lower()
  assert "images changed by corrupt" in page
  assert (
    not (compared / "soups").exists() and not (compared / "logits").exists()
  )


def test_a_killed_run_goes_on_and_a_finished_one_prints(
  compared, sweep, tmp_path, monkeypatch, capsys
):
  workdir = shutil.copytree(compared, tmp_path / "killed")
  for name in ("results.jsonl", "report.html", "metrics/member_002.json"):
    (workdir / name).unlink()
  written, add = [], Progress.add_images
  write = evaluate_lib.Evaluations._write_correct
  monkeypatch.setattr(
    evaluate_lib.Evaluations,
    "_write_correct",
    lambda self, name, x: written.append(name) or write(self, name, x),
  )
  counts = collections.Counter()
  monkeypatch.setattr(
    Progress,
    "add_images",
    lambda self, count, note: (
      counts.update({note: count}) or add(self, count, note)
    ),
  )
  evaluate.run(config_of(sweep, tests=TESTS), workdir)
  assert written == ["member_002"]
  sizes = {"minival": 300, "test": 499, "fog": 499}
  assert counts == {f"member_002 on {name}": n for name, n in sizes.items()}
  for name in ("results.jsonl", "choices.json"):
    assert (workdir / name).read_bytes() == (compared / name).read_bytes()
  table = capsys.readouterr().out.split("images/s")[-1]
  monkeypatch.setattr(data, "open_source", lambda *_, **__: pytest.fail("data"))
  evaluate.run(config_of(sweep, tests=TESTS), workdir)
  again = capsys.readouterr().out
  assert "Finished before" in again and "member_001 (reference)" in again
  assert again.splitlines()[0] in table


def test_a_dry_run_of_members_without_minival(sweep, tmp_path, capsys):
  changes = {"data.train": "", "data.minival": "", "save_logits": True}
  assert evaluate.run(config_of(sweep, **changes), None, dry_run=True) is None
  text = capsys.readouterr().out
  for line in (
    "3 models", "no minival", "compared with: member_001", "logits/: 0.1 MB",
    "disk space",
  ):  # fmt: skip
    assert line in text


def test_the_soups_of_a_run_of_cooking(sweep, tmp_path, capsys):
  opened = inputs.open_inputs(helpers.cook_config(sweep))
  root = tmp_path / "soups"
  soup = sj.uniform_soup(opened.ingredients)
  workdir_lib.save_model(root / "soups" / "uniform", soup)
  record = config_lib.to_dict(opened.config)
  (root / "config.json").write_text(json.dumps(record))
  config = config_lib.load(CONFIG, f"soups={root}", tests="blur=blur")
  evaluate.run(config, None, dry_run=True)
  text = capsys.readouterr().out
  assert "4 models" in text and "blur: digits/blur" in text
  assert re.search(r"^  uniform\n  member_000\b", text, re.M)
  with pytest.raises(ValueError, match="not the --workdir of a cooking"):
    config_lib.load(CONFIG, f"soups={sweep}")


@pytest.mark.parametrize(
  "changes, problem",
  [
    ({"reference": "membr_001"}, "'membr_001'.*'member_001'"),
    ({"ingredients": "nothing/*"}, "nothing"),
    ({"tests": {}, "data.train": "", "data.minival": ""}, "tests is empty"),
    ({"data.name": "", "data.train": ""}, "tests.test='test' has no dataset"),
    ({"tests": "test=train"}, "tests.test.*digits"),
    ({"tests": 'x=test|corrupt("fogg", 3)'}, "tests.x.*fogg"),
  ],
)
def test_bad_inputs(sweep, changes, problem):
  with pytest.raises(ValueError, match=problem):
    evaluate.run(config_of(sweep, **changes), None, dry_run=True)
