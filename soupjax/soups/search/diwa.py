# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Averages of fine-tuning runs: DiWA and model ratatouille."""

from collections.abc import Callable
import dataclasses
from typing import Any

from soupjax.soups.average import Means, uniform_soup
from soupjax.soups.core import arguments
from soupjax.soups.core.ingredient import (
  Ingredient,
  Models,
  as_ingredient,
  as_ingredients,
  rank_by,
)
from soupjax.soups.core.select import reordered
from soupjax.soups.greedy.decisions import AcceptanceRule
from soupjax.soups.greedy.soup import GreedySoup, greedy_soup

PyTree = Any
# Settings of `greedy_soup` that apply to both kinds of averages.
_PLACING = ("base", "select", "dtype", "sharding")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
  """An average of fine-tuning runs, and their scores.

  Attributes:
    params: the average.
    runs: the runs on the target task, best first, with their held-out scores
      in `metrics["held-out"]`.
    selected: names of the runs in the average.
    score: held-out score of the average.
    greedy: the greedy soup with its decisions, for average "greedy"; else None.
  """

  params: PyTree
  runs: tuple[Ingredient, ...]
  selected: tuple[str, ...]
  score: float
  greedy: GreedySoup | None


def diwa(
  runs: Models,
  evaluate: Callable[[PyTree], float],
  *,
  average: str = "greedy",
  mode: str = "max",
  **settings: Any,
) -> Pool:
  """Averages runs with the same initialisation (DiWA, arXiv 2205.09739).

  DiWA fine-tunes many times from one linear probe with mildly different
  hyperparameters. It averages all runs ("uniform"), or starts from the best run
  and adds those that do not make it worse ("greedy", the paper's restricted
  selection).

  Args:
    runs: models fine-tuned on the target task from one initialisation.
    evaluate: returns the score on held-out data of the target task. If it has
      an attribute `mode`, that must be the `mode` below.
    average: "greedy" or "uniform".
    mode: "max" if a higher score is better, "min" if a lower one is, such as a
      loss.
    **settings: of `greedy_soup`; for average "uniform" only `base`, `select`,
      `dtype` and `sharding`. Single runs are scored with the same selection.

  Returns:
    The average, and the score of every run.

  Raises:
    ValueError: as in `greedy_soup`, or if `average` is invalid.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> models = [make("a", {"w": jnp.array(1.0)}),
    ...           make("b", {"w": jnp.array(4.0)}),
    ...           make("c", {"w": jnp.array(2.0)})]
    >>> def evaluate(params):
    ...   return -abs(float(params["w"]) - 1.6)
    >>> pool = sj.search.diwa(models, evaluate)
    >>> pool.selected
    ('c', 'a')
  """
  runs = as_ingredients(runs)
  _check(evaluate, average, mode, settings)
  placing = {k: settings[k] for k in _PLACING if k in settings}
  means = Means(runs, **placing)
  scored = []
  for k, run in enumerate(runs):
    score = arguments.call(evaluate, means.model(k))
    score = arguments.number(f"The score of {run.name!r}", score)
    metrics = {**run.metrics, "held-out": score}
    scored.append(dataclasses.replace(run, metrics=metrics))
  ranked = rank_by(scored, "held-out", mode=mode)
  names = [run.name for run in runs]
  order = [names.index(run.name) for run in ranked]
  placing["select"] = reordered(placing.get("select"), order)
  if average == "uniform":
    params = uniform_soup(ranked, **placing)
    selected, greedy = tuple(r.name for r in ranked), None
    score = arguments.call(evaluate, params)
    score = arguments.number("The score of the average", score)
  else:
    settings |= placing
    greedy = greedy_soup(ranked, evaluate, mode=mode, **settings)
    params, selected, score = greedy.params, greedy.selected, greedy.score
  return Pool(
    params=params,
    runs=tuple(ranked),
    selected=selected,
    score=score,
    greedy=greedy,
  )


def ratatouille(
  starts: Models,
  finetune: Callable[[PyTree, str], Ingredient | PyTree],
  evaluate: Callable[[PyTree], float],
  *,
  average: str = "greedy",
  mode: str = "max",
  **settings: Any,
) -> Pool:
  """Fine-tunes and averages recycled models (ratatouille, arXiv 2212.10445).

  The initialisations are the pretrained model fine-tuned on different auxiliary
  tasks. All have the same head for the target task, a linear probe of the
  pretrained model. They are fine-tuned on the target task and averaged. Leave
  out initialisations that were trained on data of the target task.

  Args:
    starts: the initialisations, with the head of the target task.
    finetune: `finetune(params, name)` returns the model that was fine-tuned on
      the target task from these parameters: a tree, or an ingredient on disk.
      To resume an interrupted run, let it return what an earlier call saved.
    evaluate: as in `diwa`.
    average: "greedy" or "uniform".
    mode: as in `diwa`.
    **settings: as in `diwa`.

  Returns:
    The average, and the score of every run. Runs have the names of their
    initialisations.

  Raises:
    ValueError: as in `diwa`.
  """
  starts = as_ingredients(starts)
  _check(evaluate, average, mode, settings)
  # Checks the arguments before hours of fine-tuning.
  Means(starts, **{k: settings[k] for k in _PLACING if k in settings})
  runs = []
  for start in starts:
    run = as_ingredient(
      arguments.call(finetune, start.load(), start.name), start.name
    )
    runs.append(dataclasses.replace(run, name=start.name))
  return diwa(runs, evaluate, average=average, mode=mode, **settings)


def _check(evaluate, average, mode, settings) -> None:
  if average not in ("greedy", "uniform"):
    raise ValueError(f"average must be 'greedy' or 'uniform', got {average!r}.")
  greedy_only = sorted(set(settings) - set(_PLACING))
  if average == "uniform" and greedy_only:
    raise ValueError(
      f"{greedy_only} are settings of a greedy soup: give average='greedy'."
    )
  AcceptanceRule.of(
    settings.get("accept", "ge"), settings.get("min_delta", 0.0), mode
  )
  arguments.mode(evaluate, mode)
