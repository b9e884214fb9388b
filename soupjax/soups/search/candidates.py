# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The candidates of a search, with their scores and the choice."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any

from soupjax.soups.core import arguments

PyTree = Any
Scores = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
  """One trial of a search.

  Attributes:
    coefficients: one a direction.
    scores: held-out scores, by dataset; {"score": ...} if there is one alone.
    value: what the search maximises; None before the choice.
    chosen: whether this is the one.
    reason: why, or why not, in words.
  """

  coefficients: tuple[float, ...]
  scores: Scores
  value: float | None = None
  chosen: bool = False
  reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
  """What a search found.

  Attributes:
    method: as "wise_ft".
    params: the chosen model.
    history: all candidates, in the order tried.
  """

  method: str
  params: PyTree
  history: tuple[Candidate, ...]

  @property
  def best(self) -> Candidate:
    """The candidate that was chosen."""
    return next(c for c in self.history if c.chosen)

  def curve(self, name: str) -> list[tuple[float, float]]:
    """(coefficient, score on `name`) by rising coefficient, for one direction.

    Raises:
      ValueError: if there are several directions, or no such dataset.
    """
    if len(self.best.coefficients) != 1:
      raise ValueError(
        f"A curve needs one coefficient, {self.method} has "
        f"{len(self.best.coefficients)}."
      )
    if name not in self.best.scores:
      raise ValueError(
        f"There are no scores on {name!r}, only on {sorted(self.best.scores)}."
      )
    return sorted((c.coefficients[0], c.scores[name]) for c in self.history)

  def table(self) -> str:
    """A line a candidate, as plain text."""
    names = list(self.best.scores)
    lines = ["  ".join(["coefficients", *names, "value", "why"])]
    for c in self.history:
      cells = [" ".join(f"{x:.3f}" for x in c.coefficients)]
      cells += [f"{c.scores[name]:.4f}".rjust(len(name)) for name in names]
      cells += [f"{c.value:.4f}", c.reason]
      lines.append("  ".join([cells[0].rjust(12), *cells[1:]]))
    return "\n".join(lines)


