# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Soups of checkpoints on disk, judged on held-out and shifted test sets.

Reads top to bottom: every ingredient on everything, soups, judgement, report.
Settings are in `cook_config`, what is opened in `cook_kitchen`, how models are
judged in `cook_bench`.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import shutil
import time

from absl import logging
import jax
import ml_collections
import numpy as np

from soupjax import data, files, processes, report
from soupjax.checkpoints import open as open_lib
from soupjax.evaluators import classification_metrics
from soupjax.models import pretrained
from soupjax.models.pretrained import detection
from soupjax.progress import Progress
from soupjax.soups import average
from soupjax.tasks import cook, cook_config, cook_kitchen
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook_bench import Bench
from soupjax.tasks.cook_kitchen import Kitchen
from soupjax.tasks.finetune.step import put_batch

# What other libraries keep beside weights.
_CONFIGS = ("config.json", "preprocessor_config.json", "open_clip_config.json")


def run(
  config: ml_collections.ConfigDict,
  path: str | os.PathLike,
  *,
  dry_run: bool = False,
) -> pathlib.Path | None:
  """Cooks and judges what is not there yet.

  Args:
    config: as in configs/cook.py.
    path: the directory of the run: `soups/NAME` (an Orbax checkpoint, how it
      came about, and `model.safetensors` with the names of the family that the
      ingredients are of), `judged/NAME.json`, `results.jsonl`, `report.html`.
    dry_run: opens everything, prints what would be done and stops.

  Returns:
    The path of the report; None after a dry run.

  Raises:
    ValueError: if the config cannot work, or checkpoints, model and data do not
      fit together.
  """
  cook_config.check(config)
  kitchen = cook_kitchen.open_kitchen(config)
  config = kitchen.config
  if _first():
    print(cook_kitchen.plan(kitchen))
  if dry_run:
    return None
  workdir = pathlib.Path(path).expanduser().absolute()
  with contextlib.ExitStack() as stack:
    if _first():
      workdir_lib.open_workdir(workdir, config)
      stack.enter_context(workdir_lib.locked(workdir))
    processes.barrier("opened")
    cook_kitchen.check_unchanged(kitchen, workdir / "cooked_from.json")
    return _run(kitchen, workdir)


def _first() -> bool:
  """Whether this process writes for all."""
  return jax.process_index() == 0


def _run(kitchen: Kitchen, workdir: pathlib.Path) -> pathlib.Path:
  began, config = time.monotonic(), kitchen.config
  bench = Bench(kitchen, workdir)
  place = kitchen.place

  # --- Every ingredient, on everything ----------------------------------------
  judged, ingredients = {}, []
  progress = Progress("ingredients", len(kitchen.ingredients), unit="models")
  for one in kitchen.ingredients:
    load = functools.partial(one.load, sharding=place)
    found = bench.judge(one.name, load, keep_logits=kitchen.ensembles)
    judged[one.name] = "ingredient", found
    metrics = {f"minival/{k}": v for k, v in found["minival"].items()}
    ingredients.append(dataclasses.replace(one, metrics=metrics))
    if _first():
      where = workdir / "ingredients" / one.name / "hyperparameters.json"
      where.parent.mkdir(parents=True, exist_ok=True)
      files.write_json(where, dict(one.hyperparameters))
    progress.step(images=kitchen.images)
  ingredients = cook.ranked(ingredients)
  _warn_of_chance(kitchen, ingredients[0])

  # --- Soups, by minival alone ------------------------------------------------
  names = _cook(kitchen, ingredients, bench, workdir)

  # --- Judgement --------------------------------------------------------------
  models = {}
  if kitchen.initial:
    models["pretrained"] = (
      "pretrained",
      lambda: kitchen.initial.load(sharding=place),
    )
  for name in names:
    where = workdir / "soups" / name
    models[name] = (
      "soup",
      lambda where=where: open_lib.load_params(where, sharding=place),
    )
  points = config.cook.wise_ft_points if kitchen.initial else 0
  for alpha in np.linspace(0, 1, points).tolist():
    digits = 2 if math.isclose(alpha, round(alpha, 2)) else 4
    models[f"wise_ft_{alpha:.{digits}f}"] = (
      "interpolation",
      lambda alpha=alpha: average.wise_ft(
        kitchen.initial, ingredients[0], alpha, sharding=place
      ),
    )
  progress = Progress("evaluate", len(models), unit="models")
  for name, (kind, load) in models.items():
    judged[name] = kind, bench.judge(name, load)
    progress.step(images=kitchen.images)
  joint, sizes = {}, {}
  if kitchen.ensembles:
    logits = {i.name: bench.logits(i.name) for i in ingredients}
    labels = bench.logits(Bench.LABELS)
    joint, sizes = cook.ensembles(
      config, ingredients, "minival", labels["minival"], logits, workdir
    )

  # --- Results ----------------------------------------------------------------
  rows = []
  for name, (kind, found) in sorted(
    judged.items(), key=lambda one: _order(one[1][0])
  ):
    rows += bench.rows(name, kind, found)
  for name, outputs in joint.items():
    found = {
      dataset: {
        **classification_metrics(array, labels[dataset]),
        "n": len(array),
      }
      for dataset, array in outputs.items()
    }
    rows += bench.rows(name, "ensemble", found)
  page = workdir / "report.html"
  if not _first():
    return page
  files.write_text(
    workdir / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows)
  )
  page = report.write_report(workdir)
  results = report.read_results(workdir / "results.jsonl")
  print(report.results_table(results, sizes))
  print(f"{time.monotonic() - began:.0f} s in all. Report: {page}")
  return page


