# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Ingredients from noisy digits in a row: pretraining, then a sweep of 16.

A small ViT is trained on the digits of some writers, then fine-tuned on 150
noisy images of digits by other writers (`data.digits`):

  soupjax --config=configs/finetune/digits.py:pretrain --workdir=runs/base
  soupjax --config=configs/finetune/digits.py --workdir=runs/sweep --sweep \
    --config.init.path=runs/base/ingredients/last
  soupjax --config=configs/cook.py:sweep=runs/sweep --workdir=runs/soups \
    --config.cook.metric=loss,prec@1

The first two take about half a minute each on 2 cores; launch/local.sh runs all
three. The ranges of the sweep were fixed before the published runs, whose
results are in benchmarks/README.md. `:seed=1` gives another split, pretraining
and sweep. The negative control leaves out --config.init.path. `:runlocal`
trains two short members, and `:lora` eight adapters of rank 4 at ten times the
learning rate (benchmarks/adapter_soups.py).
"""

import numpy as np

from soupjax import config as config_lib
from soupjax.tasks.finetune import config as finetune_config

SHIFTS = (
  *("rotate", "translate", "noise", "blur", "stroke"),
  *("contrast", "occlude", "new_writers"),
)


def _parsed(arg):
  return config_lib.parse_arg(
    arg, pretrain=False, seed=0, runlocal=False, lora=False
  )


def get_config(arg=None):
  arg = _parsed(arg)
  c = finetune_config.default_config()
  c.seed = arg.seed
  c.data.name = f"digits_row:{arg.seed}"
  c.data.train = "pretrain" if arg.pretrain else "train"
  c.data.minival = "minival"
  c.data.num_classes = 10
  c.data.image_size = 16
  c.data.batch_size = 64 if arg.pretrain else 32
  c.data.eval_batch_size = 256
  c.data.train_ops = c.data.eval_ops = "value_range(-1, 1)"
  if arg.pretrain:
    c.data.batch_ops = (
      "affine(27, 1.8, 0.15, 0.2)|jitter(0.5, 0.3, 0.5, per_channel=False)"
    )
  else:
    c.data.batch_ops = (
      "affine(15, 1, 0.1, 0.1, strength={augment})|mixup({mixup})"
    )
    c.hyper.augment = 1.0
  c.tests.update({name: name for name in ("test", *SHIFTS)})

  c.model.update(
    variant="", patch_size=4, width=32, depth=4, mlp_dim=64, num_heads=2,
    pool_type="gap", scan=False,
  )  # fmt: skip
  c.init.seed = arg.seed

  c.probe.total = "0steps" if arg.pretrain else "100steps"
  c.hyper.learning_rate = 3e-3 if arg.pretrain else 2e-3
  c.hyper.weight_decay = 0.05
  c.hyper.total = "2000steps" if arg.pretrain else "150steps"
  c.hyper.warmup = "200steps" if arg.pretrain else "15steps"
  c.hyper.label_smoothing = 0.1
  c.decay = "kernel$"
  if not arg.pretrain:
    c.optimizer.b2 = 0.98
  c.steps_per_call = 25
  c.log = "25steps"
  c.checkpoint = "500steps" if arg.pretrain else "100steps"
  if arg.lora:
    c.adapter.kind = "lora"
    c.adapter.rank = 4
    c.adapter.targets = r"Transformer/.*/(query|value|Dense_\d)/kernel$"
  if arg.runlocal:
    c.hyper.total = "20steps"
    c.hyper.warmup = "5steps"
  return c.lock()


def get_sweep(arg=None):
  """Draws hyperparameters at random, as in arXiv 2203.05482, appendix J.

  Learning rates are mostly below that of pretraining, as the paper advises. A
  larger sweep begins with the members of a smaller one.
  """
  arg = _parsed(arg)
  if arg.pretrain:
    return  # A single run.
  count = 2 if arg.runlocal else 8 if arg.lora else 16
  for k in range(count):
    rng = np.random.default_rng([arg.seed, k])
    rate, decay = 10 ** rng.uniform((-3.2, -3.0), (-2.4, -0.5))
    steps = int(
      rng.integers(15, 21) if arg.runlocal else rng.integers(100, 201)
    )
    yield {
      "hyper.learning_rate": float(rate) * (10 if arg.lora else 1),
      "hyper.weight_decay": float(decay),
      "hyper.label_smoothing": float(rng.choice((0.0, 0.1, 0.2))),
      "hyper.mixup": float(rng.choice((0.0, 0.2, 0.5))),
      "hyper.augment": float(rng.choice((0.0, 0.5, 1.0))),
      "hyper.total": f"{steps}steps",
      "hyper.warmup": f"{min(20, steps // 10)}steps",
      "seed": int(rng.integers(2**31)),
    }
