# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
r"""Any rule of `soupjax.rules`, by its name and arguments; see docs/rules.md.

  soupjax --config=configs/soups/merge.py:ties \
    --config.arguments='{"density": 0.2, "scale": 0.3}' \
    --config.base=pretrained.safetensors \
    --config.ingredients='finetuned/*.safetensors' \
    --config.out=merged.safetensors

  soupjax --config=configs/soups/merge.py:task_arithmetic \
    --config.arguments='{"scale": {"head": 0.0, "": 0.4}}' ...

Arguments are JSON: numbers, words, lists (over depth), and mappings from
regular expressions to numbers. Takes as long as uniform.py for each pass that
the rule makes over the weights.
"""

from soupjax.tasks import mix


def get_config(arg=None):
  config = mix.default_config()
  config.rule = arg or "task_arithmetic"
  return config.lock()
