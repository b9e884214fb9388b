# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
r"""A weighted mean of checkpoint files, divided by the sum of the weights.

  soupjax --config=configs/soups/weighted.py \
    --config.ingredients='a.safetensors,b.safetensors' \
    --config.weights='(3.0, 1.0)' --config.out=soup.safetensors

For checkpoints of one run, oldest first, there are schedules (arXiv 2507.17634;
`soupjax.rules.schedule`): "uniform", "linear", "minus-sqrt" and "ema", over all
or the last of them:

  soupjax --config=configs/soups/weighted.py \
    --config.ingredients='run/step_*.safetensors' \
    --config.schedule=minus-sqrt --config.arguments='{"last": 5}' \
    --config.out=soup.safetensors

Weights go with the ingredients in their order: that of the patterns, and within
a pattern natural order (2 before 10); --dry_run prints it. Takes as long as
uniform.py.
"""

from soupjax.tasks import mix


def get_config(arg=None):
  del arg
  config = mix.default_config()
  config.rule = "weighted"
  return config.lock()
