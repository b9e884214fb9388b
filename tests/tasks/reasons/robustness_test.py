# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Baselines from files, and effective robustness of results."""

import json

import pytest
from scipy import special

from soupjax.tasks.reasons import robustness

SHIFTS = ("v2", "sketch")
CSV = "model,test,v2,sketch\na,0.5,0.4,0.2\nb,0.6,0.5,0.3\n\nc,0.7,0.6,0.4\n"


def written(tmp_path, text, name="baselines.csv"):
  (tmp_path / name).write_text(text)
  return str(tmp_path / name)


def test_baselines_are_read_from_csv_and_json(tmp_path):
  want = {"a": (0.5, 0.3), "b": (0.6, 0.4), "c": (0.7, 0.5)}
  found = robustness.read_baselines(written(tmp_path, CSV), SHIFTS)
  assert {k: pytest.approx(v) for k, v in found.items()} == want
  text = json.dumps({k: {"test": x, "shifts": y} for k, (x, y) in want.items()})
  path = written(tmp_path, text, "baselines.json")
  assert robustness.read_baselines(path, SHIFTS) == want


def on_line(x):
  return float(special.expit(0.8 * special.logit(x) - 0.5))


def results_of(**points):
  return {
    name: (
      kind,
      {
        "minival": {"prec@1": 0.1},
        "test": {"prec@1": x},
        # Their mean is y.
        "v2": {"prec@1": y + 0.05},
        "sketch": {"prec@1": y - 0.05},
      },
    )
    for name, (kind, x, y) in points.items()
  }


def test_soups_are_compared_with_the_line_through_the_ingredients():
  points = {
    f"m{k}": ("ingredient", x, on_line(x))
    for k, x in enumerate((0.5, 0.7, 0.8))
  }
  soup = ("soup", 0.85, on_line(0.85) + 0.04)
  sure = ("ensemble", 1.0, 0.9)
  results = results_of(**points, greedy=soup, ensemble=sure)
  found = robustness.record("", SHIFTS, results)
  assert found["baselines"] == "the ingredients" and found["line"]["n"] == 3
  assert found["line"]["slope"] == pytest.approx(0.8)
  assert found["models"]["greedy"]["rho"] == pytest.approx(0.04)
  assert found["models"]["m1"]["rho"] == pytest.approx(0, abs=1e-12)
  assert "ensemble" not in found["models"]  # No logit of 1.


def test_given_baselines_take_their_place(tmp_path):
  text = "model,test,shifts\n" + "".join(
    f"b{x},{x},{on_line(x)}\n" for x in (0.3, 0.5, 0.6)
  )
  path = written(tmp_path, text)
  results = results_of(m0=("ingredient", 0.7, on_line(0.7) - 0.03))
  found = robustness.record(path, SHIFTS, results)
  assert found["baselines"] == "baselines.csv"
  assert set(found["points"]) == {"b0.3", "b0.5", "b0.6"}
  assert found["models"]["m0"]["rho"] == pytest.approx(-0.03)


def test_without_a_line_there_is_nothing():
  equal = {f"m{k}": ("ingredient", 0.5, 0.1 * k) for k in range(1, 5)}
  assert robustness.record("", SHIFTS, results_of(**equal)) is None
  two = {f"m{k}": ("ingredient", 0.1 * k, 0.4) for k in (1, 2)}
  assert robustness.record("", SHIFTS, results_of(**two)) is None
  assert robustness.record("", (), results_of(**equal)) is None


@pytest.mark.parametrize(
  "text,message",
  [
    (CSV.replace("sketch", "skitch"), "no accuracy on 'sketch'"),
    (CSV.replace("0.5,0.4", "50,0.4"), "'a' on 'test' .* got '50'"),
    (CSV.replace("0.5,0.4", ",0.4"), "'a' on 'test' .* got ''"),
    (CSV.replace("b,", "a,"), "has 'a' twice"),
    (CSV.replace("b,0.6", "b"), "line of 'b' has 3 columns, the header 4"),
    (CSV[: CSV.index("b,")], "three baselines, got 1: a"),
    (
      CSV.replace("0.6,0.5", "0.5,0.5").replace("0.7", "0.5"),
      "accuracy of 0.5",
    ),
    ("", "three baselines, got 0: none"),
  ],
)
def test_refuses_baselines(tmp_path, text, message):
  path = written(tmp_path, text)
  with pytest.raises(ValueError, match=message):
    robustness.check(path, ["test", *SHIFTS], SHIFTS)


def test_refuses_other_files(tmp_path):
  path = written(tmp_path, json.dumps([1]), "x.json")
  with pytest.raises(ValueError, match="must map models to accuracies"):
    robustness.check(path, ["test", *SHIFTS], SHIFTS)
  with pytest.raises(ValueError, match="nowhere.csv cannot be read"):
    robustness.check(f"{tmp_path}/nowhere.csv", ["test", *SHIFTS], SHIFTS)
  with pytest.raises(ValueError, match="nowhere.json"):
    robustness.check(f"{tmp_path}/nowhere.json", ["test", *SHIFTS], SHIFTS)


@pytest.mark.parametrize("sets,shifts", [(["v2"], ["v2"]), (["test"], [])])
def test_baselines_need_test_and_shifts(tmp_path, sets, shifts):
  path = written(tmp_path, CSV)
  with pytest.raises(ValueError, match="needs a test set and shifts"):
    robustness.check(path, sets, shifts)
  robustness.check("", sets, shifts)
