# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""One pretrained encoder, and tasks made from digits to fine-tune it on.

Heads are not merged: the pretrained head is frozen and serves every task that
asks for the digit. The head of "parity" is made from it, as a text tower would
make one from names: the mean of the columns of the odd digits, and of the even
ones.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import optax

from soupjax import data
from soupjax.checkpoints import open as open_lib
from soupjax.data import Dataset, batch_indices
from soupjax.data import batch_ops as ops
from soupjax.data.variants import joined, variant
from soupjax.evaluators import Classification, predictor
from soupjax.models import ViT
from soupjax.progress import Progress
from soupjax.soups.core.ingredient import Ingredient
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.pretrain import check_loss, pretrain
from soupjax.train import optim, step

PyTree = Any


class DigitTasks:
  """What all searches share; everything that takes long is kept on disk."""

  def __init__(self, config, splits: data.Digits, workdir: pathlib.Path):
    """Pretrains, or loads what `workdir` has.

    Args:
      config: as in configs/search.py.
      splits: the digits.
      workdir: gets `pretrained/` and `finetuned/NAME/`.
    """
    self.config, self.splits, self.workdir = config, splits, workdir
    # Compiled once a number of classes, however many tasks there are.
    self.predict = functools.cache(lambda n: predictor(self.model(n)))
    self._step = functools.cache(self._make_step)
    source = [variant(splits.pretrain, t) for t in config.pretrain.tasks]
    params = pretrain(
      config, self.model(10), joined("digits/source", *source), workdir
    )
    self.encoder, self.head = _without_head(params), params["head"]

  def model(self, num_classes: int) -> ViT:
    """The ViT with a head of that size."""
    return ViT(num_classes=num_classes, **self.config.model)

  def head_of(self, task: str) -> PyTree:
    """The frozen head of a task."""
    if task != "parity":
      return self.head
    halves = [[leaf[..., k::2] for k in (0, 1)] for leaf in self.head.values()]
    return {
      name: jnp.stack([h.mean(axis=-1) for h in pair], axis=-1)
      for name, pair in zip(self.head, halves)
    }

  def evaluator(
    self, dataset: Dataset, tasks: Sequence[str]
  ) -> Callable[[PyTree], dict[str, float]]:
    """Returns `evaluate(encoder) -> task -> accuracy` on one set of digits."""
    judges = {}
    for task in tasks:
      d, head = variant(dataset, task), self.head_of(task)
      predict = self.predict(len(head["bias"]))
      judges[task] = Classification(predict, d.images, d.labels), head

    def evaluate(encoder):
      return {
        task: judge({**encoder, "head": head})
        for task, (judge, head) in judges.items()
      }

    return evaluate

  def finetuned(
    self,
    name: str,
    tasks: Sequence[str],
    *,
    start: PyTree | None = None,
    dataset: Dataset | None = None,
    rate: float = 1.0,
    train_head: bool = False,
  ) -> Ingredient:
    """Fine-tunes on tasks of one head, unless `workdir` has it already.

    Args:
      name: of the directory, and of the order of the images.
      tasks: their images are mixed.
      start: an encoder, with `train_head` a whole model; None is the pretrained
        encoder.
      dataset: digits to make the tasks from; None is the training set.
      rate: multiplies the learning rate.
      train_head: whether the head learns too; it is part of the result then.

    Returns:
      The result, opened.
    """
    path = self.workdir / "finetuned" / name
    if not path.exists():
      dataset = self.splits.train if dataset is None else dataset
      mixed = joined(name, *(variant(dataset, task) for task in tasks))
      start = self.encoder if start is None else start
      if not train_head:
        start = {**start, "head": self.head_of(tasks[0])}
      params = self._train(name, mixed, start, rate, train_head)
      workdir_lib.save_model(
        path, params if train_head else _without_head(params)
      )
    return open_lib.open_ingredient(path)

  def _train(self, name, dataset, params, rate, train_head) -> PyTree:
    c = self.config.finetune
    seed = workdir_lib.stream_seed(self.config.seed, "finetune", name)
    train_step, tx = self._step(len(params["head"]["bias"]), train_head)
    state = step.init_state(params, tx)
    hyper = optim.Hyperparameters.of(
      learning_rate=c.learning_rate * rate,
      weight_decay=c.weight_decay,
      label_smoothing=c.label_smoothing,
      mixup=0,
      augment=1,
      total_steps=c.total_steps,
      warmup_steps=c.warmup_steps,
    )
    key = jax.random.key(seed)
    progress = Progress(f"fine-tune {name}", c.total_steps)
    for i in range(c.total_steps):
      batch = batch_indices(len(dataset), c.batch_size, i, seed)
      state, metrics = train_step(
        state, dataset.images[batch], dataset.labels[batch], key, hyper
      )
      progress.step(images=c.batch_size)
    check_loss(metrics["loss"], name, c.total_steps - 1)
    return state.params

  def _make_step(self, num_classes, train_head):
    c = self.config.finetune
    tx = optim.adamw(b2=c.b2, clip_norm=c.clip_norm)
    tx = tx if train_head else _frozen_head(tx)

    def augment(key, images, targets, hyper):
      del hyper
      return ops.affine(key, images, **c.affine), targets

    return step.make_train_step(self.model(num_classes), tx, augment), tx


def _without_head(params: Mapping[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in params.items() if name != "head"}


def _frozen_head(tx: optax.GradientTransformation):
  """The same optimizer, that leaves the head alone."""

  def still(tree):
    return {**tree, "head": jax.tree.map(jnp.zeros_like, tree["head"])}

  def update(grads, state, params=None):
    updates, state = tx.update(still(grads), state, params)
    return still(updates), state

  return optax.GradientTransformation(tx.init, update)
