# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Decisions of a greedy soup: made, recorded and replayed."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import numbers
from typing import Any

from soupjax.soups.core import arguments


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
  """What happened to one ingredient.

  Attributes:
    name: the ingredient's.
    score: held-out score of the soup with this ingredient in it; None if it
      was rejected before all data were evaluated.
    bar: score of the soup without it; None for the first.
    accepted: whether it stayed in.
    reason: why, in words.
    size: ingredients in the soup after the decision.
    bound: the best score that was still possible when it was rejected early.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
  """The result of an evaluator's `evaluate_until` for one candidate.

  Attributes:
    score: on all data, None if it stopped before.
    bound: no better score was possible when it stopped; None otherwise.
    evaluated: share of the data that were evaluated.
  """

  score: float | None
  bound: float | None = None
  evaluated: float = 1.0


@dataclasses.dataclass(frozen=True)
class Rule:
  """Whether a score is enough to stay in; see `greedy_soup`."""

  accept: str
  min_delta: float
  mode: str = "max"

  @classmethod
  def of(cls, accept: str, min_delta: Any, mode: str = "max") -> "Rule":
    """Checks the arguments.

    Raises:
      ValueError: if one makes no sense.
    """
    if accept not in ("ge", "gt"):
      raise ValueError(f"accept must be 'ge' or 'gt', got {accept!r}.")
    if mode not in ("max", "min"):
      raise ValueError(f"mode must be 'max' or 'min', got {mode!r}.")
    return cls(
      accept, arguments.number("min_delta", min_delta, "be finite"), mode
    )

  def accepts(self, score: float, bar: float) -> bool:
    """Whether a candidate of that score stays in a soup of score `bar`."""
    if self.mode == "min":
      score, bar = -score, -bar
    if self.accept == "ge":
      return score >= bar + self.min_delta
    return score > bar + self.min_delta

  def reason(self, score: float, bar: float) -> str:
    """Says why a candidate stays in or not."""
    gain, wanted = score - bar, f"{self.min_delta:.6g}"
    better, worse = "raises", "lowers"
    if self.mode == "min":
      gain, better, worse = -gain, worse, better
    # All digits where six would hide what tells the two apart.
    text = f"{abs(gain):.6g}"
    text = (
      repr(abs(gain)) if text == wanted and gain != self.min_delta else text
    )
    if gain > 0:
      reason = f"{better} the score by {text}"
    elif gain < 0:
      reason = f"{worse} the score by {text}"
    else:
      reason = "leaves the score as it is"
    if self.accepts(score, bar) or gain < 0:
      return reason
    if self.min_delta <= 0:
      return reason + ", which is not enough"
    least = "less than" if gain < self.min_delta else "no more than"
    return reason + f", {least} min_delta ({wanted}): not enough"

  def reason_of_bound(self, bound: float, bar: float) -> str:
    """Says why a candidate that cannot score better than `bound` is out."""
    least, side, sign = "more", "below", 1
    if self.mode == "min":
      least, side, sign = "less", "above", -1
    wanted = bar + sign * self.min_delta
    text = f"cannot score {least} than {bound:.6g}, which is not enough: "
    if sign * (wanted - bound) > 0:
      text += f"{abs(wanted - bound):.6g} {side} the bar of {wanted:.6g}"
    else:
      text += f"it must beat {wanted:.6g}"
    if self.min_delta:
      text += f" ({bar:.6g} and min_delta {self.min_delta:.6g})"
    return text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turns:
  """The order in which ingredients are tried, and when that ends.

  Attributes:
    order: names of all ingredients, to try them in another order.
    rounds: how often each ingredient is tried at most.
    patience: ends after this many rejections in a row.
    max_size: ends when the soup has so many ingredients, counted as often as
      they are in it.
  """

  order: Sequence[str] | None = None
  rounds: int = 1
  patience: int | None = None
  max_size: int | None = None


@dataclasses.dataclass(frozen=True)
class Schedule:
  """`Turns` of named ingredients, checked."""

  names: tuple[str, ...]
  rounds: int = 1
  patience: int | None = None
  max_size: int | None = None

  @classmethod
  def of(cls, names: Sequence[str], turns: Turns) -> "Schedule":
    """Checks the arguments.

    Raises:
      ValueError: if one is no positive whole number.
    """
    patience, max_size = turns.patience, turns.max_size
    return cls(
      tuple(names),
      arguments.count("rounds", turns.rounds),
      None if patience is None else arguments.count("patience", patience),
      None if max_size is None else arguments.count("max_size", max_size),
    )

  def __len__(self) -> int:
    """How many turns there can be."""
    return len(self.names) * self.rounds

  def over(self, history: Sequence[Decision]) -> str | None:
    """Why no turn comes after these decisions; None if one does."""
    if history and history[-1].size == self.max_size:
      return f"the soup has max_size={self.max_size}"
    in_a_row = 0
    for decision in reversed(history):
      if decision.accepted:
        break
      in_a_row += 1
    if self.patience is not None and in_a_row >= self.patience:
      return f"patience={self.patience} were rejected in a row"
    if self.rounds > 1 and in_a_row >= len(self.names):
      return "each was tried with this soup and rejected"
    return "all had their turn" if len(history) >= len(self) else None


def checked(result: Trial, names: Sequence[str]) -> Trial:
  """Checks what an evaluator returned for the soup of `names`.

  Returns:
    The same with floats.

  Raises:
    ValueError: if it is no finite number.
  """
  found = result.score if result.score is not None else result.bound
  value = arguments.as_number(found)
  if value is None:
    raise ValueError(
      f"evaluate returned {found!r:.80} for the soup of {names}, when "
      f"{names[-1]!r} was tried: it must return one number."
    )
  if not math.isfinite(value):
    raise ValueError(
      f"The soup of {names} scores {value}: evaluate must return a finite "
      "number."
    )
  if result.score is None:
    return dataclasses.replace(result, bound=value)
  return dataclasses.replace(result, score=value)


def decide(
  name: str, result: Trial, bar: float | None, rule: Rule, size: int
) -> Decision:
  """Decides about one ingredient.

  Args:
    name: its name.
    result: from `checked`.
    bar: score of the soup without it, None for the first.
    rule: of acceptance.
    size: ingredients in the soup without it.
  """
  if result.score is None:
    accepted = False
    reason = rule.reason_of_bound(result.bound, bar)
  elif bar is None:
    accepted, reason = True, "the first ingredient"
  else:
    accepted = rule.accepts(result.score, bar)
    reason = rule.reason(result.score, bar)
  return Decision(
    name=name,
    score=result.score,
    bar=bar,
    accepted=accepted,
    reason=reason,
    size=size + accepted,
    bound=result.bound,
    evaluated=result.evaluated,
  )


def replayed(
  turns: Schedule,
  resume: Sequence[Decision | Mapping[str, Any]] | None,
  rule: Rule,
) -> list[Decision]:
  """Checks that earlier decisions fit these ingredients and this rule.

  Args:
    turns: the names of the ingredients, in the order in which they are tried.
    resume: the decisions, or their fields as dicts.
    rule: of acceptance.

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
          f"Decision {position} to resume from is no decision ({e}): {past}. "
          "Delete the old trace to start afresh."
        ) from e
    here = "none"
    if position < len(turns):
      here = turns.names[position % len(turns.names)]
    if here != past.name:
      raise ValueError(
        f"Decision {position} to resume from is about {past.name!r}, but the "
        f"ingredient there is {here!r}. Delete the old trace, or give the same "
        "ingredients in the same order."
      )
    problem = _problem(past, bar, size, rule)
    end = turns.over(history)
    if end and not problem:
      problem = f"comes after the end ({end})"
    if problem:
      raise ValueError(
        f"Decision {position} to resume from ({past.name!r}) {problem}. Delete "
        "the old trace to start afresh."
      )
    if past.accepted:
      bar, size = past.score, size + 1
    history.append(past)
  return history


def _problem(past: Decision, bar, size, rule: Rule) -> str | None:
  """What is wrong with a decision, after others that gave this bar and size."""
  best = past.bound if past.score is None else past.score
  if best is None or (past.score is None and past.accepted):
    return "has no score"
  for field in ("score", "bound", "bar", "evaluated"):
    value = getattr(past, field)
    # Numbers in text, or in arrays, are not what a trace holds.
    if value is not None and not (
      isinstance(value, numbers.Real) and math.isfinite(value)
    ):
      return f"has {field} {value!r:.80}, which is no finite number"
  if past.accepted != (bar is None or rule.accepts(best, bar)):
    return "was made under another acceptance rule"
  if past.bar != bar:
    return f"has bar {past.bar}, but the soup before it scored {bar}"
  if past.size != size + past.accepted:
    return f"has size {past.size!r}, where the soup has {size + past.accepted}"
  return None
