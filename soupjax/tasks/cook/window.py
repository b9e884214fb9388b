# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Averages of the last checkpoints of one run, chosen on minival."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import glob
import os
import pathlib
import re
from typing import Any

from soupjax import buckets
from soupjax.checkpoints import open as open_lib
from soupjax.progress import Progress
from soupjax.soups import rules, search
from soupjax.soups.core.ingredient import Ingredient
from soupjax.tasks import mix
from soupjax.tasks import workdir as workdir_lib

PyTree = Any
# Placeholder in `cook.window` for the directory of an ingredient.
_RUN = "{run}"
_BRACES = re.compile(r"\{.*?\}")
# Hyperparameters that may differ between checkpoints of one run.
_ALONG = ("steps", "family")


def patterns(window: str, ingredient: str) -> list[str]:
  """Returns the paths and patterns of `cook.window` for an ingredient.

  Args:
    window: paths and patterns joined by commas, with "{run}" for the directory
      of the ingredient; "" for none.
    ingredient: the path of the ingredient, as matched by `config.ingredients`.
  """
  run = os.path.dirname(ingredient.removesuffix("/params"))
  if not buckets.is_remote(ingredient):
    run = glob.escape(run)
  return open_lib.split_patterns(window.replace(_RUN, run)) if window else []


def open_runs(
  config,
  ingredients: Sequence[Ingredient],
  read_as: Callable[[Ingredient], Ingredient] = lambda i: i,
) -> list[list[Ingredient]]:
  """Opens the checkpoints along runs that `cook.window` names.

  Args:
    config: as in configs/cook.py.
    ingredients: the ingredients, with the paths of their files.
    read_as: a function that chooses the leaves of a checkpoint.

  Returns:
    The checkpoints of every run, oldest first: one run per ingredient if the
    window has "{run}", otherwise a single run; [] without a window.

  Raises:
    ValueError: if a run has fewer than two checkpoints, or if checkpoints are
      not from one run or their order is unknown.
  """
  window = config.cook.window
  if not window:
    return []
  if unknown := _BRACES.findall(window.replace(_RUN, "")):
    raise ValueError(
      f"cook.window={window!r}: {unknown[0]} is unknown; {_RUN} stands for the "
      "directory of the best ingredient."
    )
  matches = open_lib.paths_of(open_lib.split_patterns(config.ingredients))
  runs = []
  for ingredient in ingredients if _RUN in window else ingredients[:1]:
    try:
      given = patterns(window, _matched(str(ingredient.path), matches))
      run = open_lib.find_ingredients(
        given, base=config.base or config.initial or None
      )
      runs.append(list(map(read_as, in_order(run, given))))
      if len(run) < 2:
        raise ValueError(
          f"only {run[0].path} matches, but a window needs at least two "
          "checkpoints of a run. Runs of task 'finetune' keep them with "
          "--config.ingredients=1epochs."
        )
    except ValueError as e:
      of = f", for {ingredient.name!r}" if _RUN in window else ""
      raise ValueError(f"cook.window={window!r}{of}: {e}") from e
  return runs


def _matched(path: str, matches: Sequence[str]) -> str:
  """Returns the longest match that is or contains a path; else the path."""
  places = [m if buckets.is_remote(m) else os.path.abspath(m) for m in matches]
  inside = [m for m in places if f"{path}/".startswith(f"{m}/")]
  return max(inside, key=len, default=path)


def by_ingredient(
  ingredients: Sequence[Ingredient], runs: Sequence[Sequence[Ingredient]]
) -> dict[str, Sequence[Ingredient]]:
  """Returns ingredient -> its run from `open_runs`, or "" -> the only run."""
  if len(runs) == 1 < len(ingredients):
    return {"": runs[0]}
  return {i.name: run for i, run in zip(ingredients, runs)}


def plan_lines(along: Mapping[str, Sequence[Ingredient]]) -> list[str]:
  """Describes the checkpoints along runs in lines for the plan."""
  return [
    f"window: the last of {', '.join(c.name for c in run)}"
    + (f", if {name} is the best ingredient" if len(along) > 1 else "")
    for name, run in along.items()
  ]


