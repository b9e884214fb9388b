# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Cooks soups of checkpoints on disk and evaluates them on held-out sets.

Reads top to bottom: ingredients, soups, evaluation, results. Settings are in
`config`, opened checkpoints and datasets in `inputs`, scores in `evaluate`, and
the individual soups in `soups`.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import time
from typing import Any

from absl import logging
import jax
import ml_collections
import numpy as np

from soupjax import data, files, processes, report, sharding
from soupjax.checkpoints import open as open_lib
from soupjax.report import robustness as rho
from soupjax.report import unseen
from soupjax.soups import average
from soupjax.tasks import records
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook import config as cook_config
from soupjax.tasks.cook import (
  evaluate,
  export,
  inputs,
  judge,
  needs,
  soups,
  window,
)
from soupjax.tasks.reasons import robustness

PyTree = Any
_RECORD = "cooked_from.json"


def run(
  config: ml_collections.ConfigDict,
  path: str | os.PathLike,
  *,
  dry_run: bool = False,
) -> pathlib.Path | None:
  """Cooks and evaluates soups; skips outputs that an earlier run finished.

  Args:
    config: as in configs/cook.py.
    path: the directory of the run; docs/cook.md lists its files.
    dry_run: opens everything, prints the plan and stops.

  Returns:
    The path of the report; None after a dry run.

  Raises:
    ValueError: if the config is invalid, or checkpoints, model and data do not
      fit together.
  """
  workdir = files.path_of(path) if path else None
  if not dry_run and _print_finished(config, workdir):
    return workdir / "report.html"
  opened = planned(config, workdir)
  if dry_run:
    needed = needs.cooking(opened, path)
    if processes.is_first():
      print(needed)
    if not opened.is_judged:
      models, candidates = needs.evaluations(opened)
      images = models * opened.num_images + candidates * len(opened.minival)
      needs.print_duration(opened, "minival", images)
    return None
  with contextlib.ExitStack() as stack:
    if processes.is_first():
      record = cook_config.record_of(opened.config)
      workdir_lib.open_workdir(workdir, record)
      stack.enter_context(workdir_lib.locked(workdir))
    processes.check_shared(workdir)
    more = records.along_files(opened) | _baselines(config)
    records.check_unchanged(config, opened, workdir / _RECORD, more)
    kind = judge if opened.is_judged else evaluate
    evaluations = stack.enter_context(kind.Evaluations(opened, workdir))
    return _run(opened, workdir, evaluations)


def planned(
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike | None,
  devices: Sequence[jax.Device] | None = None,
) -> inputs.CookInputs:
  """Opens everything and prints the plan.

  Args:
    config: as in `run`.
    workdir: as in `run`; None in a dry run.
    devices: devices of the mesh; None for all of JAX.

  Raises:
    ValueError: as for `run`.
  """
  cook_config.check(config)
  sets = () if config.evaluate_command else tuple(config.tests)
  shifts = cook_config.means(config).get(cook_config.SHIFTS, ()) if sets else ()
  robustness.check(config.cook.baselines, sets, shifts)
  if config.evaluate_command:
    opened, plan = judge.open_inputs(config), judge.plan
  else:
    opened, plan = inputs.open_inputs(config, devices), needs.plan
  records.check_workdir(opened, workdir)
  if processes.is_first():
    print(plan(opened))
  return opened


