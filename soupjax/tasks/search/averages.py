# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Averages of several runs (DiWA, ratatouille) or along one; merge rules."""

from collections.abc import Sequence
import dataclasses
import functools
import inspect
import math
from typing import Any

from soupjax.checkpoints import mix as mix_lib
from soupjax.soups import average, rules, search
from soupjax.soups.core.ingredient import Ingredient, rank_by
from soupjax.soups.search.tune import check_budget
from soupjax.tasks import mix
from soupjax.tasks.cook import soups
from soupjax.tasks.cook import window as window_lib
from soupjax.tasks.search.arithmetic import deciding
from soupjax.tasks.search.inputs import SearchInputs
from soupjax.tasks.search.work import Outcome, Work, mean

_HELD_OUT = "held-out"


# --- DiWA and ratatouille -----------------------------------------------------


def check_diwa(inputs: SearchInputs) -> None:
  """Raises a ValueError if `search.average` is unknown."""
  if inputs.config.search.average not in ("greedy", "uniform"):
    raise ValueError(
      f"search.average={inputs.config.search.average!r} must be 'greedy' or "
      "'uniform'."
    )


def count_diwa(inputs: SearchInputs) -> int:
  """Returns the number of candidates: those of the greedy soup."""
  greedy = inputs.config.search.average == "greedy"
  return len(inputs.ingredients) if greedy else 0


def diwa(work: Work) -> Outcome:
  """Averages all runs, or those that a greedy soup selects."""
  c, names = work.config.search, deciding(work.inputs)
  scored = [
    dataclasses.replace(
      run,
      metrics={_HELD_OUT: mean(work.scores_of(run.name), names)},
    )
    for run in work.inputs.ingredients
  ]
  ranked = rank_by(scored, _HELD_OUT)
  place, selection = work.inputs.place, work.inputs.selection(ranked)
  uniform = functools.partial(average.uniform_soup, ranked, **selection)
  if c.average == "uniform":
    return Outcome(
      params=uniform(sharding=place),
      summary=f"The mean of all {len(ranked)} runs",
    )
  metric = f"mean {work.metric} of {', '.join(names)}"
  soup = soups.greedy(
    work.config.cook.greedy,
    f"greedy soup by {metric}",
    ranked,
    lambda params: mean(work.scores(params, names), names),
    work.file("greedy"),
    place,
    selection,
    work.evaluations.before_turn(ranked, selection),
  )
  record = soups.greedy_record(work.config.cook.greedy, work.metric, soup)
  return Outcome(
    params=soup.params,
    greedy={"greedy": record},
    models={"uniform": uniform},
    summary=f"The mean of {', '.join(soup.selected)}, by {metric}",
  )


# --- Checkpoints of one run ---------------------------------------------------


def schedules(inputs: SearchInputs) -> dict[str, dict[str, Any]]:
  """Returns title -> arguments of `rules.schedule` for `search.kinds`.

  Raises:
    ValueError: if a kind is unknown, or the decay of "ema" is not a number.
  """
  found = {}
  for text in inputs.config.search.kinds.split("+"):
    kind, _, decay = text.strip().partition(":")
    options: dict[str, Any] = {"kind": kind}
    try:
      if kind == "ema":
        options["decay"] = float(decay)
      rules.schedule(count=len(inputs.ingredients), **options)
    except ValueError as e:
      raise ValueError(
        f"search.kinds has {text!r}: give any of uniform, linear, minus-sqrt "
        f"and ema:DECAY, such as ema:0.9, joined by +. {e}"
      ) from e
    found[text.strip().replace(":", "_")] = options
  return found


def count_window(inputs: SearchInputs) -> int:
  """Returns the number of candidates: every window of every kind."""
  return len(schedules(inputs)) * len(inputs.ingredients)


def window(work: Work) -> Outcome:
  """Chooses how many of the last checkpoints of a run to average, and how."""
  models, names = work.inputs.ingredients, deciding(work.inputs)
  merge = merger(work, models)
  searches = {
    title: window_lib.choose(
      models,
      work.evaluator(),
      merge=merge,
      options=options,
      value=lambda scores: mean(scores, names),
      method=title,
      label=f"mean of {', '.join(names)}",
      **work.stage(title),
    )
    for title, options in schedules(work.inputs).items()
  }
  title = max(searches, key=lambda title: searches[title].best.value)
  last = int(searches[title].best.coefficients[0])
  return Outcome(
    params=searches[title].params,
    searches=searches,
    axis="Checkpoints at the end of the run",
    summary=f"The last {last} of {len(models)} checkpoints, {title}",
  )


# --- Merge rules --------------------------------------------------------------


def merger(work: Work, models: Sequence[Ingredient]):
  """Returns a function that maps the arguments of a rule to a merged model."""
  inputs = work.inputs
  return mix.merger(
    models,
    base=inputs.initial,
    select=inputs.selection(inputs.ingredients).get("select"),
    sharding=inputs.place,
    in_memory=work.config.in_memory,
  )


