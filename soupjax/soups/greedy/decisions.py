# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Decisions of greedy soups: acceptance, turns, records and replay."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import numbers
from typing import Any

from soupjax.soups.core import arguments


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
  """The decision about one ingredient.

  Attributes:
    name: name of the ingredient.
    score: held-out score of the soup with this ingredient; None if it was
      rejected before all data were evaluated.
    bar: score of the soup without it; None for the first ingredient.
    accepted: whether the ingredient was kept.
    reason: the reason in words.
    size: number of ingredients in the soup after the decision.
    bound: the best score that was still possible at an early rejection.
    evaluated: share of the held-out data that were evaluated.
  """

  name: str
  score: float | None
  bar: float | None
  accepted: bool
  reason: str
  size: int
  bound: float | None = None
  evaluated: float = 1.0


def final_score(history: Sequence[Decision]) -> float:
  """Returns the score of the soup after these decisions."""
  return next(
    d.score for d in reversed(history) if d.accepted and d.score is not None
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
  """The result of an evaluator's `evaluate_until` for one candidate.

  Attributes:
    score: on all data; None if the evaluation stopped early.
    bound: the best score that was still possible when it stopped, else None.
    evaluated: share of the data that were evaluated.
  """

  score: float | None
  bound: float | None = None
  evaluated: float = 1.0


@dataclasses.dataclass(frozen=True)
class AcceptanceRule:
  """The condition under which a candidate is kept; see `greedy_soup`."""

  accept: str
  min_delta: float
  mode: str = "max"

  @classmethod
  def of(
    cls, accept: str, min_delta: Any, mode: str = "max"
  ) -> "AcceptanceRule":
    """Makes a rule from arguments of `greedy_soup`.

    Raises:
      ValueError: if an argument has an invalid value.
    """
    if accept not in ("ge", "gt"):
      raise ValueError(f"accept must be 'ge' or 'gt', got {accept!r}.")
    if mode not in ("max", "min"):
      raise ValueError(f"mode must be 'max' or 'min', got {mode!r}.")
    return cls(
      accept, arguments.number("min_delta", min_delta, "be finite"), mode
    )

  def accepts(self, score: float, bar: float) -> bool:
    """Whether to keep a candidate of that score if the soup scores `bar`."""
    if self.mode == "min":
      score, bar = -score, -bar
    if self.accept == "ge":
      return score >= bar + self.min_delta
    return score > bar + self.min_delta

  def reason(self, score: float, bar: float) -> str:
    """Describes the change of the score, and whether it is enough."""
    gain, min_delta = score - bar, f"{self.min_delta:.6g}"
    better, worse = "raises", "lowers"
    if self.mode == "min":
      gain, better, worse = -gain, worse, better
    change = f"{abs(gain):.6g}"
    if change == min_delta and gain != self.min_delta:
      change = repr(abs(gain))  # They differ after the sixth digit.
    reason = "leaves the score unchanged"
    if gain:
      reason = f"{better if gain > 0 else worse} the score by {change}"
    if self.accepts(score, bar) or gain < 0:
      return reason
    if self.min_delta <= 0:
      return reason + ", which is not enough"
    least = "less than" if gain < self.min_delta else "no more than"
    return reason + f", {least} min_delta ({min_delta}): not enough"

  def reason_of_bound(self, bound: float, bar: float) -> str:
    """Describes by how much a candidate that reaches at best `bound` fails."""
    extreme, side, sign = "most", "below", 1
    if self.mode == "min":
      extreme, side, sign = "least", "above", -1
    required = bar + sign * self.min_delta
    reason = f"would score at {extreme} {bound:.6g}, "
    if sign * (required - bound) > 0:
      reason += f"{abs(required - bound):.6g} {side} the bar of {required:.6g}"
    else:
      reason += f"but must beat {required:.6g}"
    if self.min_delta:
      reason += f" ({bar:.6g} and min_delta {self.min_delta:.6g})"
    return reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turns:
  """The order in which ingredients are tried, and the end of the trials.

  Attributes:
    order: names of all ingredients, to try them in another order.
    rounds: maximum number of times that each ingredient is tried.
    patience: stops after this many rejections in a row.
    max_size: stops when the soup has this many ingredients; an ingredient that
      was added twice counts twice.
  """

  order: Sequence[str] | None = None
  rounds: int = 1
  patience: int | None = None
  max_size: int | None = None


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Checked `Turns` of ingredients with these names."""

  names: tuple[str, ...]
  turns: Turns

  @classmethod
  def of(cls, names: Sequence[str], turns: Turns) -> "Schedule":
    """Checks the numbers in `turns`.

    Raises:
      ValueError: if one is not a positive whole number.
    """
    counts = {
      name: arguments.count(name, getattr(turns, name))
      for name in ("rounds", "patience", "max_size")
      if name == "rounds" or getattr(turns, name) is not None
    }
    return cls(tuple(names), dataclasses.replace(turns, **counts))

  def __len__(self) -> int:
    """The largest number of turns."""
    return len(self.names) * self.turns.rounds

  def end_reason(self, history: Sequence[Decision]) -> str | None:
    """Returns why the trials end after these decisions; None if they do not."""
    patience, max_size = self.turns.patience, self.turns.max_size
    if history and history[-1].size == max_size:
      return f"the soup has max_size={max_size}"
    rejections = 0
    for decision in reversed(history):
      if decision.accepted:
        break
      rejections += 1
    if patience is not None and rejections >= patience:
      return f"patience={patience} were rejected in a row"
    if self.turns.rounds > 1 and rejections >= len(self.names):
      return "each was tried with this soup and rejected"
    return "all had their turn" if len(history) >= len(self) else None


def checked(trial: Trial, names: Sequence[str]) -> Trial:
  """Checks the result of an evaluator for the soup of `names`.

  Returns:
    The trial, with its score or bound as a float.

  Raises:
    ValueError: if that is not a finite number.
  """
  field = "bound" if trial.score is None else "score"
  value = getattr(trial, field)
  number = arguments.as_number(value)
  if number is None:
    raise ValueError(
      f"evaluate returned {value!r:.80} for the soup of {names}, when "
      f"{names[-1]!r} was tried: it must return one number."
    )
  if not math.isfinite(number):
    raise ValueError(
      f"The soup of {names} scores {number}: evaluate must return a finite "
      "number."
    )
  return dataclasses.replace(trial, **{field: number})


def decide(
  name: str, trial: Trial, bar: float | None, rule: AcceptanceRule, size: int
) -> Decision:
  """Decides about one ingredient.

  Args:
    name: name of the ingredient.
    trial: result of the soup with it, from `checked`.
    bar: score of the soup without it, None for the first ingredient.
    rule: the acceptance rule.
    size: number of ingredients in the soup without it.
  """
  if trial.score is None:
    accepted, reason = False, rule.reason_of_bound(trial.bound, bar)
  elif bar is None:
    accepted, reason = True, "the first ingredient"
  else:
    accepted = rule.accepts(trial.score, bar)
    reason = rule.reason(trial.score, bar)
  return Decision(
    name=name,
    score=trial.score,
    bar=bar,
    accepted=accepted,
    reason=reason,
    size=size + accepted,
    bound=trial.bound,
    evaluated=trial.evaluated,
  )


def replayed(
  schedule: Schedule,
  resume: Sequence[Decision | Mapping[str, Any]] | None,
  rule: AcceptanceRule,
) -> list[Decision]:
  """Checks that earlier decisions fit the ingredients and the settings.

  Args:
    schedule: the turns of the ingredients.
    resume: the decisions, or their fields as dicts.
    rule: the acceptance rule.

  Returns:
    The decisions.

  Raises:
    ValueError: naming the first decision that does not fit.
  """
  history: list[Decision] = []
  bar, size = None, 0
  for position, past in enumerate(resume or ()):
    if not isinstance(past, Decision):
      try:
        past = Decision(**past)
      except TypeError as e:
        raise ValueError(
          f"Decision {position} to resume from is not a decision ({e}): {past}."
          " Delete the old trace to start again."
        ) from e
    expected = schedule.names[position % len(schedule.names)]
    problem = _problem(past, bar, size, rule)
    if past.name != expected:
      problem = f"comes at the turn of {expected!r}"
    elif not problem and (end := schedule.end_reason(history)):
      problem = f"comes after the end ({end})"
    if problem:
      raise ValueError(
        f"Decision {position} to resume from ({past.name!r}) {problem}. Give "
        "the ingredients and settings of that run, or delete the old trace to "
        "start again."
      )
    if past.accepted:
      bar, size = past.score, size + 1
    history.append(past)
  return history


def _problem(past: Decision, bar, size, rule: AcceptanceRule) -> str | None:
  """Describes why a decision does not fit a soup of this bar and size."""
  best = past.bound if past.score is None else past.score
  if best is None or (past.score is None and past.accepted):
    return "has no score"
  for field in ("score", "bound", "bar", "evaluated"):
    value = getattr(past, field)
    # Traces hold plain numbers: strings and arrays are damage.
    if value is not None and not (
      isinstance(value, numbers.Real) and math.isfinite(value)
    ):
      return f"has {field} {value!r:.80}, which is not a finite number"
  if past.accepted != (bar is None or rule.accepts(best, bar)):
    return "was made under another acceptance rule"
  if past.bar != bar:
    return f"has bar {past.bar}, but the soup before it scored {bar}"
  if past.size != size + past.accepted:
    return f"has size {past.size!r}, but the soup has {size + past.accepted}"
  return None
