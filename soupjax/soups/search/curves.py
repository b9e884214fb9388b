# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Searches along one line: WiSE-FT, task arithmetic, analogies."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from soupjax.soups.core import arguments
from soupjax.soups.core.ingredient import (
  Model,
)
from soupjax.soups.search import candidates
from soupjax.soups.search.candidates import Candidate, Scorer, Search
from soupjax.soups.search.interpolate import Blend, directions_of

PyTree = Any
Resume = Sequence[Candidate | Mapping[str, Any]]
Save = Callable[[Candidate], None]


def wise_ft_curve(
  pretrained: Model,
  finetuned: Model,
  evaluate: Callable[[PyTree], Any],
  alphas: Sequence[float] = tuple(np.linspace(0, 1, 11)),
  *,
  choose_on: str | None = None,
  resume: Resume | None = None,
  on_candidate: Save | None = None,
  **reading: Any,
) -> Search:
  """Scores the way from a pretrained to a fine-tuned model (arXiv 2109.01903).

  Args:
    pretrained: with a head that works; a tree or an ingredient.
    finetuned: fine-tuned from it.
    evaluate: one score, or scores on several datasets, higher is better.
    alphas: shares of the fine-tuned model.
    choose_on: the held-out dataset on which alpha is chosen; the scores on
      others are only recorded. May be left out if there is one dataset.
    resume: candidates of an earlier run; they are not evaluated again.
    on_candidate: called with every new candidate, to save it.
    **reading: `in_memory` and `sharding` of `Blend`.

  Returns:
    The curve, and the model at the best alpha.

  Raises:
    ValueError: if models or alphas do not fit, a score is not finite, or
      `choose_on` is no dataset.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> pretrained = make("zero-shot", {"w": jnp.array(0.0)})
    >>> finetuned = make("tuned", {"w": jnp.array(1.0)})
    >>> def evaluate(params):
    ...   return -abs(float(params["w"]) - 0.3)
    >>> curve = sj.search.wise_ft_curve(
    ...   pretrained, finetuned, evaluate, alphas=[0, 0.25, 0.5, 1])
    >>> curve.best.coefficients
    (0.25,)
  """
  return _line(
    "wise_ft",
    Blend(pretrained, [finetuned], **reading),
    evaluate,
    candidates.grid("alphas", alphas),
    choose_on,
    resume,
    on_candidate,
  )


def analogy(
  a: Model,
  b: Model,
  c: Model,
  evaluate: Callable[[PyTree], Any],
  scales: Sequence[float] = tuple(np.linspace(0, 1, 11)),
  *,
  choose_on: str | None = None,
  resume: Resume | None = None,
  on_candidate: Save | None = None,
  **reading: Any,
) -> Search:
  """A is to B as C is to D: `c + scale * (b - a)` (arXiv 2212.04089, sec. 5).

  Args:
    a: model of the task that b changes; all three are fine-tuned from one
      pretrained model.
    b: model of the changed task.
    c: model of the task to change in the same way. Scale 0 is this one.
    evaluate: scores on held-out data of task D, or of several, higher is
      better. A little of it is enough: only the scale rests on it.
    scales: what to try.
    choose_on: as in `wise_ft_curve`.
    resume: as in `wise_ft_curve`.
    on_candidate: as in `wise_ft_curve`.
    **reading: `in_memory` and `sharding` of `Blend`.

  Returns:
    The curve, and the model at the best scale.

  Raises:
    ValueError: as `wise_ft_curve`.
  """
  scales = candidates.grid("scales", scales)
  # From c to b and from c to a: c itself cancels.
  blend = Blend(c, [b, a], **reading)
  return _line(
    "analogy",
    _Combined(blend, [1.0, -1.0]),
    evaluate,
    scales,
    choose_on,
    resume,
    on_candidate,
  )


class _Combined:
  """A blend whose directions share one coefficient, up to fixed factors."""

  def __init__(self, blend: Blend, factors: Sequence[float]):
    self.blend, self.factors, self.size = blend, factors, 1

  def __call__(self, coefficients):
    return self.blend([coefficients[0] * f for f in self.factors])


def _line(method, blend, evaluate, values, choose_on, resume, on_candidate):
  def check(scores):
    if choose_on is not None:
      candidates.names_in("choose_on", [choose_on], scores)
    elif len(scores) > 1:
      raise ValueError(
        f"evaluate returns scores on {sorted(scores)}: say with choose_on "
        "which of them is held out for the choice."
      )

  scorer = Scorer(blend, evaluate, check, resume, on_candidate)
  for value in values:
    scorer([value])
  name = choose_on or next(iter(next(iter(scorer.scored.values()))))
  what = "score" if name == "score" else f"score on {name}"
  return candidates.choose(method, scorer, lambda s: s[name], what=what)


