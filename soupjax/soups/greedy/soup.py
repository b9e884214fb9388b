# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Greedy soups: Recipe 1 of arXiv 2203.05482."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
import concurrent.futures
import dataclasses
import functools
from typing import Any

import jax

from soupjax.soups.core import (
  arguments,
  compensated,
  nonfinite,
  same_init,
  tree,
)
from soupjax.soups.core import select as selection_lib
from soupjax.soups.core.ingredient import (
  Model,
  Models,
  as_ingredient,
  as_ingredients,
  check_ingredients,
  sharding_of,
)
from soupjax.soups.core.select import Selection
from soupjax.soups.greedy import decisions
from soupjax.soups.greedy.decisions import Decision, Trial, Turns

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class GreedySoup:
  """A greedy soup and how it came about.

  Attributes:
    params: the soup; the same bits as `uniform_soup` of those selected.
    selected: names of its ingredients, in the order they went in; with
      replacement a name may be there more than once.
    history: every decision, in order.
  """

  params: PyTree
  selected: tuple[str, ...]
  history: tuple[Decision, ...]

  @property
  def score(self) -> float:
    """Held-out score of the soup."""
    scores = [d.score for d in self.history if d.accepted]
    return [score for score in scores if score is not None][-1]

  @property
  def weights(self) -> dict[str, float]:
    """Share of each ingredient that was selected; of sum 1."""
    count = len(self.selected)
    return {n: self.selected.count(n) / count for n in self.selected}


@functools.partial(jax.jit, static_argnames="dtypes")
def _candidate(total, first, leaves, scale, ends, *, dtypes):
  """The mean with one ingredient more; its sums are not kept."""
  sums = [
    compensated.add(s, a, b) for s, a, b in zip(zip(*total), first, leaves)
  ]
  return [
    selection_lib.finish(compensated.mean(s, a, scale), end, dtype)
    for s, a, end, dtype in zip(sums, first, ends, dtypes)
  ]


def greedy_soup(
  ingredients: Models,
  evaluate: Callable[[PyTree], float],
  *,
  mode: str = "max",
  accept: str = "ge",
  min_delta: float = 0.0,
  turns: Turns | None = None,
  resume: Sequence[Decision | Mapping[str, Any]] | None = None,
  on_decision: Callable[[Decision], None] | None = None,
  early_reject: bool = True,
  base: Model | None = None,
  select: Mapping[str, Any] | None = None,
  dtype: Any = None,
  sharding: Any = None,
) -> GreedySoup:
  """Adds ingredients one by one, keeping those that do not hurt.

  The first ingredient is evaluated like all others, not taken from a cached
  score. With the best ingredient first (see `rank_by`), the soup is never worse
  than it on the data that `evaluate` looks at: use held-out data, never test.

  Memory, whatever the number of ingredients: the first one, the float32 sums of
  the soup with their rounding errors, the soup, the candidate, its ingredient
  and that of the next turn, which is read while this one is evaluated. Every
  ingredient is read once before any work, in blocks, to check that it is
  finite, and once more for its turn.

  With replacement (`turns.rounds` above 1): all are tried again, also those in
  the soup, which then count twice, so that the soup is a weighted one. It ends
  when every ingredient in a row was rejected: another round would do the same.

  Early rejection: an evaluator may have a method `evaluate_until(params,
  can_reach)`, which returns a `Trial` and stops as soon as not even the best
  possible score on the remaining data makes `can_reach(score)` true. Its method
  `set_incumbent()` is called when the last candidate stayed in.
  `evaluators.Evaluator` begins with the images that the soup finds hardest.
  Decisions and soup are those of the full pass; the record of a rejected
  candidate has a bound instead of a score.

  Args:
    ingredients: models in any form, in the order to try, best first.
    evaluate: maps parameters to a held-out score. It must not donate its
      argument to a compiled function (`donate_argnums`): the arrays of a
      candidate that stays in are used again. If it has an attribute `mode`,
      that must be the `mode` below.
    mode: "max" if a higher score is better, "min" if a lower one is, as a loss.
    accept: "ge" keeps a candidate that scores at least as well as the soup (the
      paper), "gt" one that scores better (the paper's released code).
    min_delta: a candidate must also be better by this much.
    turns: another order, several rounds, or an early end: see `Turns`.
    resume: the decisions of an earlier run that was cut short; they are taken
      over without evaluating again.
    on_decision: called with every new decision, to save it.
    early_reject: False evaluates every candidate on all data.
    base: the model that `select` refers to, in any form.
    select: leaves that are not averaged like the others, as in `mix`; in every
      candidate. Of K numbers, all K ingredients are averaged, selected or not.
    dtype: of the floating leaves of candidates and soup; None keeps those of
      the first ingredient.
    sharding: where ingredients go, as in `Ingredient.load`.

  Returns:
    The soup and the record of every decision.

  Raises:
    ValueError: if there are no ingredients, trees differ, one has NaN or
      infinity, a score is not finite, the soup overflows its dtype, a number
      makes no sense, or `turns.order` or `resume` do not fit.
    TypeError: if one is not a model.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> models = [make("a", {"w": jnp.array(1.0)}),
    ...           make("b", {"w": jnp.array(4.0)}),
    ...           make("c", {"w": jnp.array(2.0)})]
    >>> def evaluate(params):
    ...   return -abs(float(params["w"]) - 1.6)
    >>> soup = sj.greedy_soup(models, evaluate)
    >>> soup.selected
    ('a', 'c')
    >>> float(soup.params["w"])
    1.5
  """
  turns = Turns() if turns is None else turns
  if not isinstance(turns, Turns):
    raise TypeError(f"turns must be sj.Turns(...), got {turns!r:.80}.")
  rule = decisions.Rule.of(accept, min_delta, mode)
  arguments.mode(evaluate, mode)
  selection = Selection(
    as_ingredients(ingredients),
    base=None if base is None else as_ingredient(base, "base"),
    select=select,
    dtype=dtype,
  )
  ingredients = selection.ingredients
  ingredients = check_ingredients(ingredients)
  same_init.warn_of_other_inits(ingredients)
  ingredients = _in_order(ingredients, turns.order)
  schedule = decisions.Schedule.of([i.name for i in ingredients], turns)
  history = decisions.replayed(schedule, resume, rule)
  nonfinite.check_finite(ingredients)

  evaluate_until = (
    getattr(evaluate, "evaluate_until", None) if early_reject else None
  )
  names = [n for n, spec in ingredients[0].specs.items() if tree.is_float(spec)]
  fixed, ends = selection.fixed(sharding), selection.ends(names, sharding)
  # Without a dtype, that of the first model to be tried.
  specs = ingredients[0].specs if dtype is None else selection.specs
  dtypes = tuple(specs[name].dtype for name in names)
  first = whole = total = None
  evaluator: Any = evaluate  # Of early rejection: it has `set_incumbent` too.
  selected: list[str] = []
  bar, soup, incumbent = None, None, False
  coming = _turns_left(ingredients, schedule, history)
  for (position, ingredient), leaves in _read_ahead(coming, sharding):
    is_new = position >= len(history)
    if is_new and schedule.over(history):
      break  # It was read too early to know.
    floats = [leaves[name] for name in names]
    if first is None:
      first, total = floats, compensated.running_zero(floats)
      whole = {**leaves, **fixed}
    candidate = selection.assembled(whole)  # The mean of one, bit for bit.
    if selected or not selection.is_all:
      scale = compensated.reciprocal(len(selected) + 1)
      means = _candidate(total, first, floats, scale, ends, dtypes=dtypes)
      candidate = selection.assembled({**whole, **dict(zip(names, means))})
    if is_new:
      if evaluate_until and soup is not None and not incumbent:
        # After a resumption the evaluator has not seen the soup yet.
        evaluate(soup)
        evaluator.set_incumbent()
        incumbent = True
      result = _evaluated(evaluate, evaluate_until, candidate, rule, bar)
      result = decisions.checked(result, [*selected, ingredient.name])
      past = decisions.decide(ingredient.name, result, bar, rule, len(selected))
    else:
      past = history[position]
    if past.accepted:
      nonfinite.check_overflow(selection.specs, jax.tree.leaves(candidate))
    if is_new:
      history.append(past)
      if on_decision:
        on_decision(past)
      if evaluate_until and past.accepted:
        evaluator.set_incumbent()
        incumbent = True
    if past.accepted:
      soup, bar = candidate, past.score
      total = compensated.running_add(total, first, floats)
      selected.append(ingredient.name)
  return GreedySoup(
    params=soup, selected=tuple(selected), history=tuple(history)
  )


