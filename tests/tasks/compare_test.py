# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Comparison of runs from the shell."""

import json

import helpers
import pytest

from soupjax import config as config_lib
from soupjax.tasks import compare

CONFIG = helpers.ROOT / "configs" / "report.py"


@pytest.fixture
def pair(tmp_path):
  """Two runs that differ in their seed."""
  for k in range(2):
    folder = tmp_path / f"seed{k}"
    folder.mkdir()
    helpers.write_results(folder, helpers.records())
    (folder / "config.json").write_text(json.dumps({"c": {"seed": k, "x": 1}}))
  return tmp_path


def run(workdirs, **changes):
  config = config_lib.load(str(CONFIG), "", **changes)
  return compare.run(config, workdirs)


def test_from_the_shell(pair):
  out = pair / "new" / "both.html"
  text = helpers.soupjax(
    f"--config={CONFIG}",
    f"--workdir={pair}/seed0,{pair}/seed1",
    f"--config.out={out}",
  )
  # Equal differences have no spread to infer an interval from.
  assert "Greedy soup" in str(text) and "+1.0" in str(text)
  assert "[" not in str(text).partition("Percent")[0]
  page = out.read_text()
  assert "2 runs: seed0, seed1." in page
  assert "The configs differ in c.seed." in page
  assert {p.name for p in (pair / "seed0").iterdir()} == {
    "results.jsonl",
    "config.json",
  }


def test_runs_on_other_datasets_are_apart(pair, capsys):
  lines = helpers.records()
  lines = [r | {"dataset": "other/" + r["dataset"][7:]} for r in lines]
  helpers.write_results(pair / "seed1", lines)
  workdirs = f"{pair}/seed0,{pair}/seed1,"
  page = run(workdirs, out=str(pair / "x.html")).read_text()
  assert "<h2>digits</h2>" in page and "<h2>other</h2>" in page
  assert page.count("an interval over seeds needs two") == 2
  config = config_lib.load(str(CONFIG), "")
  assert compare.run(config, workdirs, dry_run=True) is None
  assert "other: seed1" in capsys.readouterr().out


def test_references_must_be_the_same(pair):
  choices = {"metrics": ["prec@1"], "best": {}, "greedy": {}}
  choices |= {"initial_head": "", "reference": "greedy"}
  (pair / "seed1" / "choices.json").write_text(json.dumps(choices))
  problem = "seed1 compares with greedy, but .*seed0 with its best ingredient"
  with pytest.raises(ValueError, match=problem):
    run(f"{pair}/seed0,{pair}/seed1", out=str(pair / "x.html"))


def test_bad_inputs(pair):
  with pytest.raises(ValueError, match="workdir.*seed0 twice"):
    run(f"{pair}/seed0,{pair}/./seed0")
  with pytest.raises(ValueError, match="seed9/results.jsonl"):
    run(f"{pair}/seed0,{pair}/seed9")
  with pytest.raises(ValueError, match="out.*html.*'x.txt'"):
    run(f"{pair}/seed0", out="x.txt")
  with pytest.raises(ValueError, match="--workdir"):
    run(" , ")
