# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Greedy soups of growing sweeps (arXiv 2203.05482, Figure B.1)."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from soupjax.soups.greedy import decisions


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Growth:
  """Greedy soups of the first k models in several orders.

  Attributes:
    counts: (C,) values of k.
    sizes: (orders, C) number of ingredients in the greedy soup.
    scores: (orders, C) score of the greedy soup.
    best: (orders, C) score of the best of the k models.
  """

  counts: np.ndarray
  sizes: np.ndarray
  scores: np.ndarray
  best: np.ndarray


def growth(
  names: Sequence[str],
  evaluate: Callable[[tuple[str, ...]], float],
  orders: Sequence[Sequence[str]],
  counts: Sequence[int],
  *,
  accept: str = "ge",
  min_delta: float = 0.0,
) -> Growth:
  """Makes greedy soups of the first k models in several orders, for several k.

  Each greedy soup tries its models from best to worst, as `greedy_soup` does.
  Each subset of models is evaluated once.

  Args:
    names: names of all models, the best first.
    evaluate: maps names of models, in the order of `names`, to the score of
      their average; higher is better.
    orders: permutations of `names`, such as from `random_orders`.
    counts: values of k.
    accept: as in `greedy_soup`.
    min_delta: as in `greedy_soup`.

  Raises:
    ValueError: if there is no order, one is not a permutation of `names`, a
      count is not from 1 to the number of models, or a score is not finite.
  """
  rule = decisions.AcceptanceRule.of(accept, min_delta)
  for order in orders:
    if sorted(order) != sorted(names):
      raise ValueError(
        f"Every order must contain all {len(names)} names once, got {order}."
      )
  possible = range(1, len(names) + 1)
  if not orders or not counts or not all(k in possible for k in counts):
    raise ValueError(
      f"Give at least one order and counts from 1 to {len(names)}, got "
      f"{list(counts)} and {len(orders)} orders."
    )
  rank = {name: k for k, name in enumerate(names)}
  known: dict[tuple[str, ...], float] = {}

  def score(subset):
    subset = tuple(sorted(subset, key=rank.__getitem__))
    if subset not in known:
      trial = decisions.checked(decisions.Trial(score=evaluate(subset)), subset)
      known[subset] = trial.score
    return known[subset]

  shape = len(orders), len(counts)
  result = {key: np.zeros(shape) for key in ("sizes", "scores", "best")}
  for place in np.ndindex(shape):
    pool = sorted(orders[place[0]][: counts[place[1]]], key=rank.__getitem__)
    soup, bar = [], None
    for name in pool:
      trial = decisions.Trial(score=score([*soup, name]))
      decision = decisions.decide(name, trial, bar, rule, len(soup))
      if decision.accepted:
        soup, bar = [*soup, name], decision.score
    result["sizes"][place], result["scores"][place] = len(soup), bar
    result["best"][place] = max(score([name]) for name in pool)
  return Growth(counts=np.array(counts), **result)


def hyperparameters_of(
  chosen: Sequence[str], hyperparameters: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[list[Any], list[Any]]]:
  """Returns hyperparameters that differ, of the chosen and of other models.

  Args:
    chosen: names of the chosen models.
    hyperparameters: name of a model -> its hyperparameters.

  Returns:
    Hyperparameter -> its values in the chosen models and in the others; None
    where it is missing.
  """
  keys = dict.fromkeys(k for values in hyperparameters.values() for k in values)
  columns = {
    key: {name: v.get(key) for name, v in hyperparameters.items()}
    for key in keys
  }
  return {
    key: (
      [v for name, v in column.items() if name in chosen],
      [v for name, v in column.items() if name not in chosen],
    )
    for key, column in columns.items()
    if len({repr(v) for v in column.values()}) > 1
  }
