# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import itertools
import subprocess
import sys

import helpers
import matplotlib
from matplotlib.figure import Figure
from matplotlib.text import Annotation
import numpy as np
import pytest

from soupjax import report
from soupjax.report import figures, labels

NAMES = [f"ingredient_{i:02d}" for i in range(4)]


def results(**kwargs):
  return report.Results.from_records(helpers.records(**kwargs))


def legend(figure):
  return [t.get_text() for t in figure.legends[0].get_texts()]


def test_plane_places_and_names_models():
  axes = report.accuracy_plane(results()).axes[0]
  points = {
    tuple(np.round(p, 6))
    for c in axes.collections
    for p in c.get_offsets().tolist()
  }
  assert (96.0, 81.0) in points  # greedy
  assert (95.0, 76.0) in points  # ingredients
  texts = {t.get_text() for t in axes.texts}
  assert {"greedy soup", "best ingredient", "ensemble of all"} <= texts
  assert axes.get_ylabel() == "Mean accuracy over 3 shifts (%)"
  assert len(axes.lines[0].get_xdata()) == 5


def test_plane_is_not_squeezed_by_one_bad_ingredient():
  lines = helpers.records(12)
  lines += helpers.records_of("bad", "ingredient", 0.1, 0.1, 0.1)
  axes = report.accuracy_plane(report.Results.from_records(lines)).axes[0]
  assert axes.get_xlim()[0] > 80 and axes.get_ylim()[0] > 60
  assert "1 ingredient below the frame" in [t.get_text() for t in axes.texts]


def test_plane_shows_a_soup_however_bad():
  lines = helpers.records(12)
  lines += helpers.records_of("bad", "soup", 0.1, 0.1, 0.1)
  axes = report.accuracy_plane(report.Results.from_records(lines)).axes[0]
  assert axes.get_xlim()[0] < 10 and axes.get_ylim()[0] < 10


def test_shifts_name_their_markers():
  names = [name.strip() for name in legend(figures.shift_plane(results()))]
  assert {*helpers.SHIFTS} < {*names}
  assert "best ingredient on minival" in names and "soup (cost of one)" in names
  assert "model" not in names  # There is none.


def test_figures_that_cannot_be_drawn():
  assert report.accuracy_plane(results(shifts=())) is None
  assert len(report.wise_ft_curve(results(shifts=())).axes) == 1
  plain = helpers.records_of("a", "ingredient", 0.9, 0.9, 0.9)
  assert report.wise_ft_curve(report.Results.from_records(plain)) is None
  assert report.coefficients({}) is None
  assert report.greedy_trajectory({"history": [], "selected": []}) is None


def test_greedy_trajectory():
  trace = helpers.greedy_trace(NAMES, [0.9, 0.91, 0.905, 0.91])
  figure = report.greedy_trajectory(trace)
  axes = figure.axes[0]
  (bar,) = axes.patches
  np.testing.assert_allclose(bar.get_data().values, [90, 91, 91, 91])
  taken, rejected = (c.get_offsets() for c in axes.collections)
  np.testing.assert_allclose(taken, [[0, 90], [1, 91], [3, 91]])
  np.testing.assert_allclose(rejected, [[2, 90.5]])
  names = [t.get_text() for t in axes.get_xticklabels()]
  assert names == ["00", "01", "02", "03"]
  assert legend(figure) == [
    "soup so far",
    "accepted",
    "rejected",
  ]


def test_greedy_trajectory_marks_scores_below_the_frame():
  names = [f"ingredient_{i:02d}" for i in range(8)]
  scores = [0.9, 0.91, 0.9, 0.9, 0.9, 0.9, 0.9, 0.2]
  axes = report.greedy_trajectory(helpers.greedy_trace(names, scores)).axes[0]
  assert axes.get_ylim()[0] > 80
  assert "20.0" in [t.get_text() for t in axes.texts]


def test_greedy_trajectory_of_scores_that_are_not_fractions():
  trace = helpers.greedy_trace(NAMES, [-0.5, -0.4, -0.6, -0.3])
  axes = report.greedy_trajectory(trace).axes[0]
  assert axes.get_ylabel() == "Held-out score"
  np.testing.assert_allclose(axes.patches[0].get_data().values[-1], -0.3)
  assert axes.get_ylim() == pytest.approx((-0.624, -0.276))


def test_coefficients_mark_the_uniform_soup():
  figure = report.coefficients(
    {
      "model": helpers.learned_trace(NAMES),
      "layer": helpers.learned_trace(NAMES, ("a", "b")),
    }
  )
  one, many, bar = figure.axes
  assert one.images[0].get_array().shape == (1, 4)
  assert many.images[0].get_array().shape == (2, 4)
  np.testing.assert_allclose(
    many.images[0].get_array()[0], [0.1, 0.2, 0.3, 0.4]
  )
  assert "1/K = 0.25" in [t.get_text() for t in bar.get_yticklabels()]
  assert bar.lines[-1].get_ydata()[0] == 0.25