class Scorer:
  """Evaluates candidates, each once, and remembers them all."""

  def __init__(
    self,
    blend: Any,
    evaluate: Callable[[PyTree], Any],
    check: Callable[[Scores], None],
    resume: Sequence[Candidate | Mapping[str, Any]] | None,
    on_candidate: Callable[[Candidate], None] | None,
  ):
    """Prepares.

    Args:
      blend: a `Blend`, or a function with its `size`: makes candidates.
      evaluate: see `soupjax.soups.search`.
      check: raises a ValueError if scores lack what the search needs; called
        with the first ones.
      resume: candidates of an earlier run; what was tried is not again.
      on_candidate: called with every new candidate, to save it.

    Raises:
      ValueError: if one to resume from is no candidate of this search, or
        `evaluate` says that lower is better.
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
          f"Candidate {k} to resume from is none ({e!r}): {past!r:.80}."
        ) from e
      if len(coefficients) != blend.size:
        raise ValueError(
          f"Candidate {k} to resume from has {len(coefficients)} coefficients, "
          f"this search has {blend.size}."
        )
      self._past[coefficients] = scores

  def __call__(self, coefficients: Sequence[float]) -> Scores:
    """Returns the scores of a candidate.

    Raises:
      ValueError: if they are no finite numbers, or not those of the first.
    """
    at = tuple(float(c) for c in coefficients)
    if at in self.scored:
      return self.scored[at]
    known = at in self._past
    found = self._past[at] if known else self.evaluate(self.blend(at))
    scores = _as_scores(found, at)
    if self._names is None:
      self.check(scores)
      self._names = sorted(scores)
    if sorted(scores) != self._names:
      raise ValueError(
        f"Coefficients {at} have scores on {sorted(scores)}, those before on "
        f"{self._names}: evaluate must return the same datasets every time."
      )
    self.scored[at] = scores
    if self.on_candidate and not known:
      self.on_candidate(Candidate(coefficients=at, scores=scores))
    return scores


def _as_scores(found: Any, at: tuple[float, ...]) -> Scores:
  scores = dict(found) if isinstance(found, Mapping) else {"score": found}
  if not scores:
    raise ValueError("evaluate returned no scores.")
  for name, value in scores.items():
    number = arguments.as_number(value)
    if number is None or not math.isfinite(number):
      raise ValueError(
        f"evaluate returned {value!r:.80} on {name!r} for coefficients {at}: "
        "scores must be finite numbers."
      )
    scores[name] = number
  return scores


def choose(
  method: str,
  scorer: Scorer,
  value: Callable[[Scores], float],
  *,
  what: str,
  forbidden: Callable[[Scores], str | None] = lambda scores: None,
) -> Search:
  """Chooses the candidate of highest value; of equal ones the first tried.

  Args:
    method: see `Search`.
    scorer: with the candidates.
    value: what is maximised.
    what: what that is, in words, as "mean of ...".
    forbidden: why a candidate may not be chosen; None if it may. One may.

  Returns:
    The search.
  """
  values = {at: value(scores) for at, scores in scorer.scored.items()}
  refused = {at: forbidden(s) for at, s in scorer.scored.items()}
  allowed = [at for at in values if refused[at] is None]
  best = max(allowed, key=lambda at: values[at])  # The first of equal ones.
  history = []
  for at, scores in scorer.scored.items():
    if at == best:
      reason = f"the best {what}"
    elif refusal := refused[at]:
      reason = refusal
    else:
      reason = f"{values[best] - values[at]:.4g} below the best {what}"
      if values[at] == values[best]:
        reason = "as good as the chosen one, but tried later"
    history.append(
      Candidate(
        coefficients=at,
        scores=scores,
        value=values[at],
        chosen=at == best,
        reason=reason,
      )
    )
  return Search(
    method=method, params=scorer.blend(best), history=tuple(history)
  )


def normalized_accuracy(
  scores: Mapping[str, float], finetuned_scores: Mapping[str, float]
) -> float:
  """Mean over tasks of score / score of the task's own fine-tuned model.

  The normalised accuracy of arXiv 2212.04089, section 4: 1 says that one
  merged model is as good everywhere as many specialists, on average.

  Args:
    scores: task -> score of the merged model; may have other datasets too.
    finetuned_scores: task -> score of the model fine-tuned on it alone.

  Raises:
    ValueError: if there is no task, one has no score, or a score to divide by
      is not positive.

  Examples:
    >>> own = {"cars": 0.8, "dtd": 0.5}
    >>> sj.search.normalized_accuracy({"cars": 0.4, "dtd": 0.5}, own)
    0.75
  """
  if not finetuned_scores:
    raise ValueError("finetuned_scores is empty: give one score a task.")
  ratios = []
  for task, own in finetuned_scores.items():
    if task not in scores:
      raise ValueError(
        f"There is no score on task {task!r}, only on {sorted(scores)}."
      )
    own = arguments.number(f"The fine-tuned score on {task!r}", own)
    if own <= 0:
      raise ValueError(
        f"The fine-tuned score on {task!r} is {own}: it must be positive, as "
        "accuracy is."
      )
    ratios.append(scores[task] / own)
  return sum(ratios) / len(ratios)


def grid(name: str, values: Sequence[float]) -> list[float]:
  """Returns a grid of coefficients as floats.

  Raises:
    ValueError: if it is empty or no list of finite numbers.
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
  """Checks that evaluate returns what an argument names.

  Raises:
    ValueError: if it does not.
  """
  missing = [name for name in names if name not in scores]
  if missing:
    raise ValueError(
      f"{argument} names {missing}, but evaluate returns scores on "
      f"{sorted(scores)}."
    )
