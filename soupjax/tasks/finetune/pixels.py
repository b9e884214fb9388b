# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Checks that a model is trained and evaluated on the same kind of pixels."""

from collections.abc import Iterable
import functools
import re

import jax
import numpy as np

from soupjax import data
from soupjax.data import batch_ops, pipeline
from soupjax.data.preprocess import PixelValues
from soupjax.tasks import preprocessing
from soupjax.tasks.finetune import config as settings

# Batch ops that leave the range of pixels alone.
_SAME_RANGE = (
  *(batch_ops.affine, batch_ops.jitter, batch_ops.flip_lr),
  *(batch_ops.erasing, batch_ops.mixup, batch_ops.cutmix),
)


def check(config) -> None:
  """Checks the pixels that `data.train_ops`, `batch_ops` and `eval_ops` give.

  Opens no data; tries black, white and square images.

  Raises:
    ValueError: if training and evaluation differ in the values of pixels or in
      the shape of images, or `data.eval_ops` gives other values than the files
      beside `init.path` describe.
  """
  train_ops = settings.ops(config, "train_ops")
  eval_ops = settings.ops(config, "eval_ops")
  names = tuple(settings.op_values(config))
  _check_ops(
    train_ops, eval_ops, config.data.batch_ops, names, config.data.image_size
  )
  path = config.init.path
  described = preprocessing.of_files(path) or preprocessing.recorded(path)
  if described:
    preprocessing.check_values(eval_ops, described, path)


# Cached, since members of a sweep often share their operations.
@functools.lru_cache(maxsize=128)
def _check_ops(train_ops, eval_ops, batch_text, names, size) -> None:
  train, evaluation = data.Preprocess(train_ops), data.Preprocess(eval_ops)
  given, expected = train.values, evaluation.values
  converting = _converting(batch_text)
  tolerance = 1e-3
  if converting:
    given = _converted(given, "|".join(converting), names)
    if any(not c.startswith("value_range") for c in converting):
      tolerance = 0.25  # Custom augmentation may change values slightly.
  if not given.close_to(expected, tolerance):
    raise ValueError(
      f"data.train_ops={train_ops!r} with data.batch_ops={batch_text!r} gives "
      f"pixels in {given} of {len(given.black)} channels, but data.eval_ops="
      f"{eval_ops!r} gives pixels in {expected} of {len(expected.black)}: the "
      "model would be evaluated on different pixels than it was trained on. "
      f"End both with the same operation, such as {_last(eval_ops)}."
    )
  image = np.zeros((size, size, 3), np.uint8)
  try:
    rng = np.random.default_rng(0)
    shapes = train(image, rng).shape, evaluation(image, rng).shape
  except ValueError:
    return  # Other sizes may fit; `check_shapes` tries real images.
  _check_equal(shapes, train_ops, eval_ops)


def _last(ops: str) -> str:
  """Returns the last operation if it sets pixels' range, else an example."""
  last = ops.rpartition("|")[2].strip()
  converts = last.startswith(("value_range", "standardize"))
  return last if converts else "value_range(-1, 1)"


def _converting(batch_text: str) -> list[str]:
  """Returns the operations of a text that may change the range of pixels."""
  parts = [part.strip() for part in batch_text.split("|") if part.strip()]
  return [
    part
    for part in parts
    if batch_ops.OPS.get(re.split(r"\(", part)[0].strip()) not in _SAME_RANGE
  ]


def _converted(values: PixelValues, text: str, names) -> PixelValues:
  """Returns the values after batch ops, with all hyperparameters at 0."""
  levels = np.array((values.black, values.white)).astype(values.dtype)
  images = np.broadcast_to(levels[:, None, None], (2, 32, 32, levels.shape[1]))
  augment = batch_ops.batch_augment(text, names=names)
  result, _ = augment(
    jax.random.key(0), jax.numpy.asarray(images), jax.numpy.eye(2),
    dict.fromkeys(names, 0.0),
  )  # fmt: skip
  black, white = np.asarray(result, float).mean(axis=(1, 2)).tolist()
  return PixelValues(str(result.dtype), tuple(black), tuple(white))


def check_shapes(
  configs: Iterable, train: data.Source, minival: data.Source
) -> None:
  """Checks the shape of a preprocessed image of each set.

  Args:
    configs: one config per member.
    train: the images to train on.
    minival: the held-out images.

  Raises:
    ValueError: if the shapes differ, or the model needs another shape.
  """
  texts = {settings.ops(config, "train_ops"): config for config in configs}
  for train_ops, config in texts.items():
    eval_ops = settings.ops(config, "eval_ops")
    shapes = [
      pipeline.Reader(source, data.Preprocess(ops), 0).blank().shape
      for source, ops in ((train, train_ops), (minival, eval_ops))
    ]
    _check_equal(shapes, train_ops, eval_ops)
    size = config.data.image_size
    if config.model.name in ("vit", "mixer", "clip") and shapes[0] != (
      size,
      size,
      3,
    ):
      raise ValueError(
        f"data.train_ops={train_ops!r} makes images of {shapes[0]}, but the "
        f"model is built for data.image_size={size} and 3 channels: change "
        "data.train_ops or data.image_size."
      )


def _check_equal(shapes, train_ops: str, eval_ops: str) -> None:
  if shapes[0] != shapes[1]:
    raise ValueError(
      f"data.train_ops={train_ops!r} makes images of {shapes[0]}, but "
      f"data.eval_ops={eval_ops!r} of {shapes[1]} (height, width, channels): "
      "use the same size in both, such as {image_size}."
    )
