# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes the ingredients: one start, many hyperparameters."""

import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np

from soupjax.checkpoints import open as open_lib
from soupjax.data import Dataset, batch_indices
from soupjax.data import batch_ops as ops
from soupjax.metric_writers import MetricWriter
from soupjax.progress import Progress
from soupjax.soups.core.ingredient import Ingredient, rank_by
from soupjax.tasks import workdir as workdir_lib
from soupjax.tasks.pretrain import check_loss
from soupjax.train import optim, step

PyTree = Any


def random_search(
  sweep: ml_collections.ConfigDict, seed: int
) -> list[dict[str, Any]]:
  """Draws the hyperparameters of all members (arXiv 2203.05482, App. J).

  Args:
    sweep: with `size`; `learning_rate_log10` and `weight_decay_log10`, ranges
      drawn from uniformly; `label_smoothing`, `mixup` and `augment`, choices;
      `total_steps`, a range.
    seed: of the draw. A larger sweep begins with the members of a smaller one.

  Returns:
    One dict a member.
  """
  members = []
  for k in range(sweep.size):
    rng = np.random.default_rng(workdir_lib.stream_seed(seed, "sweep", k))
    low, high = sweep.total_steps
    members.append(
      {
        "learning_rate": float(10 ** rng.uniform(*sweep.learning_rate_log10)),
        "weight_decay": float(10 ** rng.uniform(*sweep.weight_decay_log10)),
        "label_smoothing": float(rng.choice(sweep.label_smoothing)),
        "mixup": float(rng.choice(sweep.mixup)),
        "augment": float(rng.choice(sweep.augment)),
        "total_steps": int(rng.integers(low, high + 1)),
        "seed": int(rng.integers(2**31)),
      }
    )
  return members


def sweep(
  config, model, params: PyTree, data: Dataset, evaluate, workdir: pathlib.Path
) -> list[Ingredient]:
  """Fine-tunes every member that is not there yet, all in one compilation.

  Args:
    config: with `seed` and `sweep`.
    model: the ViT.
    params: where every member starts.
    data: the fine-tuning images.
    evaluate: maps parameters to metrics as `{"minival/prec@1": ...}`, kept
      beside each ingredient.
    workdir: gets `ingredients/ingredient_KK/`.

  Returns:
    The members, in order, opened.
  """
  c = config.sweep
  members = random_search(c, config.seed)
  tx = optim.adamw(b2=c.b2, clip_norm=c.clip_norm)

  def augment(key, images, targets, hyper):
    key_affine, key_mixup = jax.random.split(key)
    strength = {k: v * hyper.augment for k, v in c.affine.items()}
    images = ops.affine(key_affine, images, **strength)
    return ops.mixup(key_mixup, images, targets, hyper.mixup)

  train_step = step.make_train_step(model, tx, augment)
  paths = [
    workdir / "ingredients" / f"ingredient_{k:02d}" for k in range(len(members))
  ]
  left = [k for k, path in enumerate(paths) if not path.exists()]
  total = sum(m["total_steps"] for m in members)
  todo = sum(members[k]["total_steps"] for k in left)
  progress = Progress("sweep", total, start=total - todo)

  for k in left:
    member = members[k]
    hyper = optim.Hyperparameters.of(
      **{name: v for name, v in member.items() if name != "seed"},
      warmup_steps=min(c.warmup_steps, member["total_steps"] // 10),
    )
    key = jax.random.key(member["seed"])
    state = step.init_state(params, tx)
    writer = MetricWriter(workdir, paths[k].name, done=-1)
    for i in range(member["total_steps"]):
      batch = batch_indices(len(data), c.batch_size, i, member["seed"])
      state, metrics = train_step(
        state, data.images[batch], data.labels[batch], key, hyper
      )
      if (i + 1) % c.log_steps == 0:
        writer.write(i, metrics)
      progress.step(images=c.batch_size, note=f"member {k + 1}/{c.size}")
    writer.close()
    name = f"{paths[k].name} (learning_rate {member['learning_rate']:.3g})"
    check_loss(metrics["loss"], name, member["total_steps"] - 1)
    workdir_lib.save_model(
      paths[k],
      state.params,
      hyperparameters=member,
      metrics=evaluate(state.params),
    )
  # Only the members: what else lies there is not of this sweep.
  return [_opened(path) for path in paths]


def _opened(path: pathlib.Path) -> Ingredient:
  try:
    ingredient = open_lib.open_ingredient(path)
    rank_by([ingredient], "minival/prec@1")
    rank_by([ingredient], "minival/loss")
  except ValueError as e:
    raise ValueError(
      f"{path} is damaged: delete it, and it will be made again. {e}"
    ) from e
  return ingredient
