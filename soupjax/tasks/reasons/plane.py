# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The reason "plane": loss and error in the plane through three models."""

import numpy as np

from soupjax import registry
from soupjax.analysis import plane as plane_lib
from soupjax.report import reasons as figures
from soupjax.tasks.cook.inputs import CookInputs
from soupjax.tasks.reasons.base import INITIAL, Diagnosed, Reason


def _corner_names(opened: CookInputs) -> list[str]:
  """Returns the names in `plane.models`; [] for the default."""
  text = opened.config.plane.models
  return [part for part in map(str.strip, text.split(",")) if part]


def _check(opened: CookInputs) -> None:
  names = _corner_names(opened)
  known = [i.name for i in opened.ingredients]
  known += [INITIAL] if opened.initial else []
  if not names and len(known) < 3:
    raise ValueError(
      f"The plane needs three models, but there are only "
      f"{', '.join(known)}: give more ingredients, or --config.initial."
    )
  if names and len(names) != 3:
    raise ValueError(
      f"plane.models={opened.config.plane.models!r} must name three models, "
      f"such as {','.join(known[:3])}."
    )
  for name in names:
    if name not in known:
      raise ValueError(
        f"plane.models: there is no model {name!r}"
        f"{registry.suggestion(name, known)}"
      )
    if names.count(name) > 1:
      raise ValueError(
        f"plane.models={opened.config.plane.models!r} names {name!r} twice: "
        "a plane needs three different models."
      )


def _compute(diagnosed: Diagnosed, resume):
  opened = diagnosed.opened
  start = [INITIAL] if opened.initial else []
  names = [*start, *(i.name for i in diagnosed.ingredients)][:3]
  names = _corner_names(opened) or names
  points = opened.config.plane.points
  plane = plane_lib.plane(
    diagnosed.models(names),
    resume(diagnosed.totals, points**2 + 3),
    points=points,
    margin=opened.config.plane.margin,
    sharding=opened.place,
  )
  record = {"names": list(plane.names)}
  for key in ("corners", "xs", "ys"):
    record[key] = getattr(plane, key).tolist()
  for key in ("values", "at_corners"):
    record[key] = {k: v.tolist() for k, v in getattr(plane, key).items()}
  lowest = {}
  for metric, grid in plane.values.items():
    row, column = np.unravel_index(grid.argmin(), grid.shape)
    weights = plane.weights(plane.xs[column], plane.ys[row])
    lowest[metric] = {"value": grid[row, column], "weights": weights.tolist()}
  return {**record, "lowest": lowest}


def _describe(record) -> list[str]:
  lines = []
  for metric, lowest in record["lowest"].items():
    scale, unit = (100, " %") if metric == "error" else (1, "")
    weights = zip(lowest["weights"], record["names"])
    corners = zip(record["names"], record["at_corners"][metric])
    lines.append(
      f"The lowest {metric} on the grid is {scale * lowest['value']:.4g}{unit},"
      f" at {' + '.join(f'{w:.2f} {name}' for w, name in weights)} ("
      + ", ".join(f"{name}: {scale * v:.4g}{unit}" for name, v in corners)
      + ")."
    )
  return lines


def _problems(problems) -> None:
  problems.expect_counts("plane.points", least=2)
  problems.expect_numbers("plane.margin")


PLANE = Reason(
  heading="The plane through three models",
  caption="Metrics on minival in the plane through the marked models (axes "
  "orthonormal in parameter space; arXiv 2203.05482, Figure 2). The star "
  "marks the lowest point on the grid.",
  settings={
    # Names of three models; "" for "initial" (if given) and the best two.
    "models": "",
    "points": 11,  # Per side of the grid: 11 x 11 + 3 evaluations.
    "margin": 0.25,  # Around the models, as a fraction of their extent.
  },
  problems=_problems,
  check=_check,
  compute=_compute,
  draw=figures.plane_figure,
  describe=_describe,
)
