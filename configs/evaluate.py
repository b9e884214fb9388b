# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
r"""Evaluates any checkpoints on any sets and compares them (docs/evaluate.md).

Checkpoints of one architecture, read and described as in configs/cook.py:

  soupjax --config=configs/evaluate.py --workdir=runs/compared \
    --config.ingredients='runs/*/model.safetensors' \
    --config.tests=test=folder:photos/test,street=folder:street_photos/all

The soups and ingredients of a cooking run, on further sets, or the members of a
fine-tuning sweep:

  soupjax --config=configs/evaluate.py:soups=runs/soups --workdir=runs/fog \
    --config.tests='test=test,fog=test|corrupt("fog", 3)'
  soupjax --config=configs/evaluate.py:sweep=runs/b16 --workdir=runs/members

Each model is compared with `reference`, by default the first. With
--config.save_logits=True, WORKDIR/logits gets a file for each model and set.
Such files can take the place of checkpoints, even for other architectures:

  soupjax --config=configs/evaluate.py --workdir=runs/both \
    --config.ingredients='runs/fog/logits/*.npz,runs/other/logits/*.npz'

The report is WORKDIR/report.html. --dry_run prints the plan.
"""

from soupjax.config import parse_arg
from soupjax.tasks.cook import config as cook_config
from soupjax.tasks.evaluate import config as evaluate_config


def get_config(arg=None):
  arg = parse_arg(arg, sweep="", which="last", soups="", family="")
  c = evaluate_config.default_config()
  if arg.sweep:
    cook_config.of_sweep(c, arg.sweep, arg.which)
  if arg.soups:
    evaluate_config.of_soups(c, arg.soups)
  if arg.family:
    c.family = arg.family
  return c.lock()
