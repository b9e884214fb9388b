# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
r"""Cooks soups of a folder of checkpoints and evaluates them.

For a sweep that was fine-tuned with configs/finetune, which recorded its data,
model, test sets and start:

  soupjax --config=configs/cook.py:sweep=runs/b16 --workdir=runs/b16_soups \
    --config.tests=test=validation,sketch=imagenet_sketch/test

For its moving averages: configs/cook.py:sweep=runs/b16,which=last_ema_0.999

For other checkpoints, such as those of timm or Hugging Face, the model is
detected from them and from files beside them. Soups are also written with the
leaf names of these checkpoints (docs/cook.md):

  soupjax --config=configs/cook.py --workdir=runs/soups \
    --config.ingredients='runs/*/model.safetensors' \
    --config.data.name=folder:photos --config.data.minival=val \
    --config.tests=test=test

If a setting is in none of these files, an error asks for it, such as
--config.model.num_heads=12 and
--config.data.eval_ops='resize(224)|value_range(-1, 1)'.

Evaluates every ingredient once on every set, then makes uniform, greedy and
learned soups, WiSE-FT if the start is known, and ensembles for comparison. The
report is WORKDIR/report.html. --dry_run prints the plan. With fewer than 1,000
held-out images, use --config.cook.metric=loss to rank and accept by the loss.

On digits, in half a minute, after the first two commands of
configs/finetune/digits.py:

  soupjax --config=configs/cook.py:sweep=runs/sweep --workdir=runs/soups \
    --config.tests=test=test,rotate=rotate,noise=noise,blur=blur \
    --config.cook.metric=loss,prec@1
"""

from soupjax.config import parse_arg
from soupjax.tasks.cook import config as cook_config


def get_config(arg=None):
  arg = parse_arg(arg, sweep="", which="last", family="")
  c = cook_config.default_config()
  if arg.sweep:
    cook_config.of_sweep(c, arg.sweep, arg.which)
  if arg.family:
    c.family = arg.family
  return c.lock()
