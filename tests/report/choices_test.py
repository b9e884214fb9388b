# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Reports of runs that chose by other metrics than accuracy."""

import json

import helpers
import pytest

from soupjax import report

CHOICES = {
  "metrics": ["loss", "prec@1"],
  "modes": {"loss": "min", "prec@1": "max"},
  "best": {"loss": "ingredient_02", "prec@1": "ingredient_01"},
  "greedy": {"greedy": "loss", "greedy_prec1": "prec@1"},
  "initial_head": "linear probe",
}


@pytest.fixture
def workdir(tmp_path):
  helpers.write_run(tmp_path)
  lines = helpers.records()
  lines += helpers.records_of("greedy_prec1", "soup", 0.97, 0.955, 0.79)
  helpers.write_results(tmp_path, lines)
  names = [f"ingredient_{k:02d}" for k in range(4)]
  for soup, metric, scores in (
    ("greedy", "loss", [-0.2, -0.3, -0.1, -0.15]),
    ("greedy_prec1", "prec@1", None),
  ):
    trace = helpers.greedy_trace(names, scores) | {"metric": metric}
    path = tmp_path / "soups" / soup / "greedy.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(trace))
  (tmp_path / "choices.json").write_text(json.dumps(CHOICES))
  return tmp_path


def test_the_table_names_the_metrics(workdir):
  results = report.read_run(workdir)
  assert results.best == "ingredient_02"
  table = report.results_table(results)
  labels = [line[:36].strip() for line in table.splitlines()]
  for label in (
    "Initial: linear probe",
    "Mean ingredient",
    "Best ingredient by loss (ingredie...",
    "Best ingredient by accuracy (ingr...",
    "Greedy soup by loss",
    "Greedy soup by accuracy",
    "WiSE-FT, alpha 0.5 (by minival)",
  ):
    assert label in labels
  assert "best ingredient by loss" in table


def test_the_page_has_the_decisions_of_each_greedy_soup(workdir):
  page = report.write_report(workdir).read_text()
  for name in ("greedy_trajectory", "greedy_trajectory_prec1"):
    assert (workdir / "figures" / f"{name}.png").exists()
  assert "The decisions of the greedy soup by loss" in page
  assert "The decisions of the greedy soup by accuracy" in page
  assert "in greedy soup by accuracy" in page.replace("<wbr>", "")
  trace = json.loads((workdir / "soups/greedy/greedy.json").read_text())
  label = report.greedy_trajectory(trace).axes[0].get_ylabel()
  assert label == "\N{MINUS SIGN} loss on minival"


@pytest.mark.parametrize("dataset", ["digits", "digits_row:3"])
def test_one_run_proves_little(dataset):
  lines = helpers.records()
  for line in lines:
    line["dataset"] = line["dataset"].replace("digits", dataset)
  table = report.results_table(report.Results.from_records(lines))
  assert "one run proves little" in " ".join(table.split())
  assert ("benchmarks/README.md" in table) == dataset.startswith("digits_row")


def test_a_damaged_record_of_choices_is_named(workdir):
  for text in ("{", "[]", '{"metrics": []}'):
    (workdir / "choices.json").write_text(text)
    with pytest.raises(ValueError, match="choices.json"):
      report.read_run(workdir)
