# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""One pretrained encoder, and tasks made from digits to fine-tune it on.

The images are written as folders of PNG files, so that training is the task
"finetune" of the package with another config for each model.

Heads are not merged: the pretrained head is frozen and serves every task that
asks for the digit. The head of "parity" is made from it, as a text tower would
make one from names: the mean of the columns of the odd digits, and of the even
ones.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
import shutil
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

import soupjax as sj
from soupjax import data, models
from soupjax.data import Dataset
from soupjax.evaluators import Evaluator
from soupjax.tasks.finetune import config as finetune_config
from soupjax.tasks.finetune import run as finetune

PyTree = Any

# Task -> change of images (n, height, width, channels) in [-1, 1]. "parity"
# keeps the images and asks whether the digit is odd.
VARIANTS = {
  "upright": lambda images: images,
  "inverted": lambda images: -images,
  "rotated": lambda images: np.rot90(images, axes=(1, 2)),
  "mirrored": lambda images: images[:, :, ::-1],
  "rotated_inverted": lambda images: -np.rot90(images, axes=(1, 2)),
  "parity": lambda images: images,
}
SCALE = "value_range(-1, 1)"
MODEL = {"patch_size": 4, "width": 32, "depth": 4, "mlp_dim": 64}
MODEL |= {"num_heads": 2, "pool_type": "gap", "scan": False}


@dataclasses.dataclass(frozen=True)
class Settings:
  """Numbers that a test makes smaller.

  Attributes:
    seed: of the split, pretraining and fine-tuning.
    num_pool_train: images for the runs of DiWA and ratatouille.
    auxiliary: the tasks that ratatouille recycles.
    points: of every grid from 0 to 1.
    budget: evaluations of parallel patching.
  """

  seed: int = 0
  num_train: int = 300
  num_minival: int = 200
  num_pool_train: int = 100
  depth: int = 4
  pretrain_steps: int = 2000
  probe_steps: int = 100
  finetune_steps: int = 300
  adamerging_steps: int = 500
  points: int = 21
  budget: int = 50
  auxiliary: tuple[str, ...] = (
    *("rotated", "mirrored", "rotated_inverted", "parity"),
  )


def variant(dataset: Dataset, task: str) -> Dataset:
  """Turns digits into another task on the same digits, in the same order."""
  return Dataset(
    f"{dataset.name}/{task}",
    np.ascontiguousarray(VARIANTS[task](dataset.images)),
    dataset.labels % 2 if task == "parity" else dataset.labels,
  )


def num_classes(task: str) -> int:
  """Returns the number of classes of a task."""
  return 2 if task == "parity" else 10


def write_folder(path: pathlib.Path, sources: Sequence[data.Source]) -> None:
  """Writes images as CLASS/NUMBER.png; those of all sources are mixed."""
  shutil.rmtree(path, ignore_errors=True)
  for k, source in enumerate(sources):
    for i in range(len(source)):
      example = source[i]
      file = path / str(example["label"]) / f"{k}_{i:04d}.png"
      file.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(example["image"]).save(file)


