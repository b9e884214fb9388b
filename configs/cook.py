# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
r"""Soups of a folder of checkpoints, and what was won.

Of a sweep that was fine-tuned with configs/finetune; data, model and start are
what it recorded:

  soupjax --config=configs/cook.py:sweep=runs/b16 --workdir=runs/b16_soups \
    --config.tests=test=validation,sketch=imagenet_sketch/test

Its moving averages instead: configs/cook.py:sweep=runs/b16,which=last_ema_0.999

Of checkpoints from elsewhere, as timm's or Hugging Face's of one model, which
is found out from them and files beside them; the soups are written with their
names too (docs/cook.md):

  soupjax --config=configs/cook.py --workdir=runs/soups \
    --config.ingredients='runs/*/model.safetensors' \
    --config.data.name=folder:photos --config.data.minival=val \
    --config.tests=test=test

What no file says is asked for, as --config.model.num_heads=12 and
--config.data.eval_ops='resize(224)|value_range(-1, 1)'.

Evaluates every ingredient once on everything, then cooks: uniform, greedy and
learned soups, WiSE-FT where the start is known, ensembles to compare with. The
report is WORKDIR/report.html. --dry_run shows what would be done. On digits, in
half a minute, after the two lines of configs/finetune/digits.py:

  soupjax --config=configs/cook.py:sweep=runs/sweep --workdir=runs/soups \
    --config.tests=test=test,rotate=rotate,noise=noise,blur=blur
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
