# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""WiSE-FT, task addition, negation and analogies."""

from soupjax.soups import search
from soupjax.tasks.search import config as search_config
from soupjax.tasks.search.inputs import SearchInputs, named
from soupjax.tasks.search.work import MEAN, Outcome, Work


def grid(inputs: SearchInputs) -> list[float]:
  """Returns the coefficients to try, from 0."""
  return search_config.grid(inputs.config)


def wise_ft(work: Work) -> Outcome:
  """Chooses alpha between the initial model and the best ingredient."""
  names = deciding(work.inputs)
  best = work.best(names)
  found = search.wise_ft_curve(
    work.inputs.initial,
    best,
    work.evaluator(mean_of=names),
    grid(work.inputs),
    choose_on=MEAN,
    **work.stage("wise_ft"),
    **work.reading([best]),
  )
  alpha = found.best.coefficients[0]
  return Outcome(
    params=found.params,
    searches={"wise_ft": found},
    models=work.shown(work.inputs.initial, [best], 1.0),
    axis="Alpha (0: initial, 1: fine-tuned)",
    summary=f"WiSE-FT from the initial model to {best.name}: alpha {alpha:.3g}",
  )


def deciding(inputs: SearchInputs) -> list[str]:
  """Returns the tasks of `search.choose_on`, or all if it is empty."""
  names = search_config.names_of(inputs.config, "choose_on")
  return names or list(inputs.tasks)


def own_scores(work: Work) -> dict[str, float]:
  """Returns task -> score of the ingredient that was fine-tuned on it."""
  return {
    name: work.score_of(task.own, name)
    for name, task in work.inputs.tasks.items()
    if task.own
  }


def addition(work: Work) -> Outcome:
  """Chooses one scale for the sum of all task vectors."""
  own = own_scores(work)
  # Ratios of losses, or to a score of 0, are meaningless.
  complete = len(own) == len(work.inputs.tasks) and min(own.values()) > 0
  models = list(work.inputs.ingredients)
  found = search.task_scale(
    work.inputs.initial,
    models,
    work.evaluator(),
    grid(work.inputs),
    finetuned_scores=own if complete else None,
    **work.stage("addition"),
    **work.reading(models),
  )
  scale = found.best.coefficients[0]
  by = "normalised accuracy" if complete else "mean score"
  return Outcome(
    params=found.params,
    searches={"addition": found},
    models=work.shown(work.inputs.initial, models, *[1.0] * len(models)),
    axis="Scale",
    summary=(
      f"The initial model plus {scale:.3g} times the sum of "
      f"{len(models)} task vectors, by {by}"
    ),
  )


# --- Negation -----------------------------------------------------------------


def forgotten(inputs: SearchInputs) -> list[str]:
  """Returns the tasks to forget: `search.forget`, or those with ingredients."""
  names = search_config.names_of(inputs.config, "forget")
  return names or [name for name, task in inputs.tasks.items() if task.own]


def check_negation(inputs: SearchInputs) -> None:
  """Checks the tasks to forget and the control.

  Raises:
    ValueError: if the control is missing or is itself to be forgotten, a task
      to forget has no ingredient, or lower is better for the metric.
  """
  metric = inputs.metrics[0]
  if inputs.mode(metric) != "max":
    raise ValueError(
      f"{'metric' if inputs.is_judged else 'cook.metric'}={metric!r}: lower is "
      "better, but negation needs a metric where higher is better, such as an "
      "accuracy."
    )
  names, control = forgotten(inputs), inputs.config.search.control
  if control not in inputs.tasks:
    raise ValueError(
      f"search.control={control!r} must be one of the tasks "
      f"{', '.join(inputs.tasks)}: a task on which accuracy must not drop."
    )
  check_control("forget", names, [control])
  _check_own(inputs, "forget", names)


def check_control(key: str, names: list[str], controls: list[str]) -> None:
  """Raises a ValueError if a task to change is also a control."""
  if both := sorted(set(names) & set(controls)):
    raise ValueError(
      f"The task {both[0]!r} is both a control and in search.{key}, but a "
      "control measures side effects on other tasks. Remove it from one."
    )


def _check_own(inputs, key, names) -> None:
  missing = [name for name in names if inputs.of_task(name) is None]
  if missing or not names:
    raise ValueError(
      f"search.{key} needs an ingredient for {missing or 'at least one task'}: "
      "set the key model of tasks.NAME to one of "
      f"{', '.join(i.name for i in inputs.ingredients)}."
    )


def negation(work: Work) -> Outcome:
  """Chooses the scale that forgets most while the control keeps its score."""
  c, names = work.config.search, forgotten(work.inputs)
  models = [work.inputs.of_task(name) for name in names]
  models = list(dict.fromkeys(models))
  found = search.task_scale(
    work.inputs.initial,
    models,
    work.evaluator([*names, c.control]),
    grid(work.inputs),
    negate=True,
    control=c.control,
    keep=c.keep,
    **work.stage("negation"),
    **work.reading(models),
  )
  return Outcome(
    params=found.params,
    searches={"negation": found},
    models=work.shown(work.inputs.initial, models, *[-1.0] * len(models)),
    axis="Scale",
    summary=(
      f"The initial model minus {found.best.coefficients[0]:.3g} times the "
      f"task vectors of {', '.join(names)}, with {c.control} as the control"
    ),
  )


# --- Analogies ----------------------------------------------------------------


def check_analogy(inputs: SearchInputs) -> None:
  """Raises a ValueError if a, b and c are not three different ingredients."""
  given = {key: inputs.config.search[key] for key in "abc"}
  present = [ingredient.name for ingredient in inputs.ingredients]
  for key, name in given.items():
    if named(present, name) is None:
      raise ValueError(
        f"search.{key}={name!r} must be an ingredient, one of "
        f"{', '.join(present)}: a is to b as c is to the new task."
      )
  if len({named(present, name) for name in given.values()}) < 3:
    raise ValueError(
      f"search.a, b and c must be three different ingredients, got {given}."
    )


def analogy(work: Work) -> Outcome:
  """Chooses the scale in c + scale (b - a) by the score on the new task."""
  by_name = {i.name: i for i in work.inputs.ingredients}
  a, b, c = (by_name[named(by_name, work.config.search[k])] for k in "abc")
  names = deciding(work.inputs)
  found = search.analogy(
    a,
    b,
    c,
    work.evaluator(mean_of=names),
    grid(work.inputs),
    choose_on=MEAN,
    **work.stage("analogy"),
    **work.reading([b, a]),
  )
  scale = found.best.coefficients[0]
  return Outcome(
    params=found.params,
    searches={"analogy": found},
    models=work.shown(c, [b, a], 1.0, -1.0),
    axis="Scale",
    summary=(
      f"{c.name} + {scale:.3g} ({b.name} - {a.name}), by {', '.join(names)}"
    ),
  )
