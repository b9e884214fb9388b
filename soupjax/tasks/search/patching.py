# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""PAINT: single, joint, sequential and parallel patching (arXiv 2208.05592)."""

from typing import Any

from soupjax.soups import search
from soupjax.soups.core.ingredient import Ingredient
from soupjax.soups.search.tune import check_budget
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook import export
from soupjax.tasks.search import config as search_config
from soupjax.tasks.search.arithmetic import check_control, grid
from soupjax.tasks.search.inputs import SearchInputs
from soupjax.tasks.search.work import Outcome, Work

_AXIS = "Alpha (0: initial, 1: fine-tuned)"


def split(inputs: SearchInputs) -> tuple[list[str], list[str]]:
  """Returns the patching tasks and the supported tasks (controls)."""
  config = inputs.config
  patching = search_config.names_of(config, "patching")
  supported = search_config.names_of(config, "supported")
  patching = patching or [
    name
    for name, task in inputs.tasks.items()
    if task.own and name not in supported
  ]
  rest = [name for name in inputs.tasks if name not in patching]
  return patching, supported or rest


def check(inputs: SearchInputs) -> None:
  """Checks that there are tasks to patch, and other tasks as controls.

  Raises:
    ValueError: if either kind is missing, or a task is of both kinds.
  """
  patching, supported = split(inputs)
  check_control("patching", patching, supported)
  if not patching or not supported:
    missing = "patching" if not patching else "supported"
    raise ValueError(
      f"There is no task in search.{missing}: patching needs a task to learn "
      "and a control task that must not be forgotten."
    )


def _check_own(inputs: SearchInputs) -> None:
  check(inputs)
  patching, _ = split(inputs)
  own = [inputs.of_task(name) for name in patching]
  if None in own:
    raise ValueError(
      f"The patching task {patching[own.index(None)]!r} has no ingredient: "
      "set the key model of tasks.NAME to one of "
      f"{', '.join(i.name for i in inputs.ingredients)}."
    )


# --- One model, fine-tuned on one task or on several together -----------------


def check_single(inputs: SearchInputs) -> None:
  """Like `check`, but also requires that there is only one ingredient."""
  check(inputs)
  if len(inputs.ingredients) > 1:
    raise ValueError(
      f"paint patches with one ingredient, but got "
      f"{len(inputs.ingredients)}: give one that was fine-tuned jointly on all "
      "patching tasks, or use paint_sequential or paint_parallel."
    )


def paint(work: Work) -> Outcome:
  """Chooses alpha between the initial model and the ingredient."""
  patching, supported = split(work.inputs)
  (ingredient,) = work.inputs.ingredients
  found = search.paint(
    work.inputs.initial,
    ingredient,
    work.evaluator(),
    grid(work.inputs),
    patching=patching,
    supported=supported,
    **work.stage("paint"),
    **work.reading([ingredient]),
  )
  return Outcome(
    params=found.params,
    searches={"paint": found},
    models=work.shown(work.inputs.initial, [ingredient], 1.0),
    patching=patching,
    supported=supported,
    axis=_AXIS,
    summary=(
      f"Patched with {', '.join(patching)}: alpha "
      f"{found.best.coefficients[0]:.3g}, by combined accuracy"
    ),
  )


# --- One task after another ---------------------------------------------------


def stages(inputs: SearchInputs) -> list[str]:
  """Returns the patching tasks before the first one without an ingredient."""
  patching, _ = split(inputs)
  done: list[str] = []
  for name in patching:
    if inputs.of_task(name) is None:
      break
    done.append(name)
  return done


def check_sequential(inputs: SearchInputs) -> None:
  """Like `check`, but also requires an ingredient for the first task."""
  check(inputs)
  if not stages(inputs):
    _check_own(inputs)


