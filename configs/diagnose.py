# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
r"""Explains why averages of checkpoints gain or lose (docs/diagnose.md).

For a sweep that was fine-tuned with configs/finetune, which recorded its model,
data and start:

  soupjax --config=configs/diagnose.py:sweep=runs/b16 --workdir=runs/b16_why

For other checkpoints, with the settings of configs/cook.py:

  soupjax --config=configs/diagnose.py:family=timm --workdir=runs/why \
    --config.ingredients='runs/*/model.safetensors' \
    --config.model.variant=B/16 --config.data.name=folder:photos \
    --config.data.minival=val --config.data.num_classes=37

Evaluates every ingredient, a greedy soup and the midpoints of pairs on minival
(at most max_pairs pairs, those next to each other by score first; 0 for none).
Prints a table and findings and writes them to WORKDIR/diagnosis.txt, with a
figure beside it. --dry_run prints the plan. --config.reasons=NAMES adds
analyses, some of plane, pairs, ensemble, features and greedy
(docs/diagnose.md), even to a finished run, and writes WORKDIR/diagnosis.html.
"""

from soupjax.config import parse_arg
from soupjax.tasks.cook import config as cook_config
from soupjax.tasks.reasons import run as reasons


def get_config(arg=None):
  arg = parse_arg(arg, sweep="", which="last", family="")
  c = cook_config.default_config()
  c.task = "diagnose"
  c.max_pairs = 120
  c.update(reasons.settings())
  if arg.sweep:
    cook_config.of_sweep(c, arg.sweep, arg.which)
  if arg.family:
    c.family = arg.family
  return c.lock()
