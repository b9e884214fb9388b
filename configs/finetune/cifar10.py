# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Ingredients from CIFAR-10: a small ViT is pretrained, then a sweep of 16.

DIR has class folders, DIR/train/CLASS/*.png and DIR/test/CLASS/*.png, or
train.tar and test.tar of CLASS/*.png; JPEG files also work:

  soupjax --config=configs/finetune/cifar10.py:pretrain,images=DIR \
    --workdir=runs/base
  soupjax --config=configs/finetune/cifar10.py:images=DIR --workdir=runs/sweep \
    --sweep --config.init.path=runs/base/ingredients/last
  soupjax --config=configs/cook.py:sweep=runs/sweep --workdir=runs/soups \
    --config.cook.metric=loss,prec@1

Without images=DIR, the data is "cifar10" of TFDS (docs/data.md). Half of train
is for pretraining, 20,000 images are for the sweep, and 5,000 are held out.
Images are decoded once and stay in memory; the devices augment them.

Pretraining takes 1.3 million images and about 40 CPU minutes, the sweep 0.5
million images. `:seed=1` gives another sweep, `:runlocal` two short members,
and `:hybrid` the model of benchmarks/evidence, which must be on PYTHONPATH.
"""

import numpy as np

from soupjax import config as config_lib
from soupjax.tasks.finetune import config as finetune_config


def _parsed(arg):
  return config_lib.parse_arg(
    arg, images="", pretrain=False, seed=0, hybrid=False, runlocal=False
  )


def get_config(arg=None):
  arg = _parsed(arg)
  c = finetune_config.default_config()
  c.seed = arg.seed
  c.data.name = f"folder:{arg.images}" if arg.images else "cifar10"
  c.data.train = "train[:25000]" if arg.pretrain else "train[25000:45000]"
  c.data.minival = "train[45000:]"
  c.data.num_classes = 10
  c.data.image_size = 32
  c.data.batch_size = 64
  c.data.eval_batch_size = 500
  c.data.in_memory = True
  c.data.train_ops = c.data.eval_ops = "value_range(-1, 1)"
  if arg.pretrain:
    c.data.batch_ops = "flip_lr|affine(10, 3, 0.1, 0.1)|jitter(0.5, 0.3, 0.5)"
  else:
    c.data.batch_ops = (
      "flip_lr|affine(10, 3, 0.1, 0.1, strength={augment})|mixup({mixup})"
    )
    c.hyper.augment = 1.0
  c.tests.test = "test"

  c.model.update(
    variant="", patch_size=8, width=128, depth=6, mlp_dim=256, num_heads=4,
    pool_type="gap", scan=False,
  )  # fmt: skip
  if arg.hybrid:
    c.model.name = "hybrid_vit.HybridViT"
    c.model.update(patch_size=2, depth=4)
  c.probe.total = "0steps" if arg.pretrain else "100steps"
  c.hyper.learning_rate = 2e-3 if arg.pretrain else 1e-3
  c.hyper.weight_decay = 0.05
  c.hyper.total = "20000steps" if arg.pretrain else "500steps"
  c.hyper.warmup = "1000steps" if arg.pretrain else "50steps"
  c.hyper.label_smoothing = 0.1
  c.decay = "kernel$"
  if arg.runlocal:
    c.hyper.total = "20steps"
    c.hyper.warmup = "5steps"
  return c.lock()


def get_sweep(arg=None):
  """Draws hyperparameters at random, as in arXiv 2203.05482, appendix J."""
  arg = _parsed(arg)
  if arg.pretrain:
    return  # A single run.
  for k in range(2 if arg.runlocal else 16):
    rng = np.random.default_rng([arg.seed, k])
    rate, decay = 10 ** rng.uniform((-3.7, -3.0), (-2.7, -0.5))
    steps = int(
      rng.integers(10, 21) if arg.runlocal else rng.integers(300, 601)
    )
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