def _run(
  opened: inputs.CookInputs,
  workdir: pathlib.Path,
  evaluations: evaluate.Evaluations | judge.Evaluations,
) -> pathlib.Path:
  began, config = time.monotonic(), opened.config
  place, metric = opened.place, opened.metrics[0]

  # --- Every ingredient, on every set -----------------------------------------
  results, ingredients = {}, []
  evaluations.ahead({i.name: i.load for i in opened.ingredients})
  progress = evaluate.progress(opened, "ingredients", len(opened.ingredients))
  for ingredient in opened.ingredients:
    name = ingredient.name
    load = functools.partial(ingredient.load, sharding=place)
    values = evaluations.evaluate(
      name, load, keep_logits=opened.ensembles, progress=progress
    )
    results[name] = "ingredient", values
    metrics = {f"minival/{k}": v for k, v in values["minival"].items()}
    ingredients.append(dataclasses.replace(ingredient, metrics=metrics))
    if processes.is_first():
      record = workdir / "ingredients" / name / "hyperparameters.json"
      files.make_directory(record.parent)
      files.write_json(record, dict(ingredient.hyperparameters))
    progress.step()
  ingredients = _ranked(opened, ingredients, metric)
  _warn_of_chance(opened, ingredients[0])

  # --- Soups, chosen on minival -----------------------------------------------
  names = _cook(opened, ingredients, evaluations, workdir)
  _write_choices(opened, ingredients, workdir)

  # --- Evaluation -------------------------------------------------------------
  initial, best = opened.initial, ingredients[0]
  models: dict[str, Any] = {}
  if initial:
    models["pretrained"] = "pretrained", initial.load
  for name in names:
    load = functools.partial(open_lib.load_params, workdir / "soups" / name)
    models[name] = "soup", load
  points = config.cook.wise_ft_points if initial else 0
  for alpha in np.linspace(0, 1, points).tolist():
    digits = 2 if math.isclose(alpha, round(alpha, 2)) else 4
    load = functools.partial(
      average.wise_ft,
      initial,
      best,
      alpha,
      select=opened.selection([best]).get("select"),
    )
    models[f"wise_ft_{alpha:.{digits}f}"] = "interpolation", load
  evaluations.ahead({name: load for name, (_, load) in models.items()})
  progress = evaluate.progress(opened, "evaluate", len(models))
  for name, (kind, load) in models.items():
    load = functools.partial(load, sharding=place)
    values = evaluations.evaluate(name, load, progress=progress)
    results[name] = kind, values
    progress.step()
  if points:
    names.append("wise_ft")
    load = _chosen_wise_ft(opened, best, results, models, workdir)
    results["wise_ft"] = "soup", evaluations.evaluate("wise_ft", load)
  sizes = {}
  if opened.ensembles:
    ensembles, sizes = soups.ensembles(
      config.cook.greedy,
      metric,
      [i.name for i in ingredients],
      evaluations.logits(evaluate.LABELS)["minival"],
      {i.name: evaluations.logits(i.name) for i in ingredients},
      workdir,
    )
    for name, logits in ensembles.items():
      values = evaluations.evaluate_logits(name, logits)
      results[name] = "ensemble", values

  # --- Results ----------------------------------------------------------------
  page = workdir / "report.html"
  if processes.is_first():
    differences = evaluations.differences(best.name, results)
    above = {}
    if initial and opened.unseen:
      above = evaluations.differences("pretrained", results, opened.unseen)
    evaluate.write_rows(workdir, evaluations, results, differences, above)
    if not opened.is_judged:
      shifts = cook_config.means(config).get(cook_config.SHIFTS, ())
      found = robustness.record(config.cook.baselines, shifts, results)
      if found:
        files.write_json(workdir / "robustness.json", found)
    export.write_cards(opened, ingredients, names, results, workdir)
    if opened.is_judged:
      report.write_scores(workdir)
    else:
      report.write_report(workdir)
    print(_table(config, workdir, sizes))
    print(f"{time.monotonic() - began:.0f} s in total. Report: {page}")
  return page


def _table(config, workdir: pathlib.Path, sizes) -> str:
  """Returns the table of a finished run."""
  if config.evaluate_command:
    return report.scores_table(report.read_scores(workdir))
  results = report.read_run(workdir)
  path = workdir / "robustness.json"
  tables = [
    report.results_table(results, sizes),
    unseen.table(results, sizes),
    rho.table(files.read_json(path) if path.exists() else None, results, sizes),
  ]
  return "\n\n".join(filter(None, tables))


def _write_choices(opened, ingredients, workdir) -> None:
  """Records metrics, best ingredients and the window, for the report."""
  choices = evaluate.choices(opened) | {
    "best": {
      name: _ranked(opened, ingredients, name)[0].name
      for name in opened.metrics
    },
    "greedy": opened.greedy,
  }
  if opened.along:
    record = workdir_lib.read(workdir / "soups" / "window" / "window.json")
    choices["window"] = window.about(record)
  if processes.is_first():
    files.write_json(workdir / "choices.json", choices)


def _ranked(opened, ingredients, metric: str):
  """Sorts ingredients by a metric on minival, best first."""
  mode = opened.mode(metric) if opened.is_judged else None
  return soups.ranked(ingredients, metric, mode)


def _warn_of_chance(opened, best) -> None:
  """Warns if the best ingredient is hardly better than chance."""
  if opened.is_judged:
    return
  accuracy = best.metrics["minival/prec@1"]
  chance = 1 / opened.config.data.num_classes
  if accuracy - chance < 0.1 * (1 - chance) and processes.is_first():
    logging.warning(
      "The best ingredient has %.1f %% accuracy on minival, hardly better than "
      "chance. If you expect more, check the preprocessing (data.eval_ops), "
      "order of classes (data.classes), model.num_heads and model.act.",
      100 * accuracy,
    )


