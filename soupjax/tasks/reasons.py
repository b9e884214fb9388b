# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Reasons of a diagnosis that are computed on request (docs/diagnose.md)."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import html
import pathlib
from typing import Any

import jax
from matplotlib.figure import Figure
import ml_collections
import numpy as np

from soupjax import config as config_lib
from soupjax import files, processes, registry, report
from soupjax.analysis import plane as plane_lib
from soupjax.progress import Progress
from soupjax.report import page
from soupjax.report import reasons as figures
from soupjax.soups.average import Means
from soupjax.soups.core.ingredient import Ingredient
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook.evaluate import Evaluations
from soupjax.tasks.cook.inputs import CookInputs

INITIAL = "initial"


@dataclasses.dataclass(frozen=True, eq=False)
class Diagnosed:
  """What reasons are computed from.

  Attributes:
    opened: the inputs.
    ingredients: the best on minival first.
    evaluations: evaluators of all sets.
    diagnosis: the content of `diagnosis.json`.
  """

  opened: CookInputs
  ingredients: Sequence[Ingredient]
  evaluations: Evaluations
  diagnosis: dict[str, Any]

  def models(self, names: Sequence[str]) -> list[Ingredient]:
    """Returns models in memory, with the selected leaves of all candidates."""
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


@dataclasses.dataclass(frozen=True)
class Reason:
  """One reason.

  Attributes:
    heading: of its section.
    caption: of its figure, plain text.
    check: raises a ValueError if a config cannot work.
    compute: what it is computed from, and a function that makes an evaluation
      `Resumed` from itself and the number of its calls -> a record for JSON.
    draw: record -> figure.
    describe: record -> lines of text.
  """

  heading: str
  caption: str
  check: Callable[[CookInputs], None]
  compute: Callable[[Diagnosed, Callable[..., Any]], dict[str, Any]]
  draw: Callable[[dict[str, Any]], Figure]
  describe: Callable[[dict[str, Any]], list[str]]


class Resumed:
  """An evaluation whose first calls return the values of an earlier run.

  This works because models are always evaluated in the same order.
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
      evaluate: maps parameters to JSON.
      total: number of calls.
      path: a JSON file of values; those of another key are not used.
      stage: for the progress.
      key: JSON on which the order of the models depends.
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


def settings() -> dict[str, Any]:
  """Returns the keys of a config about reasons, with their defaults."""
  return {
    # Some of the names of `REASONS`, joined by commas.
    "reasons": "",
    "plane": {
      # Three names of ingredients or "initial"; "" is initial and the best two.
      "models": "",
      "points": 11,  # A side of the grid, so 124 evaluations.
      "margin": 0.25,  # Around the models, as a part of the plane's size.
    },
  }


def names_of(config: ml_collections.ConfigDict) -> list[str]:
  """Returns the names of the reasons asked for.

  Raises:
    ValueError: if one is unknown.
  """
  names = [n for n in map(str.strip, config.reasons.split(",")) if n]
  for name in names:
    if name not in REASONS:
      raise ValueError(
        f"reasons={config.reasons!r}: there is no reason {name!r}"
        f"{registry.suggestion(name, REASONS)}"
      )
  return list(dict.fromkeys(names))


def check(config: ml_collections.ConfigDict) -> None:
  """Checks the settings of reasons.

  Raises:
    ValueError: listing the settings that cannot work.
  """
  problems = config_lib.Problems(config)
  problems.attempt(names_of, config)
  problems.expect_counts("plane.points", least=2)
  problems.expect_numbers("plane.margin")
  problems.raise_if_any()


def check_inputs(opened: CookInputs) -> None:
  """Checks that the reasons asked for can be computed from these inputs.

  Raises:
    ValueError: naming what is missing.
  """
  for name in names_of(opened.config):
    REASONS[name].check(opened)


def without(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns a config with the default reasons.

  A diagnosis does not depend on them, so they can be added when it is finished.
  """
  values = {**config.to_dict(), **settings()}
  return ml_collections.ConfigDict(values).lock()


def run(diagnosed: Diagnosed, workdir: pathlib.Path) -> list[str]:
  """Computes the reasons asked for that are not there yet.

  Args:
    diagnosed: what they are computed from.
    workdir: gets `reasons/NAME.json` and `reasons/NAME.png` of each, and
      `diagnosis.html` with all of them.

  Returns:
    Lines of text about those asked for.
  """
  folder, first = workdir / "reasons", jax.process_index() == 0
  if first:
    files.make_directory(folder)
  processes.barrier("reasons")
  lines: list[str] = []
  for name in names_of(diagnosed.opened.config):
    reason, path = REASONS[name], folder / f"{name}.json"
    used = _settings_of(diagnosed.opened.config, name)
    record = workdir_lib.read(path)
    if record is None or record["settings"] != used:
      state = folder / f"{name}_values.json"
      resume = functools.partial(Resumed, path=state, stage=name, key=used)
      record = {"settings": used, **reason.compute(diagnosed, resume)}
      if first:
        files.write_json(path, record)
        state.unlink(missing_ok=True)
    lines += ["", f"{reason.heading}:", *reason.describe(record)]
  if first and lines:
    files.write_text(workdir / "diagnosis.html", _page(diagnosed, workdir))
  processes.barrier("reasons done")
  return lines


