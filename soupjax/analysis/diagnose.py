# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Why does my soup lose? What can be measured about its ingredients."""

from collections.abc import Callable, Sequence
import dataclasses
import itertools
import math
import re
from typing import Any

import numpy as np

from soupjax.analysis.geometry import Geometry, geometry
from soupjax.soups.average import uniform_soup
from soupjax.soups.greedy import GreedySoup
from soupjax.soups.ingredient import Ingredient, check_finite
from soupjax.soups.learned import layer_of
from soupjax.soups.starts import recorded_starts

PyTree = Any
# Statistics of normalisation: they belong to the weights they were taken with.
_STATISTICS = re.compile(
  r"(^|[/.])(batch_stats|running_mean|running_var|moving_mean|moving_variance)"
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Diagnosis:
  """What was found out about a set of ingredients.

  Attributes:
    names: the ingredients.
    scores: name -> held-out score of the ingredient alone.
    midpoints: pair of names -> score of their average.
    geometry: distances and angles, from the pretrained model if given.
    layers: layer -> (K,) distance of each ingredient from the origin there,
      relative to the norm of the origin's layer.
    findings: what to look at, in words, the gravest first.
  """

  names: tuple[str, ...]
  scores: dict[str, float]
  midpoints: dict[tuple[str, str], float]
  geometry: Geometry
  layers: dict[str, np.ndarray]
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
        f"{np.mean(mine) if mine else math.nan:+8.4f}"
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
  ingredients: Sequence[Ingredient],
  evaluate: Callable[[PyTree], float],
  pretrained: Ingredient | None = None,
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
    evaluate: maps parameters to a held-out score; higher is better.
    pretrained: the model they were fine-tuned from; without it distances and
      angles are taken from their mean, and say less.
    greedy: a greedy soup of them, whose rejections to explain.
    max_pairs: most midpoints to evaluate.

  Returns:
    The measurements, and findings in words.

  Raises:
    ValueError: if there are fewer than two, trees differ, one is not finite,
      or a score is not.
  """
  ingredients = list(ingredients)
  if len(ingredients) < 2:
    raise ValueError(
      f"A diagnosis compares ingredients: give at least two, got "
      f"{len(ingredients)}."
    )
  shape = geometry(ingredients, pretrained)
  check_finite(ingredients)

  def score(params, what):
    value = float(evaluate(params))
    if not math.isfinite(value):
      raise ValueError(f"{what} scores {value}: evaluate must be finite.")
    return value

  scores = {i.name: score(i.load(), i.name) for i in ingredients}
  pairs = sorted(
    itertools.combinations(range(len(ingredients)), 2),
    key=lambda pair: (pair[1] - pair[0], pair),
  )[:max_pairs]
  midpoints = {}
  for a, b in pairs:
    both = [ingredients[a], ingredients[b]]
    names = both[0].name, both[1].name
    midpoints[names] = score(uniform_soup(both), f"The midpoint of {names}")
  layers = _layers(shape)
  diagnosis = Diagnosis(
    names=shape.names,
    scores=scores,
    midpoints=midpoints,
    geometry=shape,
    layers=layers,
    findings=(),
  )
  findings = [
    *_duplicates(shape),
    *_starts(ingredients),
    *_strangers(diagnosis, pretrained is not None),
    *_heads(layers),
    *_statistics(ingredients[0]),
    *_weak(diagnosis),
    *_rejections(diagnosis, greedy),
  ]
  if not findings:
    findings = ["Nothing stands out: these models should average well."]
  return dataclasses.replace(diagnosis, findings=tuple(findings))


def _layers(shape: Geometry) -> dict[str, np.ndarray]:
  moved, scales = {}, {}
  for leaf, gram in shape.grams.items():
    layer = layer_of(leaf)
    moved[layer] = moved.get(layer, 0) + np.maximum(np.diag(gram), 0)
    scales[layer] = scales.get(layer, 0.0) + shape.scales[leaf] ** 2
  return {
    layer: np.sqrt(square / max(scales[layer], 1e-30))
    for layer, square in moved.items()
  }


def _duplicates(shape: Geometry) -> list[str]:
  found = []
  # Inner products in float32 leave this much of equal models.
  floor = 1e-5 * max(shape.norms.max(), 1e-30)
  for a, b in itertools.combinations(range(len(shape.names)), 2):
    if shape.distances[a, b] <= max(floor, 3e-4 * shape.norms[a]):
      found.append(
        f"{shape.names[a]!r} and {shape.names[b]!r} are the same model: it "
        "counts twice in a uniform soup. Leave one out."
      )
  return found


def _starts(ingredients) -> list[str]:
  """Models that record different initial weights."""
  found = recorded_starts(ingredients).values()
  most, *others = sorted(found, key=len, reverse=True) or [[]]
  return [
    f"{', '.join(map(repr, names))} record another start (init_hash) than "
    f"{most[0]!r}: their average means nothing. Take ingredients of one sweep."
    for names in others
  ]


def _strangers(diagnosis: Diagnosis, has_origin: bool) -> list[str]:
  """Models that cannot come from the same start as the others."""
  shape, found = diagnosis.geometry, []
  relative = shape.norms / max(shape.scale, 1e-30)
  usual = float(np.median(relative))
  for k, name in enumerate(shape.names):
    far = relative[k] > 0.5 and relative[k] > 4 * usual
    # Weights of other starts are about orthogonal: as far as they are long.
    if far or (has_origin and relative[k] > 1.0):
      found.append(
        f"{name!r} is {relative[k]:.2g} times the norm of {shape.origin} away "
        f"from it (median {usual:.2g}): it looks trained from another "
        "initialisation, or with a learning rate that left the basin. Leave "
        "it out."
      )
  return found


def _heads(layers: dict[str, np.ndarray]) -> list[str]:
  usual = float(np.median([np.median(v) for v in layers.values()]))
  found = []
  for layer, moved in layers.items():
    if not re.search(r"head|classifier|(^|[/.])fc$", layer):
      continue
    if np.median(moved) > max(0.7, 5 * usual):
      found.append(
        f"Layer {layer!r} moved by {np.median(moved):.2g} of its norm, other "
        f"layers by {usual:.2g}: the heads do not share a start. Fit one head "
        "first (a linear probe), and fine-tune all from it, or average the "
        "backbone alone."
      )
  return found


def _statistics(ingredient: Ingredient) -> list[str]:
  leaves = [leaf for leaf in ingredient.specs if _STATISTICS.search(leaf)]
  if not leaves:
    return []
  return [
    f"The models have normalisation statistics ({leaves[0]!r} and "
    f"{len(leaves) - 1} more): an average of them does not fit the averaged "
    "weights. Compute them anew on training images with the soup's weights."
  ]


def _weak(diagnosis: Diagnosis) -> list[str]:
  scores = np.array(list(diagnosis.scores.values()))
  spread = max(
    float(np.percentile(scores, 75) - np.percentile(scores, 25)), 1e-3
  )
  found = []
  for name, score in diagnosis.scores.items():
    if np.median(scores) - score > 4 * spread:
      found.append(
        f"{name!r} scores {score:.4g} alone, the median is "
        f"{np.median(scores):.4g}: it drags a uniform soup down. Use a greedy "
        "soup, or leave it out."
      )
  barriers = diagnosis.barriers
  if barriers:
    lossy = sum(b > 0 for b in barriers.values())
    if lossy > len(barriers) / 2:
      pair, worst = max(barriers.items(), key=lambda item: item[1])
      found.append(
        f"{lossy} of {len(barriers)} midpoints are worse than their ends "
        f"({pair[0]!r} and {pair[1]!r} lose {worst:.4g}): there are barriers "
        "between the models. Lower the learning rate, or fine-tune for less "
        "long; without pretraining, soups do not work at all."
      )
  return found


def _rejections(diagnosis: Diagnosis, greedy: GreedySoup | None) -> list[str]:
  if greedy is None:
    return []
  found = []
  kept = set(greedy.selected)
  for decision in greedy.history[: len(diagnosis.names)]:
    # With replacement, what is in may be rejected when it is tried again.
    if decision.accepted or decision.name in kept:
      continue
    pairs = {
      pair: b
      for pair, b in diagnosis.barriers.items()
      if decision.name in pair and kept & set(pair)
    }
    alone = diagnosis.scores.get(decision.name, math.nan)
    text = f"Greedy left {decision.name!r} out: {decision.reason}."
    if pairs:
      mean = float(np.mean(list(pairs.values())))
      effect = "lose" if mean > 0 else "gain"
      text += (
        f" Alone it scores {alone:.4g}; its midpoints with those kept {effect} "
        f"{abs(round(mean, 9)):.2g} on average."
      )
    found.append(text)
  return found
