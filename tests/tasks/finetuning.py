# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""A fine-tuning run that takes seconds, for several tests."""

import pathlib

from soupjax import config as config_lib
from soupjax.soups import tree

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = str(ROOT / "configs" / "finetune" / "digits.py")
SMALL = {
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


def quiet(params):
  """Without what has a gradient of rounding noise, which optimizers blow up."""
  leaves, _ = tree.flatten(params)
  return {k: v for k, v in leaves.items() if not k.endswith("key/bias")}
