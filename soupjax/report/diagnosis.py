# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The picture of a diagnosis: barriers and angles between models."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
import numpy as np

from soupjax.report.style import DPI, styled


@styled
def diagnosis_figure(
  names: Sequence[str],
  barriers: Mapping[tuple[str, str], float],
  cosines: np.ndarray,
) -> Figure:
  """Heatmaps over pairs of models: what the midpoint loses, and the angle.

  Args:
    names: K models.
    barriers: pair -> mean score of the two less that of their midpoint, as
      `Diagnosis.barriers`. Pairs that were not evaluated stay white.
    cosines: (K, K) cosines of the angles between their task vectors.

  Returns:
    The figure: midpoints on the left (red loses, blue gains), angles in degrees
    on the right.
  """
  count = len(names)
  at = {name: k for k, name in enumerate(names)}
  losses = np.full((count, count), np.nan)
  for (a, b), value in barriers.items():
    losses[at[a], at[b]] = losses[at[b], at[a]] = value
  angles = np.degrees(np.arccos(np.clip(np.asarray(cosines, float), -1, 1)))
  np.fill_diagonal(angles, np.nan)
  side = max(3.2, 0.16 * count)
  figure = Figure(figsize=(2 * side + 1.6, side + 0.6), dpi=DPI)
  left, right = figure.subplots(1, 2)
  top = np.nanmax(np.abs(losses)) if np.isfinite(losses).any() else 1.0
  panels = (
    (
      left,
      losses,
      "Midpoint",
      "Score lost at the midpoint",
      "RdBu_r",
      -top,
      top,
    ),
    (right, angles, "Angle", "Angle (degrees)", "viridis", 0, 180),
  )
  for axes, values, title, label, colours, low, high in panels:
    image = axes.imshow(
      values, cmap=colours, vmin=low, vmax=high, interpolation="nearest"
    )
    axes.set_title(f"{title} of each pair", loc="left")
    ticks = range(count)
    axes.set_xticks(ticks, names, rotation=90, fontsize=6, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=6, parse_math=False)
    axes.grid(False)
    figure.colorbar(image, ax=axes, shrink=0.8, label=label)
  return figure
