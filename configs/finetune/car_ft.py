# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""CAR-FT: CLIP ViT-B/32 on ImageNet, preserving its predictions of context.

  soupjax --config=configs/finetune/car_ft.py --workdir=runs/car_ft --sweep \
    --config.init.path=CLIP

This is configs/finetune/clip_b32_i1k.py with one more term in the loss: the
divergence KL(start || model) between the distributions of each image over
prompts such as "a sketch of a {}." (arXiv 2211.16175), multiplied by
hyper.context (1 in the paper). The sweep is the random search of that config,
with this factor drawn log-uniformly from 0.3 to 3. Neither accuracy nor time
was measured here.

On a laptop, in a minute, from a tiny CLIP with random weights on digits:

  soupjax --config=configs/finetune/car_ft.py:runlocal --sweep \
    --workdir=/tmp/car_ft
"""

import pathlib

import numpy as np

from soupjax import config as config_lib

PLAIN = pathlib.Path(__file__).parent / "clip_b32_i1k.py"


def _parsed(arg):
  return config_lib.parse_arg(arg, runlocal=False, res=224)


def get_config(arg=None):
  _parsed(arg)
  c = config_lib.load(PLAIN, arg).unlock()
  c.recipe = "car_ft"
  c.hyper.context = 1.0
  return c.lock()


def get_sweep(arg=None):
  arg = _parsed(arg)
  members = config_lib.random_search(3 if arg.runlocal else 72)
  for k, member in enumerate(members):
    rng = np.random.default_rng([k, 2211])
    yield {**member, "hyper.context": float(10 ** rng.uniform(-0.5, 0.5))}
