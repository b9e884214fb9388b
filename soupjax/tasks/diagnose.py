# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Diagnosis of a folder of checkpoints: a table, findings and a figure."""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib

import ml_collections

from soupjax import config as config_lib
from soupjax import files, processes, report
from soupjax.analysis.diagnose import Diagnosis, diagnose
from soupjax.analysis.pairs import pairs_of
from soupjax.tasks import records
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook import config as cook_config
from soupjax.tasks.cook import evaluate, inputs, needs, soups
from soupjax.tasks.reasons import base
from soupjax.tasks.reasons import run as reasons


def run(
  config: ml_collections.ConfigDict,
  path: str | os.PathLike,
  *,
  dry_run: bool = False,
) -> pathlib.Path | None:
  """Explains why averages of checkpoints gain or lose; see docs/diagnose.md.

  Several processes evaluate together; the first one prints and writes. A run
  that was killed continues without repeating evaluations. A finished run can be
  started again with more `config.reasons`.

  Args:
    config: as in configs/diagnose.py.
    path: the directory of the run; gets `diagnosis.txt` (the printed text),
      `diagnosis.json`, `diagnosis.png`, `greedy.json` and the files of
      `config.reasons`.
    dry_run: opens checkpoints and data, prints the plan and stops.

  Returns:
    The path of `diagnosis.txt`; None after a dry run.

  Raises:
    ValueError: if the config cannot work, or checkpoints, model and data do not
      fit together.
  """
  _check(config)
  opened = inputs.open_inputs(config)
  reasons.check_inputs(opened)
  records.check_workdir(opened, path)
  resolved = opened.config
  count = len(opened.ingredients)
  pairs = min(config.max_pairs, count * (count - 1) // 2)
  if count < 2:
    raise ValueError(
      f"A diagnosis needs two ingredients: {config.ingredients!r} is only one."
    )
  start = opened.initial.path if opened.initial else "unknown"
  if processes.is_first():
    print(
      f"{count} ingredients and {pairs} midpoints, on {len(opened.minival)} "
      f"images of {opened.minival.name}; start: {start}"
    )
    for line in opened.notes:
      print(line)
  if dry_run:
    needed = needs.diagnosis(opened, path)
    if processes.is_first():
      print(needed)
    return None
  workdir = files.path_of(path)
  with contextlib.ExitStack() as stack:
    if processes.is_first():
      workdir_lib.open_workdir(workdir, reasons.without(resolved))
      stack.enter_context(workdir_lib.locked(workdir))
    processes.check_shared(workdir)
    record = workdir / "diagnosed.json"
    records.check_unchanged(reasons.without(config), opened, record)
    return _run(opened, workdir, pairs)


def _check(config) -> None:
  cook_config.check(config)
  problems = config_lib.Problems(config)
  problems.expect_counts("max_pairs", least=0)
  problems.raise_if_any()
  reasons.check(config)


def _run(opened, workdir: pathlib.Path, pairs: int) -> pathlib.Path:
  text = workdir / "diagnosis.txt"
  finished = workdir_lib.exists(text)
  if finished and processes.is_first():
    print(text.read_text("utf-8"))
  if finished and not reasons.names_of(opened.config):
    return text
  # Evaluation uses minival alone.
  opened = dataclasses.replace(opened, tests={})
  evaluations = evaluate.Evaluations(opened, workdir)

  # --- Every ingredient, best first -------------------------------------------
  ingredients = []
  progress = evaluate.progress(opened, "ingredients", len(opened.ingredients))
  for ingredient in opened.ingredients:
    load = functools.partial(ingredient.load, sharding=opened.place)
    values = evaluations.evaluate(ingredient.name, load, progress=progress)
    values = values["minival"]
    metrics = {f"minival/{k}": v for k, v in values.items()}
    ingredients.append(dataclasses.replace(ingredient, metrics=metrics))
    progress.step()
  ingredients = soups.ranked(ingredients, opened.metrics[0])
  if not finished:
    _diagnose(opened, workdir, ingredients, evaluations, pairs)

  # --- Further analyses -------------------------------------------------------
  if reasons.names_of(opened.config):
    record = workdir_lib.read(workdir / "diagnosis.json")
    selected = workdir_lib.read(workdir / "greedy.json")["selected"]
    known = base.Diagnosed(opened, ingredients, evaluations, record, selected)
    lines = reasons.run(known, workdir)
    if processes.is_first():
      print("\n".join(lines), f"\n\nReport: {workdir / 'diagnosis.html'}")
  return text


def _diagnose(opened, workdir, ingredients, evaluations, pairs: int) -> None:
  """Writes and prints the diagnosis of ranked ingredients."""
  text, metric = workdir / "diagnosis.txt", opened.metrics[0]
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
  if processes.is_first():
    files.write_json(
      workdir / "greedy.json", soups.greedy_record(settings, metric, greedy)
    )

  # --- The diagnosis ----------------------------------------------------------
  scores = workdir / "scores.json"
  diagnosis = diagnose(
    ingredients,
    base.Resumed(minival, len(ingredients) + pairs, path=scores),
    opened.initial,
    greedy=greedy,
    max_pairs=opened.config.max_pairs,
    select=selection.get("select"),
    sharding=opened.place,
  )
  if processes.is_first():
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


def _as_json(diagnosis: Diagnosis) -> dict:
  """Returns a diagnosis as JSON values."""
  shape = diagnosis.geometry
  return {
    "scores": diagnosis.scores,
    "midpoints": [
      {
        "pair": list(pair.names),
        "score": pair.score,
        "barrier": -pair.gain,
        "distance": pair.distance,
        # JSON has no NaN.
        "angle": pair.angle if math.isfinite(pair.angle) else None,
      }
      for pair in pairs_of(diagnosis)
    ],
    "distances": dict(zip(diagnosis.names, shape.norms.tolist())),
    "distances from": shape.origin,
    "norm of the origin": float(shape.scale),
    "groups": [list(group) for group in diagnosis.groups],
    "findings": list(diagnosis.findings),
  }
