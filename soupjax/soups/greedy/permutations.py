# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Greedy soups in several orders, and the best of them."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from soupjax.soups.core import arguments
from soupjax.soups.core.ingredient import Models, as_ingredients
from soupjax.soups.greedy.decisions import Decision, Turns
from soupjax.soups.greedy.soup import GreedySoup, greedy_soup

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOrder:
  """The best of several greedy soups.

  Attributes:
    soup: the best soup; the first one of a tie.
    orders: the names in every order that was tried.
    histories: the decisions in every order.
    scores: held-out score of every soup.
    chosen: position of the best order.
  """

  soup: GreedySoup
  orders: tuple[tuple[str, ...], ...]
  histories: tuple[tuple[Decision, ...], ...]
  scores: tuple[float, ...]
  chosen: int


def random_orders(
  ingredients: Models, count: int, seed: int
) -> list[list[str]]:
  """Draws orders in which to try ingredients (arXiv 2203.05482, Table 3).

  Args:
    ingredients: models in any form. Orders depend on their names and the seed,
      not on the order in which they are given.
    count: number of orders. A larger count begins with the same orders.
    seed: seed of the draws.

  Returns:
    The names of all ingredients in every order, for `Turns.order`.

  Raises:
    ValueError: if count is not positive, or there are no ingredients.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> models = [make(name, {"w": jnp.zeros(1)}) for name in "abc"]
    >>> sj.random_orders(models, 2, seed=0)
    [['c', 'a', 'b'], ['c', 'b', 'a']]
  """
  names = sorted(i.name for i in as_ingredients(ingredients))
  if not names:
    raise ValueError("Got no ingredients: give at least one to put in order.")
  count = arguments.count("count", count)
  rng = np.random.default_rng(seed)
  return [[names[k] for k in rng.permutation(len(names))] for _ in range(count)]


def best_order(
  ingredients: Models,
  evaluate: Callable[[PyTree], float],
  orders: Sequence[Sequence[str]],
  *,
  turns: Turns | None = None,
  resume: Sequence[Sequence[Decision | Mapping[str, Any]]] = (),
  on_decision: Callable[[int, Decision], None] | None = None,
  **settings: Any,
) -> BestOrder:
  """Makes a greedy soup in every order and keeps the best on held-out data.

  The held-out score of the best of many soups is optimistic: report a score on
  data that `evaluate` never saw. At most two soups are in memory at a time.

  Args:
    ingredients: as in `greedy_soup`.
    evaluate: as in `greedy_soup`; it also decides between the soups.
    orders: for every order, the names of all ingredients; see `random_orders`.
    turns: as in `greedy_soup`; its order is ignored.
    resume: the decisions of an earlier run, one list per order.
    on_decision: called with the position of the order and every new decision.
    **settings: of `greedy_soup`: `mode`, `accept`, ...

  Returns:
    The best soup and the decisions in every order.

  Raises:
    ValueError: as in `greedy_soup`, or if there are no orders, or more lists to
      resume from than orders.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> models = [make("a", {"w": jnp.array(1.0)}),
    ...           make("b", {"w": jnp.array(4.0)}),
    ...           make("c", {"w": jnp.array(2.0)})]
    >>> def evaluate(params):
    ...   return -abs(float(params["w"]) - 1.6)
    >>> orders = [["a", "b", "c"], ["b", "c", "a"]]
    >>> best = sj.best_order(models, evaluate, orders)
    >>> best.orders[best.chosen]
    ('a', 'b', 'c')
  """
  orders = [list(order) for order in orders]
  if not orders:
    raise ValueError("Give at least one order, such as random_orders(...).")
  if len(resume) > len(orders):
    raise ValueError(
      f"Got decisions of {len(resume)} orders to resume from, but "
      f"{len(orders)} orders."
    )
  best, chosen, histories, scores = None, 0, [], []
  for k, order in enumerate(orders):
    soup = greedy_soup(
      ingredients,
      evaluate,
      turns=dataclasses.replace(turns or Turns(), order=order),
      resume=resume[k] if k < len(resume) else None,
      on_decision=on_decision and (lambda d, k=k: on_decision(k, d)),
      **settings,
    )
    histories.append(soup.history)
    scores.append(soup.score)
    sign = -1 if settings.get("mode") == "min" else 1
    if best is None or sign * soup.score > sign * best.score:
      best, chosen = soup, k
  assert best is not None  # There is an order.
  return BestOrder(
    soup=best,
    orders=tuple(map(tuple, orders)),
    histories=tuple(histories),
    scores=tuple(scores),
    chosen=chosen,
  )
