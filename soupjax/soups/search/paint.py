# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Patching by interpolation (PAINT, arXiv 2208.05592).

The model should learn the patching tasks without forgetting the supported
tasks. All searches maximise the average of the mean score on patching tasks and
the mean score on supported tasks (with one task of each kind, the paper's
combined accuracy). Heads are not merged: freeze the head of every task, and let
`evaluate` attach it.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from soupjax.soups.core import arguments
from soupjax.soups.core.ingredient import Model, as_ingredient
from soupjax.soups.search import blackbox, candidates
from soupjax.soups.search.candidates import Resume, Save, Scorer, Search
from soupjax.soups.search.interpolate import Blend, directions_of

PyTree = Any
_ALPHAS = tuple(np.linspace(0, 1, 11))
_LABEL = "mean of patching and supported tasks"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sequential:
  """The result of patching one task after another.

  Attributes:
    params: the model after the last task.
    rounds: the searches, one per task.
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
  resume: Resume | None = None,
  on_candidate: Save | None = None,
  **reading: Any,
) -> Search:
  """Single patching: `(1 - alpha) * pretrained + alpha * finetuned`.

  If the model was fine-tuned on several tasks together, and all are in
  `patching`, this is the paper's joint patching.

  Args:
    pretrained: a model in any form.
    finetuned: the model fine-tuned from it on the patching tasks.
    evaluate: returns scores on held-out data by task; higher is better.
    alphas: values of alpha to try.
    patching: names of the patching tasks.
    supported: names of the supported tasks.
    resume: candidates of an earlier run, which are not evaluated again.
    on_candidate: called with every new candidate, to save it.
    **reading: `in_memory`, `select`, `dtype` and `sharding` of `Blend`.

  Returns:
    The curve, and the patched model.

  Raises:
    ValueError: if models do not fit together, alphas are invalid, or the score
      of a task is missing or not finite.
  """
  alphas = candidates.grid("alphas", alphas)
  objective, check = _objective(patching, supported)
  blend = Blend(pretrained, [finetuned], **reading)
  scorer = Scorer(blend, evaluate, check, resume, on_candidate)
  scorer.each([alpha] for alpha in alphas)
  return candidates.choose("paint", scorer, objective, label=_LABEL)


def paint_sequential(
  pretrained: Model,
  finetune: Callable[[PyTree, str], Model],
  evaluate: Callable[[PyTree], Mapping[str, float]],
  alphas: Sequence[float] = _ALPHAS,
  *,
  patching: Sequence[str],
  supported: Sequence[str],
  saved: Callable[[str], Mapping[str, Any]] = lambda task: {},
  **reading: Any,
) -> Sequential:
  """Patches one task after another, each from the previously patched model.

  Every round chooses its own alpha on the supported tasks and the patching
  tasks so far.

  Args:
    pretrained: a model in any form.
    finetune: `finetune(params, task)` returns the model that was fine-tuned on
      a task from these parameters. To resume an interrupted run, let it return
      what an earlier call saved.
    evaluate: as in `paint`.
    alphas: values of alpha to try in every round.
    patching: names of the tasks, in the order in which they are patched.
    supported: as in `paint`.
    saved: task -> `resume` and `on_candidate` of its round, as in `paint`.
    **reading: as in `paint`.

  Returns:
    The searches, and the model after the last task.

  Raises:
    ValueError: as in `paint`.
  """
  alphas = candidates.grid("alphas", alphas)
  # Check the arguments before any fine-tuning.
  _objective(patching, supported)
  arguments.higher_is_better(evaluate)
  model, rounds = pretrained, []
  for k, task in enumerate(patching):
    params = as_ingredient(model, "pretrained").load()
    rounds.append(
      paint(
        model,
        arguments.call(finetune, params, task),
        evaluate,
        alphas,
        patching=patching[: k + 1],
        supported=supported,
        **saved(task),
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
  resume: Resume | None = None,
  on_candidate: Save | None = None,
  **reading: Any,
) -> Search:
  """Parallel patching: `pretrained + sum_k a_k tau_k`, searched over all a_k.

  First tries equal coefficients, as in task arithmetic (1 / K gives the uniform
  soup of the fine-tuned models). Then searches [0, 1]^K from the best of these.
  The search is deterministic.

  Args:
    pretrained: a model in any form.
    tasks: models fine-tuned from it, one per task, or `sj.TaskVector`s.
    evaluate: as in `paint`.
    alphas: the equal coefficients to try, in [0, 1].
    patching: as in `paint`.
    supported: as in `paint`.
    budget: total number of evaluations, including equal coefficients.
    resume: as in `paint`.
    on_candidate: as in `paint`.
    **reading: as in `paint`.

  Returns:
    The search, and the patched model.

  Raises:
    ValueError: as in `paint`, or if the budget does not cover `alphas`, or one
      of `alphas` is outside [0, 1].
    TypeError: if one of `tasks` is neither a model nor a task vector.
  """
  tasks = directions_of(tasks)
  alphas = candidates.grid("alphas", alphas)
  outside = [alpha for alpha in alphas if not 0 <= alpha <= 1]
  if outside:
    raise ValueError(
      f"alphas has {outside}: parallel patching searches between 0 and 1 only."
    )
  if arguments.count("budget", budget) < len(alphas):
    raise ValueError(
      f"budget={budget} does not cover the {len(alphas)} alphas, which are "
      "tried first. Raise budget, or give fewer alphas."
    )
  objective, check = _objective(patching, supported)
  blend = Blend(pretrained, tasks, **reading)
  scorer = Scorer(blend, evaluate, check, resume, on_candidate)

  def value(coefficients):
    return objective(scorer(coefficients))

  equal = [[alpha] * len(tasks) for alpha in alphas]
  scorer.each(equal)
  start = max(equal, key=value)
  blackbox.maximize(
    value, start, budget - len(scorer.scored), known=scorer.scored
  )
  return candidates.choose("paint_parallel", scorer, objective, label=_LABEL)


def _objective(patching, supported):
  """Returns two functions of scores: the objective, and a check of names."""
  for name, tasks in (("patching", patching), ("supported", supported)):
    if isinstance(tasks, str) or not tasks:
      raise ValueError(f"{name} must be a list of names, got {tasks!r}.")
  both = sorted(set(patching) & set(supported))
  if both:
    raise ValueError(f"Tasks {both} are in both patching and supported.")

  def check(scores):
    candidates.names_in("patching", patching, scores)
    candidates.names_in("supported", supported, scores)

  def value(scores):
    new = float(np.mean([scores[task] for task in patching]))
    return (new + float(np.mean([scores[t] for t in supported]))) / 2

  return value, check