def _cook(opened, ingredients, evaluations, workdir) -> list[str]:
  """Makes every soup that does not exist yet; returns their names."""
  config, place = opened.config.cook, opened.place
  folder = workdir / "soups"
  files.make_directory(folder)

  def cook(name, make, state):
    """Makes and saves a soup; `state` resumes it after a kill."""
    if workdir_lib.has_model(folder / name):
      return
    params, more = make(name, state)
    workdir_lib.save_model(folder / name, params, **more)
    if processes.is_first():
      state.unlink(missing_ok=True)

  def uniform(name, state):
    selection = opened.selection(ingredients)
    return average.uniform_soup(ingredients, sharding=place, **selection), {}

  def greedy(name, state):
    metric = opened.greedy[name]
    ranked = _ranked(opened, ingredients, metric)
    selection = opened.selection(ranked)
    soup = soups.greedy(
      config.greedy,
      f"{name} soup by {metric}",
      ranked,
      evaluations.minival(metric),
      state,
      place,
      selection,
      evaluations.before_turn(ranked, selection),
    )
    record = soups.greedy_record(config.greedy, metric, soup)
    return soup.params, {"greedy": record}

  def learned(name, state):
    params, record = soups.learned(
      config.learned,
      name.removeprefix("learned_"),
      opened.model,
      ingredients,
      _batches(opened),
      state,
      place,
      opened.selection(ingredients).get("select"),
      opened.heads.get("minival"),
    )
    return params, {"learned": record}

  def last_of_run(name, state):
    params, record = window.soup(opened, ingredients[0], evaluations, state)
    return params, {"window": record}

  cook("uniform", uniform, workdir / "uniform_state.json")
  for name in opened.greedy:
    cook(name, greedy, workdir / f"{name}_trace.json")
  for name in opened.learned:
    cook(name, learned, workdir / f"{name}_state.json")
  names = ["uniform", *opened.greedy, *opened.learned]
  if opened.along:
    cook("window", last_of_run, workdir / "window_state.json")
    names.append("window")
  for name in names:
    export.write(opened, folder / name, workdir / "export" / name)
  return names


def _chosen_wise_ft(opened, best, results, models, workdir):
  """Saves the interpolation that is best on minival; returns its loader.

  Ties go to the alpha that is closest to the middle, as in the report.
  """
  metric, folder = opened.metrics[0], workdir / "soups" / "wise_ft"
  sign = 1 if opened.mode(metric) == "max" else -1
  alphas = {
    name: float(name.removeprefix("wise_ft_"))
    for name, (kind, _) in models.items()
    if kind == "interpolation"
  }
  chosen = max(
    alphas,
    key=lambda name: (
      sign * results[name][1]["minival"][metric],
      -abs(alphas[name] - 0.5),
    ),
  )
  if not workdir_lib.has_model(folder):
    record = {
      "alpha": alphas[chosen],
      "metric": metric,
      "initial": opened.initial.path,
      "fine-tuned": best.name,
      "scores": {name: results[name][1]["minival"][metric] for name in alphas},
    }
    _, load = models[chosen]
    params = load(sharding=opened.place)
    workdir_lib.save_model(folder, params, wise_ft=record)
  export.write(opened, folder, workdir / "export" / "wise_ft")
  return functools.partial(open_lib.load_params, folder, sharding=opened.place)


def _batches(opened):
  """Yields held-out images in random order, for learned soups."""
  config = opened.config
  loader = data.train_loader(
    opened.minival,
    batch_size=config.cook.learned.batch_size,
    seed=config.seed,
    preprocess=cook_config.eval_ops(config),
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  for batch in loader:
    batch = sharding.put_batch(opened.mesh, batch)
    yield batch["images"], batch["labels"]


# --- A finished run -----------------------------------------------------------


def _print_finished(config, workdir: pathlib.Path) -> bool:
  """Returns whether this run has already finished; if so, prints its table."""
  outputs = ("results.jsonl", "report.html")
  more = _baselines(config)
  if not records.is_finished(workdir / _RECORD, config, outputs, more):
    return False
  if processes.is_first():
    record = workdir / "ensembles" / "greedy_ensemble" / "greedy.json"
    sizes = {}
    if record.exists():
      sizes = {"greedy_ensemble": len(files.read_json(record)["selected"])}
    print(_table(config, workdir, sizes))
    print(f"Finished before. Report: {workdir / 'report.html'}")
  return True


def _baselines(config) -> dict[str, Any]:
  """Returns the identity of `cook.baselines`, as an input of the run."""
  path = os.path.expanduser(config.cook.baselines)
  if not os.path.isfile(path):
    return {}  # Opening the inputs reports a missing file.
  return {"the baselines": records.identity(path)}
