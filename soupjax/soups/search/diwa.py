# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Averages of fine-tuning runs: DiWA, and ratatouille's recycled starts."""

from collections.abc import Callable
import dataclasses
from typing import Any

from soupjax.soups.average import uniform_soup
from soupjax.soups.core import arguments
from soupjax.soups.core.ingredient import (
  Ingredient,
  Models,
  as_ingredient,
  as_ingredients,
  check_ingredients,
  rank_by,
)
from soupjax.soups.greedy.soup import GreedySoup, greedy_soup

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
  """An average of runs.

  Attributes:
    params: the average.
    runs: the runs on the target, best first, with the held-out score of each
      in `metrics["held-out"]`.
    selected: names of those that are in the average.
    score: held-out score of the average.
    greedy: every decision, for average "greedy"; else None.
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
  """Averages runs from one start (DiWA, arXiv 2205.09739).

  DiWA fine-tunes many times from one linear probe, with mild differences of
  hyperparameters, and averages all ("uniform"), or those that help, best first
  ("greedy", the paper's restricted selection: at least as good as before).

  Args:
    runs: fine-tuned on the target from one start.
    evaluate: score on held-out data of the target. If it has an attribute
      `mode`, that must be the `mode` below.
    average: "greedy" or "uniform".
    mode: "max" if a higher score is better, "min" if a lower one is, as a loss.
    **settings: of `greedy_soup`, for average "greedy".

  Returns:
    The average, and the score of every run alone.

  Raises:
    ValueError: if `average` or `mode` is something else, a score is no finite
      number, or as `greedy_soup`.

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
  runs = check_ingredients(runs)
  scored = []
  for run in runs:
    found = arguments.number(
      f"What evaluate returns for {run.name!r}", evaluate(run.load())
    )
    metrics = {**run.metrics, "held-out": found}
    scored.append(dataclasses.replace(run, metrics=metrics))
  ranked = rank_by(scored, "held-out", mode=mode)
  if average == "uniform":
    params = uniform_soup(ranked)
    selected, greedy = tuple(r.name for r in ranked), None
    score = arguments.number(
      "What evaluate returns for the average", evaluate(params)
    )
  else:
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
  """Recycles models of other tasks as starts (ratatouille, arXiv 2212.10445).

  Each start is the pretrained model fine-tuned on another, auxiliary task, with
  the head of the target put on: one head for all, a linear probe of the
  pretrained model. All are fine-tuned on the target, and averaged. Leave out
  starts that were made with data of the target.

  Args:
    starts: with the target's head.
    finetune: `finetune(params, name)` returns what fine-tuning on the target
      from there gives: a tree, or an ingredient on disk. To go on after a kill,
      let it return what an earlier call saved.
    evaluate: as in `diwa`.
    average: "greedy" or "uniform".
    mode: as in `diwa`.
    **settings: of `greedy_soup`, for average "greedy".

  Returns:
    The average, and the score of every run alone; runs are called as starts.

  Raises:
    ValueError: as `diwa`.
  """
  starts = as_ingredients(starts)
  _check(evaluate, average, mode, settings)
  starts = check_ingredients(starts)  # Before hours of fine-tuning.
  runs = []
  for start in starts:
    run = finetune(start.load(), start.name)
    run = as_ingredient(run, start.name)
    runs.append(dataclasses.replace(run, name=start.name))
  return diwa(runs, evaluate, average=average, mode=mode, **settings)


def _check(evaluate, average, mode, settings) -> None:
  if average not in ("greedy", "uniform"):
    raise ValueError(f"average must be 'greedy' or 'uniform', got {average!r}.")
  if average == "uniform" and settings:
    raise ValueError(
      f"{sorted(settings)} are settings of a greedy soup: give "
      "average='greedy'."
    )
  if mode not in ("max", "min"):
    raise ValueError(f"mode must be 'max' or 'min', got {mode!r}.")
  arguments.mode(evaluate, mode)
