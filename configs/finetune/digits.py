# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Ingredients from digits, the small way to see fine-tuning at work.

A tiny ViT is trained on some writers, then fine-tuned on 100 images of others:

  soupjax --config=configs/finetune/digits.py:pretrain --workdir=runs/base
  soupjax --config=configs/finetune/digits.py --workdir=runs/sweep --sweep \
    --config.init.path=runs/base/ingredients/last

The first takes half a minute on 2 cores, the second as long for 8 members.
Expected: 92 to 96 % on minival, averages of weights (last_ema_0.95) among them.
--config.population=8 trains all members at once; :runlocal has only two.
"""

from soupjax import config as config_lib
from soupjax.tasks.finetune import config as finetune_config


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, pretrain=False, runlocal=False)
  c = finetune_config.default_config()
  c.data.name = "digits"
  c.data.train = "pretrain" if arg.pretrain else "train"
  c.data.minival = "minival"
  c.data.num_classes = 10
  c.data.image_size = 16
  c.data.batch_size = 64 if arg.pretrain else 32
  c.data.train_ops = (
    "random_crop({image_size}, 2)|"
    "randaug({randaug_layers}, {randaug_magnitude})|value_range(-1, 1)"
  )
  c.data.eval_ops = "value_range(-1, 1)"

  c.model.update(
    variant="", patch_size=4, width=32, depth=4, mlp_dim=64, num_heads=2,
    pool_type="gap",
  )  # fmt: skip

  c.probe.total = "0steps" if arg.pretrain else "100steps"
  c.hyper.learning_rate = 3e-3
  c.hyper.weight_decay = 0.05
  c.hyper.total = "2000steps" if arg.pretrain else "150steps"
  c.hyper.warmup = "200steps" if arg.pretrain else "15steps"
  c.hyper.label_smoothing = 0.1
  c.hyper.ema = () if arg.pretrain else (0.95,)
  c.decay = "kernel$"
  c.log = "25steps"
  c.checkpoint = "500steps" if arg.pretrain else "50steps"
  return c.lock()


def get_sweep(arg=None):
  arg = config_lib.parse_arg(arg, pretrain=False, runlocal=False)
  for k in range(2 if arg.runlocal else 8):
    yield {
      "hyper.learning_rate": 1.6e-3 * 1.2**k,
      "hyper.weight_decay": (0.01, 0.1)[k % 2],
      "hyper.mixup": (0.0, 0.2, 0.5)[k % 3],
      "hyper.total": f"{100 + 10 * k}steps",
      "seed": k,
    }
