# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Diagnoses why averaging a set of ingredients helps or hurts."""

from collections.abc import Callable, Mapping
import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from soupjax.analysis import findings
from soupjax.analysis.geometry import Geometry, geometry
from soupjax.soups.average import Means
from soupjax.soups.core import arguments, nonfinite
from soupjax.soups.core.ingredient import (
  Model,
  Models,
  as_ingredient,
  as_ingredients,
)
from soupjax.soups.core.layers import layer_of
from soupjax.soups.core.select import restricted
from soupjax.soups.greedy.soup import GreedySoup

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Diagnosis:
  """Measurements and findings about a set of ingredients.

  Attributes:
    names: names of the ingredients.
    scores: name -> held-out score of the ingredient alone.
    midpoints: pair of names -> score of their average.
    geometry: distances and angles, measured from the pretrained model if given,
      else from the mean of the ingredients.
    layers: layer -> (K,) distance of each ingredient from this origin in the
      layer, relative to the norm of the origin there; NaN if the norm is zero.
    groups: names of models that seem to share a start (the same initial or
      pretrained weights), the largest group first.
    findings: problems and advice as text, the most serious first.
  """

  names: tuple[str, ...]
  scores: dict[str, float]
  midpoints: dict[tuple[str, str], float]
  geometry: Geometry
  layers: dict[str, np.ndarray]
  groups: tuple[tuple[str, ...], ...]
  findings: tuple[str, ...]

  @property
  def barriers(self) -> dict[tuple[str, str], float]:
    """Returns pair -> mean score of the two minus the score of their average.

    A positive value is a barrier; a negative one means that averaging the two
    helps (arXiv 2203.05482, Figure 3).
    """
    return {
      (a, b): (self.scores[a] + self.scores[b]) / 2 - score
      for (a, b), score in self.midpoints.items()
    }

  def table(self) -> str:
    """Formats one line per ingredient, then the findings, as plain text."""
    barriers = self.barriers
    lines = [
      f"{'ingredient':<24} {'score':>8} {'distance':>9} {'relative':>9} "
      f"{'angle':>6} {'barrier':>8}"
    ]
    norms, cosines = self.geometry.norms, self.geometry.cosines
    for k, name in enumerate(self.names):
      row = np.delete(cosines[k], k)
      angles = np.degrees(np.arccos(row[np.isfinite(row)]))
      losses = [v for pair, v in barriers.items() if name in pair]
      lines.append(
        f"{name[:24]:<24} {self.scores[name]:8.4f} {norms[k]:9.4g} "
        f"{norms[k] / max(self.geometry.scale, 1e-30):9.4f} "
        f"{np.mean(angles) if len(angles) else math.nan:6.1f} "
        + (f"{np.mean(losses):+8.4f}" if losses else f"{'-':>8}")
      )
    lines += [
      "",
      f"distance: from {self.geometry.origin}; relative: distance / its norm; "
      "angle: mean over the other ingredients, in degrees, at that origin; "
      "barrier: mean drop in score at midpoints (negative: a gain).",
      "",
    ]
    lines += [f"- {finding}" for finding in self.findings]
    return "\n".join(lines)