def task_scale(
  pretrained: Model,
  tasks: Sequence[Any],
  evaluate: Callable[[PyTree], Any],
  scales: Sequence[float] = tuple(np.linspace(0, 1, 21)),
  *,
  negate: bool = False,
  control: str | None = None,
  keep: float = 0.95,
  finetuned_scores: Mapping[str, float] | None = None,
  resume: Resume | None = None,
  on_candidate: Save | None = None,
  **reading: Any,
) -> Search:
  """Task arithmetic with one scale for the sum of tasks (arXiv 2212.04089).

  Tries `pretrained + scale * sum_k tau_k`, and chooses the highest mean score
  over all datasets but the control; with `negate` tries
  `pretrained - scale * sum_k tau_k` and chooses the lowest: the most
  forgetting. Scale 0, the pretrained model, is always tried first.

  Args:
    pretrained: a tree or an ingredient.
    tasks: models fine-tuned from it, or `sj.TaskVector`s.
    evaluate: scores on held-out data by dataset, higher is better.
    scales: what to try; the paper's grid is the default.
    negate: whether to forget the tasks instead of learning them.
    control: dataset on which candidates must keep up, such as the paper's
      ImageNet; None asks for nothing.
    keep: share of the pretrained model's score on it that must be left.
    finetuned_scores: task -> score of the model fine-tuned on it alone: then
      the mean is the `normalized_accuracy`. It must name every dataset but the
      control.
    resume: as in `wise_ft_curve`.
    on_candidate: as in `wise_ft_curve`.
    **reading: `in_memory` and `sharding` of `Blend`.

  Returns:
    The curve, and the model at the best scale.

  Raises:
    ValueError: as `wise_ft_curve`, or if nothing is left besides the control.

  Examples:
    >>> pretrained = {"w": jnp.array([0.0, 0.0])}
    >>> cars, dtd = {"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 1.0])}
    >>> vectors = [sj.TaskVector(pretrained, model) for model in (cars, dtd)]
    >>> def evaluate(params):  # One held-out score a task.
    ...   return {"cars": 1 - abs(float(params["w"][0]) - 0.4),
    ...           "dtd": 1 - abs(float(params["w"][1]) - 0.4)}
    >>> search = sj.search.task_scale(
    ...   pretrained, vectors, evaluate, scales=[0.2, 0.4, 0.6])
    >>> search.best.coefficients
    (0.4,)
  """
  tasks = directions_of(tasks)
  scales = candidates.grid("scales", scales)
  keep = arguments.number(
    "keep", keep, "be between 0 and 1", lambda x: 0 <= x <= 1
  )

  def check(scores):
    if control is not None:
      candidates.names_in("control", [control], scores)
      if scores[control] < 0:
        raise ValueError(
          f"control {control!r} scores {scores[control]:.4g}: a share of a "
          "negative score is no bound. Give an accuracy."
        )
    wanted = set(scores) - {control}
    if not wanted:
      raise ValueError(f"evaluate returns no dataset but {control!r}.")
    if finetuned_scores is not None and wanted != set(finetuned_scores):
      raise ValueError(
        f"finetuned_scores names {sorted(finetuned_scores)}, but evaluate "
        f"returns scores on {sorted(wanted)} besides the control."
      )

  def mean(scores):
    rest = {name: s for name, s in scores.items() if name != control}
    own = finetuned_scores or dict.fromkeys(rest, 1.0)
    return candidates.normalized_accuracy(rest, own)

  blend = Blend(pretrained, tasks, **reading)
  combined = _Combined(blend, [-1.0 if negate else 1.0] * len(tasks))
  scorer = Scorer(combined, evaluate, check, resume, on_candidate)
  start = scorer([0.0])
  for scale in scales:
    scorer([scale])

  def forbidden(scores):
    if control is None or scores[control] >= keep * start[control]:
      return None
    return (
      f"{control} is {scores[control]:.4g}, below {keep:.4g} of the "
      f"pretrained model's {start[control]:.4g}"
    )

  kind = "normalised accuracy" if finetuned_scores else "mean score"
  return candidates.choose(
    "negation" if negate else "addition",
    scorer,
    (lambda scores: -mean(scores)) if negate else mean,
    what=f"(lowest) {kind}" if negate else kind,
    forbidden=forbidden,
  )
