# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The whole idea on real digits, in about a minute and a half on 2 cores.

soupjax --config=configs/digits.py --workdir=runs/digits

Pretrains a small ViT on some writers, fine-tunes it 16 times on 100 images of
other writers, cooks soups, and judges them on a test set and eight shifts of
it. Ranges were fixed before looking at any test set; see benchmarks/README.md
for what to expect over seeds. The negative control, without pretraining:

soupjax --config=configs/digits.py:scratch --workdir=runs/scratch
"""

import ml_collections

from soupjax.config import parse_arg


def get_config(arg=None):
  arg = parse_arg(arg, scratch=False)
  c = ml_collections.ConfigDict()
  c.task = "soup"
  c.seed = 0

  c.data = ml_collections.ConfigDict()
  c.data.name = "digits"
  c.data.num_train = 100
  c.data.num_minival = 300

  c.model = ml_collections.ConfigDict()
  c.model.patch_size = 4
  c.model.width = 32
  c.model.depth = 4
  c.model.mlp_dim = 64
  c.model.num_heads = 2
  c.model.pool_type = "gap"
  c.model.posemb = "learn"
  c.model.scan = False
  c.model.dtype_mm = "float32"

  c.pretrain = ml_collections.ConfigDict()
  c.pretrain.total_steps = 0 if arg.scratch else 2_000
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

  # Ranges are (low, high); what has no range is a choice.
  c.sweep = ml_collections.ConfigDict()
  c.sweep.size = 16
  c.sweep.learning_rate_log10 = (-2.8, -2.1)
  c.sweep.weight_decay_log10 = (-3.0, -0.5)
  c.sweep.label_smoothing = (0.0, 0.1, 0.2)
  c.sweep.mixup = (0.0, 0.2, 0.5)
  c.sweep.augment = (0.0, 0.5, 1.0)
  c.sweep.total_steps = (100, 200)
  c.sweep.warmup_steps = 20
  c.sweep.batch_size = 32
  c.sweep.b2 = 0.98
  c.sweep.clip_norm = 1.0
  c.sweep.log_steps = 25
  c.sweep.affine = {"degrees": 15.0, "pixels": 1.0, "scale": 0.1, "shear": 0.1}

  c.evaluate = ml_collections.ConfigDict()
  c.evaluate.batch_size = 256

  c.cook = ml_collections.ConfigDict()
  c.cook.accept = "ge"
  c.cook.min_delta = 0.0
  # Saves most of the evaluation of candidates that fail, and decides the same;
  # but the picture is to show their scores.
  c.cook.early_reject = False
  c.cook.learned_granularities = ("model", "layer")
  c.cook.learned_steps = 60
  c.cook.learned_learning_rate = 0.1
  c.cook.wise_ft_points = 11
  return c.lock()
