# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The main job: pretrain, sweep, cook, judge, report."""

import json
import math
import os
import pathlib
import time
from typing import Any
import zipfile

import jax
import ml_collections
import numpy as np

from soupjax import config as config_lib
from soupjax import data, files, report
from soupjax.checkpoints import open as open_lib
from soupjax.evaluators import Classification, classification_metrics, predictor
from soupjax.models import ViT
from soupjax.progress import Progress
from soupjax.soups.average import wise_ft
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.check import check_config
from soupjax.tasks.cook import cook, ensembles, ranked
from soupjax.tasks.pretrain import pretrain, probed
from soupjax.tasks.sweep import random_search, sweep

PyTree = Any


def run(
  config: ml_collections.ConfigDict,
  path: str | os.PathLike,
  *,
  dry_run: bool = False,
) -> pathlib.Path | None:
  """Does the whole job, or what is left of it.

  Every stage writes its result under a temporary name and renames it, so that a
  run that was killed goes on from the last whole result and ends with the same
  numbers.

  Args:
    config: as in configs/digits.py.
    path: the directory of the run; see `open_workdir`.
    dry_run: prints the config, the model's size and the members of the sweep,
      and stops; touches no file.

  Returns:
    The path of the report; None after a dry run.

  Raises:
    ValueError: if the directory holds another run, or the config is bad.
  """
  check_config(config)
  if dry_run:
    print(_plan(config))
    return None
  splits = data.load_digits(
    seed=config.seed,
    num_train=config.data.num_train,
    num_minival=config.data.num_minival,
  )
  workdir = workdir_lib.open_workdir(path, config)
  with workdir_lib.locked(workdir):
    return _run(config, splits, workdir)


def _run(config, splits: data.Digits, workdir: pathlib.Path) -> pathlib.Path:
  # --- Model and evaluation ---------------------------------------------------
  began = time.monotonic()
  model = ViT(num_classes=splits.num_classes, **config.model)
  predict = predictor(model)
  judges = {
    d.name: Classification(
      predict, d.images, d.labels, batch_size=config.evaluate.batch_size
    )
    for d in splits.evaluations
  }
  minival = judges[splits.minival.name]

  # --- One start, many ingredients --------------------------------------------
  pretrained = pretrain(config, model, splits.pretrain, workdir)
  initial = probed(config, model, pretrained, splits.train, workdir)
  ingredients = sweep(
    config,
    model,
    initial,
    splits.train,
    lambda params: {
      f"minival/{k}": v for k, v in minival.metrics(params).items()
    },
    workdir,
  )
  best = ranked(ingredients)[0]

  # --- Soups ------------------------------------------------------------------
  soups = cook(config, model, ingredients, splits.minival, minival, workdir)

  # --- Judgement --------------------------------------------------------------
  # Logits are kept: ensembles and intervals are made from them.
  alphas = np.linspace(0, 1, config.cook.wise_ft_points)
  models = {"pretrained": ("pretrained", lambda: initial)}
  for i in ingredients:
    models[i.name] = ("ingredient", i.load)
  for name in soups:
    where = workdir / "soups" / name
    models[name] = ("soup", lambda where=where: open_lib.load_params(where))
  for alpha in alphas:
    digits = 2 if math.isclose(alpha, round(alpha, 2)) else 4
    models[f"wise_ft_{alpha:.{digits}f}"] = (
      "interpolation",
      lambda alpha=float(alpha): wise_ft(initial, best.load(), alpha),
    )
  progress = Progress("evaluate", len(models), unit="models")
  logits = {}
  for name, (_, load) in models.items():
    logits[name] = _kept_logits(workdir / "logits", name, load, judges)
    progress.step(images=sum(len(d) for d in splits.evaluations))
  held_out = splits.minival
  joint, sizes = ensembles(
    config, ingredients, held_out.name, held_out.labels, logits, workdir
  )

  # --- Results ----------------------------------------------------------------
  kinds = {name: kind for name, (kind, _) in models.items()}
  kinds |= dict.fromkeys(joint, "ensemble")
  order = ("pretrained", "ingredient", "soup", "ensemble", "interpolation")
  rows = []
  for name in sorted(kinds, key=lambda name: order.index(kinds[name])):
    for dataset in splits.evaluations:
      outputs = (logits | joint)[name][dataset.name]
      for metric, value in classification_metrics(
        outputs, dataset.labels
      ).items():
        rows.append(
          {
            "model": name,
            "kind": kinds[name],
            "dataset": dataset.name,
            "metric": metric,
            "value": value,
            "n": len(dataset),
          }
        )
  files.write_text(
    workdir / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows)
  )
  page = report.write_report(workdir)
  results = report.read_results(workdir / "results.jsonl")
  print(report.results_table(results, sizes))
  print(f"{time.monotonic() - began:.0f} s in all. Report: {page}")
  return page


def _plan(config) -> str:
  """What a run would do, without data or weights."""
  model = ViT(num_classes=data.Digits.num_classes, **config.model)
  image = jax.ShapeDtypeStruct((1, *data.Digits.image_shape), np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  leaves = jax.tree.leaves(shapes)
  lines = [
    json.dumps(config_lib.to_dict(config), indent=2),
    f"{sum(x.size for x in leaves):,} parameters in {len(leaves)} leaves",
    f"pretraining: {config.pretrain.total_steps} steps of "
    f"{config.pretrain.batch_size} images",
  ]
  for k, member in enumerate(random_search(config.sweep, config.seed)):
    values = ", ".join(f"{name} {v:.4g}" for name, v in member.items())
    lines.append(f"ingredient_{k:02d}: {values}")
  return "\n".join(lines)


def _kept_logits(directory, name, load, judges) -> dict[str, np.ndarray]:
  """Evaluates a model on everything, unless a file has the answer."""
  file = directory / f"{name}.npz"
  if file.exists():
    try:
      with np.load(file, allow_pickle=False) as stored:
        return {dataset: stored[dataset] for dataset in judges}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
      pass  # It is damaged, and easily made again.
  params = load()
  logits = {dataset: judge.logits(params) for dataset, judge in judges.items()}
  files.write_arrays(file, logits)
  return logits
