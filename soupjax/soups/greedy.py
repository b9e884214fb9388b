# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Greedy soups: Recipe 1 of arXiv 2203.05482."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import concurrent.futures
import dataclasses
import math
from typing import Any

import jax

from soupjax.soups import exact, tree
from soupjax.soups.ingredient import Ingredient, check_finite, check_ingredients

PyTree = Any


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
  """What an evaluator with a method `trial` says about a candidate.

  Attributes:
    score: on all data, None if it stopped before.
    bound: no score above this was possible when it stopped; None otherwise.
    evaluated: share of the data that were evaluated.
  """

  score: float | None
  bound: float | None = None
  evaluated: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class GreedySoup:
  """A greedy soup and how it came about.

  Attributes:
    params: the soup; the same bits as `uniform_soup` of those selected.
    selected: names of its ingredients, in the order they went in.
    history: every decision, in order.
  """

  params: PyTree
  selected: tuple[str, ...]
  history: tuple[Decision, ...]

  @property
  def score(self) -> float:
    """Held-out score of the soup."""
    return [d.score for d in self.history if d.accepted][-1]


def _map_floats(function, first, *rest):
  """Maps over float leaves; others are those of `first`."""

  def on_leaf(a, *others):
    return function(a, *others) if tree.is_float(a) else a

  return jax.tree.map(on_leaf, first, *rest)


@jax.jit
def _zero(first):
  return _map_floats(exact.zero, first)


@jax.jit
def _add(total, first, params):
  return _map_floats(lambda a, b, s: exact.add(s, a, b), first, params, total)


@jax.jit
def _mean_of_floats(total, first, scale):
  return _map_floats(
    lambda a, s: exact.mean(s, a, scale).astype(a.dtype), first, total
  )


def _mean(total, first, scale):
  mean = _mean_of_floats(total, first, scale)
  # A compiled function would cut int64 to int32.
  return jax.tree.map(
    lambda a, b: b if tree.is_float(tree.spec(a)) else a, first, mean
  )


def greedy_soup(
  ingredients: Sequence[Ingredient],
  evaluate: Callable[[PyTree], float],
  *,
  accept: str = "ge",
  min_delta: float = 0.0,
  order: Sequence[str] | None = None,
  resume: Sequence[Decision | Mapping[str, Any]] | None = None,
  on_decision: Callable[[Decision], None] | None = None,
  early_reject: bool = True,
  sharding: Any = None,
) -> GreedySoup:
  """Adds ingredients one by one, keeping those that do not hurt.

  The first ingredient is evaluated like all others, not taken from a cached
  score. With the best ingredient first (see `rank_by`), the soup is never worse
  than it on the data that `evaluate` looks at: use held-out data, never test.

  Memory, whatever the number of ingredients: the first one, the float32 sums of
  the soup and of the candidate with their rounding errors, the candidate, and
  the ingredient of the next turn, which is read while this one is evaluated.
  Every ingredient is read once before any work to check that it is finite, and
  once more for its turn.

  Early rejection: an evaluator may have a method `trial(params, reaches)` that
  returns a `Trial`, and stops as soon as not even the best possible score on
  the data that are left would make `reaches(score)` true, and a method `keep()`
  that is called when the last candidate stayed in. `Classification` looks at
  the images first that the soup finds hardest. Decisions and soup are those of
  the full pass; a rejected candidate's record has a bound instead of a score.

  Args:
    ingredients: in the order to try, best first.
    evaluate: maps parameters to a held-out score; higher is better.
    accept: "ge" keeps a candidate that scores at least as well as the soup (the
      paper), "gt" one that scores better (the paper's released code).
    min_delta: a candidate must also gain this much.
    order: names of all ingredients, to try them in another order.
    resume: the decisions of an earlier run that was cut short; they are taken
      over without evaluating again.
    on_decision: called with every new decision, to save it.
    early_reject: False evaluates every candidate on all data.
    sharding: where ingredients go, as in `Ingredient.load`.

  Returns:
    The soup and the record of every decision.

  Raises:
    ValueError: if there are no ingredients, trees differ, one has NaN or
      infinity, a score is not finite, or `order` or `resume` do not fit.
  """
  clears = _acceptance(accept, min_delta)
  ingredients = list(ingredients)
  check_ingredients(ingredients)
  ingredients = _in_order(ingredients, order)
  history = _replayed(ingredients, resume, clears)
  check_finite(ingredients)

  trial = getattr(evaluate, "trial", None) if early_reject else None
  # Rejected before: they need not be read again.
  turns = [
    (k, ingredient)
    for k, ingredient in enumerate(ingredients)
    if k >= len(history) or history[k].accepted
  ]
  first = total = None
  bar, selected, soup, incumbent = None, [], None, False
  for (position, ingredient), params in _read_ahead(turns, sharding):
    if first is None:
      first, total = params, _zero(params)
    candidate_total = _add(total, first, params)
    scale = exact.reciprocal(len(selected) + 1)
    candidate = _mean(candidate_total, first, scale)
    past = history[position] if position < len(history) else None
    if past is None:
      if trial and soup is not None and not incumbent:
        # After a resumption the evaluator has not seen the soup yet.
        evaluate(soup)
        evaluate.keep()
        incumbent = True
      if trial and bar is not None:
        result = trial(candidate, lambda score, bar=bar: clears(score, bar))
      else:
        result = Trial(score=evaluate(candidate))
      result = _checked(result, [*selected, ingredient.name])
      past = _decide(ingredient.name, result, bar, clears, len(selected))
      history.append(past)
      if on_decision:
        on_decision(past)
      if trial and past.accepted:
        evaluate.keep()
        incumbent = True
    if past.accepted:
      soup, total, bar = candidate, candidate_total, past.score
      selected.append(ingredient.name)
  return GreedySoup(
    params=soup, selected=tuple(selected), history=tuple(history)
  )