def _turns_left(ingredients, schedule, history) -> Iterator[tuple[int, Any]]:
  """Yields position and ingredient of every turn for which it must be read."""
  done = len(history)
  for position in range(len(schedule)):
    if position >= done and schedule.over(history):
      return
    # Rejected before: they need not be read again.
    if position >= done or history[position].accepted:
      yield position, ingredients[position % len(ingredients)]


def _evaluated(evaluate, evaluate_until, candidate, rule, bar) -> Trial:
  """Evaluates a candidate, on all data or until it is clearly rejected."""
  if not evaluate_until or bar is None:
    return Trial(score=evaluate(candidate))
  result = evaluate_until(candidate, lambda score: rule.accepts(score, bar))
  if not isinstance(result, Trial):
    raise ValueError(
      f"evaluate_until returned {result!r:.80}: it must return a Trial "
      "(soupjax.soups.greedy.Trial)."
    )
  return result


def _read_ahead(turns, sharding) -> Iterator[tuple[Any, dict[str, Any]]]:
  """Yields every turn with its leaves, reading the next meanwhile."""
  with concurrent.futures.ThreadPoolExecutor(1) as pool:

    def read(turn):
      return turn and (turn, pool.submit(_on_devices, turn[1], sharding))

    coming = read(next(turns, None))
    while coming:
      turn, params = coming[0], coming[1].result()
      coming = read(next(turns, None))
      yield turn, params


def _on_devices(ingredient, sharding) -> dict[str, Any]:
  """Reads it all the way to the devices, for the leaves that are averaged."""

  def place(x):
    if isinstance(x, jax.Array) or not tree.is_float(tree.spec(x)):
      return x
    return jax.device_put(x)  # Not asarray, which copies.

  return {
    leaf: place(
      ingredient.read(leaf, sharding=sharding_of(sharding, leaf, spec))
    )
    for leaf, spec in ingredient.specs.items()
  }


def _in_order(ingredients, order):
  if order is None:
    return ingredients
  if not isinstance(order, Iterable) or isinstance(order, (str, Set)):
    raise ValueError(
      f"order must be a list of names, got a {type(order).__name__}: "
      f"{order!r:.80}."
    )
  order, by_name = list(order), {i.name: i for i in ingredients}
  for name in order:
    if not isinstance(name, str):
      kind = type(name).__name__
      fix = " Give [i.name for i in ...]." if hasattr(name, "name") else ""
      raise ValueError(f"order must hold names only, got a {kind}.{fix}")
  if sorted(order) != sorted(by_name):
    raise ValueError(
      "order must name every ingredient once. Missing: "
      f"{sorted(set(by_name) - set(order))}, unknown: "
      f"{sorted(set(order) - set(by_name))}, named twice: "
      f"{sorted({n for n in order if order.count(n) > 1})}."
    )
  return [by_name[name] for name in order]
