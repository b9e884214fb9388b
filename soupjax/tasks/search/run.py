# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Searches for coefficients on held-out data of one or more tasks.

Reads top to bottom: inputs, every checkpoint on every set, the search on
minival, the chosen model on test, results.
"""

import contextlib
import functools
import os
import pathlib
import time
from typing import Any

import ml_collections

from soupjax import files, processes
from soupjax.checkpoints import open as open_lib
from soupjax.tasks import records
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook import config as cook_config
from soupjax.tasks.cook import evaluate, needs
from soupjax.tasks.search import config as search_config
from soupjax.tasks.search import frozen_heads, judge, methods, results
from soupjax.tasks.search import inputs as inputs_lib
from soupjax.tasks.search.work import Work

_RECORD = "searched_from.json"


def run(
  config: ml_collections.ConfigDict,
  path: str | os.PathLike | None,
  *,
  dry_run: bool = False,
) -> pathlib.Path | None:
  """Runs a search; outputs that an earlier run finished are skipped.

  Args:
    config: as in configs/search.py.
    path: the directory of the run; docs/search.md lists its files.
    dry_run: opens everything, prints the plan and stops.

  Returns:
    The path of the report; None after a dry run.

  Raises:
    ValueError: if the config is invalid, or checkpoints, tasks and heads do
      not fit together.
  """
  workdir = files.path_of(path) if path else None
  if not dry_run and _print_finished(config, workdir):
    return workdir / "report.html"
  search_config.check(config)
  method = methods.METHODS[config.method]
  kind = judge if config.evaluate_command else inputs_lib
  more = {} if config.evaluate_command else {"one_run": method.one_run}
  inputs = kind.open_inputs(config, same_init=method.same_init, **more)
  records.check_workdir(inputs, workdir)
  methods.check(inputs)
  if processes.is_first():
    print(plan(inputs))
  if dry_run and inputs.is_judged:
    return None
  if dry_run:
    frozen_heads.make_heads(inputs, None)
    if processes.is_first():
      print(needs.searching(inputs, path))
    models, candidates = _evaluations(inputs)
    images = models * inputs.num_images + candidates * _minival_images(inputs)
    first = next(iter(inputs.tasks))
    needs.print_duration(inputs, f"{first}/{inputs_lib.MINIVAL}", images)
    return None
  with contextlib.ExitStack() as stack:
    if processes.is_first():
      record = cook_config.record_of(inputs.config)
      workdir_lib.open_workdir(workdir, record)
      stack.enter_context(workdir_lib.locked(workdir))
    processes.check_shared(workdir)
    records.check_unchanged(
      config, inputs, workdir / _RECORD, inputs_lib.other_files(config)
    )
    evaluating = judge if inputs.is_judged else evaluate
    frozen_heads.make_heads(inputs, workdir / "heads")
    evaluations = stack.enter_context(evaluating.Evaluations(inputs, workdir))
    return _run(inputs, workdir, evaluations)


def _run(inputs, workdir: pathlib.Path, evaluations) -> pathlib.Path:
  began = time.monotonic()
  method = methods.METHODS[inputs.config.method]
  work = Work(inputs, workdir, method.count(inputs), evaluations)

  # --- Every checkpoint, on every set -----------------------------------------
  models: dict[str, Any] = {}
  if inputs.initial:
    models[results.PRETRAINED] = "pretrained", inputs.initial.load
  for ingredient in inputs.ingredients:
    models[ingredient.name] = "ingredient", ingredient.load
  _evaluate(work, models, "checkpoints")

  # --- The search, on minival alone -------------------------------------------
  outcome = method.run(work)
  results.save(work, outcome)

  # --- The chosen model on test, and results ----------------------------------
  models = {name: ("soup", load) for name, load in outcome.models.items()}
  load = functools.partial(open_lib.load_params, workdir / results.CHOSEN)
  models[results.CHOSEN] = "soup", load
  _evaluate(work, models, "chosen")
  page = results.write(work, outcome)
  if processes.is_first():
    print(f"{time.monotonic() - began:.0f} s in total.")
  return page


def _evaluate(work: Work, models, stage: str) -> None:
  """Evaluates models on all sets, and adds them to `work.results`."""
  work.evaluations.ahead({name: load for name, (_, load) in models.items()})
  progress = evaluate.progress(work.inputs, stage, len(models))
  for name, (kind, load) in models.items():
    load = functools.partial(load, sharding=work.inputs.place)
    values = work.evaluations.evaluate(name, load, progress=progress)
    work.results[name] = kind, values
    progress.step()


def plan(inputs: inputs_lib.SearchInputs) -> str:
  """Describes the inputs and the work to be done, as text."""
  first = inputs.ingredients[0]
  lines = [
    f"search: {inputs.config.method}",
    f"{len(inputs.ingredients)} ingredients of {first.num_bytes / 1e6:,.1f} MB"
    + (f", read as {inputs.family!r}" if inputs.family else ""),
    *(f"  {ingredient.name}" for ingredient in inputs.ingredients),
    *inputs.notes,
    f"start: {inputs.initial.path if inputs.initial else 'none'}",
    *_about_addition(inputs),
  ]
  if inputs.is_judged:
    return "\n".join([*lines, *judge.about(inputs, sum(_evaluations(inputs)))])
  for name, task in inputs.tasks.items():
    head = f"head {task.spec.head}, {task.model.num_classes} classes"
    own = f"fine-tuned: {task.own}" if task.own else ""
    test = f"test {len(task.test)}" if task.test else "no test set"
    size = f"minival {len(task.minival)} images, {test}"
    parts = [task.minival.name, size, head, own, task.spec.ops]
    lines.append(f"task {name}: {'; '.join(filter(None, parts))}")
  c = inputs.config.search
  if "steps" in c:
    lines.append(f"training: {c.steps:,} steps, {c.batch_size} images per task")
  models, candidates = _evaluations(inputs)
  shown = len(search_config.shown(inputs.config))
  lines.append(
    f"evaluations: at most {candidates:,} candidates on the "
    f"{_minival_images(inputs):,} images of minival; "
    f"{models - 1 - shown} checkpoints "
    + f"and {shown} models of search.show " * bool(shown)
    + f"and the result on all {inputs.num_images:,} images"
  )
  return "\n".join(lines)


def _about_addition(inputs) -> list[str]:
  """Describes the task vectors that `addition` adds, and how it chooses."""
  if inputs.config.method != "addition":
    return []
  own = [task.own for task in inputs.tasks.values()]
  others = [i.name for i in inputs.ingredients if i.name not in own]
  lines = []
  if others:
    lines.append(f"also added, without a task: {', '.join(others)}")
  if all(own):
    lines.append("chosen by normalised accuracy, or by the mean of losses")
  return lines


def _evaluations(inputs) -> tuple[int, int]:
  """Returns the numbers of models on all sets and of candidates on minival."""
  models = len(inputs.ingredients) + (inputs.initial is not None) + 1
  models += len(search_config.shown(inputs.config))
  return models, methods.METHODS[inputs.config.method].count(inputs)


def _minival_images(inputs) -> int:
  return sum(len(task.minival) for task in inputs.tasks.values())


def _print_finished(config, workdir: pathlib.Path) -> bool:
  """Returns whether this run has already finished; if so, prints its tables."""
  outputs = ("search.json", "report.html")
  others = inputs_lib.other_files(config)
  if not records.is_finished(workdir / _RECORD, config, outputs, others):
    return False
  if processes.is_first():
    print(results.summary(workdir))
    print("Finished before.")
  return True
