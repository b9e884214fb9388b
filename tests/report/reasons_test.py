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


def test_pairs_without_an_angle_or_a_color_are_drawn():
  pair = {"gain": 0.01, "angle": None, "distance": 2.0, "color": None}
  record = {
    "metric": "loss",
    "color": "learning_rate",
    "pairs": [
      {**pair, "seed_only": False},
      {**pair, "seed_only": True, "angle": 90.0},
    ],
    "curves": [],
  }
  figure = reasons.pairs_figure(record)
  assert saved(figure)
  plain, same = figure.axes[1].collections
  np.testing.assert_allclose(plain.get_offsets(), [[2, 0.01]])
  np.testing.assert_allclose(same.get_offsets(), [[2, 0.01]])
  assert len(figure.axes) == 2


def test_gains_in_accuracy_are_in_points_and_curves_are_below():
  pairs = [
    {"gain": 0.02, "angle": 60.0, "distance": 2.0, "color": 0.1},
    {"gain": -0.01, "angle": 80.0, "distance": 3.0, "color": 0.2},
  ]
  curve = {"pair": ["$a", "b"], "at": [0, 1], "loss": [1, 2], "error": [0.5, 0]}
  record = {
    "metric": "prec@1",
    "color": "learning_rate",
    "pairs": [{**pair, "seed_only": False} for pair in pairs],
    "curves": [curve],
  }
  figure = reasons.pairs_figure(record)
  assert saved(figure)
  (points,) = figure.axes[0].collections
  np.testing.assert_allclose(points.get_offsets(), [[60, 2], [80, -1]])
  np.testing.assert_allclose(figure.axes[3].lines[0].get_ydata(), [50, 0])


def test_soups_and_ensembles_are_on_the_axes_that_say_so():
  pair = {"predicted": -0.1, "true": -0.2, "soup_error": 0.3}
  record = {"pairs": [{**pair, "ensemble_error": 0.4}]}
  figure = reasons.ensemble_figure(record)
  assert saved(figure)
  places = [axes.collections[0].get_offsets()[0] for axes in figure.axes]
  np.testing.assert_allclose(places, [[-0.1, -0.2], [40, 30]])


def test_features_have_gaps_where_nothing_is_known():
  record = {
    "names": ["initial", "a", "b", "c"],
    "layers": ["embedding", "Transformer/encoderblock_0", "head"],
    "cka": {
      "embedding": [
        [1, 0.9, 0.8, 0.7],
        [0, 1, 0.6, 0.4],
        [0, 0, 1, 0.5],
        [0, 0, 0, 1],
      ],
      "Transformer/encoderblock_0": np.full((4, 4), 0.5).tolist(),
      "head": [[None] * 4] * 4,
    },
    "separation": {
      "embedding": [0.1, 0.2, 0.3, 0.4],
      "Transformer/encoderblock_0": [0.2] * 4,
      "head": [None] * 4,
    },
  }
  figure = reasons.features_figure(record)
  assert saved(figure)
  left, right = figure.axes
  pairs, start = (line.get_ydata() for line in left.lines)
  np.testing.assert_allclose(pairs, [0.5, 0.5, np.nan])
  np.testing.assert_allclose(start, [0.8, 0.5, np.nan])
  models, initial = (line.get_ydata() for line in right.lines)
  np.testing.assert_allclose(models, [0.3, 0.2, np.nan])
  np.testing.assert_allclose(initial, [0.1, 0.2, np.nan])
  names = [text.get_text() for text in left.get_xticklabels()]
  assert names == ["embedding", "block 0", "head"]


def test_growing_sweeps_have_error_bars_over_orders():
  record = {
    "metric": "prec@1",
    "counts": [1, 4],
    "sizes": [[1, 2], [1, 4]],
    "scores": [[0.5, 0.7], [0.6, 0.8]],
    "best": [[0.5, 0.6], [0.6, 0.6]],
  }
  figure = reasons.growth_figure(record)
  assert saved(figure)
  sizes, scores = (axes.containers[0] for axes in figure.axes)
  np.testing.assert_allclose(sizes[0].get_ydata(), [1, 3])
  np.testing.assert_allclose(scores[0].get_ydata(), [55, 75])
  ends = sizes[2][0].get_segments()[1][:, 1]
  np.testing.assert_allclose(ends, [3 - 2**0.5, 3 + 2**0.5])
  alone = {k: v[:1] for k, v in record.items() if isinstance(v, list)}
  alone |= {"counts": [1, 4], "metric": "loss"}
  assert saved(reasons.growth_figure(alone))
