# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""State that the methods share: scores, records of candidates, results."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax

from soupjax import evaluators, files
from soupjax.progress import Progress
from soupjax.soups.core.ingredient import Ingredient
from soupjax.soups.search import Search
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook import evaluate
from soupjax.tasks.search import config as search_config
from soupjax.tasks.search.inputs import MINIVAL, SearchInputs

PyTree = Any
# The key of the mean over several tasks among the scores of a candidate.
MEAN = "mean"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """The result of a method.

  Attributes:
    params: the chosen model.
    searches: title -> all candidates.
    models: name -> parameters of other models for the table, made on demand.
    greedy: title -> record of a greedy soup.
    patching: tasks whose mean is half of the combined accuracy; () for none.
    axis: name of the coefficient in pictures.
    summary: one sentence on the choice.
  """

  params: PyTree
  searches: Mapping[str, Search] = dataclasses.field(default_factory=dict)
  models: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  greedy: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  patching: Sequence[str] = ()
  axis: str = "Coefficient"
  summary: str = ""


class Work:
  """Evaluates candidates and records them in `candidates/`."""

  def __init__(self, inputs: SearchInputs, workdir: pathlib.Path, total: int):
    """Sets up the evaluators.

    Args:
      inputs: with heads.
      workdir: of the run.
      total: the most candidates.
    """
    self.inputs, self.workdir = inputs, workdir
    self.config = inputs.config
    self.evaluations = evaluate.Evaluations(inputs, workdir)
    # Model -> (kind, set -> metric -> value).
    self.results: dict[str, tuple[str, Any]] = {}
    self._progress = Progress("search", total, unit="candidates")

  @property
  def metric(self) -> str:
    """The metric of all choices."""
    return self.inputs.metrics[0]

  @property
  def reading(self) -> dict[str, Any]:
    """Keyword arguments of searches: where and how models are read."""
    return {
      "in_memory": self.config.in_memory,
      "sharding": self.inputs.place,
      "select": self.inputs.selection(self.inputs.ingredients).get("select"),
    }

  @functools.cached_property
  def _minival(self):
    return {
      name: self.evaluations.minival(self.metric, f"{name}/{MINIVAL}")
      for name in self.inputs.tasks
    }

  def scores(self, params: PyTree) -> dict[str, float]:
    """Evaluates a candidate on the minival of every task.

    Returns:
      Task -> score; higher is better.
    """
    return {
      name: evaluator(self.inputs.params_of(f"{name}/{MINIVAL}", params))
      for name, evaluator in self._minival.items()
    }

  def score_of(self, model: str, task: str) -> float:
    """Returns the score of a model that was evaluated on all sets."""
    sign = evaluators.get_metric(self.metric).sign
    return sign * self.results[model][1][f"{task}/{MINIVAL}"][self.metric]

  def with_mean(self, key: str = "choose_on"):
    """Returns an evaluation with the mean over the tasks that decide."""
    names = search_config.names_of(self.config, key) or list(self.inputs.tasks)

    def evaluate(params):
      scores = self.scores(params)
      return {**scores, MEAN: mean(scores, names)}

    return evaluate, names

  def stage(self, title: str) -> dict[str, Any]:
    """Returns `resume` and `on_candidate` of a search with its own record."""
    path = self.workdir / "candidates" / f"{title}.json"
    history = workdir_lib.read(path, [])
    if not isinstance(history, list):
      raise ValueError(f"{path} is not a list of candidates: delete it.")

    def save(candidate):
      history.append(dataclasses.asdict(candidate))
      if jax.process_index() == 0:
        files.make_directory(path.parent)
        files.write_json(path, history)
      values = ", ".join(f"{c:.3g}" for c in candidate.coefficients)
      shown = ", ".join(f"{k} {v:.4f}" for k, v in candidate.scores.items())
      self._progress.step(note=f"{title} at {values}: {shown}")

    return {"resume": list(history), "on_candidate": save}

  def best(self, names: Sequence[str]) -> Ingredient:
    """Returns the ingredient of the highest mean score over some tasks."""

    def value(ingredient):
      scores = {t: self.score_of(ingredient.name, t) for t in names}
      return mean(scores, names)

    return max(self.inputs.ingredients, key=value)


def mean(scores: Mapping[str, float], names: Sequence[str]) -> float:
  """Returns the mean score over some tasks."""
  return math.fsum(scores[name] for name in names) / len(names)
