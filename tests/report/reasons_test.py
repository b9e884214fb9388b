# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Figures of reasons, from their records."""

import io

import numpy as np

from soupjax.report import reasons


def saved(figure):
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png")
  return buffer.getvalue()


def test_a_plane_marks_its_models_and_its_lowest_point():
  xs, ys = np.linspace(-1, 3, 5), np.linspace(-1, 2, 4)
  loss = (xs[None] - 1) ** 2 + (ys[:, None] - 1) ** 2
  record = {
    "names": ["initial", "$a", "b" * 40],
    "corners": [[0, 0], [2, 0], [1, 1.5]],
    "xs": xs.tolist(),
    "ys": ys.tolist(),
    "values": {"loss": loss.tolist(), "error": np.full((4, 5), 0.5).tolist()},
  }
  figure = reasons.plane_figure(record)
  assert saved(figure)
  left = figure.axes[0]
  star, *models = [c.get_offsets()[0] for c in left.collections[1:]]
  np.testing.assert_allclose(star, [1, 1])
  np.testing.assert_allclose(models, record["corners"])
  texts = [t.get_text() for t in left.texts]
  assert texts == ["initial", "$a", "b" * 22 + "..."]
