# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Diagnosis of a folder of checkpoints: a table, findings and a figure."""

import contextlib
import dataclasses
import functools
import os
import pathlib

import jax
import ml_collections

from soupjax import config as config_lib
from soupjax import files, processes, report
from soupjax.analysis.diagnose import Diagnosis, diagnose
from soupjax.progress import Progress
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook import config as cook_config
from soupjax.tasks.cook import evaluate, inputs, needs, soups


def run(
  config: ml_collections.ConfigDict,
  path: str | os.PathLike,
  *,
  dry_run: bool = False,
) -> pathlib.Path | None:
  """Explains why averages of checkpoints gain or lose; see docs/diagnose.md.

  Several processes evaluate together; the first one prints and writes.

  Args:
    config: as in configs/diagnose.py.
    path: the directory of the run; gets `diagnosis.txt` (the printed text),
      `diagnosis.json`, `diagnosis.png` and `greedy.json`. A run that was
      killed does not repeat evaluations.
    dry_run: opens everything, prints the plan and stops.

  Returns:
    The path of `diagnosis.txt`; None after a dry run.

  Raises:
    ValueError: if the config cannot work, or checkpoints, model and data do not
      fit together.
  """
  _check(config)
  opened = inputs.open_inputs(config)
  inputs.check_workdir(opened, path)
  resolved = opened.config
  count = len(opened.ingredients)
  pairs = min(config.max_pairs, count * (count - 1) // 2)
  if count < 2:
    raise ValueError(
      f"A diagnosis needs two ingredients: {config.ingredients!r} is only one."
    )
  start = opened.initial.path if opened.initial else "unknown"
  if _first():
    print(
      f"{count} ingredients and {pairs} midpoints, on {len(opened.minival)} "
      f"images of {opened.minival.name}; start: {start}"
    )
    for line in opened.notes:
      print(line)
  if dry_run:
    needed = needs.diagnosis(opened, path)
    if _first():
      print(needed)
    return None
  workdir = files.path_of(path)
  with contextlib.ExitStack() as stack:
    if _first():
      workdir_lib.open_workdir(workdir, resolved)
      stack.enter_context(workdir_lib.locked(workdir))
    processes.check_shared(workdir)
    inputs.check_unchanged(config, opened, workdir / "diagnosed.json")
    return _run(opened, workdir, pairs)


def _first() -> bool:
  """Whether this is the process that prints and writes."""
  return jax.process_index() == 0


def _check(config) -> None:
  cook_config.check(config)
  problems = config_lib.Problems(config)
  problems.expect_counts("max_pairs", least=0)
  problems.raise_if_any()


def _run(opened, workdir: pathlib.Path, pairs: int) -> pathlib.Path:
  text = workdir / "diagnosis.txt"
  if workdir_lib.exists(text):
    if _first():
      print(text.read_text("utf-8"))
    return text
  # Evaluation uses minival alone.
  opened = dataclasses.replace(opened, tests={})
  evaluations = evaluate.Evaluations(opened, workdir)

  # --- Every ingredient, best first -------------------------------------------
  ingredients = []
  progress = Progress("ingredients", len(opened.ingredients), unit="models")
  for ingredient in opened.ingredients:
    load = functools.partial(ingredient.load, sharding=opened.place)
    values = evaluations.evaluate(ingredient.name, load)["minival"]
    metrics = {f"minival/{k}": v for k, v in values.items()}
    ingredients.append(dataclasses.replace(ingredient, metrics=metrics))
    progress.step(images=len(opened.minival))
  metric = opened.metrics[0]
  ingredients = soups.ranked(ingredients, metric)
  minival = evaluations.minival(metric)

  # --- A greedy soup, and why it rejects ingredients --------------------------
  settings, trace = opened.config.cook.greedy, workdir / "greedy_trace.json"
  selection = opened.selection(ingredients)
  greedy = soups.greedy(
    settings,
    "greedy soup",
    ingredients,
    minival,
    trace,
    opened.place,
    selection,
  )
  if _first():
    files.write_json(
      workdir / "greedy.json", soups.greedy_record(settings, metric, greedy)
    )

  # --- The diagnosis ----------------------------------------------------------
  scores = workdir / "scores.json"
  diagnosis = diagnose(
    ingredients,
    _Resumed(minival, scores, len(ingredients) + pairs),
    opened.initial,
    greedy=greedy,
    max_pairs=opened.config.max_pairs,
    select=selection.get("select"),
    sharding=opened.place,
  )
  if _first():
    files.write_json(workdir / "diagnosis.json", _as_json(diagnosis))
    picture = workdir / "diagnosis.png"
    figure = report.diagnosis_figure(
      diagnosis.names, diagnosis.barriers, diagnosis.geometry.cosines
    )
    with files.replacing(picture) as f:
      figure.savefig(f, bbox_inches="tight", format="png")
    files.write_text(text, diagnosis.table() + "\n")
    for state in (trace, scores):
      state.unlink(missing_ok=True)
    print(f"{diagnosis.table()}\n\nPicture: {picture}")
  processes.barrier("diagnosed")
  return text


class _Resumed:
  """An evaluation whose first calls return the scores of an earlier run.

  This works because a diagnosis always evaluates models in the same order.
  """

  def __init__(self, evaluate, path: pathlib.Path, total: int):
    self._evaluate, self._path, self._calls = evaluate, path, 0
    self._scores = workdir_lib.read(path, [])
    self._progress = Progress(
      "diagnosis", total, unit="models", start=len(self._scores)
    )

  def __call__(self, params) -> float:
    self._calls += 1
    if self._calls > len(self._scores):
      self._scores.append(float(self._evaluate(params)))
      if _first():
        files.write_json(self._path, self._scores)
      self._progress.step()
    return self._scores[self._calls - 1]


def _as_json(diagnosis: Diagnosis) -> dict:
  """Returns a diagnosis as JSON."""
  shape = diagnosis.geometry
  return {
    "scores": diagnosis.scores,
    "midpoints": [
      {"pair": list(pair), "score": score, "barrier": diagnosis.barriers[pair]}
      for pair, score in diagnosis.midpoints.items()
    ],
    "distances": dict(zip(diagnosis.names, shape.norms.tolist())),
    "distances from": shape.origin,
    "norm of the origin": float(shape.scale),
    "groups": [list(group) for group in diagnosis.groups],
    "findings": list(diagnosis.findings),
  }