def test_coefficients_from_a_base_may_be_negative():
  alphas = {"model": [0.3, -0.5]}
  figure = report.coefficients({"x": {"names": ["a", "b"], "alphas": alphas}})
  panel, bar = figure.axes
  assert panel.images[0].get_clim() == (-0.5, 0.5)
  assert not any("1/K" in t.get_text() for t in bar.get_yticklabels())


def test_wise_ft_curve():
  test, shifts = report.wise_ft_curve(results()).axes
  np.testing.assert_allclose(test.lines[0].get_xdata(), [0, 0.25, 0.5, 0.75, 1])
  np.testing.assert_allclose(test.lines[0].get_ydata(), 94)
  np.testing.assert_allclose(shifts.lines[0].get_ydata(), 79)
  np.testing.assert_allclose(shifts.lines[1].get_ydata(), 81)  # greedy


@pytest.mark.parametrize("size", [1, 72])
def test_sizes(size):
  names = [f"ingredient_{i:02d}" for i in range(size)]
  report.accuracy_plane(results(size=size)).draw_without_rendering()
  for figure in (
    report.greedy_trajectory(helpers.greedy_trace(names)),
    report.coefficients({"x": helpers.learned_trace(names)}),
  ):
    figure.draw_without_rendering()
    ticks = figure.axes[0].get_xticklabels()
    assert len(ticks) == size
    boxes = [t.get_window_extent() for t in ticks]
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))


def test_names_are_not_mathematics(tmp_path):
  names = ["$x^$", "$\\frac{$", "$y$", "_a"]
  lines = helpers.records_of("$\\soup{$", "soup", 0.9, 0.9, 0.9)
  for name in names:
    lines += helpers.records_of(name, "ingredient", 0.9, 0.9, 0.9)
  for figure in (
    report.accuracy_plane(report.Results.from_records(lines)),
    report.greedy_trajectory(helpers.greedy_trace(names)),
    report.coefficients({"$\\x{$": helpers.learned_trace(names, ("$\\x{$",))}),
  ):
    figure.savefig(tmp_path / "figure.png", dpi=40)


def test_labels_do_not_overlap():
  figure = Figure(figsize=(5, 5))
  axes = figure.add_subplot(xlim=(0, 1), ylim=(0, 1))
  points = [(0.5, 0.5), (0.52, 0.5), (0.5, 0.52), (0.52, 0.52), (0.99, 0.99)]
  labels.place_labels(axes, points, ["a long label"] * 5, points, fontsize=8)
  figure.draw_without_rendering()
  # Of the text alone: that of an annotation includes its leader.
  boxes = [super(Annotation, t).get_window_extent() for t in axes.texts]
  assert len(boxes) == 5
  assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
  frame = axes.get_window_extent()
  assert all(frame.x0 <= b.x0 and b.x1 <= frame.x1 for b in boxes)


def test_settings_and_backend_are_left_alone(tmp_path):
  before = dict(matplotlib.rcParams)
  report.accuracy_plane(results())
  assert dict(matplotlib.rcParams) == before
  helpers.write_run(tmp_path)
  code = (
    "import sys; from soupjax import report; "
    f"report.write_report({str(tmp_path)!r}); "
    "sys.exit('matplotlib.pyplot' in sys.modules)"
  )
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_candidates_rejected_early_show_their_bound(tmp_path):
  history = [
    {"name": "a", "score": 0.9, "accepted": True},
    {"name": "b", "score": None, "bound": 0.85, "accepted": False},
    {"name": "c", "score": 0.91, "accepted": True},
  ]
  figure = report.greedy_trajectory({"history": history, "selected": ["a"]})
  (axes,) = figure.axes
  labels = axes.get_legend_handles_labels()[1]
  assert "rejected early: at most" in labels and "rejected" not in labels
  low, high = axes.get_ylim()
  assert low < 85 < high
  figure.savefig(tmp_path / "x.png")


def test_layers_are_drawn_from_the_image_to_the_head():
  names = ["Transformer/encoder_norm", "Transformer/encoderblock_10"]
  names += ["Transformer/encoderblock_2", "embedding", "head", "pos_embedding"]
  alphas = {name: [k / 10, 1 - k / 10] for k, name in enumerate(names)}
  figure = report.coefficients(
    {"Per layer": {"names": ["a", "b"], "alphas": alphas}}
  )
  axes = figure.axes[0]
  drawn = [label.get_text() for label in axes.get_yticklabels()]
  assert drawn == [
    "embedding",
    "pos_embedding",
    "Transformer/encoderblock_2",
    "Transformer/encoderblock_10",
    "Transformer/encoder_norm",
    "head",
  ]
  values = axes.images[0].get_array()
  np.testing.assert_allclose(values[:, 0], [alphas[n][0] for n in drawn])
