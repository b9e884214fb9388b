# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Effective robustness in the table and the page of a run."""

import json

import helpers
import numpy as np
import pytest

from soupjax import report
from soupjax.report import robustness

RECORD = {
  "baselines": "the <file>.csv",
  "points": {"a": [0.5, 0.4], "b": [0.6, 0.5], "c": [0.8, 0.75]},
  "line": {"slope": 1.1, "intercept": -0.4, "n": 3},
  "models": {
    "greedy": {"accuracy": 0.9, "shifted": 0.8, "rho": 0.031, "low": 0.01}
    | {"high": 0.05},
    "uniform": {"accuracy": 0.8, "shifted": 0.7, "rho": -0.02, "low": -0.06}
    | {"high": 0.02},
  },
}


def test_rho_is_in_points_and_marked_if_its_interval_holds_zero(tmp_path):
  results = report.read_run(helpers.write_run(tmp_path))
  text = robustness.table(RECORD, results)
  rows = {
    line.split()[0]: line.split() for line in text.splitlines() if "to" in line
  }
  assert rows["Greedy"][-4:] == ["+3.1", "1.0", "to", "5.0"]
  assert rows["Uniform"][-5:] == ["-2.0", "~", "-6.0", "to", "2.0"]
  assert "n = 3, slope 1.10" in " ".join(text.split())
  assert robustness.table(None, results) == ""


def test_the_page_has_the_figure_and_the_table(tmp_path):
  workdir = helpers.write_run(tmp_path)
  (workdir / "robustness.json").write_text(json.dumps(RECORD))
  page = report.write_report(workdir).read_text()
  assert f"<h2>{robustness.TITLE}</h2>" in page
  assert "the &lt;file&gt;.csv" in page and "<td>+3.1</td>" in page
  assert (workdir / "figures" / "robustness.png").exists()


def test_models_are_on_logit_axes_with_the_line():
  kinds = {"greedy": "soup", "uniform": "soup"}
  figure = robustness.robustness_figure(RECORD, kinds)
  (axes,) = figure.axes
  baselines, soups = (c.get_offsets() for c in axes.collections)
  np.testing.assert_allclose(baselines[0], [0, np.log(0.4 / 0.6)], atol=1e-9)
  np.testing.assert_allclose(soups[0], np.log([9, 4]))
  x, y = axes.lines[0].get_data()
  np.testing.assert_allclose(y, -0.4 + 1.1 * np.array(x))


def test_a_damaged_record_is_named(tmp_path):
  workdir = helpers.write_run(tmp_path)
  (workdir / "robustness.json").write_text("{}")
  with pytest.raises(ValueError, match="robustness.json"):
    report.write_report(workdir)