def _settings_of(config, name: str) -> dict[str, Any]:
  return config_lib.to_dict(config)[name] if name in config else {}


def _page(diagnosed: Diagnosed, workdir: pathlib.Path) -> str:
  """Returns the diagnosis with all reasons computed so far, as HTML."""
  text = (workdir / "diagnosis.txt").read_text("utf-8")
  title = f"Diagnosis of {len(diagnosed.ingredients)} ingredients"
  body = [f"<h1>{title}</h1>", f"<pre>{html.escape(text)}</pre>"]
  for name, reason in REASONS.items():
    path = workdir / "reasons" / f"{name}.json"
    if not path.exists():
      continue
    record = files.read_json(path)
    caption = " ".join([reason.caption, *reason.describe(record)])
    body.append(
      page.picture(
        reason.draw(record), path.with_suffix(".png"), reason.heading,
        html.escape(caption),
      )
    )  # fmt: skip
  return report.page.document(title, body)


# --- The plane through three models -------------------------------------------


def _corner_names(opened: CookInputs) -> list[str]:
  """Returns the names given for the plane; [] for the default."""
  text = opened.config.plane.models
  return [part for part in map(str.strip, text.split(",")) if part]


def _check_plane(opened: CookInputs) -> None:
  names = _corner_names(opened)
  known = [i.name for i in opened.ingredients]
  known += [INITIAL] if opened.initial else []
  if not names and len(known) < 3:
    raise ValueError(
      f"The plane goes through three models, but there are only "
      f"{', '.join(known)}: give more ingredients, or --config.initial."
    )
  if names and len(names) != 3:
    raise ValueError(
      f"plane.models={opened.config.plane.models!r} must name three models, "
      f"such as {','.join(known[:3])}."
    )
  for name in names:
    if name not in known:
      raise ValueError(
        f"plane.models: there is no model {name!r}"
        f"{registry.suggestion(name, known)}"
      )
    if names.count(name) > 1:
      raise ValueError(
        f"plane.models={opened.config.plane.models!r} names {name!r} twice: a "
        "plane goes through three different models."
      )


def _compute_plane(diagnosed: Diagnosed, resume):
  opened = diagnosed.opened
  start = [INITIAL] if opened.initial else []
  names = [*start, *(i.name for i in diagnosed.ingredients)][:3]
  names = _corner_names(opened) or names
  evaluator = diagnosed.evaluations.minival(opened.metrics[0])

  def evaluate(params):
    totals = evaluator.totals(params)
    return {"loss": totals["loss"], "error": 1 - totals["prec@1"]}

  points = opened.config.plane.points
  plane = plane_lib.plane(
    diagnosed.models(names),
    resume(evaluate, points**2 + 3),
    points=points,
    margin=opened.config.plane.margin,
    sharding=opened.place,
  )
  record = {"names": list(plane.names)}
  for key in ("corners", "xs", "ys"):
    record[key] = getattr(plane, key).tolist()
  for key in ("values", "at_corners"):
    record[key] = {k: v.tolist() for k, v in getattr(plane, key).items()}
  lowest = {}
  for metric, grid in plane.values.items():
    row, column = np.unravel_index(grid.argmin(), grid.shape)
    weights = plane.weights(plane.xs[column], plane.ys[row])
    lowest[metric] = {"value": grid[row, column], "weights": weights.tolist()}
  return {**record, "lowest": lowest}


def _describe_plane(record) -> list[str]:
  lines = []
  for metric, lowest in record["lowest"].items():
    scale, unit = (100, " %") if metric == "error" else (1, "")
    weights = zip(lowest["weights"], record["names"])
    corners = zip(record["names"], record["at_corners"][metric])
    lines.append(
      f"The lowest {metric} of the grid is {scale * lowest['value']:.4g}{unit},"
      f" at {' + '.join(f'{w:.2f} {name}' for w, name in weights)} ("
      + ", ".join(f"{name}: {scale * v:.4g}{unit}" for name, v in corners)
      + ")."
    )
  return lines


REASONS = {
  "plane": Reason(
    heading="The plane through three models",
    caption="Metrics on minival in the plane through the marked models (axes "
    "orthonormal in the space of the parameters; arXiv 2203.05482, Figure 2). "
    "The star is the lowest point of the grid.",
    check=_check_plane,
    compute=_compute_plane,
    draw=figures.plane_figure,
    describe=_describe_plane,
  ),
}