def _read_ahead(turns, sharding) -> Iterator[tuple[Any, PyTree]]:
  """Yields every turn with its parameters, reading the next meanwhile."""
  with concurrent.futures.ThreadPoolExecutor(1) as pool:

    def read(turn):
      return pool.submit(turn[1].load, sharding=sharding)

    coming = read(turns[0]) if turns else None
    for turn, after in zip(turns, [*turns[1:], None]):
      params = coming.result()
      coming = read(after) if after else None
      yield turn, params


def _in_order(ingredients, order):
  if order is None:
    return ingredients
  by_name = {i.name: i for i in ingredients}
  if sorted(order) != sorted(by_name):
    raise ValueError(
      "order must name every ingredient once. Missing: "
      f"{sorted(set(by_name) - set(order))}, unknown: "
      f"{sorted(set(order) - set(by_name))}, named twice: "
      f"{sorted({n for n in order if list(order).count(n) > 1})}."
    )
  return [by_name[name] for name in order]


def _acceptance(accept: str, min_delta: float):
  if accept not in ("ge", "gt"):
    raise ValueError(f"accept must be 'ge' or 'gt', got {accept!r}.")
  if not math.isfinite(min_delta):
    raise ValueError(f"min_delta must be finite, got {min_delta}.")
  if accept == "ge":
    return lambda score, bar: score >= bar + min_delta
  return lambda score, bar: score > bar + min_delta


def _checked(result: Trial, names: Sequence[str]) -> Trial:
  value = result.score if result.score is not None else result.bound
  try:
    value = float(value)
  except TypeError as e:
    raise ValueError(
      f"evaluate returned {value!r} for the soup of {names}: it must return a "
      "number."
    ) from e
  if not math.isfinite(value):
    raise ValueError(
      f"The soup of {names} scores {value}: evaluate must return a finite "
      "number."
    )
  if result.score is None:
    return dataclasses.replace(result, bound=value)
  return dataclasses.replace(result, score=value)


def _decide(name, result: Trial, bar, clears, size) -> Decision:
  if result.score is None:
    accepted = False
    reason = f"cannot score more than {result.bound:.6g}, which is not enough"
  elif bar is None:
    accepted, reason = True, "the first ingredient"
  else:
    accepted, gain = clears(result.score, bar), result.score - bar
    if gain > 0:
      reason = f"raises the score by {gain:.6g}"
    elif gain < 0:
      reason = f"lowers the score by {-gain:.6g}"
    else:
      reason = "leaves the score as it is"
    if not accepted and gain >= 0:
      reason += ", which is not enough"
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


def _replayed(ingredients, resume, clears) -> list[Decision]:
  """Checks that earlier decisions fit these ingredients and this rule."""
  history = []
  bar = None
  for position, past in enumerate(resume or ()):
    if not isinstance(past, Decision):
      try:
        past = Decision(**past)
      except TypeError as e:
        raise ValueError(
          f"Decision {position} to resume from is no decision ({e}): {past}. "
          "Delete the old trace to start afresh."
        ) from e
    if position >= len(ingredients) or ingredients[position].name != past.name:
      here = [i.name for i in ingredients[position : position + 1]]
      raise ValueError(
        f"Decision {position} to resume from is about {past.name!r}, but the "
        f"ingredient there is {here[0] if here else 'none'!r}. Delete the old "
        "trace, or give the same ingredients in the same order."
      )
    best = past.bound if past.score is None else past.score
    if best is None or (past.score is None and past.accepted):
      raise ValueError(
        f"Decision {position} to resume from ({past.name!r}) has no score. "
        "Delete the old trace to start afresh."
      )
    wanted = True if bar is None else clears(best, bar)
    if past.accepted != wanted:
      raise ValueError(
        f"Decision {position} to resume from ({past.name!r}) was made under "
        "another acceptance rule. Delete the old trace to start afresh."
      )
    bar = past.score if past.accepted else bar
    history.append(past)
  return history
