# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Greedy soups: Recipe 1 of arXiv 2203.05482."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
import concurrent.futures
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from soupjax.soups import average
from soupjax.soups.core import (
  arguments,
  compensated,
  nonfinite,
  precision,
  records,
  tree,
)
from soupjax.soups.core import select as selection_lib
from soupjax.soups.core.ingredient import (
  Model,
  Models,
  as_ingredient,
  as_ingredients,
  check_ingredients,
  check_unchanged,
  sharding_of,
)
from soupjax.soups.core.select import Selection
from soupjax.soups.greedy import decisions
from soupjax.soups.greedy.decisions import Decision, Trial, Turns

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class GreedySoup:
  """A greedy soup and the decisions that led to it.

  Attributes:
    params: the soup; the same bits as `uniform_soup` of the selected
      ingredients.
    selected: names of its ingredients, in the order in which they were added;
      with replacement, names may repeat.
    history: every decision, in order.
  """

  params: PyTree = dataclasses.field(repr=False)  # Too long to print.
  selected: tuple[str, ...]
  history: tuple[Decision, ...]

  @property
  def score(self) -> float:
    """Held-out score of the soup."""
    return decisions.final_score(self.history)

  @property
  def weights(self) -> dict[str, float]:
    """Weights of the selected ingredients, which sum to 1."""
    count = len(self.selected)
    return {n: self.selected.count(n) / count for n in self.selected}


