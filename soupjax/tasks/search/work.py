# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""State shared by the methods: scores, candidates and results."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax

from soupjax import files
from soupjax.progress import Progress
from soupjax.soups import search
from soupjax.soups.core.ingredient import Ingredient
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook import evaluate
from soupjax.tasks.search import config as search_config
from soupjax.tasks.search import judge
from soupjax.tasks.search.inputs import MINIVAL, SearchInputs

PyTree = Any
# Key of a candidate's mean score over several tasks.
MEAN = "mean"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """The result of a method.

  Attributes:
    params: the chosen model.
    searches: title -> all candidates.
    models: other models for the table: name -> a function of `sharding` that
      returns the parameters.
    greedy: title -> record of a greedy soup.
    learned: title -> record of a learned soup.
    patching: tasks whose mean has weight 1/2 in the combined accuracy; () for
      none.
    supported: tasks whose mean has the other half of the weight.
    axis: name of the coefficient in figures.
    summary: one sentence on the choice.
  """

  params: PyTree
  searches: Mapping[str, search.Search] = dataclasses.field(
    default_factory=dict
  )
  models: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  greedy: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  learned: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  patching: Sequence[str] = ()
  supported: Sequence[str] = ()
  axis: str = "Coefficient"
  summary: str = ""


class Work:
  """Evaluates candidates and records them in `candidates/`."""

  def __init__(
    self,
    inputs: SearchInputs,
    workdir: pathlib.Path,
    total: int,
    evaluations: evaluate.Evaluations | judge.Evaluations,
  ):
    """Starts without results.

    Args:
      inputs: the inputs, with the leaves of the heads.
      workdir: directory of the run.
      total: the maximum number of candidates.
      evaluations: evaluates models on all sets.
    """
    self.inputs, self.workdir = inputs, workdir
    self.config = inputs.config
    self.evaluations = evaluations
    # Model -> (kind, set -> metric -> value).
    self.results: dict[str, tuple[str, Any]] = {}
    self._progress = Progress("search", total, unit="candidates")

  @property
  def metric(self) -> str:
    """The metric that decides; "score" if it differs between tasks."""
    metrics = self.inputs.metrics
    return metrics[0] if len(metrics) == 1 else "score"

  def metric_of(self, task: str) -> str:
    """Returns the metric that decides for a task."""
    if self.inputs.is_judged:
      return self.inputs.tasks[task].spec.dataset
    return self.metric

  def reading(self, models: Sequence[Ingredient]) -> dict[str, Any]:
    """Returns the arguments of searches that set how models are read."""
    return {
      "in_memory": self.config.in_memory,
      "sharding": self.inputs.place,
      "select": self.inputs.selection(models).get("select"),
    }

  @functools.cached_property
  def _minival(self):
    return {
      name: self.evaluations.minival(self.metric, f"{name}/{MINIVAL}")
      for name in self.inputs.tasks
    }

  def scores(
    self, params: PyTree, names: Sequence[str] | None = None
  ) -> dict[str, float]:
    """Evaluates a candidate on the minival of each task.

    Args:
      params: the candidate.
      names: names of the tasks; None for all.

    Returns:
      Task -> score; higher is better.
    """
    names = names or list(self.inputs.tasks)
    if isinstance(self.evaluations, judge.Evaluations):
      return self.evaluations.scores(params, names)
    return {name: self._minival[name](params) for name in names}

  def score_of(self, model: str, task: str) -> float:
    """Returns the score on a task of a model evaluated on all sets."""
    metric = self.metric_of(task)
    sign = 1 if self.inputs.mode(metric) == "max" else -1
    return sign * self.results[model][1][f"{task}/{MINIVAL}"][metric]

  def scores_of(self, model: str) -> dict[str, float]:
    """Returns task -> `score_of` a model."""
    return {task: self.score_of(model, task) for task in self.inputs.tasks}

  def evaluator(
    self, names: Sequence[str] | None = None, *, mean_of: Sequence[str] = ()
  ) -> Callable[[PyTree], dict[str, float]]:
    """Returns `scores` as an evaluator for searches.

    Args:
      names: names of the tasks; None for all.
      mean_of: tasks whose mean is added as `MEAN`.
    """

    def evaluate(params):
      scores = self.scores(params, names)
      return scores | ({MEAN: mean(scores, mean_of)} if mean_of else {})

    if isinstance(self.evaluations, judge.Evaluations):
      evaluate.ahead = self.evaluations.ahead_of_candidates
    return evaluate

  def file(self, title: str) -> pathlib.Path:
    """Returns the path of the file that a search resumes from."""
    path = self.workdir / "candidates" / f"{title}.json"
    if jax.process_index() == 0:
      files.make_directory(path.parent)
    return path

  def stage(self, title: str) -> dict[str, Any]:
    """Returns the arguments `resume` and `on_candidate` of a search."""
    return workdir_lib.resumed_search(self.file(title), self._progress, title)

  def shown(
    self, base: Ingredient, models: Sequence[Ingredient], *factors: float
  ) -> dict[str, Any]:
    """Returns the models at the coefficients of `search.show`, for the tables.

    Args:
      base: the model at coefficient 0.
      models: the directions.
      *factors: factors of the coefficient, one for each direction.

    Returns:
      "at_COEFFICIENT" -> function of `sharding` that returns the parameters.
    """

    return {
      f"at_{x:g}": self.blend(base, models, [x * factor for factor in factors])
      for x in search_config.shown(self.config)
    }

  def blend(
    self,
    base: Ingredient,
    models: Sequence[Ingredient],
    coefficients: Sequence[float],
  ) -> Any:
    """Returns a function that computes an affine combination of models.

    Args:
      base: the model at coefficients 0.
      models: the directions.
      coefficients: one for each direction.

    Returns:
      A function of `sharding`, which it ignores: `reading` sets the sharding.
    """

    def load(sharding=None):
      del sharding
      reading = self.reading(models)
      return search.Blend(base, models, **reading)(coefficients)

    return load

  def best(self, names: Sequence[str]) -> Ingredient:
    """Returns the ingredient with the highest mean score over some tasks."""
    return max(
      self.inputs.ingredients,
      key=lambda ingredient: mean(self.scores_of(ingredient.name), names),
    )


def mean(scores: Mapping[str, float], names: Sequence[str]) -> float:
  """Returns the mean score over some tasks."""
  return math.fsum(scores[name] for name in names) / len(names)
