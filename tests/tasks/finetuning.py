# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""A fine-tuning run that takes seconds, for several tests."""

import pathlib

from soupjax import config as config_lib
from soupjax.soups.core import tree
from soupjax.tasks.finetune import run as finetune_run

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = str(ROOT / "configs" / "finetune" / "digits.py")
SMALL = {
  "data.name": "digits",  # 100 images, of which augmentation is on the host.
  "data.train_ops": "random_crop({image_size}, 2)|value_range(-1, 1)",
  "data.batch_ops": "erasing({erasing})|mixup({mixup})|cutmix({cutmix})",
  "optimizer.b2": 0.999,
  "steps_per_call": 1,
  "model.width": 16,
  "model.depth": 1,
  "model.mlp_dim": 32,
  "data.batch_size": 16,
  "data.eval_batch_size": 160,
  "probe.total": "0steps",
  "hyper.total": "12steps",
  "hyper.warmup": "2steps",
  "hyper.ema": (0.9,),
  "log": "4steps",
  "checkpoint": "5steps",
}


def small(**changes):
  return config_lib.load(DIGITS, **{**SMALL, **changes})


def three_members(workdir):
  """Trains three members of one start, far enough apart to differ."""
  config = small(**{"hyper.ema": (), "hyper.total": "60steps"})
  overrides = [{"seed": k, "hyper.learning_rate": 5e-3 * k} for k in (1, 2, 3)]
  finetune_run.run(config, workdir, sweep=overrides)
  return workdir


def quiet(params):
  """Without what has a gradient of rounding noise, which optimizers blow up."""
  leaves, _ = tree.flatten(params)
  return {k: v for k, v in leaves.items() if not k.endswith("key/bias")}
