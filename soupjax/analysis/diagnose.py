# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Why does my soup lose? What can be measured about its ingredients."""

from collections.abc import Callable
import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from soupjax.analysis import findings
from soupjax.analysis.geometry import Geometry, geometry
from soupjax.soups.average import uniform_soup
from soupjax.soups.core import arguments, nonfinite
from soupjax.soups.core.ingredient import (
  Model,
  Models,
  as_ingredient,
  as_ingredients,
)
from soupjax.soups.core.layers import layer_of
from soupjax.soups.greedy.soup import GreedySoup

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Diagnosis:
  """What was found out about a set of ingredients.

  Attributes:
    names: the ingredients.
    scores: name -> held-out score of the ingredient alone.
    midpoints: pair of names -> score of their average.
    geometry: distances and angles, from the pretrained model if given.
    layers: layer -> (K,) distance of each ingredient from the origin there,
      relative to the norm of the origin's layer; NaN where that is zero.
    groups: names of models that share a start, the largest group first.
    findings: what to look at, in words, the gravest first.
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
    """Pair -> mean score of the two less that of their average.

    Positive: the average is worse, there is a barrier between them. Negative:
    the two gain from being averaged (arXiv 2203.05482, Figure 3).
    """
    return {
      (a, b): (self.scores[a] + self.scores[b]) / 2 - score
      for (a, b), score in self.midpoints.items()
    }

  def table(self) -> str:
    """A line an ingredient, then the findings, as plain text."""
    barriers = self.barriers
    lines = [
      f"{'ingredient':<24} {'score':>8} {'distance':>9} {'relative':>9} "
      f"{'angle':>6} {'barrier':>8}"
    ]
    norms, cosines = self.geometry.norms, self.geometry.cosines
    for k, name in enumerate(self.names):
      others = np.delete(cosines[k], k)
      angles = np.degrees(np.arccos(others[np.isfinite(others)]))
      mine = [v for pair, v in barriers.items() if name in pair]
      lines.append(
        f"{name[:24]:<24} {self.scores[name]:8.4f} {norms[k]:9.4g} "
        f"{norms[k] / max(self.geometry.scale, 1e-30):9.4f} "
        f"{np.mean(angles) if len(angles) else math.nan:6.1f} "
        + (f"{np.mean(mine):+8.4f}" if mine else f"{'-':>8}")
      )
    lines += [
      "",
      f"distance: from {self.geometry.origin}; relative: to its norm; angle: "
      "mean over the others, in degrees, seen from there; barrier: mean over "
      "pairs of what is lost at the midpoint (negative: gained).",
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
) -> Diagnosis:
  """Looks for the reasons why averaging these models does not help.

  Evaluates every ingredient, and the midpoint of pairs: neighbours in the
  order given first, up to `max_pairs`. Geometry reads every model once and
  holds K copies of one leaf.

  Args:
    ingredients: at least two, of one architecture.
    evaluate: maps parameters to a held-out score; higher is better, so negate
      losses.
    pretrained: the model they were fine-tuned from; without it distances and
      angles are taken from their mean, and say less. Put on the head from which
      they were fine-tuned.
    greedy: a greedy soup of them, whose rejections to explain.
    max_pairs: most midpoints to evaluate; 0 for none.

  Returns:
    The measurements, and findings in words.

  Raises:
    ValueError: if there are fewer than two, trees differ, one is not finite, a
      score is none, or `evaluate` says that lower is better.
    TypeError: if an argument is of another kind.
  """
  ingredients = as_ingredients(ingredients)
  if pretrained is not None:
    pretrained = as_ingredient(pretrained, "pretrained")
  _check(evaluate, greedy, max_pairs)
  if len(ingredients) < 2:
    raise ValueError(
      f"A diagnosis compares ingredients: give at least two, got "
      f"{len(ingredients)}."
    )
  shape = geometry(ingredients, pretrained)
  nonfinite.check_finite(ingredients)

  def score(params, what):
    return arguments.number(
      f"What evaluate returns for {what}", evaluate(params)
    )

  scores = {i.name: score(i.load(), repr(i.name)) for i in ingredients}
  pairs = sorted(
    itertools.combinations(range(len(ingredients)), 2),
    key=lambda pair: (pair[1] - pair[0], pair),
  )[:max_pairs]
  midpoints = {}
  for a, b in pairs:
    both = [ingredients[a], ingredients[b]]
    names = both[0].name, both[1].name
    midpoints[names] = score(uniform_soup(both), f"the midpoint of {names}")
  groups = findings.groups_of(shape)
  diagnosis = Diagnosis(
    names=shape.names,
    scores=scores,
    midpoints=midpoints,
    geometry=shape,
    layers=_layers(shape),
    groups=tuple(tuple(shape.names[k] for k in group) for group in groups),
    findings=(),
  )
  found = [
    *findings.duplicates(shape),
    *findings.starts(ingredients),
    *findings.strangers(shape, groups),
    *findings.heads(shape, groups),
    *findings.statistics(ingredients[0]),
    *findings.weak(scores, diagnosis.barriers),
    *findings.rejections(scores, diagnosis.barriers, greedy),
  ]
  if not found:
    found = ["Nothing stands out: these models should average well."]
  return dataclasses.replace(diagnosis, findings=tuple(found))


def _check(evaluate, greedy, max_pairs):
  arguments.higher_is_better(evaluate)
  if greedy is not None and not isinstance(greedy, GreedySoup):
    raise TypeError(
      "greedy must be what sj.greedy_soup returned, got a "
      f"{type(greedy).__name__}."
    )
  if max_pairs != 0:
    arguments.count("max_pairs", max_pairs)


def _layers(shape: Geometry) -> dict[str, np.ndarray]:
  moved, scales = {}, {}
  for leaf, gram in shape.grams.items():
    layer = layer_of(leaf)
    moved[layer] = moved.get(layer, 0) + np.maximum(np.diag(gram), 0)
    scales[layer] = scales.get(layer, 0.0) + shape.scales[leaf] ** 2
  return {
    layer: np.sqrt(square / scales[layer] if scales[layer] else square * np.nan)
    for layer, square in moved.items()
  }
