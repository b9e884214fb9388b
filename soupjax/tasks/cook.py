# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Cooks the soups of a sweep; every choice is made on minival."""

from collections.abc import Iterable, Sequence
import dataclasses
import itertools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soupjax import files
from soupjax.data import Dataset
from soupjax.evaluators import Classification, classification_metrics
from soupjax.progress import Progress
from soupjax.soups.average import ensemble_logits, uniform_soup
from soupjax.soups.core.ingredient import Ingredient, rank_by
from soupjax.soups.core.same_init import check_same_init
from soupjax.soups.greedy.ensemble import GreedyEnsemble, greedy_ensemble
from soupjax.soups.greedy.soup import GreedySoup, greedy_soup
from soupjax.soups.learned.soup import learned_soup
from soupjax.tasks import workdir as workdir_lib
from soupjax.train import losses

PyTree = Any


def ranked(ingredients: Sequence[Ingredient]) -> list[Ingredient]:
  """Best first: by accuracy on minival, ties by loss on minival."""
  by_loss = rank_by(ingredients, "minival/loss", mode="min")
  return rank_by(by_loss, "minival/prec@1")


def cook(
  config,
  model,
  ingredients: Sequence[Ingredient],
  minival: Dataset,
  evaluate: Classification,
  workdir: pathlib.Path,
) -> list[str]:
  """Makes every soup that is not there yet.

  Args:
    config: with `cook`.
    model: the ViT.
    ingredients: of the sweep, with their metrics on minival.
    minival: held-out data.
    evaluate: returns the accuracy of parameters on it.
    workdir: gets `soups/NAME/`.

  Returns:
    The names of the soups.
  """
  check_same_init(ingredients)
  # Learned soups pass over all of them at every step: read each once.
  ingredients = [i.in_memory() for i in ranked(ingredients)]
  soups = workdir / "soups"
  soups.mkdir(exist_ok=True)
  granularities = list(config.cook.learned_granularities)
  if len(ingredients) < 2:
    granularities = []  # There is nothing to learn.
  names = ["uniform", "greedy", *(f"learned_{g}" for g in granularities)]
  batches = itertools.repeat((jnp.asarray(minival.images), minival.labels))

  if not (soups / "uniform").exists():
    workdir_lib.save_model(soups / "uniform", uniform_soup(ingredients))
  if not (soups / "greedy").exists():
    trace = workdir / "greedy_trace.json"
    soup = greedy(config.cook, "greedy soup", ingredients, evaluate, trace)
    workdir_lib.save_model(
      soups / "greedy", soup.params, greedy=greedy_record(config.cook, soup)
    )
    trace.unlink(missing_ok=True)
  for granularity in granularities:
    path = soups / f"learned_{granularity}"
    if not path.exists():
      state = workdir / f"learned_{granularity}_state.json"
      params, record = learned(
        config.cook, granularity, model, ingredients, batches, state
      )
      workdir_lib.save_model(path, params, learned=record)
      state.unlink(missing_ok=True)
  return names


def greedy(
  config,
  stage: str,
  ingredients: Sequence[Ingredient],
  evaluate,
  trace: pathlib.Path,
  sharding: Any = None,
) -> GreedySoup:
  """Runs `greedy_soup`, saving every decision; goes on from `trace`."""
  history = workdir_lib.agreed(files.read_json(trace) if trace.exists() else [])
  if not isinstance(history, list):
    raise ValueError(f"{trace} is no list of decisions: delete it.")
  progress = Progress(
    stage, len(ingredients), unit="candidates", start=len(history)
  )

  def save(decision):
    history.append(dataclasses.asdict(decision))
    if jax.process_index() == 0:
      files.write_json(trace, history)
    verdict = "in" if decision.accepted else "out"
    progress.step(note=f"{decision.name} {verdict}: {decision.reason}")

  return greedy_soup(
    ingredients,
    evaluate,
    accept=config.accept,
    min_delta=config.min_delta,
    resume=list(history),
    on_decision=save,
    early_reject=config.early_reject,
    sharding=sharding,
  )


def greedy_record(config, soup: GreedySoup | GreedyEnsemble) -> dict[str, Any]:
  """What is kept of a greedy choice besides its weights, as JSON."""
  return {
    "accept": config.accept,
    "min_delta": config.min_delta,
    "selected": list(soup.selected),
    "history": [dataclasses.asdict(d) for d in soup.history],
  }


def learned(
  config,
  granularity: str,
  model,
  ingredients: Sequence[Ingredient],
  batches: Iterable[tuple[Any, Any]],
  state: pathlib.Path,
  sharding: Any = None,
) -> tuple[PyTree, dict[str, Any]]:
  """Runs `learned_soup`, saving every step; goes on from `state`.

  Args:
    config: with `learned_steps` and `learned_learning_rate`.
    granularity: as for `learned_soup`.
    model: with logits first.
    ingredients: at least two.
    batches: of held-out images and labels, from the first step on.
    state: a file to go on from after a kill.
    sharding: where ingredients go.

  Returns:
    The soup, and what is kept of it besides its weights.
  """
  resume = workdir_lib.agreed(
    files.read_json(state) if state.exists() else None
  )
  if resume is not None and not isinstance(resume, dict):
    raise ValueError(f"{state} is no state of a learned soup: delete it.")
  done = len((resume or {}).get("history", ()))
  progress = Progress(
    f"learned, {granularity}", config.learned_steps, start=done
  )

  def loss(params, beta, batch):
    images, labels = batch
    logits, _ = model.apply({"params": params}, images)
    targets = losses.smooth_labels(labels, model.num_classes, 0.0)
    return losses.softmax_loss(beta * logits, targets)

  def save(found):
    if jax.process_index() == 0:
      files.write_json(state, found)

  soup = learned_soup(
    ingredients,
    loss,
    granularity=granularity,
    steps=config.learned_steps,
    learning_rate=config.learned_learning_rate,
    batches=batches,
    sharding=sharding,
    stacked="encoderblock/" if model.scan else None,
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
  ingredients: Sequence[Ingredient],
  minival: str,
  labels: np.ndarray,
  logits: dict[str, dict[str, np.ndarray]],
  workdir: pathlib.Path,
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, int]]:
  """Ensembles of the logits of all ingredients, and of a greedy choice.

  Args:
    config: with `cook`.
    ingredients: of the sweep, with their metrics on minival.
    minival: the dataset that is held out.
    labels: its labels.
    logits: ingredient -> dataset -> (n, classes).
    workdir: gets `ensembles/greedy_ensemble/greedy.json`.

  Returns:
    Ensemble -> dataset -> (n, classes), and ensemble -> number of members.
  """
  names = [i.name for i in ranked(ingredients)]

  def accuracy(mean):
    return classification_metrics(mean, labels)["prec@1"]

  chosen = greedy_ensemble(
    {name: logits[name][minival] for name in names},
    accuracy,
    accept=config.cook.accept,
    min_delta=config.cook.min_delta,
  )
  record = workdir / "ensembles" / "greedy_ensemble" / "greedy.json"
  record.parent.mkdir(parents=True, exist_ok=True)
  files.write_json(record, greedy_record(config.cook, chosen))

  def together(members):
    return {
      dataset: ensemble_logits(logits[name][dataset] for name in members)
      for dataset in logits[names[0]]
    }

  members = {"ensemble": names, "greedy_ensemble": chosen.selected}
  return (
    {name: together(parts) for name, parts in members.items()},
    {name: len(parts) for name, parts in members.items()},
  )