def _warn_of_chance(kitchen, best) -> None:
  """Says so if the best ingredient knows next to nothing."""
  accuracy, chance = (
    best.metrics["minival/prec@1"],
    1 / kitchen.model.num_classes,
  )
  if accuracy - chance < 0.1 * (1 - chance) and _first():
    logging.warning(
      "The best ingredient has %.1f %% on minival, hardly better than chance. "
      "If that is not what you measured, its images are prepared otherwise "
      "(data.eval_ops), its classes are in another order (data.classes), or "
      "model.num_heads or model.act is not that of training.",
      100 * accuracy,
    )


def _order(kind: str) -> int:
  return ("pretrained", "ingredient", "soup", "interpolation").index(kind)


def _cook(kitchen, ingredients, bench, workdir) -> list[str]:
  """Makes every soup that is not there yet; returns their names."""
  config, place = kitchen.config.cook, kitchen.place
  soups = workdir / "soups"
  soups.mkdir(exist_ok=True)
  if not workdir_lib.agreed((soups / "uniform").exists()):
    soup = average.uniform_soup(ingredients, sharding=place)
    workdir_lib.save_model(soups / "uniform", soup)
  if not workdir_lib.agreed((soups / "greedy").exists()):
    trace = workdir / "greedy_trace.json"
    greedy = cook.greedy(
      config, "greedy soup", ingredients, bench.minival, trace, place
    )
    record = cook.greedy_record(config, greedy)
    workdir_lib.save_model(soups / "greedy", greedy.params, greedy=record)
    if _first():
      trace.unlink(missing_ok=True)
  for name in kitchen.learned:
    if not workdir_lib.agreed((soups / name).exists()):
      state = workdir / f"{name}_state.json"
      params, record = cook.learned(
        config,
        name.removeprefix("learned_"),
        kitchen.model,
        ingredients,
        _batches(kitchen),
        state,
        place,
      )
      workdir_lib.save_model(soups / name, params, learned=record)
      if _first():
        state.unlink(missing_ok=True)
  names = ["uniform", "greedy", *kitchen.learned]
  for name in names:
    _export(kitchen, soups / name, workdir / "export" / name)
  return names


def _export(kitchen, soup: pathlib.Path, path: pathlib.Path) -> None:
  """Writes a soup with the names that the ingredients came with."""
  if kitchen.family is None:
    return
  npz = kitchen.family in ("big_vision", "mixer")
  # Beside their configs it is a folder that their libraries open as it is.
  configs = [
    found
    for name in _CONFIGS
    if (found := detection.beside(kitchen.ingredients[0].path, name))
  ]
  file = path.with_name(f"{path.name}.{'npz' if npz else 'safetensors'}")
  if configs:
    file = path / "model.safetensors"
  if not workdir_lib.agreed(file.exists()):
    file.parent.mkdir(parents=True, exist_ok=True)
    for one in configs if _first() else ():
      shutil.copyfile(one, path / one.name)
    params = open_lib.load_params(soup)
    pretrained.save_exported(
      file, params, kitchen.model, kitchen.family, like=kitchen.theirs
    )


def _batches(kitchen):
  """Held-out images in random order, for learned soups."""
  config = kitchen.config
  loader = data.train_loader(
    kitchen.minival,
    batch_size=config.cook.learned_batch_size,
    seed=config.seed,
    preprocess=cook_config.eval_ops(config),
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  for batch in loader:
    batch = put_batch(kitchen.mesh, batch, ("data",))
    yield batch["images"], batch["labels"]
