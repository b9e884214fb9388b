# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import re

import helpers
import pytest
from scipy import stats

from soupjax.report import Results, clopper_pearson, results_table, tables


@pytest.mark.parametrize("correct, n", [(0, 7), (7, 7), (480, 499), (1, 250)])
def test_interval_agrees_with_scipy(correct, n):
  expected = stats.binomtest(correct, n).proportion_ci(0.95, "exact")
  assert clopper_pearson(correct, n) == pytest.approx(tuple(expected))


@pytest.mark.parametrize(
  "correct, n, level", [(3, 2, 0.9), (0, 0, 0.9), (1, 2, 1)]
)
def test_interval_out_of_range(correct, n, level):
  with pytest.raises(ValueError, match=f"got correct={correct}, n={n}"):
    clopper_pearson(correct, n, level)


def test_rows_are_in_order_with_their_cost():
  results = Results.from_records(helpers.records()[::-1])
  every = tables.rows(results, {"greedy_ensemble": 3})
  assert [(r.label, r.cost) for r in every] == [
    ("Initial model", 1),
    ("Mean ingredient", 1),
    ("Best ingredient (ingredient_01)", 1),
    ("Uniform soup", 1),
    ("Greedy soup", 1),
    ("Learned soup, per model", 1),
    ("Learned soup, per layer", 1),
    ("WiSE-FT, alpha 0.5 (by minival)", 1),
    ("Ensemble of all", 4),
    ("Greedy ensemble", 3),
  ]
  assert tables.rows(results)[-1].cost is None


def test_the_interpolation_that_minival_chooses_has_a_row():
  records = helpers.records()
  for record in records:
    if record["model"] == "wise_ft_0.25" and "minival" in record["dataset"]:
      if record["metric"] == "prec@1":
        record["value"] = 1.0
  results = Results.from_records(records)
  labels = [row.label for row in tables.rows(results)]
  assert "WiSE-FT, alpha 0.5" in labels
  assert "WiSE-FT, alpha 0.25 (by minival)" in labels


def test_mean_ingredient():
  results = Results.from_records(helpers.records())
  mean = tables.rows(results)[1]
  assert mean.accuracy(results, "minival") == pytest.approx(95.5)
  assert mean.spread(results, "minival") == pytest.approx(1)
  one = Results.from_records(helpers.records(1))
  assert tables.rows(one)[1].spread(one, "minival") is None


def test_table():
  lines = helpers.records()
  lines += helpers.records_of("long\n" * 9, "soup", 0.9, 0.9, 0.7)
  text = results_table(Results.from_records(lines))
  assert all(len(line) <= 100 for line in text.splitlines())
  cells = {line[:20].strip(): line.split()[-6:] for line in text.splitlines()}
  # cost, minival, test, shifts, difference on test, difference on shifts.
  assert cells["Greedy soup"] == ["1x", "97.5", "96.0", "81.0", "+1.0", "+5.0"]
  assert cells["Uniform soup"][-2:] == ["-1.0", "+4.0"]
  assert cells["Best ingredient (ing"][-2:] == ["0.0", "0.0"]
  assert cells["Ensemble of all"][0] == "4x"
  assert "up to 4x" in text
  assert "3 shifts" in text.splitlines()[0]


def test_table_of_differences_with_intervals():
  results = Results.from_records(helpers.with_gains(helpers.records()))
  assert results.shifts == helpers.SHIFTS  # The mean is no shift of its own.
  text = results_table(results)
  assert all(len(line) <= 100 for line in text.splitlines())
  rows = {line[:20].strip(): line for line in text.splitlines()}
  assert rows["Greedy soup"].endswith("  +1.0 [0.2, 1.8]   ~+5.0 [-1.0, 11.0]")
  assert "  -1.0 [-2.0, -0.1]" in rows["Uniform soup"]
  assert rows["Ensemble of all"].split()[-2:] == ["+2.0", "+7.0"]
  assert "ingredient_01, with the 95 %" in " ".join(text.split())
  # The longest cells do not touch.
  lines = helpers.with_gains(helpers.records())
  for line in lines:
    if line["model"] == "greedy" and line["metric"] == "prec@1":
      line["value"] -= 0.2
    if "low" in line:
      line |= {"difference": -0.153, "low": -0.187, "high": -0.119}
  text = results_table(Results.from_records(lines))
  assert "-19.0 [-18.7, -11.9]" in text
  assert not re.search(r"\d-\d|\]\d|\]-", text.partition("Percent")[0])


@pytest.mark.parametrize("value", ["1", True, None])
def test_a_difference_that_is_no_number(value):
  lines = helpers.with_gains(helpers.records())
  next(line for line in lines if "low" in line)["low"] = value
  with pytest.raises(ValueError, match=r"line \d+: difference, low"):
    Results.from_records(lines)


def test_table_without_shifts():
  text = results_table(Results.from_records(helpers.records(shifts=())))
  (line,) = (t for t in text.splitlines() if t.startswith("Greedy soup"))
  assert line.split()[-5:] == ["97.5", "96.0", "-", "+1.0", "-"]


def test_signed():
  assert tables.signed(0.04) == tables.signed(-0.04) == "0.0"
  assert tables.signed(-1.26, "m") == "m1.3"
  assert tables.signed(2) == "+2.0"
