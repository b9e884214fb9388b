# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluates models with the user's own program: `evaluate_command`.

Ingredients keep the leaves of their files, so that soups and candidates can be
written in the same format. No model is built, and no dataset is read.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax
import ml_collections

from soupjax import files
from soupjax.checkpoints import open as open_lib
from soupjax.evaluators import command as command_lib
from soupjax.evaluators.by_command import CommandEvaluator
from soupjax.progress import Progress
from soupjax.soups import average
from soupjax.soups.core.ingredient import (
  Ingredient,
  as_ingredients,
  check_ingredients,
)
from soupjax.soups.core.select import Selection
from soupjax.tasks.cook import export, inputs, window

PyTree = Any


def open_inputs(config: ml_collections.ConfigDict) -> inputs.CookInputs:
  """Opens the checkpoints; arguments and errors as for `fields`."""
  return inputs.CookInputs(**fields(config), minival=None, tests={})


def fields(
  config: ml_collections.ConfigDict, *, same_init: bool = True
) -> dict[str, Any]:
  """Opens the checkpoints; reads metadata only.

  Args:
    config: as in configs/cook.py or configs/search.py, with `evaluate_command`.
    same_init: whether it is an error if ingredients record different starts.

  Returns:
    The fields of `inputs.Inputs`.

  Raises:
    ValueError: if the command cannot be run, or the checkpoints do not fit
      together.
  """
  if jax.process_count() > 1:
    raise ValueError(
      "evaluate_command works in one process: leave --distributed out, and let "
      "the program use several machines, or set evaluate_jobs."
    )
  command_of(config).arguments("")
  opened = open_lib.find_ingredients(
    inputs.patterns(config), base=config.base or config.initial or None
  )
  initial = open_lib.open_ingredient(config.initial) if config.initial else None
  for key in ("skip", "prefix"):
    if config[key]:
      raise ValueError(
        f"{key} is for models that soupjax builds; with evaluate_command, all "
        f"leaves are written. Leave --config.{key} out."
      )
  for ingredient in opened:
    export.layout(ingredient)
  original = opened[0]
  ingredients = [
    dataclasses.replace(i, name=inputs.safe_name(i.name, config.task))
    for i in opened
  ]
  if initial is not None:
    initial = dataclasses.replace(initial, name="initial")
  more = {}
  if config.task == "cook":
    runs = window.open_runs(config, opened)
    more = {"along": window.by_ingredient(ingredients, runs)}
  along = more.get("along", {})
  inputs.check_models(config, ingredients, initial, along, same_init=same_init)
  return {
    "config": config,
    "model": None,
    "mesh": None,
    "place": None,
    "spaces": {},
    "ops": {},
    "heads": {},
    "unseen": {},
    "ingredients": ingredients,
    "initial": initial,
    "original": original,
    "notes": [],
    **more,
  }


def command_of(config: ml_collections.ConfigDict) -> command_lib.Command:
  """Returns the command of a config."""
  return command_lib.Command(
    text=config.evaluate_command,
    timeout=config.evaluate_timeout,
    retries=config.evaluate_retries,
  )


def plan(opened: inputs.CookInputs) -> str:
  """Describes the inputs and the work to be done, as text."""
  config, ingredients = opened.config, opened.ingredients
  lines = [
    f"{len(ingredients)} ingredients of {ingredients[0].num_bytes / 1e6:,.1f} "
    "MB",
    *(f"  {ingredient.name}" for ingredient in ingredients),
    f"start: {opened.initial.path}"
    if opened.initial
    else "start: unknown, so no WiSE-FT",
    *about_command(opened),
    "chosen by this command's metrics on minival: "
    + ", ".join(
      f"{soup} by {metric} ("
      + ("higher" if opened.mode(metric) == "max" else "lower")
      + " is better)"
      for soup, metric in opened.greedy.items()
    ),
    *window.plan_lines(opened.along),
    "soups: "
    + ", ".join(["uniform", *opened.greedy, *["window"] * bool(opened.along)]),
  ]
  if config.cook.learned.granularities and len(ingredients) > 1:
    lines.append("no learned soups: a command provides no gradients")
  lines.append("no ensembles: a command provides no logits")
  return "\n".join(lines)


def about_command(opened: inputs.Inputs) -> list[str]:
  """Describes the command and its checkpoints in lines for the plan."""
  command = command_of(opened.config)
  kind, name, is_directory = export.layout(opened.original)
  limit = f"{command.timeout:g} s" if command.timeout else "no time limit"
  return [
    f"evaluated by: {command.text}",
    f"  {command_lib.CHECKPOINT} is "
    + ("a folder with " if is_directory else "")
    + f"{name} ({kind}); {limit}, up to {1 + command.retries} attempts, "
    f"{opened.config.evaluate_jobs} in parallel",
  ]