def ranges(inputs: SearchInputs) -> dict[str, tuple[float, float]]:
  """Returns argument -> (lowest, highest) of `search.ranges`.

  Raises:
    ValueError: if the text cannot be parsed, or the rule has no such argument.
  """
  c, found = inputs.config.search, {}
  if not c.rule:
    raise ValueError("search.rule is empty: give a merge rule, such as ties.")
  known = rules.RULES.signature(c.rule).parameters
  for part in filter(None, map(str.strip, c.ranges.split(","))):
    name, _, bounds = part.partition("=")
    try:
      low, high = map(float, bounds.split(".."))
    except ValueError as e:
      raise ValueError(
        f"search.ranges has {part!r}: write NAME=LOW..HIGH,NAME=LOW..HIGH."
      ) from e
    rises = -math.inf < low < high < math.inf
    if name not in known or name in found or not rises:
      raise ValueError(
        f"search.ranges has {part!r}: write NAME=LOW..HIGH with finite LOW < "
        f"HIGH, once per argument of {c.rule!r} ({', '.join(known)})."
      )
    found[name] = low, high
  if not found:
    raise ValueError("search.ranges is empty: give NAME=LOW..HIGH.")
  return found


def check_rule(inputs: SearchInputs) -> None:
  """Checks the ranges of a rule's arguments, its base and the budget.

  Raises:
    ValueError: if the rule rejects a bound or needs the missing initial model,
      or the budget is too small.
  """
  name, bounds = inputs.config.search.rule, ranges(inputs)
  check_budget(inputs.config.search.budget, 1, len(bounds))
  start = dict(zip(bounds, _first(inputs)))
  count = len(inputs.ingredients)
  made = mix.rule_of({"name": name, **start}, count)
  if made.needs_base and inputs.initial is None:
    raise ValueError(
      f"The rule {name!r} needs the model that all ingredients were fine-tuned "
      "from: give --config.initial."
    )
  for argument, pair in bounds.items():
    for bound in pair:
      try:
        mix.rule_of({"name": name, **start, argument: bound}, count)
      except ValueError as e:
        raise ValueError(
          f"search.ranges has {argument}={pair[0]:g}..{pair[1]:g}, but "
          f"{name!r} rejects {bound:g}: {e}"
        ) from e


def _first(inputs: SearchInputs) -> list[float]:
  """Returns the first candidate: defaults of the rule, or mid-ranges."""
  known = rules.RULES.signature(inputs.config.search.rule).parameters
  first = []
  for name, (low, high) in ranges(inputs).items():
    default = known[name].default
    usual = (
      default is not inspect.Parameter.empty
      and isinstance(default, int | float)
      and low <= default <= high
    )
    first.append(float(default) if usual else (low + high) / 2)
  return first


def budget(inputs: SearchInputs) -> int:
  """Returns the maximum number of candidates, if a budget limits it."""
  return inputs.config.search.budget


def rule(work: Work) -> Outcome:
  """Chooses arguments of a merge rule within the budget."""
  c, bounds, names = (
    work.config.search,
    ranges(work.inputs),
    deciding(work.inputs),
  )
  merge = merger(work, work.inputs.ingredients)
  found = search.tune(
    lambda point: merge({"name": c.rule, **dict(zip(bounds, point))}),
    work.evaluator(),
    [_first(work.inputs)],
    ranges=bounds,
    budget=c.budget,
    value=lambda scores: mean(scores, names),
    method=c.rule,
    label=f"mean of {', '.join(names)}",
    **work.stage(work.config.method),
  )
  chosen = zip(bounds, found.best.coefficients)
  return Outcome(
    params=found.params,
    searches={work.config.method: found},
    axis=next(iter(bounds)),
    summary=f"{c.rule}({', '.join(f'{k}={v:.4g}' for k, v in chosen)})",
  )


def check_depth(inputs: SearchInputs) -> None:
  """Checks the number of knots, the budget, and that leaves have depths.

  Raises:
    ValueError: if one of these checks fails.
  """
  c, models = inputs.config.search, inputs.ingredients
  if c.knots < 2:
    raise ValueError(f"search.knots={c.knots} must be at least 2.")
  check_budget(c.budget, c.points, c.knots)
  arguments = {"name": "task_arithmetic", "scale": [0.0] * c.knots}
  made = mix.rule_of(arguments, len(models))
  mix_lib.mix(made, models, base=inputs.initial, dry_run=True)


def depth(work: Work) -> Outcome:
  """Chooses the scale of task vectors at a few depths (arXiv 2410.17146).

  The first candidates have the same scale at all depths. The depths are evenly
  spaced from the first layer to the last; in between, scales are interpolated.
  """
  c, names = work.config.search, deciding(work.inputs)
  merge = merger(work, work.inputs.ingredients)
  equal = [[c.most * k / (c.points - 1)] * c.knots for k in range(c.points)]
  found = search.tune(
    lambda point: merge({"name": "task_arithmetic", "scale": list(point)}),
    work.evaluator(),
    equal,
    ranges={f"scale {k}": (0.0, c.most) for k in range(c.knots)},
    budget=c.budget,
    value=lambda scores: mean(scores, names),
    method="depth",
    label=f"mean of {', '.join(names)}",
    **work.stage("depth"),
  )
  scales = ", ".join(f"{x:.3g}" for x in found.best.coefficients)
  return Outcome(
    params=found.params,
    searches={"depth": found},
    summary=f"Scales of task vectors from first to last layer: {scales}",
  )
