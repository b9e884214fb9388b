# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Searches whose candidates the user's own program scores: `evaluate_command`.

Each task is a metric that the program prints. One run of the program scores a
candidate on all tasks.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
import itertools
import math
import pathlib
from typing import Any

import ml_collections

from soupjax.evaluators import command
from soupjax.tasks.cook import judge
from soupjax.tasks.search import config as search_config
from soupjax.tasks.search.config import TaskSpec
from soupjax.tasks.search.inputs import (
  MINIVAL,
  TEST,
  SearchInputs,
  Task,
  own_model,
)

PyTree = Any


def open_inputs(
  config: ml_collections.ConfigDict, *, same_init: bool = True
) -> SearchInputs:
  """Opens the checkpoints; reads metadata only.

  Args:
    config: as in configs/search.py, with `evaluate_command`.
    same_init: whether it is an error if ingredients record different starts.

  Raises:
    ValueError: if the command cannot be run, checkpoints do not fit together,
      or a task names a model that is not an ingredient.
  """
  fields = judge.fields(config, same_init=same_init)
  names = [ingredient.name for ingredient in fields["ingredients"]]
  return SearchInputs(
    **fields,
    tasks={
      name: Task(spec=spec, own=own_model(spec, names))
      for name, spec in search_config.tasks(config).items()
    },
    start=None,
    frozen_heads={},
  )


def about(inputs: SearchInputs, most: int) -> list[str]:
  """Returns lines for the plan that describe the command and the tasks.

  Args:
    inputs: the inputs.
    most: the maximum number of models to evaluate.
  """
  lines = judge.about_command(inputs)
  for name, task in inputs.tasks.items():
    better = "lower" if inputs.mode(task.spec.dataset) == "min" else "higher"
    test = test_of(task.spec) + ("" if task.spec.test else ", if printed")
    own = f"; fine-tuned: {task.own}" if task.own else ""
    metric = command.full_name(task.spec.dataset)
    lines.append(
      f"task {name}: chosen by {metric} ({better} is better); test {test}{own}"
    )
  lines.append(
    f"commands: at most {most:,}, each scoring one model on all tasks"
  )
  return lines


def test_of(spec: TaskSpec) -> str:
  """Returns the metric that a task reports without choosing by it."""
  name = command.full_name(spec.dataset).removeprefix("minival/")
  return command.full_name(spec.test or f"test/{name}")


class Evaluations(judge.Evaluations):
  """Results of models on each task, as measured by a command."""

  def __init__(self, inputs: SearchInputs, workdir: pathlib.Path):
    """Opens the scores of an earlier run."""
    self._tasks = {name: task.spec for name, task in inputs.tasks.items()}
    given = [spec.test for spec in self._tasks.values() if spec.test]
    super().__init__(inputs, workdir, also=given)

  def scores(self, params: PyTree, names: Sequence[str]) -> dict[str, float]:
    """Evaluates a candidate with at most one run of the command.

    Returns:
      Task -> score, for the tasks in `names`; higher is better.
    """
    metrics = self._evaluator.scores(params)
    signs = {"max": 1, "min": -1}
    return {
      name: signs[self._opened.mode(self._tasks[name].dataset)]
      * self._value(metrics, name)
      for name in names
    }

  def ahead_of_candidates(
    self, models: Mapping[Hashable, Callable[[], PyTree]]
  ) -> None:
    """Evaluates the next candidates in the background, one per job."""
    jobs = self._opened.config.evaluate_jobs
    self._evaluator.ahead(dict(itertools.islice(models.items(), jobs)))

  def _value(self, metrics, name: str) -> float:
    return command.value_of(metrics, self._tasks[name].dataset, f"tasks.{name}")

  def _by_set(self, metrics) -> dict[str, dict[str, float]]:
    """Groups task metrics by "TASK/minival" and "TASK/test", others by set.

    Raises:
      ValueError: if a metric of a task is missing or not finite.
    """
    results, rest = {}, dict(metrics)
    for name, spec in self._tasks.items():
      value = self._value(metrics, name)
      rest.pop(command.full_name(spec.dataset), None)
      results[f"{name}/{MINIVAL}"] = {spec.dataset: value}
      test = test_of(spec)
      if spec.test:
        command.value_of(metrics, spec.test, f"tasks.{name}: test")
      if math.isfinite(metrics.get(test, math.nan)):
        rest.pop(test, None)
        results[f"{name}/{TEST}"] = {spec.dataset: metrics[test]}
    for key, value in rest.items():
      dataset, _, metric = key.partition("/")
      if math.isfinite(value):
        results.setdefault(dataset, {})[metric] = value
    return results
