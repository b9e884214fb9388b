# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import csv
import io

import helpers
from matplotlib.figure import Figure
import numpy as np

from soupjax import report
from soupjax.report import style
from soupjax.report.web import drawings


def rows_of(figure):
  saved = drawings.save(figure)
  return list(csv.DictReader(io.StringIO(saved["csv"].decode())))


def test_the_data_of_a_figure_is_what_it_shows(monkeypatch):
  monkeypatch.setattr(drawings, "FORMATS", ())
  results = report.Results.from_records(helpers.records())
  rows = rows_of(report.accuracy_plane(results))
  (greedy,) = [row for row in rows if row["name"] == "greedy"]
  assert greedy["x_axis"] == "Accuracy on test (%)"
  assert [float(greedy[k]) for k in "xy"] == [96.0, 81.0]
  assert greedy["series"] == "soup (cost of one)"
  rows = rows_of(report.wise_ft_curve(results))
  assert {row["panel"] for row in rows} == {"Test", "Mean of 3 shifts"}
  band = [row for row in rows if row["series"] == "95 % interval"]
  assert len(band) >= 10
  learned = helpers.learned_trace(["a", "b"], ("embedding", "head"))
  rows = rows_of(report.coefficients({"One": learned}))
  cells = [row for row in rows if row["name"] == "head"]
  assert [float(c["value"]) for c in cells] == learned["alphas"]["head"]
  trace = helpers.greedy_trace(["a", "b", "c", "d"])
  rows = rows_of(report.greedy_trajectory(trace))
  assert len([r for r in rows if r["series"] == "soup so far"]) == 4


def test_cells_of_contours_are_kept(monkeypatch):
  monkeypatch.setattr(drawings, "FORMATS", ())
  figure = Figure()
  grid = np.arange(6.0).reshape(2, 3)
  style.contours(figure.add_subplot(), np.arange(3), np.arange(2), grid)
  cells = [
    [float(row[k]) for k in ("x", "y", "value")] for row in rows_of(figure)
  ]
  assert cells == [[k % 3, k // 3, k] for k in range(6)]


def test_all_formats_are_written_and_files_have_no_dates():
  figure = Figure(figsize=(2, 2))
  style.scatter(figure.add_subplot(), {"a": (0, 1)})
  saved = drawings.save(figure)
  assert saved["png"].startswith(b"\x89PNG")
  assert (
    saved["pdf"].startswith(b"%PDF") and b"CreationDate" not in saved["pdf"]
  )
  assert b"<dc:date>" not in saved["svg"]


def test_names_that_are_not_utf8_are_kept(monkeypatch):
  monkeypatch.setattr(drawings, "FORMATS", ("svg",))
  figure = Figure(figsize=(2, 2))
  axes = figure.add_subplot()
  names = ["a\udcff", 'b"<&>']
  drawn = style.scatter(axes, dict(zip(names, np.eye(2).tolist())))
  style.grouped(drawn, *names)
  saved = drawings.save(figure)
  assert b"a\xff" in saved["csv"]
  text = drawings.inline(saved["svg"], "x.y z", names)
  assert 'data-model="0"' in text and 'data-model="1"' in text
  assert 'data-groups="[&quot;a\\udcff&quot;' in text
  assert ' id="x_y_z-' in text and "<a " not in text and "<!--" not in text
