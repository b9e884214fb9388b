# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Labels beside points, placed so that they cover as little as possible."""

from collections.abc import Sequence
import itertools

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
import numpy as np

_DISTANCES = np.array([7.0, 10.0, 15.0, 22.0, 30.0, 40.0, 52.0])  # points
_ANGLES = np.arange(16) * np.pi / 8
_LEADER_FROM = 12.0  # points; closer labels are drawn without a leader line
_PLACES = 64  # candidates per label, those with the lowest own cost


def place_labels(
  axes: Axes,
  points: Sequence[tuple[float, float]],
  texts: Sequence[str],
  obstacles: Sequence[tuple[float, float]],
  **style,
) -> list[Annotation]:
  """Writes each text near its point, away from the others.

  Candidate places lie on a few rings around each point. Every place and every
  pair of places has a cost; coordinate descent from several starts reduces the
  sum.

  Args:
    axes: the axes, with final limits and layout.
    points: (x, y) of each label, in data coordinates.
    texts: the labels.
    obstacles: (x, y) that labels should not cover, in data coordinates.
    **style: properties of the texts.

  Returns:
    The labels, in the order of the points.
  """
  if not points:
    return []
  figure = axes.figure
  renderer = FigureCanvasAgg(figure).get_renderer()
  figure.draw_without_rendering()  # Runs the layout: pixels are final now.
  scale = figure.dpi / 72
  anchors = axes.transData.transform(np.asarray(points, float)) / scale
  dots = axes.transData.transform(np.asarray(obstacles, float).reshape(-1, 2))
  dots = dots[np.isfinite(dots).all(1)] / scale
  dots = np.concatenate([anchors, dots])
  frame = axes.get_window_extent().extents / scale

  halves = []
  for text in texts:
    probe = axes.text(0, 0, text, parse_math=False, **style)
    box = probe.get_window_extent(renderer)
    probe.remove()
    halves.append((box.width / scale / 2 + 1, box.height / scale / 2 + 0.5))

  leader = {"arrowstyle": "-", "linewidth": 0.6, "color": "0.35"}
  leader |= {"shrinkA": 0, "shrinkB": 4}
  offsets = _arrange(anchors, halves, dots, frame)
  return [
    axes.annotate(
      text,
      point,
      xytext=(dx, dy),
      textcoords="offset points",
      ha="center",
      va="center",
      parse_math=False,
      path_effects=[withStroke(linewidth=2.5, foreground="white")],
      arrowprops=leader if distance >= _LEADER_FROM else None,
      zorder=6,
      **style,
    )
    for point, text, (dx, dy, distance) in zip(points, texts, offsets)
  ]


def _arrange(anchors, halves, dots, frame):
  """Returns (dx, dy, distance) for each label, in points (1/72 inch)."""
  places, own = [], []
  for i, half in enumerate(halves):
    offsets, distances = _rings(np.asarray(half))
    others = np.delete(anchors, i, axis=0)
    cost = _own_cost(anchors[i], offsets, distances, half, others, dots, frame)
    best = np.argsort(cost, kind="stable")[:_PLACES]
    places.append((offsets[best], distances[best]))
    own.append(cost[best])
  lines = [
    anchor + np.linspace(0, 1, 12)[:, None, None] * offsets
    for anchor, (offsets, _) in zip(anchors, places)
  ]
  pairs = {
    (i, j): _pair_cost(lines[i], halves[i], lines[j], halves[j])
    for i, j in itertools.permutations(range(len(places)), 2)
  }
  return [
    (*offsets[k], distances[k])
    for k, (offsets, distances) in zip(_descend(own, pairs), places)
  ]


def _rings(half):
  """Returns offsets (places, 2) of a label's centre, and its distances."""
  directions = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)
  offsets = directions * (_DISTANCES[:, None, None] + half)
  return offsets.reshape(-1, 2), np.repeat(_DISTANCES, len(_ANGLES))


def _own_cost(anchor, offsets, distances, half, others, dots, frame):
  """Returns (places,) costs: outside the axes, on markers, near others, far."""
  centres = anchor + offsets
  low, high = centres - half, centres + half
  outside = (low < frame[:2]).any(1) | (high > frame[2:]).any(1)
  # Plain markers are about 4 points in radius, those with labels up to 7.
  covered = (_away(dots, centres, half) < 4).sum(1)
  away = _away(others, centres, half)
  hidden = (away < 7).sum(1)
  leader = anchor + np.linspace(0, 1, 12)[:, None, None] * offsets
  to_others = np.linalg.norm(leader[:, :, None] - others, axis=-1).min(0)
  hidden += ((to_others < 6) & (distances[:, None] >= _LEADER_FROM)).sum(1)
  # A label nearer to another point would be read as the label of that point.
  confusion = np.maximum(distances[:, None] + 6 - away, 0).sum(1)
  return (
    1000 * outside
    + 10 * hidden
    + 2 * covered
    + 0.3 * confusion
    + 0.04 * distances
  )


def _away(points, centres, half):
  """Returns (places, points) distances from boxes around centres to points."""
  gap = np.abs(points - centres[:, None]) - half
  return np.linalg.norm(np.maximum(gap, 0), axis=-1)


def _pair_cost(lines, half, other_lines, other_half):
  """Returns (places, other places) costs of overlaps and crossing leaders.

  Lines are (samples, places, 2), from the point to the centre of the label.
  """
  gap = np.abs(lines[-1][:, None] - other_lines[-1]) - half - other_half
  cost = 100.0 * (gap < 0).all(-1)
  cost += 10.0 * _hits(lines, other_lines[-1], other_half).T
  cost += 10.0 * _hits(other_lines, lines[-1], half)
  ends = lines[0][:, None], lines[-1][:, None], other_lines[0], other_lines[-1]
  return cost + 5.0 * _cross(*ends)


def _hits(lines, centres, half):
  """Returns (centres, lines): whether a line enters the box of a centre."""
  inside = np.abs(lines[:, None] - centres[:, None]) < half
  return inside.all(-1).any(0)


def _cross(a, b, c, d):
  """Whether the segments ab and cd cross, elementwise."""

  def side(p, q, r):
    first, second = q - p, r - p
    return first[..., 0] * second[..., 1] > first[..., 1] * second[..., 0]

  return (side(a, b, c) != side(a, b, d)) & (side(c, d, a) != side(c, d, b))


def _descend(own, pairs):
  """Returns the index of each label's place: the best of several starts."""
  rng = np.random.default_rng(0)  # Makes figures reproducible.
  count = len(own)

  def costs(i, chosen):
    others = (j for j in range(count) if j != i)
    return own[i] + sum(pairs[i, j][:, chosen[j]] for j in others)

  def total(chosen):
    pair_total = sum(pairs[i, j][chosen[i], chosen[j]] for i, j in pairs)
    return sum(own[i][chosen[i]] for i in range(count)) + pair_total / 2

  results = []
  for start in range(24):
    chosen = [0] * count if start == 0 else list(rng.integers(8, size=count))
    for _ in range(5):
      for i in rng.permutation(count):
        chosen[i] = int(np.argmin(costs(i, chosen)))
    results.append((total(chosen), chosen))
  return min(results, key=lambda r: r[0])[1]
