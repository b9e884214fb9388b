# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Config of run.py: configs/finetune/digits.py on the images of run.py.

:pretrain trains a small ViT from scratch. Otherwise the model of
config.init.path is fine-tuned on a task, with its head frozen. With :pool, it
is fine-tuned on few images and the head is trained, too, from a linear probe.
The sweep of :pool has five learning rates.
"""

import pathlib

import numpy as np

from soupjax import config as config_lib

FOLDER = pathlib.Path(__file__).parents[2] / "configs" / "finetune"
# Learning rates of the runs of DiWA and ratatouille.
RATES = (2e-3 * np.geomspace(0.5, 2.0, 5)).tolist()


def _parsed(arg):
  return config_lib.parse_arg(
    arg, images="", seed=0, pretrain=False, pool=False, short=False
  )


def get_config(arg=None):
  arg = _parsed(arg)
  kind = ",pretrain" * arg.pretrain
  c = config_lib.load(str(FOLDER / "digits.py"), f"seed={arg.seed}{kind}")
  c = c.unlock()
  c.data.name = f"folder:{arg.images}"
  c.data.train = "few" if arg.pool else "train"
  c.data.num_classes = 2 if arg.images.endswith("/parity") else 10
  c.tests = {}
  if arg.pretrain:
    # Unlike in digits.py, there is no noise, and colors may change.
    c.data.batch_ops = "affine(27, 1.8, 0.15, 0.2)|jitter(0.3, 0.1, 0.5)"
  else:
    c.init.head = "keep"
    c.freeze = () if arg.pool else ("^head/",)
    c.probe.total = "100steps" if arg.pool else "0steps"
    c.hyper.total, c.hyper.warmup = "300steps", "30steps"
    del c.optimizer.b2  # The value of digits.py is for short runs.
  if arg.short:
    c.model.depth = 1
    c.hyper.total = "60steps" if arg.pretrain else "8steps"
    c.hyper.warmup = "2steps"
  return c.lock()


def get_sweep(arg=None):
  if not _parsed(arg).pool:
    return  # A single run.
  for rate in RATES:
    yield {"hyper.learning_rate": rate}
