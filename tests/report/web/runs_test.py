# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Several runs on one page."""

import re

import helpers
import numpy as np

from soupjax import report
from soupjax.evaluators import statistics
from soupjax.report.results import Choices, Gain
from soupjax.report.web import runs as runs_lib


def over_runs(gains):
  found = statistics.over_seeds(gains)
  return Gain(found.value, found.low, found.high, found.p)


def runs(*tests, **more):
  """Results of runs whose greedy soups have these accuracies on test."""
  out = {}
  for k, test in enumerate(tests):
    lines = helpers.records(**more)
    for line in lines:
      if (line["model"], line["metric"]) == ("greedy", "prec@1"):
        if line["dataset"] == "digits/test":
          line["value"] = test
    out[f"run<{k}>"] = report.Results.from_records(lines)
  return out


def test_means_and_intervals_are_over_runs():
  cells = report.compare_runs(runs(0.96, 0.97, 0.95), over_runs)
  greedy = cells["Greedy soup"]["test"]
  np.testing.assert_allclose(greedy.mean, 96.0)
  expected = statistics.over_seeds([1.0, 2.0, 0.0])
  np.testing.assert_allclose(
    [greedy.gain.value, greedy.gain.low, greedy.gain.high, greedy.gain.p],
    [expected.value, expected.low, expected.high, expected.p],
  )
  assert greedy.text() == "~+1.0 [-1.5, 3.5]"
  # Equal gains, and the mean over shifts.
  assert cells["Uniform soup"]["shifts"].text() == "+4.0 [4.0, 4.0]"
  assert cells["Best ingredient"]["test"].gain is None
  assert "WiSE-FT, alpha 0.5" in cells and "WiSE-FT, alpha by minival" in cells


def test_labels_do_not_depend_on_the_run():
  both = {}
  for alpha in (0.25, 0.75):
    lines = helpers.records()
    for line in lines:  # Makes this alpha the best on minival.
      if (line["dataset"], line["metric"]) == ("digits/minival", "prec@1"):
        line["value"] -= 0.5 * (line["model"] != f"wise_ft_{alpha:.2f}")
    lines += helpers.records_of("wise_ft", "soup", 0.9, 0.96, 0.8)
    lines += helpers.records_of("window", "soup", 0.9, 0.97, 0.8)
    choices = Choices(
      best={"prec@1": "ingredient_01"}, window=f"Last {alpha:g} of 6"
    )
    both[f"run{alpha}"] = report.Results.from_records(lines, choices)
  cells = report.compare_runs(both, over_runs)
  counts = {
    label: len(splits["test"].values) for label, splits in cells.items()
  }
  assert set(counts.values()) == {2}
  assert cells["WiSE-FT, alpha by minival"]["test"].text() == "+1.0 [1.0, 1.0]"
  assert cells["Last checkpoints of a run"]["test"].text() == "+2.0 [2.0, 2.0]"


def test_comparisons_speak_of_their_reference():
  choices = Choices(reference="mine", best={}, greedy={})
  lines = helpers.records_of("mine", "model", 0.9, 0.9, 0.8)
  lines += helpers.records_of("other", "model", 0.9, 0.95, 0.8)
  both = {name: report.Results.from_records(lines, choices) for name in "ab"}
  cells = report.compare_runs(both, over_runs)
  assert list(cells) == ["mine (reference)", "other"]
  note = runs_lib.about(both, [])
  assert "points above mine, mean" in note and "best ingr" not in note


def test_one_run_has_no_interval_and_says_so():
  one = runs(0.96)
  cells = report.compare_runs(one, over_runs)
  assert cells["Greedy soup"]["test"].text() == "+1.0"
  note = runs_lib.about(one, [])
  assert "one run: an interval over seeds needs two" in note
  assert "+1.0" in runs_lib.table(cells, note)
  # A soup of one of two runs has none either.
  lines = helpers.records() + helpers.records_of("own", "soup", 0.9, 0.97, 0.8)
  two = runs(0.96) | {"b": report.Results.from_records(lines)}
  cells = report.compare_runs(two, over_runs)
  assert cells["own (soup)"]["test"].text() == "+2.0"
  assert "none for a model in only one run" in runs_lib.about(two, ["seed"])


def test_the_page_has_means_and_every_run(tmp_path):
  both = runs(0.96, 0.97)
  note = runs_lib.about(both, ["seed<x>"])
  compared = {"digits": (both, report.compare_runs(both, over_runs), note)}
  page = report.write_comparison(tmp_path / "x.html", compared).read_text()
  rows = re.findall(r'<th scope="row">Greedy soup</th>(.*?)</tr>', page)
  cells = [re.findall("<td>(.*?)</td>", row) for row in rows]
  assert cells[0][0] == "2" and cells[0][2].startswith("96.5<small>~+1.5 [")
  assert [c[0] for c in cells[1:]] == ["run&lt;0&gt;", "run&lt;1&gt;"]
  assert [c[2] for c in cells[1:]] == ["96.0", "97.0"]
  assert "differ in seed&lt;x&gt;." in page and "run<0" not in page


def test_sets_of_other_sizes_are_named():
  both = runs(0.96) | runs(0.96, 0.97)
  lines = [line | {"n": 100} for line in helpers.records()]
  both["small"] = report.Results.from_records(lines)
  assert "test has 100 or 200 images" in runs_lib.about(both, [])
