# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Greedy ensembles (arXiv 2203.05482, Table 3): greedy soups of outputs."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import numpy as np

from soupjax.soups.core import arguments
from soupjax.soups.core.ingredient import Ingredient
from soupjax.soups.greedy.decisions import Decision
from soupjax.soups.greedy.soup import greedy_soup


@dataclasses.dataclass(frozen=True, kw_only=True)
class GreedyEnsemble:
  """A greedy ensemble and how it came about.

  Attributes:
    logits: the mean of the members' logits, float32, on the host.
    selected: names of the members, in the order they went in; with replacement
      a name may be there more than once. `ensemble_logits` of their logits on
      other data is the ensemble there.
    history: every decision, in order.
  """

  logits: np.ndarray
  selected: tuple[str, ...]
  history: tuple[Decision, ...]

  @property
  def score(self) -> float:
    """Held-out score of the ensemble."""
    scores = [d.score for d in self.history if d.accepted]
    return [score for score in scores if score is not None][-1]


def greedy_ensemble(
  logits: Mapping[str, Any],
  evaluate: Callable[[np.ndarray], float],
  **settings: Any,
) -> GreedyEnsemble:
  """Adds models to an ensemble one by one, keeping those that do not hurt.

  The same loop as `greedy_soup`, over outputs instead of weights: the same
  records, resumption and ends.

  Args:
    logits: model -> its logits on held-out data, of one shape, as (images,
      classes); in the order to try, best first.
    evaluate: maps the mean of logits, of that shape, to a held-out score. If it
      has an attribute `mode`, that must be the `mode` of the settings.
    **settings: of `greedy_soup`: `mode`, `accept`, `min_delta`, `turns`,
      `resume`, `on_decision`, `early_reject`.

  Returns:
    The ensemble and the record of every decision.

  Raises:
    ValueError: as `greedy_soup`, or if logits are no arrays of numbers.

  Examples:
    >>> labels = jnp.array([0, 1, 1])
    >>> logits = {
    ...   "a": jnp.array([[2.0, 0.0], [0.5, 0.0], [0.0, 1.0]]),
    ...   "b": jnp.array([[0.0, 0.2], [0.0, 2.0], [0.0, 1.0]]),
    ... }
    >>> def accuracy(logits):
    ...   return float((logits.argmax(-1) == labels).mean())
    >>> sj.greedy_ensemble(logits, accuracy).selected
    ('a', 'b')
  """
  if not isinstance(logits, Mapping):
    raise ValueError(
      "logits must map names of models to arrays, got a "
      f"{type(logits).__name__}."
    )
  members = []
  for name, array in logits.items():
    found = arguments.numbers(array)
    if found is None:
      raise ValueError(
        f"The logits of {name!r} are no array of numbers but a "
        f"{type(array).__name__}: {array!r:.80}."
      )
    tree = {"logits": found.astype(np.float32)}
    members.append(Ingredient.from_params(name, tree))
  soup = greedy_soup(members, _OfLogits(evaluate), **settings)
  return GreedyEnsemble(
    logits=np.asarray(soup.params["logits"]),
    selected=soup.selected,
    history=soup.history,
  )


class _OfLogits:
  """Passes what an evaluator is, without the tree around the logits."""

  def __init__(self, evaluate):
    self.evaluate = evaluate
    if hasattr(evaluate, "mode"):
      self.mode = evaluate.mode
    if hasattr(evaluate, "evaluate_until"):
      self.evaluate_until = self._evaluate_until
      self.set_incumbent = evaluate.set_incumbent

  def __call__(self, params):
    return self.evaluate(np.asarray(params["logits"]))

  def _evaluate_until(self, params, can_reach):
    return self.evaluate.evaluate_until(np.asarray(params["logits"]), can_reach)
