# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Config of pacs.py: 12 models, fine-tuned on photos and paintings.

The start, config.init.path, determines the model. It can be any checkpoint that
`models.pretrained` can read, or one from your own run.
"""

import numpy as np

from soupjax import config as config_lib
from soupjax.tasks.finetune import config as finetune_config

MEMBERS = 12


def _parsed(arg):
  return config_lib.parse_arg(
    arg, images="", size=32, seed=0, log_rate=-3.5, epochs=5, short=False
  )


def get_config(arg=None):
  arg = _parsed(arg)
  c = finetune_config.default_config()
  c.seed = c.init.seed = arg.seed
  c.data.name = f"folder:{arg.images}"
  c.data.minival = "minival"
  c.data.num_classes = 7
  c.data.image_size = arg.size
  c.data.batch_size = 64
  c.data.eval_batch_size = 200
  c.data.in_memory = True
  c.data.train_ops = c.data.eval_ops = "value_range(-1, 1)"
  c.data.batch_ops = (
    f"flip_lr|affine(10, {arg.size / 10:g}, 0.1, 0.1, strength={{augment}})|"
    "mixup({mixup})"
  )
  c.hyper.augment = 1.0
  c.model.variant = "init"
  c.model.dtype_mm = "float32"
  c.probe.total = "100steps"
  c.hyper.learning_rate = 10**arg.log_rate
  c.hyper.total = "8epochs"
  c.hyper.warmup = "1epochs"
  c.optimizer.clip_norm = 1.0
  c.decay = "kernel$"
  return c.lock()


def get_sweep(arg=None):
  """Draws hyperparameters, with learning rates within a factor of 10."""
  arg = _parsed(arg)
  for k in range(2 if arg.short else MEMBERS):
    rng = np.random.default_rng([arg.seed, k, 2205])
    low, high = arg.log_rate - 0.5, arg.log_rate + 0.5
    rate, decay = 10 ** rng.uniform((low, -3), (high, -0.5))
    # Between `epochs` and twice as many, at 35 steps per epoch.
    steps = int(rng.integers(35 * arg.epochs, 70 * arg.epochs + 1))
    if arg.short:
      steps = 10
    yield {
      "hyper.learning_rate": float(rate),
      "hyper.weight_decay": float(decay),
      "hyper.label_smoothing": float(rng.choice((0.0, 0.1))),
      "hyper.mixup": float(rng.choice((0.0, 0.2))),
      "hyper.augment": float(rng.choice((0.0, 0.5, 1.0))),
      "hyper.total": f"{steps}steps",
      "hyper.warmup": f"{steps // 10}steps",
      "seed": int(rng.integers(2**31)),
    }
