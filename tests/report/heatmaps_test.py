# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Matrices of pairs, as pictures."""

import numpy as np

from soupjax import report


def test_pairs_are_where_their_names_are(tmp_path):
  figure = report.diagnosis_figure(
    ["a", "b", "$c"], {("a", "b"): 0.5, ("b", "$c"): -0.25}, np.eye(3)
  )
  figure.savefig(tmp_path / "x.png")
  left, right = (axes.images[0].get_array() for axes in figure.axes[:2])
  np.testing.assert_allclose(left.filled(9)[1], [0.5, 9, -0.25])
  assert left.mask[0, 2] and left.mask[0, 0]
  np.testing.assert_allclose(right.filled(-1)[0], [-1, 90, 90])
  low, high = figure.axes[0].images[0].get_clim()
  assert (low, high) == (-0.5, 0.5)


def test_nothing_evaluated_is_still_a_picture(tmp_path):
  figure = report.diagnosis_figure(["a", "b"], {}, np.full((2, 2), np.nan))
  figure.savefig(tmp_path / "x.png")
  assert len(figure.axes) == 4
