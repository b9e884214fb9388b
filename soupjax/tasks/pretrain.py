# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Makes the one model that all ingredients start from."""

import pathlib
from typing import Any

import jax
import numpy as np

from soupjax.checkpoints import open as open_lib
from soupjax.data import Dataset, batch_indices
from soupjax.data import batch_ops as ops
from soupjax.metric_writers import MetricWriter
from soupjax.progress import Progress
from soupjax.tasks import workdir as workdir_lib
from soupjax.train import optim, probe, step

PyTree = Any


def pretrain(config, model, data: Dataset, workdir: pathlib.Path) -> PyTree:
  """Trains the model on the source, or loads what `workdir` has.

  Args:
    config: with `seed` and `pretrain`.
    model: the ViT.
    data: images of the source.
    workdir: gets `pretrained/`, and `pretrain_state-STEP` while it trains.

  Returns:
    Parameters, head included.

  Raises:
    ValueError: if the loss becomes NaN.
  """
  c = config.pretrain
  done, saved = workdir / "pretrained", workdir / "pretrain_state"
  if done.exists():
    workdir_lib.remove_states(saved)
    return open_lib.load_params(done)

  # --- Model, optimizer, state ------------------------------------------------
  key_init, key_train = jax.random.split(
    jax.random.key(workdir_lib.stream_seed(config.seed, "pretrain"))
  )
  params = jax.jit(model.init)(key_init, data.images[:1])["params"]
  tx = optim.adamw(b2=c.b2, clip_norm=c.clip_norm)
  state = step.init_state(params, tx)
  hyper = optim.Hyperparameters.of(
    learning_rate=c.learning_rate,
    weight_decay=c.weight_decay,
    label_smoothing=c.label_smoothing,
    mixup=0,
    augment=1,
    total_steps=c.total_steps,
    warmup_steps=c.warmup_steps,
  )

  def augment(key, images, targets, hyper):
    del hyper
    key_affine, key_jitter = jax.random.split(key)
    images = ops.affine(key_affine, images, **c.affine)
    return ops.jitter(key_jitter, images, **c.jitter), targets

  train_step = step.make_train_step(model, tx, augment)

  # --- Resume -----------------------------------------------------------------
  state = workdir_lib.load_state(saved, like=state) or state
  start = int(state.step)
  progress = Progress("pretrain", c.total_steps, start=start)
  writer = MetricWriter(workdir, "pretrain", done=start - 1)

  # --- Loop -------------------------------------------------------------------
  for i in range(start, c.total_steps):
    batch = batch_indices(len(data), c.batch_size, i, config.seed)
    state, metrics = train_step(
      state, data.images[batch], data.labels[batch], key_train, hyper
    )
    last = i + 1 == c.total_steps
    if last or (i + 1) % c.checkpoint_steps == 0:
      check_loss(metrics["loss"], "pretraining", i)
    if (i + 1) % c.checkpoint_steps == 0 and not last:
      workdir_lib.save_state(saved, state)
    if (i + 1) % c.log_steps == 0:
      writer.write(i, metrics)
    progress.step(images=c.batch_size)
  writer.close()
  workdir_lib.save_model(done, state.params)
  workdir_lib.remove_states(saved)
  return open_lib.load_params(done)


def probed(
  config, model, params: PyTree, data: Dataset, workdir: pathlib.Path
) -> PyTree:
  """Fits a linear head on frozen features: where the sweep starts.

  Args:
    config: with `probe`.
    model: the ViT.
    params: pretrained.
    data: the fine-tuning images.
    workdir: gets `initial/`.

  Returns:
    The parameters with the new head.
  """
  done = workdir / "initial"
  if not done.exists():
    _, features = jax.jit(model.apply)({"params": params}, data.images)
    head = probe.linear_probe(
      features,
      data.labels,
      num_classes=model.num_classes,
      l2=config.probe.l2,
      steps=config.probe.total_steps,
    )
    workdir_lib.save_model(done, {**params, "head": head})
  return open_lib.load_params(done)


def check_loss(loss: jax.Array, what: str, at: int) -> None:
  """Raises a ValueError if a loss is not finite."""
  if not np.isfinite(loss):
    raise ValueError(
      f"The loss of {what} is {float(loss)} at step {at}. Start again with a "
      "lower learning rate, in a new --workdir: this one keeps its config."
    )
