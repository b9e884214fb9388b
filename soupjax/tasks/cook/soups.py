# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Soups of a run, which resume after a kill, and ensembles."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from soupjax import evaluators, files
from soupjax.models import CLIP
from soupjax.progress import Progress
from soupjax.soups.average import ensemble_logits
from soupjax.soups.core.ingredient import Ingredient, rank_by
from soupjax.soups.greedy.ensemble import GreedyEnsemble, greedy_ensemble
from soupjax.soups.greedy.soup import GreedySoup, greedy_soup
from soupjax.soups.learned.options import CoefficientOptimizer, Granularity
from soupjax.soups.learned.soup import learned_soup
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.cook.heads import Head
from soupjax.train import losses

PyTree = Any


def ranked(
  ingredients: Sequence[Ingredient],
  metric: str = "prec@1",
  mode: str | None = None,
) -> list[Ingredient]:
  """Sorts by a metric on minival, best first; ties by accuracy, then by loss.

  Args:
    ingredients: ingredients with the metric "minival/METRIC" and, without a
      `mode`, "minival/prec@1" and "minival/loss".
    metric: the name of the metric.
    mode: "max" or "min" for a metric of a command, which then decides alone;
      None for a registered metric.
  """
  if mode is not None:
    return list(rank_by(ingredients, f"minival/{metric}", mode=mode))
  for name in ("loss", "prec@1", metric):  # Sorting is stable.
    mode = evaluators.get_metric(name).mode
    ingredients = rank_by(ingredients, f"minival/{name}", mode=mode)
  return list(ingredients)


def greedy(
  config,
  stage: str,
  ingredients: Sequence[Ingredient],
  evaluate,
  trace: pathlib.Path,
  sharding: Any = None,
  selection: Mapping[str, Any] | None = None,
  before_turn: Callable[[Sequence[Any]], None] = lambda history: None,
) -> GreedySoup:
  """Runs `greedy_soup` and saves every decision in the file `trace`.

  Args:
    config: the keys "accept", "min_delta" and "early_reject".
    stage: the name of the progress line.
    ingredients: the ingredients, best first.
    evaluate: as for `greedy_soup`.
    trace: a file to resume from after a kill.
    sharding: as for `greedy_soup`.
    selection: `select` and `base`, as for `greedy_soup`.
    before_turn: called with the decisions so far, as dicts.

  Raises:
    ValueError: if `trace` is damaged, or as for `greedy_soup`.
  """
  history = workdir_lib.read(trace, [])
  if not isinstance(history, list):
    raise ValueError(f"{trace} is not a list of decisions: delete it.")
  progress = Progress(
    stage, len(ingredients), unit="candidates", start=len(history)
  )

  def save(decision):
    history.append(dataclasses.asdict(decision))
    if jax.process_index() == 0:
      files.write_json(trace, history)
    verdict = "in" if decision.accepted else "out"
    progress.step(note=f"{decision.name} {verdict}: {decision.reason}")
    before_turn(history)

  before_turn(history)

  return greedy_soup(
    ingredients,
    evaluate,
    accept=config.accept,
    min_delta=config.min_delta,
    resume=list(history),
    on_decision=save,
    early_reject=config.early_reject,
    sharding=sharding,
    **(selection or {}),
  )


def greedy_record(
  config, metric: str, soup: GreedySoup | GreedyEnsemble
) -> dict[str, Any]:
  """Returns the record of a greedy selection, as JSON."""
  return {
    "metric": metric,
    "accept": config.accept,
    "min_delta": config.min_delta,
    "selected": list(soup.selected),
    "history": [dataclasses.asdict(d) for d in soup.history],
  }


def granularity_of(model, name: str) -> Granularity:
  """Returns a granularity by its name, for the leaves of a model."""
  scan = model.image["scan"] if isinstance(model, CLIP) else model.scan
  return Granularity(name, stacked="encoderblock/" if scan else None)


def learned_loss(model, head: Head | None = None) -> Callable[..., Any]:
  """Returns the cross-entropy `loss(params, beta, batch)` of learned soups.

  Args:
    model: a Linen module that returns logits first.
    head: the head of a whole CLIP, instead of the model's own; gradients also
      pass through the text tower.
  """

  def loss(params, beta, batch):
    images, labels = batch
    if head is None:
      logits, _ = model.apply({"params": params}, images)
    else:
      logits = head.classifier(head(params), images)
    targets = losses.smooth_labels(labels, logits.shape[-1], 0.0)
    return losses.softmax_loss(beta * logits, targets)

  return loss