class Evaluations:
  """Results of models from a command, like those of `evaluate.Evaluations`.

  Use it as a context manager, which terminates all programs on exit.
  """

  def __init__(
    self,
    opened: inputs.Inputs,
    workdir: pathlib.Path,
    also: Sequence[str] = (),
  ):
    """Opens the scores of an earlier run.

    Args:
      opened: the inputs.
      workdir: the directory of the run.
      also: metrics that must be finite, besides the deciding ones.
    """
    config = opened.config
    self._opened, self._workdir = opened, workdir
    self._evaluator = CommandEvaluator(
      command_of(config),
      functools.partial(export.write_like, opened.original),
      workdir / "evaluations",
      metric=opened.metrics[0],
      also=[*opened.metrics[1:], *also],
      jobs=config.evaluate_jobs,
    )

  def __enter__(self) -> "Evaluations":
    return self

  def __exit__(self, *exception) -> None:
    self._evaluator.__exit__(*exception)

  def minival(self, metric: str) -> CommandEvaluator:
    """Returns an evaluator that scores candidates by a metric on minival."""
    lower = self._opened.mode(metric) == "min"
    return self._evaluator.for_metric(metric, lower_is_better=lower)

  def ahead(self, models: Mapping[str, Callable[[], PyTree]]) -> None:
    """Evaluates models that have no results yet, in the background."""
    folder = self._workdir / "metrics"
    self._evaluator.ahead(
      {
        name: load
        for name, load in models.items()
        if not (folder / f"{name}.json").exists()
      }
    )

  def evaluate(
    self,
    name: str,
    load: Callable[[], PyTree],
    *,
    keep_logits: bool = False,
    progress: Progress | None = None,
  ) -> dict[str, dict[str, float]]:
    """Evaluates a model, or reads the results of an earlier run.

    Args:
      name: the name of the model.
      load: returns its parameters; called only if they are needed.
      keep_logits: ignored, like `progress`.
      progress: ignored.

    Returns:
      Set -> metric -> value.

    Raises:
      ValueError: if the command fails, or a deciding metric is missing or not
        finite.
    """
    del keep_logits, progress
    record = self._workdir / "metrics" / f"{name}.json"
    if record.exists():
      return files.read_json(record)
    metrics = self._evaluator.scores(load(), name)
    try:
      results = self._by_set(metrics)
    except ValueError as e:
      raise ValueError(f"{name}: {e}") from e
    files.make_directory(record.parent)
    files.write_json(record, results)
    return results

  def _by_set(self, metrics) -> dict[str, dict[str, float]]:
    """Groups metrics by set, without those that are not finite.

    Raises:
      ValueError: if a deciding metric is missing or not finite.
    """
    for metric in self._opened.metrics:
      command_lib.value_of(metrics, metric)
    results: dict[str, dict[str, float]] = {"minival": {}}
    for key, value in metrics.items():
      dataset, _, metric = key.partition("/")
      if math.isfinite(value):
        results.setdefault(dataset, {})[metric] = value
    return results

  def before_turn(
    self, ranked: Sequence[Ingredient], selection: Mapping[str, Any]
  ) -> Callable[[Sequence[Mapping[str, Any]]], None]:
    """Returns a function that evaluates what a greedy soup may try next.

    It takes the decisions so far, and starts to evaluate the candidates of the
    next turns, for either outcome of each. They equal the soup's own candidates
    bit for bit, so that their scores are found by the digest of the weights.

    Args:
      ranked: the ingredients, in the order of the soup.
      selection: `select` and `base`, as for `greedy_soup`.
    """
    if self._opened.config.evaluate_jobs == 1:
      return lambda history: None
    opened = Selection(
      as_ingredients(ranked),
      base=selection.get("base"),
      select=selection.get("select"),
      dtype=None,
    )
    by_name = {i.name: i for i in check_ingredients(opened.ingredients)}

    def mean(members):
      ingredients = [by_name[name] for name in members]
      return average.average(ingredients, None, opened, None)

    def start(history):
      jobs = self._opened.config.evaluate_jobs
      candidates = frontier(history, list(by_name), jobs)
      self._evaluator.ahead(
        {members: functools.partial(mean, members) for members in candidates}
      )

    return start

  def rows(
    self, name: str, kind: str, results, differences=None, above=None
  ) -> list[dict[str, Any]]:
    """Returns the lines of `results.jsonl` for one model."""
    del differences, above
    return [
      {
        "model": name,
        "kind": kind,
        "dataset": f"command/{dataset}",
        "metric": metric,
        "value": value,
      }
      for dataset, values in results.items()
      for metric, value in values.items()
    ]

  def differences(self, best: str, results) -> dict[tuple[str, str], Any]:
    """Returns {}: a command gives no results for single images."""
    del best, results
    return {}


def frontier(
  history: Sequence[Mapping[str, Any]], names: Sequence[str], count: int
) -> list[tuple[str, ...]]:
  """Lists candidates that the next turns of a greedy soup may need.

  Args:
    history: the decisions so far, with "name" and "accepted".
    names: names of all ingredients, in the order of the soup.
    count: maximum number of candidates.

  Returns:
    Names of each candidate's members: first the next candidate, then those of
    the turn after it if it is rejected or accepted, and so on.

  Examples:
    >>> from soupjax.tasks.cook import judge
    >>> judge.frontier([{"name": "a", "accepted": True}], ["a", "b", "c"], 3)
    [('a', 'b'), ('a', 'c'), ('a', 'b', 'c')]
  """
  selected = tuple(d["name"] for d in history if d["accepted"])
  turns, candidates = [(len(history), selected)], []
  while turns and len(candidates) < count:
    position, members = turns.pop(0)
    if position == len(names):
      continue
    candidate = (*members, names[position])
    candidates.append(candidate)
    if members:  # The first ingredient is always accepted.
      turns.append((position + 1, members))
    turns.append((position + 1, candidate))
  return candidates
