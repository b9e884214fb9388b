# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Searches for coefficients, on tasks made from real digits.

soupjax --config=configs/search.py --workdir=runs/search

Pretrains a small ViT on upright and inverted digits of some writers, fine-tunes
it with its head frozen on tasks made from digits of other writers (upright,
rotated, mirrored, inverted, odd or even), and runs every search of `sj.search`.
Choices are made on minival; docs/search.md has what came out. It takes 4.5
minutes of CPU time, and took 7 minutes on 2 cores with other work on them. One
alone, in about a minute:

soupjax --config=configs/search.py:paint --workdir=runs/paint

Its names: wise_ft, addition, negation, analogy, paint, pools, adamerging.
"""

import ml_collections

from soupjax.config import parse_arg

SEARCHES = (
  "wise_ft",
  "addition",
  "negation",
  "analogy",
  "paint",
  "pools",
  "adamerging",
)


def get_config(arg=None):
  arg = parse_arg(arg, **dict.fromkeys(SEARCHES, False))
  named = tuple(name for name in SEARCHES if arg[name])
  c = ml_collections.ConfigDict()
  c.task = "search"
  c.seed = 0
  c.searches = named or SEARCHES

  c.data = ml_collections.ConfigDict()
  c.data.num_train = 300
  c.data.num_minival = 200
  # As in configs/digits.py, where gains are largest with little data.
  c.data.num_pool_train = 100

  c.model = ml_collections.ConfigDict()
  c.model.patch_size = 4
  c.model.width = 32
  c.model.depth = 4
  c.model.mlp_dim = 64
  c.model.num_heads = 2

  c.pretrain = ml_collections.ConfigDict()
  c.pretrain.tasks = ("upright", "inverted")
  c.pretrain.total_steps = 2_000
  c.pretrain.batch_size = 64
  c.pretrain.learning_rate = 3e-3
  c.pretrain.weight_decay = 0.05
  c.pretrain.label_smoothing = 0.1
  c.pretrain.warmup_steps = 200
  c.pretrain.b2 = 0.999
  c.pretrain.clip_norm = 1.0
  c.pretrain.checkpoint_steps = 500
  c.pretrain.log_steps = 100
  c.pretrain.affine = {
    "degrees": 27.0,
    "pixels": 1.8,
    "scale": 0.15,
    "shear": 0.2,
  }
  c.pretrain.jitter = {"contrast": 0.3, "noise": 0.1, "blur": 0.5}

  c.probe = ml_collections.ConfigDict()
  c.probe.l2 = 1e-3
  c.probe.total_steps = 100

  c.finetune = ml_collections.ConfigDict()
  c.finetune.total_steps = 300
  c.finetune.batch_size = 32
  c.finetune.learning_rate = 2e-3
  c.finetune.weight_decay = 0.05
  c.finetune.label_smoothing = 0.1
  c.finetune.warmup_steps = 20
  c.finetune.b2 = 0.98
  c.finetune.clip_norm = 1.0
  c.finetune.affine = {
    "degrees": 15.0,
    "pixels": 1.0,
    "scale": 0.1,
    "shear": 0.1,
  }

  c.search = ml_collections.ConfigDict()
  c.search.points = 21  # Of every grid from 0 to 1.
  c.search.negation_max = 2.0  # Forgetting may need to go farther.
  c.search.keep = 0.95
  c.search.budget = 50
  c.search.adamerging_steps = 500
  c.search.average = "greedy"  # Of the pools; or "uniform".
  # Runs on the target, for DiWA; ratatouille has one for each of its starts,
  # the pretrained model among them.
  c.search.auxiliary = ("rotated", "mirrored", "rotated_inverted", "parity")
  return c.lock()
