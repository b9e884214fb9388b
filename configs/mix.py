# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
r"""Mixes checkpoint files by a rule; see docs/rules.md for all rules.

The uniform soup (arXiv 2203.05482, Table 2):

  soupjax --config=configs/mix.py \
    --config.ingredients='ckpts/*.safetensors' \
    --config.out=soup.safetensors

Another rule follows the colon, and its arguments are keys of `config.rule`:

  soupjax --config=configs/mix.py:ties \
    --config.rule.density=0.2 --config.rule.scale=0.3 \
    --config.base=pretrained.safetensors \
    --config.ingredients='finetuned/*.safetensors' \
    --config.out=merged.safetensors

The same in short:

  soupjax --config=configs/mix.py:'ties(density=0.2, scale=0.3)' ...

Further examples of what follows the colon:

  'weighted([3, 1])'             one weight for each ingredient
  'interpolate(0.5)'             halfway from the base: WiSE-FT, 2109.01903
  'schedule("ema", decay=0.9)'   checkpoints of one run, oldest first
  'task_arithmetic({"head": 0.0, "": 0.4})'      a scale for each leaf
  'my_rules.trimmed_mean(share=0.1)'             a function in your module

To write a folder for the Hugging Face hub, with the configs of the first
ingredient and a model card: --config.out=soup --config.format=hub

Ingredients are in the order of the patterns, and within a pattern in natural
order (2 before 10). --dry_run checks everything, prints the order and the plan,
and stops. A mean takes about as long as reading the ingredients twice: once for
the mean, and once for the content hashes that are stored with the soup, which
--config.hash_inputs=False leaves out.
"""

from soupjax.tasks import mix


def get_config(arg=None):
  return mix.default_config(arg or "uniform").lock()
