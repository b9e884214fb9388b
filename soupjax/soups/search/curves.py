# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Searches along one line: WiSE-FT, task arithmetic, analogies."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from soupjax.soups.core import arguments
from soupjax.soups.core.ingredient import Model
from soupjax.soups.search import candidates
from soupjax.soups.search.candidates import Resume, Save, Scorer, Search
from soupjax.soups.search.interpolate import Blend, directions_of

PyTree = Any


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
  """Scores the line from a pretrained to a fine-tuned model (arXiv 2109.01903).

  Args:
    pretrained: a model in any form, with a zero-shot or trained head.
    finetuned: the model that was fine-tuned from it.
    evaluate: returns one score, or scores by dataset; higher is better.
    alphas: shares of the fine-tuned model.
    choose_on: the held-out dataset on which alpha is chosen; scores on other
      datasets are only recorded. Not needed for a single dataset.
    resume: candidates of an earlier run, which are not evaluated again.
    on_candidate: called with every new candidate, to save it.
    **reading: `in_memory`, `select`, `dtype` and `sharding` of `Blend`.

  Returns:
    The curve, and the model at the best alpha.

  Raises:
    ValueError: if models do not fit together, alphas are invalid, a score is
      not finite, or `choose_on` is not a dataset of the scores.

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
  alphas = candidates.grid("alphas", alphas)
  blend = Blend(pretrained, [finetuned], **reading)
  return _line(
    "wise_ft", blend, evaluate, alphas, choose_on, resume, on_candidate
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
  """Task analogies, `c + scale * (b - a)` (arXiv 2212.04089, section 5).

  A is to B as C is to D: the result is a model of task D, without training on
  its data.

  Args:
    a: model of task A; all three are fine-tuned from one pretrained model.
    b: model of task B.
    c: model of task C, which scale 0 returns.
    evaluate: returns the score on held-out data of task D, or scores by
      dataset; higher is better. Little data is enough to choose the scale.
    scales: scales to try.
    choose_on: as in `wise_ft_curve`.
    resume: as in `wise_ft_curve`.
    on_candidate: as in `wise_ft_curve`.
    **reading: `in_memory`, `select`, `dtype` and `sharding` of `Blend`.

  Returns:
    The curve, and the model at the best scale.

  Raises:
    ValueError: as in `wise_ft_curve`.
  """
  scales = candidates.grid("scales", scales)
  # The directions are b - c and a - c, so c cancels in their difference.
  blend = _SharedScale(Blend(c, [b, a], **reading), [1.0, -1.0])
  return _line(
    "analogy", blend, evaluate, scales, choose_on, resume, on_candidate
  )


class _SharedScale:
  """A blend with one coefficient, times a fixed factor for each direction."""

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
        f"evaluate returns scores on {sorted(scores)}: set choose_on to the "
        "dataset that is held out for the choice."
      )

  scorer = Scorer(blend, evaluate, check, resume, on_candidate)
  scorer.each([value] for value in values)
  name = choose_on or next(iter(next(iter(scorer.scored.values()))))
  label = "score" if name == "score" else f"score on {name}"
  return candidates.choose(method, scorer, lambda s: s[name], label=label)


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

  Tries `pretrained + scale * sum_k tau_k` and chooses the highest mean score
  over all datasets except the control. With `negate`, tries `pretrained - scale
  * sum_k tau_k` and chooses the lowest mean, which forgets most. Scale 0, the
  pretrained model, is always tried first.

  Args:
    pretrained: a model in any form.
    tasks: models fine-tuned from it, or `sj.TaskVector`s.
    evaluate: returns scores on held-out data by dataset; higher is better.
    scales: scales to try; the default is the paper's grid.
    negate: whether to forget the tasks instead of learning them.
    control: dataset on which candidates must not get much worse, such as the
      paper's ImageNet; None sets no condition.
    keep: share of the pretrained model's score on the control that candidates
      must reach.
    finetuned_scores: task -> score of the model fine-tuned on it alone, to use
      the `normalized_accuracy` instead of the mean score. It must name every
      dataset except the control.
    resume: as in `wise_ft_curve`.
    on_candidate: as in `wise_ft_curve`.
    **reading: `in_memory`, `select`, `dtype` and `sharding` of `Blend`.

  Returns:
    The curve, and the model at the best scale.

  Raises:
    ValueError: if models do not fit together, scales or `keep` are invalid, a
      score is not finite, or scores have the wrong datasets.

  Examples:
    >>> pretrained = {"w": jnp.array([0.0, 0.0])}
    >>> cars, dtd = {"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 1.0])}
    >>> vectors = [sj.TaskVector(pretrained, model) for model in (cars, dtd)]
    >>> def evaluate(params):  # One held-out score per task.
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
          f"control {control!r} scores {scores[control]:.4g}, but it must not "
          "be negative, because candidates must reach a share of it. Use a "
          "metric such as accuracy."
        )
    names = set(scores) - {control}
    if not names:
      raise ValueError(
        f"evaluate returns a score on {control!r} only, which is the control: "
        "add the scores on the tasks."
      )
    if finetuned_scores is not None and names != set(finetuned_scores):
      raise ValueError(
        f"finetuned_scores names {sorted(finetuned_scores)}, but evaluate "
        f"returns scores on {sorted(names)} besides the control."
      )

  def mean(scores):
    rest = {name: s for name, s in scores.items() if name != control}
    own = finetuned_scores or dict.fromkeys(rest, 1.0)
    return candidates.normalized_accuracy(rest, own)

  factors = [-1.0 if negate else 1.0] * len(tasks)
  blend = _SharedScale(Blend(pretrained, tasks, **reading), factors)
  scorer = Scorer(blend, evaluate, check, resume, on_candidate)
  scorer.each([scale] for scale in [0.0, *scales])
  start = scorer([0.0])

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
    label=f"(lowest) {kind}" if negate else kind,
    forbidden=forbidden,
  )