def learned(
  config,
  granularity: str,
  model,
  ingredients: Sequence[Ingredient],
  batches: Iterable[tuple[Any, Any]],
  state: pathlib.Path,
  sharding: Any = None,
  select: Mapping[str, Any] | None = None,
  head: Head | None = None,
  *,
  loss: Callable[..., Any] | None = None,
  base: Ingredient | None = None,
) -> tuple[PyTree, dict[str, Any]]:
  """Runs `learned_soup` and saves every step in the file `state`.

  Args:
    config: the keys "steps", "learning_rate" (0 for the default) and
      "memory_gb".
    granularity: "model", "layer" or "tensor".
    model: as for `learned_loss`.
    ingredients: at least two.
    batches: held-out (images, labels), beginning with those of the first step.
    state: a file to resume from after a kill.
    sharding: as for `learned_soup`.
    select: as for `learned_soup`.
    head: as for `learned_loss`.
    loss: a function of parameters, logit scale and batch; None for
      `learned_loss`.
    base: as for `learned_soup`.

  Returns:
    The soup and its record, as JSON.

  Raises:
    ValueError: if `state` is damaged, or as for `learned_soup`.
  """
  resume = workdir_lib.read(state)
  if resume is not None and not isinstance(resume, dict):
    raise ValueError(f"{state} is not the state of a learned soup: delete it.")
  done = len((resume or {}).get("history", ()))
  progress = Progress(f"learned, {granularity}", config.steps, start=done)

  def save(value):
    if jax.process_index() == 0:
      files.write_json(state, value)

  soup = learned_soup(
    ingredients,
    loss or learned_loss(model, head),
    base=base,
    granularity=granularity_of(model, granularity),
    steps=config.steps,
    optimizer=CoefficientOptimizer(learning_rate=config.learning_rate or None),
    batches=batches,
    select=select,
    sharding=sharding,
    residency=None if config.memory_gb < 0 else config.memory_gb * 1e9,
    on_step=lambda entry: progress.step(note=f"loss {entry['loss']:.4f}"),
    resume=resume,
    on_state=save,
  )
  return soup.params, {
    "names": list(soup.names),
    "alphas": {group: list(a) for group, a in soup.alphas.items()},
    "beta": soup.beta,
    "history": list(soup.history),
  }


def ensembles(
  config,
  metric: str,
  names: Sequence[str],
  labels: np.ndarray,
  logits: Mapping[str, Mapping[str, np.ndarray]],
  workdir: pathlib.Path,
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, int]]:
  """Averages the logits of all ingredients and of a greedy selection.

  Args:
    config: the keys "accept" and "min_delta".
    metric: the metric of the greedy selection, on minival.
    names: names of the ingredients, best first.
    labels: (n,) labels of minival.
    logits: ingredient -> set -> (n, classes).
    workdir: directory of the run; gets
      `ensembles/greedy_ensemble/greedy.json`.

  Returns:
    Ensemble -> set -> (n, classes), and ensemble -> number of members.
  """
  evaluator = evaluators.Evaluator.from_arrays(
    lambda mean, rows: mean[rows],
    np.arange(len(labels)),
    labels,
    batch_size=len(labels),
    metric=metric,
  )
  choice = greedy_ensemble(
    {name: logits[name]["minival"] for name in names},
    evaluator,
    accept=config.accept,
    min_delta=config.min_delta,
    early_reject=False,
  )
  if jax.process_index() == 0:
    record = workdir / "ensembles" / "greedy_ensemble" / "greedy.json"
    files.make_directory(record.parent)
    files.write_json(record, greedy_record(config, metric, choice))
  members = {"ensemble": names, "greedy_ensemble": choice.selected}
  means = {
    ensemble: {
      dataset: ensemble_logits(logits[name][dataset] for name in parts)
      for dataset in logits[names[0]]
    }
    for ensemble, parts in members.items()
  }
  return means, {ensemble: len(parts) for ensemble, parts in members.items()}
