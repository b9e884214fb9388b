# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Coefficients of task vectors, learned from labels or by entropy."""

from collections.abc import Iterator
from typing import Any

import jax

from soupjax import data, sharding
from soupjax.soups.learned.entropy import entropy_loss
from soupjax.tasks.cook import config as cook_config
from soupjax.tasks.cook import soups
from soupjax.tasks.search.arithmetic import deciding
from soupjax.tasks.search.inputs import SearchInputs
from soupjax.tasks.search.work import Outcome, Work
from soupjax.train import losses

GRANULARITIES = ("model", "layer", "tensor")


def check(inputs: SearchInputs) -> None:
  """Raises a ValueError for an unknown granularity or a bad batch size."""
  c = inputs.config.search
  if c.granularity not in GRANULARITIES:
    raise ValueError(
      f"search.granularity={c.granularity!r} must be one of "
      f"{', '.join(GRANULARITIES)}."
    )
  sharding.share(inputs.mesh, "data", c.batch_size, "search.batch_size")
  for name in deciding(inputs):
    if len(inputs.tasks[name].minival) < c.batch_size:
      raise ValueError(
        f"search.batch_size={c.batch_size} exceeds the "
        f"{len(inputs.tasks[name].minival)} images in the minival of {name}."
      )


def signed(work: Work) -> Outcome:
  """Learns coefficients of any sign by cross-entropy on labels."""
  models = _models(work)

  def loss(params, beta, batch):
    total = 0.0
    for name, (images, labels, head) in batch.items():
      model = models[name]
      logits, _ = model.apply({"params": {**params, **head}}, images)
      targets = losses.smooth_labels(labels, model.num_classes, 0.0)
      total += losses.softmax_loss(beta * logits, targets)
    return total / len(models)

  return _learn(work, loss, "by the loss on labels")


def entropy(work: Work) -> Outcome:
  """Learns coefficients by entropy minimisation (arXiv 2310.02575)."""
  models = _models(work)

  def predict(params, batch):
    return {
      name: models[name].apply({"params": {**params, **head}}, images)[0]
      for name, (images, _, head) in batch.items()
    }

  return _learn(work, entropy_loss(predict), "by entropy")


def _models(work: Work) -> dict[str, Any]:
  """Returns task -> model, for the tasks that decide."""
  tasks = work.inputs.tasks
  return {name: tasks[name].model for name in deciding(work.inputs)}


def _learn(work: Work, loss, how: str) -> Outcome:
  inputs, c = work.inputs, work.config.search
  params, record = soups.learned(
    c,
    c.granularity,
    inputs.model,
    inputs.ingredients,
    _batches(work),
    work.file("learned"),
    inputs.place,
    inputs.selection(inputs.ingredients).get("select"),
    loss=loss,
    base=inputs.initial,
  )
  first, last = record["history"][0]["loss"], record["history"][-1]["loss"]
  return Outcome(
    params=params,
    learned={work.config.method: record},
    summary=(
      f"Coefficients per {c.granularity} {how} on minival: "
      f"{first:.4f} to {last:.4f} in {c.steps} steps"
    ),
  )


def _batches(work: Work) -> Iterator[dict[str, tuple[Any, Any, Any]]]:
  """Yields task -> images and labels of shuffled minival, and the head."""
  inputs, config = work.inputs, work.config
  loaders = {
    name: iter(
      data.train_loader(
        inputs.tasks[name].minival,
        batch_size=config.search.batch_size,
        seed=config.seed,
        preprocess=cook_config.eval_ops(config, inputs.tasks[name].spec.ops),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
      )
    )
    for name in deciding(work.inputs)
  }
  heads = {
    name: inputs.frozen_heads[name].leaves if inputs.frozen else {}
    for name in loaders
  }
  while True:
    batch = {}
    for name, loader in loaders.items():
      placed = sharding.put_batch(inputs.mesh, next(loader))
      batch[name] = placed["images"], placed["labels"], heads[name]
    yield batch
