# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The interface of analyses ("reasons"), and resumable evaluations."""

from collections.abc import Callable, Sequence
import dataclasses
import pathlib
from typing import Any

import jax
from matplotlib.figure import Figure

from soupjax import config as config_lib
from soupjax import files
from soupjax.progress import Progress
from soupjax.soups.average import Means
from soupjax.soups.core.ingredient import Ingredient
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook.evaluate import Evaluations
from soupjax.tasks.cook.inputs import CookInputs

INITIAL = "initial"


@dataclasses.dataclass(frozen=True, eq=False)
class Diagnosed:
  """A diagnosis and its inputs, from which reasons are computed.

  Attributes:
    opened: the inputs.
    ingredients: ingredients sorted by score on minival, the best first.
    evaluations: evaluators of all sets.
    diagnosis: the content of `diagnosis.json`.
    selected: names of the ingredients of the greedy soup.
  """

  opened: CookInputs
  ingredients: Sequence[Ingredient]
  evaluations: Evaluations
  diagnosis: dict[str, Any]
  selected: Sequence[str]

  def models(self, names: Sequence[str]) -> list[Ingredient]:
    """Returns models by name, with `select` applied as in all candidates.

    Args:
      names: names of ingredients, or `INITIAL` for the initial model.
    """
    opened, named = self.opened, {i.name: i for i in self.ingredients}
    ingredients = [named[name] for name in names if name != INITIAL]
    select = opened.selection(self.ingredients).get("select")
    if not select:
      return [opened.initial if n == INITIAL else named[n] for n in names]
    means = Means(
      list(self.ingredients), base=opened.initial, select=select,
      sharding=opened.place,
    )  # fmt: skip
    order = {i.name: k for k, i in enumerate(self.ingredients)}
    made = {
      i.name: Ingredient.from_params(i.name, means.model(order[i.name]))
      for i in ingredients
    }
    return [opened.initial if n == INITIAL else made[n] for n in names]

  def totals(self, params: Any) -> dict[str, float]:
    """Returns "loss" and "error" (a fraction) on minival."""
    evaluator = self.evaluations.minival(self.opened.metrics[0])
    totals = evaluator.totals(params)
    return {"loss": totals["loss"], "error": 1 - totals["prec@1"]}


@dataclasses.dataclass(frozen=True)
class Reason:
  """An analysis of why averaging models helps or hurts.

  Attributes:
    heading: heading of its section.
    caption: caption of its figure, plain text.
    settings: defaults of its settings, under its name in the config.
    problems: collects errors in these settings.
    check: raises a ValueError if the inputs lack something that it needs.
    compute: returns a JSON record, given the diagnosis and a function that
      turns an evaluation and its number of calls into a `Resumed`.
    draw: maps the record to a figure.
    describe: maps the record to lines of text.
  """

  heading: str
  caption: str
  settings: dict[str, Any]
  problems: Callable[[config_lib.Problems], None]
  check: Callable[[CookInputs], None]
  compute: Callable[[Diagnosed, Callable[..., Any]], dict[str, Any]]
  draw: Callable[[dict[str, Any]], Figure]
  describe: Callable[[dict[str, Any]], list[str]]


class Resumed:
  """An evaluation whose first calls return the values of an earlier run.

  Models must be evaluated in the same order in every run.
  """

  def __init__(
    self,
    evaluate: Callable[[Any], Any],
    total: int,
    *,
    path: pathlib.Path,
    stage: str = "diagnosis",
    key: Any = None,
  ):
    """Reads the earlier values.

    Args:
      evaluate: maps parameters, or other inputs, to a JSON value.
      total: number of calls.
      path: a JSON file of values; values with a different key are ignored.
      stage: name in the progress output.
      key: JSON that determines the order of the models.
    """
    self._evaluate, self._path, self._calls = evaluate, path, 0
    self._key = key
    record = workdir_lib.read(path)
    self._values = record["values"] if record and record["of"] == key else []
    start = len(self._values)
    self._progress = Progress(stage, total, unit="models", start=start)

  def __call__(self, params: Any) -> Any:
    """Returns the value of the next model."""
    self._calls += 1
    if self._calls > len(self._values):
      self._values.append(self._evaluate(params))
      if jax.process_index() == 0:
        record = {"of": self._key, "values": self._values}
        files.write_json(self._path, record)
      self._progress.step()
    return self._values[self._calls - 1]
