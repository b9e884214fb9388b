# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The checks of a diagnosis; each returns its findings as text."""

from collections.abc import Mapping, Sequence
import itertools
import math
import re

import numpy as np

from soupjax.analysis.geometry import Geometry
from soupjax.soups.core.ingredient import Ingredient
from soupjax.soups.core.layers import layer_of
from soupjax.soups.core.records import recorded_inits
from soupjax.soups.greedy.soup import GreedySoup

Pair = tuple[str, str]
Groups = Sequence[Sequence[int]]

# A lower cosine between the weights of two models means different starts. It is
# 0.5 if both moved by the norm of their start, in orthogonal directions, and
# about 0 for two random initialisations. (On digits: 0.97 to 0.99 within a
# sweep, 0.01 between sweeps from two pretrained models; for heads, 0.96 to 0.99
# from a shared start, at most 0.14 from random starts.)
SHARED = 0.5

# Normalisation statistics, which are valid for one set of weights only.
_STATISTICS = re.compile(
  r"(^|[/.])(batch_stats|running_mean|running_var|moving_mean|moving_variance)"
  r"|(^|[/._])(batch_?norm|bn)[^/.]*[/.](mean|var)$",
  re.IGNORECASE,
)
_HEAD = re.compile(r"head|classifier|(^|[/.])fc$")


def groups_of(geometry: Geometry) -> list[list[int]]:
  """Groups models that share a start, by their weights outside the head.

  Returns:
    Indices of models, the largest group first. Two models are in the same group
    if a chain of similar models links them; it may include the pretrained one.
  """
  from scipy.sparse import csgraph  # Comes with jax.

  cosines = geometry.weight_cosines(_body(geometry))
  # The cosine is NaN if a model is zero, which must not separate models.
  _, labels = csgraph.connected_components(~(cosines < SHARED))
  groups = {}
  for k, label in enumerate(labels[: len(geometry.names)].tolist()):
    groups.setdefault(label, []).append(k)
  return sorted(groups.values(), key=lambda group: (-len(group), group))


def _body(geometry: Geometry) -> list[str]:
  leaves = list(geometry.products)
  return [x for x in leaves if not _HEAD.search(layer_of(x))] or leaves


def _has_origin(geometry: Geometry) -> bool:
  return len(next(iter(geometry.products.values()))) > len(geometry.names)


def _listed(geometry: Geometry, group: Sequence[int]) -> str:
  names = [repr(geometry.names[k]) for k in group]
  rest = f" and {len(names) - 8} more" if len(names) > 9 else ""
  return ", ".join(names[:8] if rest else names) + rest


def _within(cosines: np.ndarray, groups: Groups) -> np.ndarray:
  """Returns the finite cosines of pairs in the same group."""
  pairs = [p for group in groups for p in itertools.combinations(group, 2)]
  values = np.array([cosines[pair] for pair in pairs])
  return values[np.isfinite(values)]


def duplicates(geometry: Geometry) -> list[str]:
  """Reports models that equal another model or the pretrained one."""
  texts = []
  if _has_origin(geometry):
    texts += [
      f"{name!r} is {geometry.origin!r} itself: it was not fine-tuned. Leave "
      "it out, or find the fine-tuned weights."
      for name, norm in zip(geometry.names, geometry.norms)
      if norm <= 1e-6 * geometry.scale
    ]
  # Float32 rounding of inner products can give equal models this distance.
  floor = 1e-5 * max(geometry.norms.max(), 1e-30)
  names, distances = geometry.names, geometry.distances
  return texts + [
    f"{names[a]!r} and {names[b]!r} are the same model: it counts twice in a "
    "uniform soup. Leave one out."
    for a, b in itertools.combinations(range(len(names)), 2)
    if distances[a, b] <= max(floor, 3e-4 * geometry.norms[a])
  ]


def recorded_starts(ingredients: Sequence[Ingredient]) -> list[str]:
  """Reports models that record different initial weights."""
  groups = sorted(recorded_inits(ingredients).values(), key=len, reverse=True)
  return [
    f"The start (init_hash) recorded by {', '.join(map(repr, names))} differs "
    f"from that of {groups[0][0]!r}: their average is meaningless. Use the "
    "ingredients of one sweep."
    for names in groups[1:]
  ]


