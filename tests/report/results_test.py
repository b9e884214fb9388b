# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import json

import helpers
import pytest

from soupjax.report import Results, read_results


def test_looks_up_accuracies_in_percent():
  results = Results.from_records(helpers.records())
  assert results.dataset == "digits"
  assert results.shifts == helpers.SHIFTS
  assert results.accuracy("greedy", "test") == pytest.approx(96)
  # 80, 81 and 82.
  assert results.accuracy("greedy", "shifts") == pytest.approx(81)
  assert results.accuracy("greedy", "nowhere") is None
  assert results.images("greedy", "test") == 200


def test_mean_of_shifts_needs_all_of_them():
  lines = [
    r
    for r in helpers.records()
    if not (r["model"] == "greedy" and r["dataset"] == "digits/noise")
  ]
  results = Results.from_records(lines)
  assert results.accuracy("greedy", "shifts") is None
  assert results.accuracy("uniform", "shifts") is not None


def test_best_ingredient_is_best_on_minival_not_test():
  lines = helpers.records_of("a", "ingredient", 0.95, 0.99, 0.9)
  lines += helpers.records_of("b", "ingredient", 0.96, 0.90, 0.7)
  lines += helpers.records_of("c", "soup", 0.99, 0.99, 0.9)
  assert Results.from_records(lines).best == "b"


@pytest.mark.parametrize("other_loss", [0.2, float("nan")])
def test_ties_go_to_the_lower_loss(other_loss):
  first = helpers.records_of("a", "ingredient", 0.95, 0.9, 0.9, loss=0.1)
  other = helpers.records_of("b", "ingredient", 0.95, 0.9, 0.9, loss=other_loss)
  assert Results.from_records(first + other).best == "a"
  assert Results.from_records(other + first).best == "a"


def test_wise_ft_is_sorted_by_coefficient():
  lines = helpers.records()
  results = Results.from_records(lines[::-1])
  assert list(results.wise_ft) == [0, 0.25, 0.5, 0.75, 1]
  assert results.wise_ft[0.5] == "wise_ft_0.50"


@pytest.mark.parametrize(
  "text, match",
  [("", "results.jsonl"), ("\n", "line 1")],
)
def test_empty_file(tmp_path, text, match):
  path = tmp_path / "results.jsonl"
  path.write_text(text)
  with pytest.raises(ValueError, match=match):
    read_results(path)


def test_missing_file_says_what_to_run(tmp_path):
  with pytest.raises(ValueError, match="results.jsonl"):
    read_results(tmp_path / "results.jsonl")


def test_line_that_is_not_json(tmp_path):
  path = helpers.write_results(tmp_path, helpers.records())
  lines = path.read_text().splitlines()
  lines[4] = lines[4][:-3]
  path.write_text("\n".join(lines))
  with pytest.raises(ValueError, match="results.jsonl.*line 5"):
    read_results(path)


@pytest.mark.parametrize(
  "change, match",
  [
    ({"value": 96.0}, "line 3.*prec@1.*96"),
    ({"value": "0.9"}, "line 3.*value"),
    ({"value": float("nan")}, "line 3.*prec@1"),
    ({"n": 0}, "line 3.*n.*0"),
    ({"kind": "stew"}, "line 3.*kind"),
    ({"model": ""}, "line 3.*model"),
    ({"dataset": "digits"}, "line 3.*dataset"),
    ({"dataset": "mnist/test"}, "line 3.*'mnist/test'"),
    ({"dataset": "digits/test"}, "line 3.*prec@1.*'pretrained'"),
  ],
)
def test_malformed_record_names_the_line(tmp_path, change, match):
  lines = helpers.records()
  lines[2] = lines[2] | change
  path = helpers.write_results(tmp_path, lines)
  with pytest.raises(ValueError, match=match):
    read_results(path)


def test_record_without_a_field(tmp_path):
  lines = helpers.records()
  del lines[1]["n"], lines[1]["kind"]
  path = helpers.write_results(tmp_path, lines)
  with pytest.raises(ValueError, match="line 2.*kind, n"):
    read_results(path)
  path.write_text(json.dumps([1]) + "\n")
  with pytest.raises(ValueError, match="line 1"):
    read_results(path)


def test_no_ingredient():
  lines = helpers.records_of("a", "soup", 0.95, 0.99, 0.9)
  with pytest.raises(ValueError, match="prec@1"):
    Results.from_records(lines)