def in_order(
  checkpoints: Sequence[Ingredient], given: Sequence[str]
) -> list[Ingredient]:
  """Sorts the checkpoints of one run, oldest first.

  They are sorted by their recorded steps. If any has none, they keep the order
  of the patterns and, within a pattern, of the numbers in the paths.

  Args:
    checkpoints: from `find_ingredients`.
    given: the patterns that found them.

  Raises:
    ValueError: if they record different hyperparameters (which include moving
      averages) or the same steps, or if the paths of one pattern differ in more
      than numbers and steps are missing.
  """
  recorded = [c for c in checkpoints if c.hyperparameters]
  for other in recorded[1:]:
    first = recorded[0]
    a, b = first.hyperparameters, other.hyperparameters
    for key in sorted({*a, *b} - {*_ALONG}):
      if a.get(key) != b.get(key):
        raise ValueError(
          f"{first.name!r} and {other.name!r} are not from one run: they "
          f"record {key} {a.get(key)!r} and {b.get(key)!r}. Give checkpoints "
          "of one run, and either the weights or one of their moving averages."
        )
  steps = {c.name: c.hyperparameters.get("steps") for c in checkpoints}
  if None not in steps.values():
    ordered = sorted(checkpoints, key=lambda c: steps[c.name])
    for one, two in zip(ordered, ordered[1:]):
      if steps[one.name] == steps[two.name]:
        raise ValueError(
          f"{one.name!r} and {two.name!r} are not from one run: both record "
          f"{steps[one.name]} steps. Leave one of them out."
        )
    return ordered
  for pattern in given:
    first, *others = open_lib.paths_of([pattern])
    for other in others:
      if re.sub(r"\d+", "0", first) != re.sub(r"\d+", "0", other):
        raise ValueError(
          f"The order of {first} and {other} is unknown: they record no steps, "
          "and their names differ in more than numbers. List the checkpoints "
          "from oldest to newest, joined by commas."
        )
  return list(checkpoints)


def choose(
  checkpoints: Sequence[Ingredient],
  evaluate: Callable[[PyTree], Any],
  *,
  merge: Callable[[Mapping[str, Any]], PyTree],
  options: Mapping[str, Any],
  **settings: Any,
) -> search.Search:
  """Chooses how many of the last checkpoints of a run to average.

  Args:
    checkpoints: oldest first.
    evaluate: as in `soupjax.search`.
    merge: the result of `mix.merger` for the checkpoints.
    options: "kind" and "decay" of `rules.schedule`.
    settings: further arguments of `soupjax.search.tune`.

  Returns:
    The search, whose coefficient is the number of checkpoints.
  """
  count = len(checkpoints)

  def make(point):
    weights = rules.schedule(count=count, last=int(point[0]), **options)
    return merge({"name": "weighted", "weights": weights})

  points = [[n] for n in range(1, count + 1)]
  return search.tune(make, evaluate, points, **settings)


def soup(
  opened, best: Ingredient, evaluations, state: pathlib.Path
) -> tuple[PyTree, dict[str, Any]]:
  """Averages the last checkpoints of a run, as many as are best on minival.

  Args:
    opened: the `inputs.CookInputs`.
    best: the best ingredient, whose run is used if there are several.
    evaluations: `evaluate.Evaluations` or `judge.Evaluations`.
    state: a file to resume from after a kill.

  Returns:
    The soup and its record, as JSON.
  """
  run, metric = run_of(opened, best.name), opened.metrics[0]
  names = [checkpoint.name for checkpoint in run]
  progress = Progress(f"window by {metric}", len(run), unit="candidates")
  found = choose(
    run,
    evaluations.minival(metric),
    merge=mix.merger(
      run,
      base=opened.initial,
      select=mix.selection_of(opened.config.select),
      sharding=opened.place,
    ),
    options={"kind": "uniform"},
    method="window",
    label=f"{metric} on minival",
    **workdir_lib.resumed_search(state, progress, "window"),
  )
  last = int(found.best.coefficients[0])
  return found.params, {
    "metric": metric,
    "last": last,
    "checkpoints": names,
    "selected": names[-last:],
    "history": [dataclasses.asdict(c) for c in found.history],
  }


def run_of(opened, ingredient: str) -> Sequence[Ingredient]:
  """Returns the checkpoints of the run of an ingredient, or of the only run."""
  return opened.along.get(ingredient) or opened.along[""]


def about(record: Mapping[str, Any]) -> str:
  """Describes the choice of a window, from `window.json`."""
  return f"Last {record['last']} of {len(record['checkpoints'])} checkpoints"
