# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""From a pretrained model towards fine-tuned ones (WiSE-FT, arXiv 2109.01903).

  soupjax --config=configs/soups/interpolate.py \
    --config.base=zeroshot.safetensors \
    --config.ingredients=finetuned.safetensors \
    --config.alpha=0.5 --config.out=soup.safetensors

The result is (1 - alpha) * base + alpha * mean(ingredients); alpha 0 and 1 give
the ends bit for bit. Takes as long as uniform.py.
"""

from soupjax.tasks import mix


def get_config(arg=None):
  del arg
  config = mix.default_config()
  config.rule = "interpolate"
  config.alpha = 0.5
  return config.lock()
