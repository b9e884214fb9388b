# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a diagnosis looks for, and how it says what it found."""

from collections.abc import Mapping, Sequence
import itertools
import math
import re

import numpy as np

from soupjax.analysis.geometry import Geometry
from soupjax.soups.core.ingredient import Ingredient
from soupjax.soups.core.layers import layer_of
from soupjax.soups.core.same_init import recorded_inits
from soupjax.soups.greedy.soup import GreedySoup

Pair = tuple[str, str]
Groups = Sequence[Sequence[int]]

# Cosine of the weights of two models below which they share no start. Models
# that each went as far as the start is long, in directions of their own, are at
# 0.5; those of two initialisations at about 0. (On digits: 0.97 to 0.99 within
# a sweep, 0.01 between sweeps from two pretrainings; heads 0.96 to 0.99 from
# one start, at most 0.14 from random ones.)
SHARED = 0.5

# Statistics of normalisation: they belong to the weights they were taken with.
_STATISTICS = re.compile(
  r"(^|[/.])(batch_stats|running_mean|running_var|moving_mean|moving_variance)"
  r"|(^|[/._])(batch_?norm|bn)[^/.]*[/.](mean|var)$",
  re.IGNORECASE,
)
_HEAD = re.compile(r"head|classifier|(^|[/.])fc$")


def groups_of(shape: Geometry) -> list[list[int]]:
  """Groups models that share a start, by the weights outside of heads.

  Returns:
    Positions of models, the largest group first. Models are in one group if
    there is a chain of models between them, the pretrained one included, each
    alike the next.
  """
  from scipy.sparse import csgraph  # Comes with jax.

  cosines = shape.weight_cosines(_body(shape))
  # NaN, where all is zero, tells nothing apart.
  _, labels = csgraph.connected_components(~(cosines < SHARED))
  groups = {}
  for k, label in enumerate(labels[: len(shape.names)].tolist()):
    groups.setdefault(label, []).append(k)
  return sorted(groups.values(), key=lambda group: (-len(group), group))


def _body(shape: Geometry) -> list[str]:
  leaves = list(shape.products)
  return [x for x in leaves if not _HEAD.search(layer_of(x))] or leaves


def _has_origin(shape: Geometry) -> bool:
  return len(next(iter(shape.products.values()))) > len(shape.names)


def _listed(shape: Geometry, group: Sequence[int]) -> str:
  names = [repr(shape.names[k]) for k in group]
  rest = f" and {len(names) - 8} more" if len(names) > 9 else ""
  return ", ".join(names[:8] if rest else names) + rest


def _within(cosines: np.ndarray, groups: Groups) -> np.ndarray:
  """Cosines of pairs that share a start."""
  pairs = [p for group in groups for p in itertools.combinations(group, 2)]
  found = np.array([cosines[pair] for pair in pairs])
  return found[np.isfinite(found)] if pairs else found


def duplicates(shape: Geometry) -> list[str]:
  """Names models that are the same, or the pretrained model itself."""
  found = []
  if _has_origin(shape):
    for name, norm in zip(shape.names, shape.norms):
      if norm <= 1e-6 * shape.scale:
        found.append(
          f"{name!r} is {shape.origin!r} itself: it was not fine-tuned. Leave "
          "it out, or look for the weights that training saved."
        )
  # Inner products in float32 leave this much of equal models.
  floor = 1e-5 * max(shape.norms.max(), 1e-30)
  for a, b in itertools.combinations(range(len(shape.names)), 2):
    if shape.distances[a, b] <= max(floor, 3e-4 * shape.norms[a]):
      found.append(
        f"{shape.names[a]!r} and {shape.names[b]!r} are the same model: it "
        "counts twice in a uniform soup. Leave one out."
      )
  return found


def starts(ingredients: Sequence[Ingredient]) -> list[str]:
  """Models that record different initial weights."""
  found = recorded_inits(ingredients).values()
  most, *others = sorted(found, key=len, reverse=True) or [[]]
  return [
    f"{', '.join(map(repr, names))} record another start (init_hash) than "
    f"{most[0]!r}: their average means nothing. Take ingredients of one sweep."
    for names in others
  ]


