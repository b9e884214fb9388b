# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Greedy ensembles (arXiv 2203.05482, Table 3): greedy soups of outputs."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import numpy as np

from soupjax.soups.core import arguments
from soupjax.soups.core.ingredient import Ingredient
from soupjax.soups.greedy.decisions import Decision, final_score
from soupjax.soups.greedy.soup import greedy_soup


@dataclasses.dataclass(frozen=True, kw_only=True)
class GreedyEnsemble:
  """A greedy ensemble and the decisions that led to it.

  Attributes:
    logits: the mean of the members' logits, float32, on the host.
    selected: names of the members, in the order in which they were added; with
      replacement, names may repeat. On other data, the ensemble is
      `ensemble_logits` of the logits of these models.
    history: every decision, in order.
  """

  logits: np.ndarray
  selected: tuple[str, ...]
  history: tuple[Decision, ...]

  @property
  def score(self) -> float:
    """Held-out score of the ensemble."""
    return final_score(self.history)


def greedy_ensemble(
  logits: Mapping[str, Any],
  evaluate: Callable[[np.ndarray], float],
  **settings: Any,
) -> GreedyEnsemble:
  """Adds models to an ensemble one by one, keeping those that do not hurt.

  This is the loop of `greedy_soup` over outputs instead of weights, with the
  same records, resumption and stopping rules.

  Args:
    logits: name of a model -> its logits on held-out data, such as (images,
      classes); of the same shape for all models, in the order to try, best
      first.
    evaluate: maps mean logits of that shape to a held-out score. If it has an
      attribute `mode`, that must be the `mode` of the settings.
    **settings: of `greedy_soup`: `mode`, `accept`, `min_delta`, `turns`,
      `resume`, `on_decision`, `early_reject`.

  Returns:
    The ensemble and the record of every decision.

  Raises:
    ValueError: as in `greedy_soup`, or if logits are not an array of numbers.

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
    values = arguments.numbers(array)
    if values is None:
      raise ValueError(
        f"The logits of {name!r} must be an array of numbers, got a "
        f"{type(array).__name__}: {array!r:.80}."
      )
    tree = {"logits": values.astype(np.float32)}
    members.append(Ingredient.from_params(name, tree))
  soup = greedy_soup(members, _OnTrees(evaluate), **settings)
  return GreedyEnsemble(
    logits=np.asarray(soup.params["logits"]),
    selected=soup.selected,
    history=soup.history,
  )


class _OnTrees:
  """Makes an evaluator of logits accept trees that contain them."""

  def __init__(self, evaluate):
    self.evaluate = evaluate
    if hasattr(evaluate, "mode"):
      self.mode = evaluate.mode
    if hasattr(evaluate, "evaluate_until"):
      self.evaluate_until = self._evaluate_until
      self.set_incumbent = evaluate.set_incumbent

  def __call__(self, params):
    return self.evaluate(np.array(params["logits"]))

  def _evaluate_until(self, params, can_reach):
    return self.evaluate.evaluate_until(np.array(params["logits"]), can_reach)