def diagnose(
  ingredients: Models,
  evaluate: Callable[[PyTree], float],
  pretrained: Model | None = None,
  *,
  greedy: GreedySoup | None = None,
  max_pairs: int = 120,
  select: Mapping[str, Any] | None = None,
  dtype: Any = None,
  sharding: Any = None,
) -> Diagnosis:
  """Looks for reasons why averaging models does not help.

  Evaluates every ingredient and the midpoints of up to `max_pairs` pairs,
  starting with neighbours in the given order. To measure distances and angles,
  every model is read once, with one leaf of each of the K models in memory.

  Args:
    ingredients: at least two models of one architecture.
    evaluate: maps parameters to a held-out score; higher is better, so negate
      losses.
    pretrained: the model that they were fine-tuned from, with their initial
      head. Without it, distances and angles are measured from the mean of the
      ingredients, which is less informative.
    greedy: a greedy soup of the ingredients, whose rejections are explained.
    max_pairs: maximum number of midpoints; 0 for none.
    select: leaves that are not averaged like the others, as in `mix`, with
      `pretrained` as the base. Leaves that are not averaged are the same in all
      evaluated models, and do not count in distances.
    dtype: dtype of the floating-point leaves of midpoints; None keeps those of
      the first ingredient.
    sharding: sharding of the models, as in `Ingredient.load`.

  Returns:
    The measurements, and findings as text.

  Raises:
    ValueError: for fewer than two ingredients, different trees, non-finite
      weights or scores, a negative `max_pairs`, or an `evaluate` for which
      lower is better.
    TypeError: if an argument has the wrong type.
  """
  ingredients = as_ingredients(ingredients)
  if pretrained is not None:
    pretrained = as_ingredient(pretrained, "pretrained")
  _check(evaluate, greedy, max_pairs)
  if len(ingredients) < 2:
    raise ValueError(
      f"A diagnosis needs at least two ingredients, got {len(ingredients)}."
    )
  means = Means(
    ingredients, base=pretrained, select=select, dtype=dtype, sharding=sharding
  )
  start = pretrained
  if select and start is not None:
    start = restricted(start, means.mixed[0].specs)
  measured = geometry(means.mixed, start)
  nonfinite.check_finite(means.mixed)

  def score(params, name):
    value = arguments.call(evaluate, params)
    return arguments.number(f"The score of {name}", value)

  scores = {
    ingredient.name: score(means.model(k), repr(ingredient.name))
    for k, ingredient in enumerate(ingredients)
  }
  pairs = sorted(
    itertools.combinations(range(len(ingredients)), 2),
    key=lambda pair: (pair[1] - pair[0], pair),
  )[:max_pairs]
  midpoints = {}
  for pair in pairs:
    names = tuple(ingredients[k].name for k in pair)
    midpoints[names] = score(means.mean(pair), f"the midpoint of {names}")
  groups = findings.groups_of(measured)
  diagnosis = Diagnosis(
    names=measured.names,
    scores=scores,
    midpoints=midpoints,
    geometry=measured,
    layers=_layers(measured),
    groups=tuple(tuple(measured.names[k] for k in group) for group in groups),
    findings=(),
  )
  texts = [
    *findings.duplicates(measured),
    *findings.recorded_starts(ingredients),
    *findings.strangers(measured, groups),
    *findings.heads(measured, groups),
    *findings.statistics(ingredients[0]),
    *findings.weak(scores, diagnosis.barriers),
    *findings.rejections(scores, diagnosis.barriers, greedy),
  ]
  if not texts:
    texts = ["Nothing stands out: these models should average well."]
  return dataclasses.replace(diagnosis, findings=tuple(texts))


def _check(evaluate, greedy, max_pairs):
  arguments.higher_is_better(evaluate)
  if greedy is not None and not isinstance(greedy, GreedySoup):
    raise TypeError(
      "greedy must be the result of sj.greedy_soup, got a "
      f"{type(greedy).__name__}."
    )
  if max_pairs != 0:
    arguments.count("max_pairs", max_pairs)


def _layers(measured: Geometry) -> dict[str, np.ndarray]:
  """Returns layer -> relative distance of each ingredient from the origin."""
  squares, scales = {}, {}
  for leaf, gram in measured.grams.items():
    layer = layer_of(leaf)
    squares[layer] = squares.get(layer, 0) + np.maximum(np.diag(gram), 0)
    scales[layer] = scales.get(layer, 0.0) + measured.scales[leaf] ** 2
  return {
    layer: np.sqrt(square / scales[layer] if scales[layer] else square * np.nan)
    for layer, square in squares.items()
  }