def strangers(shape: Geometry, groups: Groups) -> list[str]:
  """Names models that cannot come from the same start as the others."""
  cosines = shape.weight_cosines(_body(shape))
  found, home = [], None
  if _has_origin(shape):
    # All that are alike the pretrained model are in one group.
    home = next((g for g in groups if max(cosines[-1, g]) >= SHARED), None)
    if home is None and np.isfinite(cosines[-1]).all():
      found.append(
        f"None of the models comes from {shape.origin!r}: the cosine of their "
        f"weights with its own is {cosines[-1, :-1].max():.2g} at most. Give "
        "the model that they were fine-tuned from."
      )
    found += _far(shape, home or ())
  if len(groups) == 1:
    return found
  if home is None and len(groups[0]) > len(groups[1]):
    home = groups[0]
  if home is None:
    between = [
      cosines[pair]
      for a, b in itertools.combinations(groups, 2)
      for pair in itertools.product(a, b)
    ]
    parts = "; ".join(_listed(shape, group) for group in groups)
    return [
      f"The models come from {len(groups)} starts (another initialisation, "
      f"or a learning rate that left the basin): {parts}. Between these the "
      f"cosine of the weights is {max(between):.2g} at most. Only models of "
      "one start average well: make a soup of each.",
      *found,
    ]
  usual = _within(cosines, [home])
  text = f" (among those {np.median(usual):.2g})" if len(usual) else ""
  for group in groups:
    if group is home:
      continue
    share, they, them = ("share", "They look", "them")
    if len(group) == 1:
      share, they, them = ("shares", "It looks", "it")
    highest = cosines[np.ix_(group, home)].max()
    found.append(
      f"{_listed(shape, group)} {share} no start with "
      f"{_listed(shape, home)}: the cosine of their weights is at most "
      f"{highest:.2g}{text}. {they} trained from another initialisation, or "
      f"with a learning rate that left the basin. Leave {them} out."
    )
  return found


def _far(shape: Geometry, home: Sequence[int]) -> list[str]:
  """Names models that went far from the pretrained model."""
  if not shape.scale or not home:
    return []
  relative = shape.norms / shape.scale
  usual = float(np.median(relative[list(home)]))
  return [
    f"{shape.names[k]!r} is {relative[k]:.2g} times the norm of "
    f"{shape.origin!r} away from it (median {usual:.2g}): a learning rate that "
    "left the basin? Leave it out."
    for k in home
    if relative[k] > 1 or (relative[k] > 0.5 and relative[k] > 4 * usual)
  ]


def heads(shape: Geometry, groups: Groups) -> list[str]:
  """Names heads that differ between models whose other weights are alike."""
  body = _body(shape)
  layers: dict[str, list[str]] = {}
  for leaf in shape.products.keys() - set(body):
    layers.setdefault(layer_of(leaf), []).append(leaf)
  usual = _within(shape.weight_cosines(body), groups)
  found = []
  for layer, leaves in sorted(layers.items()):
    # From zero all directions are new: they say nothing about the start.
    if _has_origin(shape) and not any(shape.scales[leaf] for leaf in leaves):
      continue
    alike = _within(shape.weight_cosines(leaves), groups)
    if len(alike) and np.median(alike) < SHARED:
      found.append(
        f"Layer {layer!r} differs from model to model: the cosine of its "
        f"weights is {np.median(alike):.2g} (median over pairs), that of the "
        f"other layers {np.median(usual):.2g}. The heads do not share a start. "
        "Fit one head first (a linear probe), and fine-tune all from it, or "
        "average the backbone alone."
      )
  return found


def statistics(ingredient: Ingredient) -> list[str]:
  """Says that there are normalisation statistics."""
  leaves = [leaf for leaf in ingredient.specs if _STATISTICS.search(leaf)]
  if not leaves:
    return []
  return [
    f"The models have normalisation statistics ({leaves[0]!r} and "
    f"{len(leaves) - 1} more): an average of them does not fit the averaged "
    "weights. Compute them anew on training images with the soup's weights."
  ]


def weak(
  scores: Mapping[str, float], barriers: Mapping[Pair, float]
) -> list[str]:
  """Names models that score low alone, and barriers between models."""
  values = np.array(list(scores.values()))
  spread = max(
    float(np.percentile(values, 75) - np.percentile(values, 25)), 1e-3
  )
  found = []
  for name, score in scores.items():
    if np.median(values) - score > 4 * spread:
      found.append(
        f"{name!r} scores {score:.4g} alone, the median is "
        f"{np.median(values):.4g}: it drags a uniform soup down. Use a greedy "
        "soup, or leave it out."
      )
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


def rejections(
  scores: Mapping[str, float],
  barriers: Mapping[Pair, float],
  greedy: GreedySoup | None,
) -> list[str]:
  """Says why a greedy soup left out what it did."""
  if greedy is None:
    return []
  found = []
  kept = set(greedy.selected)
  for decision in greedy.history[: len(scores)]:
    # With replacement, what is in may be rejected when it is tried again.
    if decision.accepted or decision.name in kept:
      continue
    pairs = {
      pair: b
      for pair, b in barriers.items()
      if decision.name in pair and kept & set(pair)
    }
    alone = scores.get(decision.name, math.nan)
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
