# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The reason "greedy": size and score of greedy soups of growing sweeps."""

import numpy as np

from soupjax.analysis import growth as growth_lib
from soupjax.report import reasons as figures
from soupjax.soups.average import Means
from soupjax.soups.greedy.permutations import random_orders
from soupjax.tasks.cook.inputs import CookInputs
from soupjax.tasks.reasons.base import Diagnosed, Reason

# Seeds have no order, and "steps" has the length of a run as a number.
_OMITTED = ("seed", "total", "warmup")


def _problems(problems) -> None:
  problems.expect_counts("greedy.orders", "greedy.points")


def _check(opened: CookInputs) -> None:
  del opened  # The two ingredients of any diagnosis are enough.


def _compute(diagnosed: Diagnosed, resume):
  opened, ingredients = diagnosed.opened, list(diagnosed.ingredients)
  config, rule = opened.config.greedy, opened.config.cook.greedy
  names = [ingredient.name for ingredient in ingredients]
  minival = diagnosed.evaluations.minival(opened.metrics[0])
  means = Means(
    ingredients, base=opened.initial, sharding=opened.place,
    select=opened.selection(ingredients).get("select"),
  )  # fmt: skip

  def evaluate(subset):
    places = [names.index(name) for name in subset]
    if len(places) == 1:
      return minival(means.model(places[0]))
    return minival(means.mean(places))

  counts = np.linspace(1, len(names), min(config.points, len(names)))
  counts = np.unique(np.round(counts).astype(int)).tolist()
  growth = growth_lib.growth(
    names,
    # An upper bound: each subset is evaluated once.
    resume(evaluate, config.orders * sum(counts)),
    random_orders(ingredients, config.orders, seed=opened.config.seed),
    counts,
    accept=rule.accept,
    min_delta=rule.min_delta,
  )
  split = growth_lib.hyperparameters_of(
    diagnosed.selected,
    {
      i.name: {k: v for k, v in i.hyperparameters.items() if k not in _OMITTED}
      for i in ingredients
    },
  )
  return {
    "metric": opened.metrics[0],
    **{
      key: getattr(growth, key).tolist()
      for key in ("counts", "sizes", "scores", "best")
    },
    "selected": list(diagnosed.selected),
    "hyperparameters": {
      key: {"chosen": chosen, "others": others}
      for key, (chosen, others) in split.items()
    },
  }


def _describe(record) -> list[str]:
  sizes = np.array(record["sizes"], float)
  scale, unit = (100, " points") if record["metric"] == "prec@1" else (1, "")
  gains = scale * (np.array(record["scores"]) - record["best"])
  lines = [
    f"Of the first {count} models, greedy selects {size:.1f} and gains "
    f"{gain:+.3g}{unit} over the best one (means over {len(sizes)} orders)."
    for count, size, gain in zip(
      record["counts"], sizes.mean(axis=0), gains.mean(axis=0)
    )
  ]
  for key, values in record["hyperparameters"].items():
    if key == "seed":  # In older records; its size means nothing.
      continue
    chosen, others = (_values(values[k]) for k in ("chosen", "others"))
    lines.append(f"{key}: selected {chosen}; others {others}.")
  return lines


def _values(values: list) -> str:
  """Returns the range and median of numbers, or the count of each value."""
  if not values:
    return "none"
  if all(isinstance(v, int | float) for v in values):
    return (
      f"{min(values):.4g} to {max(values):.4g}, median {np.median(values):.4g}"
    )
  texts = [str(v) for v in values]
  counts = {text: texts.count(text) for text in texts}
  if len(counts) > 6:
    return f"{len(counts)} different values"
  return ", ".join(f"{text} ({n})" for text, n in counts.items())


GREEDY = Reason(
  heading="Greedy soups of growing sweeps",
  caption="Size and score on minival of greedy soups of the first models in "
  "random orders: mean and standard deviation over orders (arXiv 2203.05482, "
  "Figure B.1). Below: hyperparameters of the ingredients in the greedy soup "
  "of all models, and of the others.",
  settings={
    "orders": 3,
    "points": 6,  # How many numbers of models to try, from one to all.
  },
  problems=_problems,
  check=_check,
  compute=_compute,
  draw=figures.growth_figure,
  describe=_describe,
)