def strangers(geometry: Geometry, groups: Groups) -> list[str]:
  """Reports models that seem not to come from the start of the others."""
  cosines = geometry.weight_cosines(_body(geometry))
  texts, home = [], None
  if _has_origin(geometry):
    # All models similar to the pretrained one are in the same group.
    home = next((g for g in groups if max(cosines[-1, g]) >= SHARED), None)
    if home is None and np.isfinite(cosines[-1]).all():
      texts.append(
        f"None of the models comes from {geometry.origin!r}: the cosine of "
        "their weights with its weights is at most "
        f"{cosines[-1, :-1].max():.2g}. Pass the model that they were "
        "fine-tuned from."
      )
    texts += _far(geometry, home or ())
  if len(groups) == 1:
    return texts
  if home is None and len(groups[0]) > len(groups[1]):
    home = groups[0]
  if home is None:
    highest = max(
      cosines[np.ix_(a, b)].max() for a, b in itertools.combinations(groups, 2)
    )
    parts = "; ".join(_listed(geometry, group) for group in groups)
    return [
      f"The models come from {len(groups)} starts (different initialisations, "
      f"or too high a learning rate): {parts}. The cosine between weights of "
      f"different groups is at most {highest:.2g}. Only models that share a "
      "start average well: make a soup of each group.",
      *texts,
    ]
  usual = _within(cosines, [home])
  text = ""
  if len(usual):
    text = f" (median within the latter: {np.median(usual):.2g})"
  for group in groups:
    if group is home:
      continue
    do, they, them = ("do", "They seem", "them")
    if len(group) == 1:
      do, they, them = ("does", "It seems", "it")
    highest = cosines[np.ix_(group, home)].max()
    texts.append(
      f"{_listed(geometry, group)} {do} not share a start with "
      f"{_listed(geometry, home)}: the cosine of their weights is at most "
      f"{highest:.2g}{text}. {they} to come from another initialisation, or "
      f"from training with too high a learning rate. Leave {them} out."
    )
  return texts


def _far(geometry: Geometry, home: Sequence[int]) -> list[str]:
  """Reports models that are far from the pretrained model."""
  if not geometry.scale or not home:
    return []
  relative = geometry.norms / geometry.scale
  usual = float(np.median(relative[list(home)]))
  return [
    f"{geometry.names[k]!r} is {relative[k]:.2g} times the norm of "
    f"{geometry.origin!r} away from it (median {usual:.2g}): its learning rate "
    "was probably too high. Leave it out."
    for k in home
    if relative[k] > 1 or (relative[k] > 0.5 and relative[k] > 4 * usual)
  ]


def heads(geometry: Geometry, groups: Groups) -> list[str]:
  """Reports heads that differ between models that are similar elsewhere."""
  body = _body(geometry)
  layers: dict[str, list[str]] = {}
  for leaf in geometry.products.keys() - set(body):
    layers.setdefault(layer_of(leaf), []).append(leaf)
  usual = _within(geometry.weight_cosines(body), groups)
  texts = []
  for layer, leaves in sorted(layers.items()):
    # Heads that start at zero differ in direction even from the same start.
    if _has_origin(geometry) and not any(
      geometry.scales[leaf] for leaf in leaves
    ):
      continue
    cosines = _within(geometry.weight_cosines(leaves), groups)
    if len(cosines) and np.median(cosines) < SHARED:
      texts.append(
        f"Layer {layer!r} differs between models: the median cosine of its "
        f"weights over pairs is {np.median(cosines):.2g}, but "
        f"{np.median(usual):.2g} in other layers. The heads do not share a "
        "start. Fit one head first (a linear probe) and fine-tune all models "
        "from it, or average only the backbone."
      )
  return texts


def statistics(ingredient: Ingredient) -> list[str]:
  """Reports normalisation statistics, whose average is wrong."""
  leaves = [leaf for leaf in ingredient.specs if _STATISTICS.search(leaf)]
  if not leaves:
    return []
  return [
    f"The models have normalisation statistics ({leaves[0]!r} and "
    f"{len(leaves) - 1} more): their average does not fit the averaged "
    "weights. Recompute them on training images with the soup's weights."
  ]


def weak(
  scores: Mapping[str, float], barriers: Mapping[Pair, float]
) -> list[str]:
  """Reports models with low scores, and barriers between models."""
  values = list(scores.values())
  lower, median, upper = np.percentile(values, [25, 50, 75])
  spread = max(float(upper - lower), 1e-3)
  texts = [
    f"{name!r} scores {score:.4g} alone, but the median is {median:.4g}: it "
    "makes a uniform soup worse. Use a greedy soup, or leave it out."
    for name, score in scores.items()
    if median - score > 4 * spread
  ]
  lossy = sum(b > 0 for b in barriers.values())
  if lossy > len(barriers) / 2:
    pair, worst = max(barriers.items(), key=lambda item: item[1])
    texts.append(
      f"{lossy} of {len(barriers)} midpoints are worse than the mean of their "
      f"two models (at worst by {worst:.4g}, for {pair[0]!r} and {pair[1]!r}): "
      "there are barriers. Lower the learning rate, train for fewer steps, or "
      "start from a pretrained model."
    )
  return texts


def rejections(
  scores: Mapping[str, float],
  barriers: Mapping[Pair, float],
  greedy: GreedySoup | None,
) -> list[str]:
  """Explains the rejections of a greedy soup."""
  if greedy is None:
    return []
  texts = []
  selected = set(greedy.selected)
  for decision in greedy.history[: len(scores)]:
    # With replacement, a selected model may be rejected when tried again.
    if decision.accepted or decision.name in selected:
      continue
    losses = [
      loss
      for pair, loss in barriers.items()
      if decision.name in pair and selected & set(pair)
    ]
    text = f"Greedy left {decision.name!r} out: {decision.reason}."
    if losses:
      mean = float(np.mean(losses))
      text += (
        f" Alone it scores {scores.get(decision.name, math.nan):.4g}; its "
        f"midpoints with selected models {'lose' if mean > 0 else 'gain'} "
        f"{abs(round(mean, 9)):.2g} on average."
      )
    texts.append(text)
  return texts
