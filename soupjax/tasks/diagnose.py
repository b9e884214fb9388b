# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Diagnosis of a folder of checkpoints: a table, findings and a picture."""

import dataclasses
import functools
import os
import pathlib

import jax
import ml_collections

from soupjax import config as config_lib
from soupjax import files, report
from soupjax.analysis.diagnose import Diagnosis, diagnose
from soupjax.progress import Progress
from soupjax.tasks import cook, cook_bench, cook_config, cook_kitchen
from soupjax.tasks import workdir as workdir_lib


def run(
  config: ml_collections.ConfigDict,
  path: str | os.PathLike,
  *,
  dry_run: bool = False,
) -> pathlib.Path | None:
  """Says why averages of these checkpoints gain or lose; see docs/diagnose.md.

  Args:
    config: as in configs/diagnose.py.
    path: the directory of the run; gets `diagnosis.txt` (what is printed),
      `diagnosis.json`, `diagnosis.png` and `greedy.json`. A run that was killed
      evaluates nothing again.
    dry_run: opens everything, prints what would be done and stops.

  Returns:
    The path of `diagnosis.txt`; None after a dry run.

  Raises:
    ValueError: if the config cannot work, or checkpoints, model and data do not
      fit together.
  """
  _check(config)
  if jax.process_count() > 1:
    raise ValueError(
      "A diagnosis runs in one process, on all of its devices: start it on one "
      "host."
    )
  kitchen = cook_kitchen.open_kitchen(config)
  config = kitchen.config
  count = len(kitchen.ingredients)
  pairs = min(config.max_pairs, count * (count - 1) // 2)
  if count < 2:
    raise ValueError(
      f"A diagnosis compares ingredients: {config.ingredients!r} is only one."
    )
  print(
    f"{count} ingredients and {pairs} midpoints, on {len(kitchen.minival)} "
    f"images of {kitchen.minival.name}; start: "
    + (kitchen.initial.path if kitchen.initial else "not known")
  )
  for line in kitchen.notes:
    print(line)
  if dry_run:
    return None
  workdir = workdir_lib.open_workdir(path, config)
  with workdir_lib.locked(workdir):
    cook_kitchen.check_unchanged(kitchen, workdir / "diagnosed.json")
    return _run(kitchen, workdir, pairs)


def _check(config) -> None:
  cook_config.check(config)
  problems = config_lib.Problems(config)
  problems.expect(
    "max_pairs", "a whole number from 0", lambda v: v >= 0 and v == int(v)
  )
  problems.raise_if_any()


def _run(kitchen, workdir: pathlib.Path, pairs: int) -> pathlib.Path:
  text = workdir / "diagnosis.txt"
  if text.exists():
    print(text.read_text(encoding="utf-8"))
    return text
  bench = cook_bench.Bench(kitchen, workdir)

  # --- Every ingredient, best first -------------------------------------------
  ingredients = []
  progress = Progress("ingredients", len(kitchen.ingredients), unit="models")
  for one in kitchen.ingredients:
    load = functools.partial(one.load, sharding=kitchen.place)
    found = bench.judge(one.name, load)["minival"]
    metrics = {f"minival/{k}": v for k, v in found.items()}
    ingredients.append(dataclasses.replace(one, metrics=metrics))
    progress.step(images=len(kitchen.minival))
  ingredients = cook.ranked(ingredients)

  # --- What a greedy soup would take, and why not the others ------------------
  settings, trace = kitchen.config.cook, workdir / "greedy_trace.json"
  greedy = cook.greedy(
    settings, "greedy soup", ingredients, bench.minival, trace, kitchen.place
  )
  files.write_json(
    workdir / "greedy.json", cook.greedy_record(settings, greedy)
  )

  # --- The diagnosis ----------------------------------------------------------
  scores = workdir / "scores.json"
  found = diagnose(
    ingredients,
    _Remembered(bench.minival, scores, len(ingredients) + pairs),
    kitchen.initial,
    greedy=greedy,
    max_pairs=kitchen.config.max_pairs,
  )
  files.write_json(workdir / "diagnosis.json", _plain(found))
  picture = workdir / "diagnosis.png"
  report.diagnosis_figure(
    found.names, found.barriers, found.geometry.cosines
  ).savefig(picture, bbox_inches="tight")
  files.write_text(text, found.table() + "\n")
  for old in (trace, scores):
    old.unlink(missing_ok=True)
  print(f"{found.table()}\n\nPicture: {picture}")
  return text


class _Remembered:
  """Scores in the order of the calls; those of an earlier run are taken over.

  A diagnosis evaluates the same models in the same order.
  """

  def __init__(self, evaluate, path: pathlib.Path, total: int):
    self._evaluate, self._path, self._calls = evaluate, path, 0
    self._scores = files.read_json(path) if path.exists() else []
    self._progress = Progress(
      "diagnosis", total, unit="models", start=len(self._scores)
    )

  def __call__(self, params) -> float:
    self._calls += 1
    if self._calls > len(self._scores):
      self._scores.append(float(self._evaluate(params)))
      files.write_json(self._path, self._scores)
      self._progress.step()
    return self._scores[self._calls - 1]


def _plain(found: Diagnosis) -> dict:
  """What was found, as JSON."""
  shape = found.geometry
  return {
    "scores": found.scores,
    "midpoints": [
      {"pair": list(pair), "score": score, "barrier": found.barriers[pair]}
      for pair, score in found.midpoints.items()
    ],
    "distances": dict(zip(found.names, shape.norms.tolist())),
    "distances from": shape.origin,
    "norm of the origin": float(shape.scale),
    "groups": [list(group) for group in found.groups],
    "findings": list(found.findings),
  }
