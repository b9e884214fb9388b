# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Patching by interpolation (PAINT, arXiv 2208.05592).

A patching task is one that the model is to learn, a supported task one that it
must not forget. All patches maximise the mean of two means, over the scores on
patching and on supported tasks (the paper's combined accuracy, for one of
each). Heads are not merged: freeze every task's head, and let `evaluate` put it
on.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from soupjax.soups.core import arguments
from soupjax.soups.core.ingredient import (
  Model,
  as_ingredient,
)
from soupjax.soups.search import blackbox, candidates
from soupjax.soups.search.candidates import Candidate, Scorer, Search
from soupjax.soups.search.interpolate import Blend, directions_of

PyTree = Any
_ALPHAS = tuple(np.linspace(0, 1, 11))
_WHAT = "mean of patching and supported tasks"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sequential:
  """What patching one task after another gave.

  Attributes:
    params: the model after the last round.
    rounds: the search of every round, in order.
  """

  params: PyTree
  rounds: tuple[Search, ...]


def paint(
  pretrained: Model,
  finetuned: Model,
  evaluate: Callable[[PyTree], Mapping[str, float]],
  alphas: Sequence[float] = _ALPHAS,
  *,
  patching: Sequence[str],
  supported: Sequence[str],
  resume: Sequence[Candidate | Mapping[str, Any]] | None = None,
  on_candidate: Callable[[Candidate], None] | None = None,
  **reading: Any,
) -> Search:
  """Single patching: `(1 - alpha) * pretrained + alpha * finetuned`.

  With a model fine-tuned on the data of several tasks together, and all of them
  in `patching`, this is the paper's joint patching.

  Args:
    pretrained: a tree or an ingredient.
    finetuned: fine-tuned from it on the patching tasks.
    evaluate: scores on held-out data by task, higher is better.
    alphas: what to try.
    patching: names of the patching tasks.
    supported: names of the supported tasks.
    resume: candidates of an earlier run; they are not evaluated again.
    on_candidate: called with every new candidate, to save it.
    **reading: `in_memory` and `sharding` of `Blend`.

  Returns:
    The curve, and the patched model.

  Raises:
    ValueError: if models or alphas do not fit, a task has no score, or one is
      not finite.
  """
  alphas = candidates.grid("alphas", alphas)
  combined, check = _combined(patching, supported)
  blend = Blend(pretrained, [finetuned], **reading)
  scorer = Scorer(blend, evaluate, check, resume, on_candidate)
  for alpha in alphas:
    scorer([alpha])
  return candidates.choose("paint", scorer, combined, what=_WHAT)


def paint_sequential(
  pretrained: Model,
  finetune: Callable[[PyTree, str], Model],
  evaluate: Callable[[PyTree], Mapping[str, float]],
  alphas: Sequence[float] = _ALPHAS,
  *,
  patching: Sequence[str],
  supported: Sequence[str],
  **reading: Any,
) -> Sequential:
  """Patches one task after another, each from the model patched before.

  Every round has an alpha of its own, chosen on the supported tasks and all
  patching tasks up to that round.

  Args:
    pretrained: a tree or an ingredient.
    finetune: `finetune(params, task)` returns what fine-tuning on a task from
      there gives. To go on after a kill, let it return what an earlier call
      saved.
    evaluate: as in `paint`.
    alphas: what to try in every round.
    patching: names of the tasks, in the order in which they are patched.
    supported: as in `paint`.
    **reading: as in `paint`.

  Returns:
    The searches, and the model after the last.

  Raises:
    ValueError: as `paint`.
  """
  alphas = candidates.grid("alphas", alphas)
  # Before any fine-tuning.
  _combined(patching, supported)
  arguments.higher_is_better(evaluate)
  model, rounds = pretrained, []
  for k, task in enumerate(patching):
    params = as_ingredient(model, "pretrained").load()
    rounds.append(
      paint(
        model,
        finetune(params, task),
        evaluate,
        alphas,
        patching=patching[: k + 1],
        supported=supported,
        **reading,
      )
    )
    model = rounds[-1].params
  return Sequential(params=model, rounds=tuple(rounds))


def paint_parallel(
  pretrained: Model,
  tasks: Sequence[Any],
  evaluate: Callable[[PyTree], Mapping[str, float]],
  alphas: Sequence[float] = _ALPHAS,
  *,
  patching: Sequence[str],
  supported: Sequence[str],
  budget: int = 50,
  resume: Sequence[Candidate | Mapping[str, Any]] | None = None,
  on_candidate: Callable[[Candidate], None] | None = None,
  **reading: Any,
) -> Search:
  """Parallel patching: `pretrained + sum_k a_k tau_k`, searched over all a_k.

  First tries equal coefficients, as task arithmetic does (1 / K each is the
  uniform soup of the fine-tuned models); then searches the box [0, 1]^K from
  the best of them. The search is deterministic.

  Args:
    pretrained: a tree or an ingredient.
    tasks: models fine-tuned from it, one a task, or `sj.TaskVector`s.
    evaluate: as in `paint`.
    alphas: the equal coefficients to try, in [0, 1].
    patching: as in `paint`.
    supported: as in `paint`.
    budget: evaluations in all, those with equal coefficients included.
    resume: as in `paint`.
    on_candidate: as in `paint`.
    **reading: as in `paint`.

  Returns:
    The search, and the patched model.

  Raises:
    ValueError: as `paint`, or if the budget does not cover `alphas`, or one is
      outside of [0, 1].
    TypeError: if one of `tasks` is not a model.
  """
  tasks = directions_of(tasks)
  alphas = candidates.grid("alphas", alphas)
  outside = [alpha for alpha in alphas if not 0 <= alpha <= 1]
  if outside:
    raise ValueError(
      f"alphas has {outside}: parallel patching searches between 0 and 1."
    )
  if arguments.count("budget", budget) < len(alphas):
    raise ValueError(
      f"budget={budget} does not cover the {len(alphas)} alphas that come "
      "first."
    )
  combined, check = _combined(patching, supported)
  blend = Blend(pretrained, tasks, **reading)
  scorer = Scorer(blend, evaluate, check, resume, on_candidate)

  def value(coefficients):
    return combined(scorer(coefficients))

  equal = [[alpha] * len(tasks) for alpha in alphas]
  start = max(equal, key=value)
  blackbox.maximize(
    value, start, budget - len(scorer.scored), known=scorer.scored
  )
  return candidates.choose("paint_parallel", scorer, combined, what=_WHAT)


def _combined(patching, supported):
  """The value of scores, and their check."""
  for name, tasks in (("patching", patching), ("supported", supported)):
    if isinstance(tasks, str) or not tasks:
      raise ValueError(f"{name} must be a list of names, got {tasks!r}.")
  both = sorted(set(patching) & set(supported))
  if both:
    raise ValueError(f"{both} are patching and supported tasks: choose one.")

  def check(scores):
    candidates.names_in("patching", patching, scores)
    candidates.names_in("supported", supported, scores)

  def value(scores):
    new = float(np.mean([scores[task] for task in patching]))
    return (new + float(np.mean([scores[t] for t in supported]))) / 2

  return value, check