class DigitTasks:
  """The models that all searches share; each is kept on disk."""

  def __init__(self, settings: Settings, workdir: pathlib.Path):
    """Pretrains, or loads what `workdir` has."""
    self.settings, self.workdir = settings, workdir
    self.splits = data.load_digits(
      seed=settings.seed,
      num_train=settings.num_train,
      num_minival=settings.num_minival,
    )
    pretrained = self._train(
      "pretrained",
      ["upright", "inverted"],
      self.splits.pretrain,
      batch_size=64,
      learning_rate=3e-3,
      total=settings.pretrain_steps,
      batch_ops="affine(27, 1.8, 0.15, 0.2)|jitter(0.3, 0.1, 0.5)",
    ).load()
    self.encoder, self.head = without_head(pretrained), pretrained["head"]

  def model(self, classes: int) -> models.ViT:
    """Returns the ViT with a head of that size."""
    options = {**MODEL, "depth": self.settings.depth}
    return models.ViT(num_classes=classes, **options)

  def head_of(self, task: str) -> PyTree:
    """Returns the frozen head of a task."""
    if task != "parity":
      return self.head
    halves = [[leaf[..., k::2] for k in (0, 1)] for leaf in self.head.values()]
    return {
      name: jnp.stack([half.mean(axis=-1) for half in pair], axis=-1)
      for name, pair in zip(self.head, halves)
    }

  def evaluator_of(self, dataset: Dataset, task: str = "upright") -> Evaluator:
    """Returns the evaluator of whole models on a task."""
    source = data.from_dataset(variant(dataset, task), num_classes(task))
    return Evaluator(
      self.model(num_classes(task)),
      data.eval_batches(source, batch_size=256, preprocess=SCALE),
      name=source.name,
      cache_gb=1.0,
    )

  def evaluator(
    self, dataset: Dataset, tasks: Sequence[str]
  ) -> Callable[[PyTree], dict[str, float]]:
    """Returns `evaluate(encoder) -> task -> accuracy` on one set of digits."""
    evaluators = {
      task: (self.evaluator_of(dataset, task), self.head_of(task))
      for task in tasks
    }

    def evaluate(encoder):
      return {
        task: evaluator({**encoder, "head": head})
        for task, (evaluator, head) in evaluators.items()
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
  ) -> sj.Ingredient:
    """Fine-tunes on tasks of one head, unless `workdir` has it already.

    Args:
      name: of the directory.
      tasks: their images are mixed.
      start: an encoder, with `train_head` a whole model; None is the pretrained
        encoder.
      dataset: digits to make the tasks from; None is the training set.
      rate: multiplies the learning rate.
      train_head: whether the head learns too; it is part of the result then.
    """
    start = self.encoder if start is None else start
    if not train_head:
      start = {**start, "head": self.head_of(tasks[0])}
    model = self._train(
      name,
      tasks,
      self.splits.train if dataset is None else dataset,
      start=start,
      learning_rate=2e-3 * rate,
      freeze=() if train_head else ("^head/",),
    )
    if train_head:
      return model
    return sj.Ingredient.from_params(name, without_head(model.load()))

  def probed(self, dataset: Dataset) -> PyTree:
    """Fits the head on frozen features of a small set."""
    model = self._train(
      "probed",
      ["upright"],
      dataset,
      start={**self.encoder, "head": self.head},
      total=0,
      probe=self.settings.probe_steps,
    )
    return model.load()

  def _train(
    self,
    name,
    tasks,
    dataset,
    *,
    start: PyTree | None = None,
    batch_size=32,
    learning_rate=2e-3,
    total=None,
    probe=0,
    freeze=(),
    batch_ops="affine(15, 1, 0.1, 0.1)",
  ) -> sj.Ingredient:
    """Runs the task "finetune"; returns the model at its end."""
    settings, folder = self.settings, self.workdir / "models" / name
    last = folder / "run" / "ingredients" / "last"
    if not (folder / "run" / "done.json").exists():
      classes = num_classes(tasks[0])
      for split, images in (
        ("train", dataset),
        ("minival", self.splits.minival),
      ):
        write_folder(
          folder / "images" / split,
          [data.from_dataset(variant(images, t), classes) for t in tasks],
        )
      total = settings.finetune_steps if total is None else total
      config = finetune_config.default_config()
      config.update({"seed": settings.seed, "freeze": freeze})
      config.data.update(
        name=f"folder:{folder / 'images'}",
        minival="minival",
        num_classes=classes,
        image_size=16,
        batch_size=batch_size,
        eval_batch_size=256,
        train_ops=SCALE,
        eval_ops=SCALE,
        batch_ops=batch_ops,
      )
      config.model.update(variant="", **{**MODEL, "depth": settings.depth})
      config.probe.total = f"{probe}steps"
      config.hyper.update(
        learning_rate=learning_rate,
        weight_decay=0.05,
        label_smoothing=0.1,
        total=f"{total}steps",
        warmup=f"{total // 10}steps",
      )
      config.decay, config.steps_per_call = "kernel$", min(25, max(total, 1))
      config.init.seed = settings.seed
      if start is not None:
        config.init.path = str(folder / "start")
        shutil.rmtree(folder / "start", ignore_errors=True)
        sj.save_params(folder / "start", start)
      finetune.run(config.lock(), folder / "run")
      shutil.rmtree(folder / "images")
    return dataclasses.replace(sj.open_ingredient(last), name=name)


def without_head(params: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the encoder of a model."""
  return {name: value for name, value in params.items() if name != "head"}
