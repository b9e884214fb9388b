# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Candidates of a search, their scores, and the choice among them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import math
from typing import Any

from soupjax.soups.core import arguments

PyTree = Any
Scores = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
  """One trial of a search.

  Attributes:
    coefficients: one number per direction.
    scores: held-out scores by dataset; {"score": ...} for a single score.
    value: the objective of the search; None before the choice.
    chosen: whether this candidate was chosen.
    reason: the reason for the choice in words.
  """

  coefficients: tuple[float, ...]
  scores: Scores
  value: float | None = None
  chosen: bool = False
  reason: str = ""


Resume = Sequence[Candidate | Mapping[str, Any]]
Save = Callable[[Candidate], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
  """The result of a search.

  Attributes:
    method: name of the method, such as "wise_ft".
    params: the chosen model.
    history: all candidates, in the order in which they were tried.
  """

  method: str
  params: PyTree
  history: tuple[Candidate, ...]

  @property
  def best(self) -> Candidate:
    """The candidate that was chosen."""
    return next(c for c in self.history if c.chosen)

  def curve(self, name: str) -> list[tuple[float, float]]:
    """Returns pairs (coefficient, score on `name`), lowest coefficient first.

    Raises:
      ValueError: if there are several directions, or no such dataset.
    """
    if len(self.best.coefficients) != 1:
      raise ValueError(
        f"A curve needs one coefficient, but {self.method} has "
        f"{len(self.best.coefficients)}."
      )
    if name not in self.best.scores:
      raise ValueError(
        f"There are scores on {sorted(self.best.scores)}, but not on {name!r}."
      )
    return sorted((c.coefficients[0], c.scores[name]) for c in self.history)

  def table(self) -> str:
    """Formats the candidates as plain text, one per line."""
    names = list(self.best.scores)
    lines = ["  ".join(["coefficients", *names, "value", "why"])]
    for c in self.history:
      cells = [" ".join(f"{x:.3f}" for x in c.coefficients)]
      cells += [f"{c.scores[name]:.4f}".rjust(len(name)) for name in names]
      cells += [f"{c.value:.4f}", c.reason]
      lines.append("  ".join([cells[0].rjust(12), *cells[1:]]))
    return "\n".join(lines)


class Scorer:
  """Evaluates every candidate once and records its scores."""

  def __init__(
    self,
    blend: Any,
    evaluate: Callable[[PyTree], Any],
    check: Callable[[Scores], None],
    resume: Resume | None,
    on_candidate: Save | None,
  ):
    """Checks the evaluator and the candidates to resume from.

    Args:
      blend: makes candidates: a `Blend`, or a function with its `size`.
      evaluate: see `soupjax.soups.search`.
      check: called with the first scores; raises a ValueError if they lack a
        dataset that the search needs.
      resume: candidates of an earlier run, which are not evaluated again.
      on_candidate: called with every new candidate, to save it.

    Raises:
      ValueError: if `resume` has an entry that is not a candidate of this
        search, or lower is better for `evaluate`.
    """
    arguments.higher_is_better(evaluate)
    self.blend, self.evaluate, self.check = blend, evaluate, check
    self.on_candidate = on_candidate
    self.scored: dict[tuple[float, ...], Scores] = {}
    self._past: dict[tuple[float, ...], Scores] = {}
    self._names: list[str] | None = None
    for k, past in enumerate(resume or ()):
      fields = dataclasses.asdict(past) if isinstance(past, Candidate) else past
      try:
        coefficients = tuple(map(float, fields["coefficients"]))
        scores = dict(fields["scores"])
      except (TypeError, KeyError, ValueError) as e:
        raise ValueError(
          f"Entry {k} of resume is not a candidate ({e!r}): {past!r:.80}."
        ) from e
      if len(coefficients) != blend.size:
        raise ValueError(
          f"Candidate {k} of resume has {len(coefficients)} coefficients, but "
          f"this search has {blend.size}."
        )
      self._past[coefficients] = scores

  def each(self, points: Iterable[Sequence[float]]) -> None:
    """Evaluates candidates in this order.

    If the evaluator has a method `ahead`, it is called before each evaluation
    with all remaining new candidates, as key -> function that returns the
    model, so that it can begin with them. Keys stay the same in all calls.
    """
    left = [tuple(map(float, point)) for point in points]
    ahead = getattr(self.evaluate, "ahead", None)
    while left:
      if ahead is not None:
        new = [c for c in left if c not in self.scored and c not in self._past]
        ahead({(self, c): functools.partial(self.blend, c) for c in new})
      self(left.pop(0))

  def __call__(self, coefficients: Sequence[float]) -> Scores:
    """Returns the scores of a candidate.

    Raises:
      ValueError: if a score is not a finite number, or the datasets are not
        those of the first candidate.
    """
    coefficients = tuple(float(c) for c in coefficients)
    if coefficients in self.scored:
      return self.scored[coefficients]
    is_new = coefficients not in self._past
    scores = _as_scores(
      arguments.call(self.evaluate, self.blend(coefficients))
      if is_new
      else self._past[coefficients],
      coefficients,
    )
    if self._names is None:
      self.check(scores)
      self._names = sorted(scores)
    if sorted(scores) != self._names:
      raise ValueError(
        f"Coefficients {coefficients} have scores on {sorted(scores)}, earlier "
        f"candidates on {self._names}: evaluate must return the same datasets "
        "every time."
      )
    self.scored[coefficients] = scores
    if self.on_candidate and is_new:
      self.on_candidate(Candidate(coefficients=coefficients, scores=scores))
    return scores


def _as_scores(result: Any, coefficients: tuple[float, ...]) -> Scores:
  scores = dict(result) if isinstance(result, Mapping) else {"score": result}
  if not scores:
    raise ValueError(
      f"evaluate returned no scores for coefficients {coefficients}."
    )
  for name, value in scores.items():
    number = arguments.as_number(value)
    if number is None or not math.isfinite(number):
      raise ValueError(
        f"evaluate returned {value!r:.80} on {name!r} for coefficients "
        f"{coefficients}: scores must be finite numbers."
      )
    scores[name] = number
  return scores


def choose(
  method: str,
  scorer: Scorer,
  value: Callable[[Scores], float],
  *,
  label: str,
  forbidden: Callable[[Scores], str | None] = lambda scores: None,
) -> Search:
  """Chooses the candidate with the highest value; the first one of a tie.

  Args:
    method: see `Search`.
    scorer: holds the candidates and their scores.
    value: the objective, which is maximised.
    label: the objective in words, such as "mean of ...".
    forbidden: returns why a candidate may not be chosen, None if it may. At
      least one candidate must be allowed.
  """
  values = {c: value(scores) for c, scores in scorer.scored.items()}
  refusals = {c: forbidden(scores) for c, scores in scorer.scored.items()}
  allowed = [c for c in values if refusals[c] is None]
  best = max(allowed, key=values.__getitem__)  # The first one of a tie.
  history = []
  for coefficients, scores in scorer.scored.items():
    if coefficients == best:
      reason = f"the best {label}"
    elif refusal := refusals[coefficients]:
      reason = refusal
    elif values[coefficients] == values[best]:
      reason = "as good as the chosen one, but tried later"
    else:
      gap = values[best] - values[coefficients]
      reason = f"{gap:.4g} below the best {label}"
    history.append(
      Candidate(
        coefficients=coefficients,
        scores=scores,
        value=values[coefficients],
        chosen=coefficients == best,
        reason=reason,
      )
    )
  return Search(
    method=method, params=scorer.blend(best), history=tuple(history)
  )


def normalized_accuracy(
  scores: Mapping[str, float], finetuned_scores: Mapping[str, float]
) -> float:
  """Averages the ratios of merged to fine-tuned scores over tasks.

  This is the normalised accuracy of arXiv 2212.04089, section 4. At 1, the
  merged model is on average as good as one fine-tuned model per task.

  Args:
    scores: task -> score of the merged model; other datasets are ignored.
    finetuned_scores: task -> score of the model fine-tuned on it alone.

  Raises:
    ValueError: if there is no task, a task has no score, or a score to divide
      by is not positive.

  Examples:
    >>> own = {"cars": 0.8, "dtd": 0.5}
    >>> sj.search.normalized_accuracy({"cars": 0.4, "dtd": 0.5}, own)
    0.75
  """
  if not finetuned_scores:
    raise ValueError("finetuned_scores is empty: give one score per task.")
  ratios = []
  for task, own in finetuned_scores.items():
    if task not in scores:
      raise ValueError(
        f"There are scores on {sorted(scores)}, but not on task {task!r}."
      )
    own = arguments.number(f"The fine-tuned score on {task!r}", own)
    if own <= 0:
      raise ValueError(
        f"The fine-tuned score on {task!r} is {own}: it must be positive, such "
        "as an accuracy."
      )
    ratios.append(scores[task] / own)
  return sum(ratios) / len(ratios)


def grid(name: str, values: Sequence[float]) -> list[float]:
  """Returns a grid of coefficients as floats.

  Raises:
    ValueError: if it is empty, or not a list of finite numbers.
  """
  array = arguments.numbers(values)
  if array is None or array.ndim != 1 or not array.size:
    raise ValueError(
      f"{name} must be a sequence of numbers, got {values!r:.80}."
    )
  return [arguments.number(f"A value of {name}", x) for x in array.tolist()]


def names_in(
  argument: str, names: Sequence[str], scores: Mapping[str, float]
) -> None:
  """Checks that evaluate returns scores on all datasets of an argument.

  Raises:
    ValueError: listing the missing datasets.
  """
  missing = [name for name in names if name not in scores]
  if missing:
    raise ValueError(
      f"{argument} names {missing}, but evaluate returns scores on "
      f"{sorted(scores)}."
    )
