# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The reason "pairs": gains at midpoints against angle and distance."""

import numpy as np

from soupjax import registry
from soupjax.analysis import pairs as pairs_lib
from soupjax.report import reasons as figures
from soupjax.tasks.cook.inputs import CookInputs
from soupjax.tasks.reasons.base import Diagnosed, Reason

SETTINGS = {
  "color": "learning_rate",  # The larger value of the two models; "" for none.
  "curves": 3,  # Curves between models, for the first pairs; 0 for none.
  "points": 9,  # Points per curve, including both models.
}


def _check(opened: CookInputs) -> None:
  if not opened.config.max_pairs:
    raise ValueError(
      "The reason 'pairs' is computed from midpoints, but max_pairs=0: set it "
      "to at least 1."
    )
  color = opened.config.pairs.color
  known = {k for i in opened.ingredients for k in i.hyperparameters}
  # Checkpoints of other libraries may have none of the default.
  if color not in {"", SETTINGS["color"], *known}:
    raise ValueError(
      f"pairs.color: no ingredient has a hyperparameter {color!r}"
      f"{registry.suggestion(color, known)}"
    )


def _compute(diagnosed: Diagnosed, resume):
  config = diagnosed.opened.config.pairs
  known = {i.name: dict(i.hyperparameters) for i in diagnosed.ingredients}
  midpoints = diagnosed.diagnosis["midpoints"]
  pairs = []
  for entry in midpoints:
    first, second = (known[name] for name in entry["pair"])
    colors = [h.get(config.color) for h in (first, second)]
    numbers = all(isinstance(c, int | float) for c in colors)
    differ = {k for k in {*first, *second} if first.get(k) != second.get(k)}
    pairs.append(
      {
        "pair": entry["pair"],
        "gain": -entry["barrier"],
        "distance": entry["distance"],
        "angle": entry["angle"],
        "color": max(colors) if numbers else None,
        "seed_only": differ == {"seed"},
      }
    )
  chosen = midpoints[: config.curves]
  evaluate = resume(diagnosed.totals, len(chosen) * config.points)
  curves = []
  for entry in chosen:
    at, values = pairs_lib.curve(
      diagnosed.models(entry["pair"]), evaluate, points=config.points,
      sharding=diagnosed.opened.place,
    )  # fmt: skip
    values = {metric: v.tolist() for metric, v in values.items()}
    curves.append({"pair": entry["pair"], "at": at.tolist(), **values})
  return {
    "metric": diagnosed.opened.metrics[0],
    "color": config.color,
    "pairs": pairs,
    "curves": curves,
  }


def _describe(record) -> list[str]:
  pairs = record["pairs"]
  gains = [pair["gain"] for pair in pairs]
  scale, unit = (100, " points") if record["metric"] == "prec@1" else (1, "")
  text = f"Midpoints of {len(pairs)} pairs gain {scale * np.mean(gains):+.3g}"
  text += f"{unit} ({record['metric']}) on average over the mean of both models"
  text += f"; {sum(g > 0 for g in gains)} gain and {sum(g < 0 for g in gains)}"
  lines = [f"{text} lose."]
  for key in ("angle", "distance"):
    values = [np.nan if p[key] is None else p[key] for p in pairs]
    rank = pairs_lib.rank_correlation(values, gains)
    if np.isfinite(rank):
      lines.append(f"Rank correlation of gain and {key}: {rank:+.2f}.")
  return lines


def _problems(problems) -> None:
  problems.expect_counts("pairs.points", least=2)
  problems.expect_counts("pairs.curves", least=0)


PAIRS = Reason(
  heading="Gains of averaging two models",
  caption="Score of the midpoint of two models on minival, minus the mean of "
  "their scores, against the angle between their updates from the start and "
  "against their distance (arXiv 2203.05482, Figure 3).",
  settings=SETTINGS,
  problems=_problems,
  check=_check,
  compute=_compute,
  draw=figures.pairs_figure,
  describe=_describe,
)