def paint_sequential(work: Work) -> Outcome:
  """Chooses alpha for one task after another, from the model patched so far.

  The ingredient of each task must be fine-tuned from that model, which is
  written to `stages/TASK` with the head of TASK. The search stops before the
  first task without an ingredient, and the summary says how to fine-tune it.
  """
  inputs = work.inputs
  patching, supported = split(inputs)
  done = stages(inputs)
  found = search.paint_sequential(
    inputs.initial,
    lambda params, task: _finetuned(work, params, task),
    work.evaluator(),
    grid(inputs),
    patching=done,
    supported=supported,
    saved=lambda task: work.stage(f"paint_{done.index(task) + 1}_{task}"),
    **work.reading(inputs.ingredients[:1]),
  )
  titles = [f"paint_{k + 1}_{task}" for k, task in enumerate(done)]
  alphas = [one.best.coefficients[0] for one in found.rounds]
  steps = [f"{task} {alpha:.3g}" for task, alpha in zip(done, alphas)]
  summary = f"Patched one after another, alpha: {', '.join(steps)}"
  if len(done) < len(patching):
    following = patching[len(done)]
    start = _save_stage(work, found.params, following)
    how = "" if inputs.is_judged else (
      f" with a frozen head (--config.init.path={start} "
      "--config.init.head=keep --config.freeze='(\"^head/\",)')"
    )  # fmt: skip
    summary += (
      f". Next, fine-tune on {following} from {start}{how}, and search again "
      "in another --workdir with the result as the ingredient of "
      f"tasks.{following}"
    )
  return Outcome(
    params=found.params,
    searches=dict(zip(titles, found.rounds)),
    models={
      f"after_{task}": _held(one.params)
      for task, one in zip(done[:-1], found.rounds)
    },
    patching=done,
    supported=supported,
    axis=_AXIS,
    summary=summary,
  )


def _held(params):
  return lambda sharding=None: params


def _finetuned(work: Work, params, task: str) -> Ingredient:
  """Writes the initial model of a stage, and returns its ingredient."""
  _save_stage(work, params, task)
  ingredient = work.inputs.of_task(task)
  assert ingredient is not None  # `stages` stops before such a task.
  return ingredient


def _save_stage(work: Work, params: Any, task: str):
  """Writes a model with the frozen head of a task to `stages/TASK`.

  If a command evaluates, the file and its leaves are like the ingredients'.
  """
  path = work.workdir / "stages" / task
  if work.inputs.is_judged:
    return export.write_new(work.inputs.original, params, path)
  if not workdir_lib.has_model(path):
    head = work.inputs.frozen_heads.get(task, lambda params: params)
    workdir_lib.save_model(path, head(params))
  return path


# --- All tasks in parallel ----------------------------------------------------


def check_parallel(inputs: SearchInputs) -> None:
  """Like `check`, but also checks all tasks' ingredients and the budget."""
  _check_own(inputs)
  c = inputs.config.search
  patching, _ = split(inputs)
  if len(patching) < 2:
    raise ValueError(
      "paint_parallel needs at least two patching tasks; for one, use paint."
    )
  check_budget(c.budget, c.points, len(patching))


def paint_parallel(work: Work) -> Outcome:
  """Chooses one coefficient per task, and also shows the best equal ones."""
  patching, supported = split(work.inputs)
  models = [work.inputs.of_task(name) for name in patching]
  found = search.paint_parallel(
    work.inputs.initial,
    models,
    work.evaluator(),
    grid(work.inputs),
    patching=patching,
    supported=supported,
    budget=work.config.search.budget,
    **work.stage("paint_parallel"),
    **work.reading(models),
  )
  equal = max(
    (c for c in found.history if len(set(c.coefficients)) == 1),
    key=lambda c: c.value,
  )
  blend = work.blend(work.inputs.initial, models, equal.coefficients)
  chosen = zip(patching, found.best.coefficients)
  return Outcome(
    params=found.params,
    searches={"paint_parallel": found},
    models={"at_equal": blend},
    patching=patching,
    supported=supported,
    summary="Patched in parallel: "
    + ", ".join(f"{name} {c:.3g}" for name, c in chosen),
  )
