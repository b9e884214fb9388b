# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The methods of a search: each chooses one model on minival."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from soupjax.soups import search
from soupjax.soups.core.ingredient import Ingredient
from soupjax.tasks.search import config as search_config
from soupjax.tasks.search.inputs import SearchInputs
from soupjax.tasks.search.work import MEAN, Outcome, Work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """A method of `config.method`.

  Attributes:
    run: makes the choice.
    count: the most candidates that it evaluates.
    check: raises a ValueError before any work if the inputs do not do.
    same_init: whether ingredients must have one start.
    needs_initial: whether `config.initial` is needed.
  """

  run: Callable[[Work], Outcome]
  count: Callable[[SearchInputs], int]
  check: Callable[[SearchInputs], None] = lambda inputs: None
  same_init: bool = True
  needs_initial: bool = True


def _points(inputs: SearchInputs) -> int:
  return inputs.config.search.points


# --- WiSE-FT ------------------------------------------------------------------


def _wise_ft(work: Work) -> Outcome:
  evaluate, names = work.with_mean()
  best = work.best(names)
  found = search.wise_ft_curve(
    work.inputs.initial,
    best,
    evaluate,
    search_config.grid(work.config),
    choose_on=MEAN,
    **work.stage("wise_ft"),
    **work.reading,
  )
  alpha = found.best.coefficients[0]
  return Outcome(
    params=found.params,
    searches={"wise_ft": found},
    axis="Alpha (0: initial, 1: fine-tuned)",
    summary=f"WiSE-FT from the initial model to {best.name}: alpha {alpha:.3g}",
  )


# --- Task arithmetic ----------------------------------------------------------


def own_scores(work: Work) -> dict[str, float]:
  """Returns task -> score of the ingredient that was fine-tuned on it."""
  return {
    name: work.score_of(task.own, name)
    for name, task in work.inputs.tasks.items()
    if task.own
  }


def _addition(work: Work) -> Outcome:
  own = own_scores(work)
  complete = len(own) == len(work.inputs.tasks)
  found = search.task_scale(
    work.inputs.initial,
    list(work.inputs.ingredients),
    work.scores,
    search_config.grid(work.config),
    finetuned_scores=own if complete else None,
    **work.stage("addition"),
    **work.reading,
  )
  scale = found.best.coefficients[0]
  by = "normalised accuracy" if complete else "mean score"
  return Outcome(
    params=found.params,
    searches={"addition": found},
    axis="Scale",
    summary=(
      f"Initial model plus {scale:.3g} times the sum of "
      f"{len(work.inputs.ingredients)} task vectors, by {by}"
    ),
  )


METHODS: Mapping[str, Method] = {
  "wise_ft": Method(run=_wise_ft, count=_points),
  # Scale 0, the initial model, is part of the grid.
  "addition": Method(run=_addition, count=_points),
}


def check(inputs: SearchInputs) -> None:
  """Checks that the inputs do for the method.

  Raises:
    ValueError: if `config.initial` is missing, or as the method says.
  """
  config = inputs.config
  method = METHODS[config.method]
  if method.needs_initial and inputs.initial is None:
    raise ValueError(
      f"The search {config.method!r} starts from the model that all were "
      "fine-tuned from: give --config.initial."
    )
  method.check(inputs)


def names(ingredients: list[Ingredient]) -> str:
  """Lists names of ingredients for errors."""
  return ", ".join(i.name for i in ingredients)


def scores_of(history: Any) -> Any:
  """Returns candidates as JSON."""
  return [dataclasses.asdict(c) for c in history]