@functools.partial(jax.jit, static_argnames="dtypes")
def _candidate(total, first, leaves, scale, ends, *, dtypes):
  """Returns the mean with one more ingredient, without keeping its sums."""
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

  The first ingredient is evaluated like all others; cached scores are not used.
  With the best ingredient first (see `rank_by`), the soup is never worse than
  this ingredient on the data of `evaluate`: use held-out data, never test data.

  Memory does not grow with the number of ingredients. It holds the first
  ingredient, the float32 sums of the soup with their rounding errors, the soup,
  the candidate, its ingredient, and the ingredient of the next turn, which is
  read during the evaluation. Every ingredient is read once in advance, in
  blocks, to check that it is finite, and once more for its turn.

  With replacement (`turns.rounds` above 1), all ingredients are tried again. An
  ingredient that is added a second time counts twice, so the soup is a weighted
  mean. The trials stop once all ingredients have been rejected in a row, since
  another round would change nothing.

  Early rejection: an evaluator may have a method `evaluate_until(params,
  can_reach)`, which returns a `Trial` and stops as soon as not even the best
  possible score on the remaining data makes `can_reach(score)` true. Its method
  `set_incumbent()` is called when the last candidate stayed in.
  `evaluators.Evaluator` begins with the images that the soup finds hardest.
  Decisions and soup are the same as without early rejection; the record of a
  candidate that was rejected early has a bound instead of a score.

  Args:
    ingredients: models in any form, in the order to try, best first.
    evaluate: maps parameters to a held-out score. Each call gets a new tree, so
      changes to it do not reach the soup. It must not donate the arrays to a
      compiled function (`donate_argnums`), since those of a candidate that
      stays in are used again. If it has an attribute `mode`, that must be the
      `mode` below.
    mode: "max" if a higher score is better, "min" if a lower one is, such as a
      loss.
    accept: "ge" keeps a candidate that scores at least as well as the soup (the
      paper), "gt" only one that scores better (the paper's released code).
    min_delta: a candidate must also be better by this much.
    turns: another order, several rounds, or an early end; see `Turns`.
    resume: the decisions of an interrupted run, which are not evaluated again.
    on_decision: called with every new decision, to save it.
    early_reject: False evaluates every candidate on all data.
    base: the model that `select` refers to, in any form.
    select: leaves that are not averaged like the others, as in `mix`, in every
      candidate. K numbers weight all K ingredients, selected or not.
    dtype: dtype of the floating leaves of candidates and soup; None keeps the
      dtypes of the first ingredient.
    sharding: placement of the ingredients, as in `Ingredient.load`.

  Returns:
    The soup and the record of every decision.

  Raises:
    ValueError: if there are no ingredients, trees differ, an ingredient has NaN
      or infinity, a score is not finite, the soup overflows its dtype, a number
      is out of range, or `turns.order` or `resume` do not fit.
    TypeError: if an ingredient is not a model.

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
  rule = decisions.AcceptanceRule.of(accept, min_delta, mode)
  arguments.mode(evaluate, mode)
  selection = Selection(
    as_ingredients(ingredients),
    base=None if base is None else as_ingredient(base, "base"),
    select=select,
    dtype=dtype,
  )
  ingredients = check_ingredients(selection.ingredients)
  records.warn_of_other_inits(ingredients)
  ingredients = _in_order(ingredients, turns.order)
  schedule = decisions.Schedule.of([i.name for i in ingredients], turns)
  history = decisions.replayed(schedule, resume, rule)
  nonfinite.check_finite(ingredients)

  try_candidate = _Trials(evaluate, rule, early_reject)
  names = [n for n, spec in ingredients[0].specs.items() if tree.is_float(spec)]
  fixed, ends = selection.fixed(sharding), selection.ends(names, sharding)
  # Without a dtype, keep those of the first ingredient in the order.
  specs = ingredients[0].specs if dtype is None else selection.specs
  dtypes = tuple(specs[name].dtype for name in names)
  all_floats = [i.specs[name] for i in ingredients for name in names]
  first = soup = bar = None
  total: Any = None  # Running sums, from the first ingredient on.
  whole: dict[str, Any] = {}
  selected: list[str] = []
  by_name = {i.name: i for i in ingredients}
  turns_left = _turns_left(ingredients, schedule, history)
  for (position, ingredient), leaves in _read_ahead(turns_left, sharding):
    is_new = position >= len(history)
    if is_new and schedule.end_reason(history):
      break  # It was read before the last decision was made.
    floats = [leaves[name] for name in names]
    if first is None:
      with precision.kept(all_floats):
        first, total = floats, compensated.running_zero(floats)
      whole = {**leaves, **fixed}
    candidate = selection.assembled(whole)  # The first ingredient's bits.
    if selected or not selection.is_all:
      scale = compensated.reciprocal(len(selected) + 1)
      with precision.kept(all_floats):
        means = _candidate(total, first, floats, scale, ends, dtypes=dtypes)
      candidate = selection.assembled({**whole, **dict(zip(names, means))})
    if nonfinite.overflows(selection.specs, jax.tree.leaves(candidate)):
      members = [by_name[name] for name in (*selected, ingredient.name)]
      candidate = average.average(members, None, selection, sharding)
    if is_new:
      name, trial = ingredient.name, try_candidate(candidate, soup, bar)
      trial = decisions.checked(trial, [*selected, name])
      decision = decisions.decide(name, trial, bar, rule, len(selected))
    else:
      decision = history[position]
    if is_new:
      history.append(decision)
      if on_decision:
        on_decision(decision)
    if decision.accepted:
      if is_new:
        try_candidate.set_incumbent()
      soup, bar = candidate, decision.score
      with precision.kept(all_floats):
        total = compensated.running_add(total, first, floats)
      selected.append(ingredient.name)
  check_unchanged(ingredients)
  return GreedySoup(
    params=soup, selected=tuple(selected), history=tuple(history)
  )


def _turns_left(ingredients, schedule, history) -> Iterator[tuple[int, Any]]:
  """Yields position and ingredient of every turn that needs its leaves."""
  done = len(history)
  for position in range(len(schedule)):
    if position >= done and schedule.end_reason(history):
      return
    # Past rejections need no leaves.
    if position >= done or history[position].accepted:
      yield position, ingredients[position % len(ingredients)]


class _Trials:
  """Evaluates candidates, with early rejection if the evaluator supports it."""

  def __init__(self, evaluate, rule, early_reject):
    self.evaluate, self.rule = evaluate, rule
    self.evaluate_until = (
      getattr(evaluate, "evaluate_until", None) if early_reject else None
    )
    self.has_incumbent = False

  def __call__(self, candidate, soup, bar) -> Trial:
    """Evaluates on all data, or until the candidate is sure to be rejected."""
    if not self.evaluate_until or soup is None:
      return Trial(score=arguments.call(self.evaluate, candidate))
    if not self.has_incumbent:
      # In a resumed run the evaluator has not seen the soup yet.
      arguments.call(self.evaluate, soup)
      self.set_incumbent()
    trial = arguments.call(
      self.evaluate_until,
      candidate,
      lambda score: self.rule.accepts(score, bar),
    )
    if not isinstance(trial, Trial):
      raise ValueError(
        f"evaluate_until returned {trial!r:.80}: it must return a Trial "
        "(soupjax.soups.greedy.Trial)."
      )
    return trial

  def set_incumbent(self) -> None:
    """Tells the evaluator that its last candidate stayed in."""
    if self.evaluate_until:
      self.evaluate.set_incumbent()
      self.has_incumbent = True


def _read_ahead(turns, sharding) -> Iterator[tuple[Any, dict[str, Any]]]:
  """Yields every turn with its leaves while the next ones are read."""
  on_devices = precision.inherited(_on_devices)
  with concurrent.futures.ThreadPoolExecutor(1) as pool:

    def read(turn):
      return turn and (turn, pool.submit(on_devices, turn[1], sharding))

    pending = read(next(turns, None))
    while pending:
      turn, leaves = pending[0], pending[1].result()
      pending = read(next(turns, None))
      yield turn, leaves


def _on_devices(ingredient, sharding) -> dict[str, Any]:
  """Reads an ingredient, with its floating leaves on devices."""
  leaves = {}
  for leaf, spec in ingredient.specs.items():
    value = ingredient.read(leaf, sharding=sharding_of(sharding, leaf, spec))
    on_device = isinstance(value, jax.Array) or precision.is_cut(spec)
    if tree.is_float(spec) and not on_device:
      # device_put may share the memory, which is safe for an array just read
      # from a file. Those of a tree belong to the user, who may change them.
      value = (
        jnp.array(value) if ingredient.path is None else (jax.device_put(value))
      )
    leaves[leaf] = value
  return leaves


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
      fix = " Give [i.name for i in ...]." if hasattr(name, "name") else ""
      raise ValueError(
        f"order must hold names only, got {type(name).__name__}.{fix}"
      )
  if sorted(order) != sorted(by_name):
    raise ValueError(
      "order must name every ingredient once. Missing: "
      f"{sorted(set(by_name) - set(order))}, unknown: "
      f"{sorted(set(order) - set(by_name))}, named twice: "
      f"{sorted({n for n in order if order.count(n) > 1})}."
    )
  return [by_name[name] for name in order]
