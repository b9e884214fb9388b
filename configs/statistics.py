# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
r"""Estimates statistics for the rules fisher and regmean (docs/rules.md).

Each ingredient needs the images that it was fine-tuned on, so every dataset
needs a separate run:

  soupjax --config=configs/statistics.py --workdir=runs/cars_statistics \
    --config.ingredients=cars.safetensors --config.data.name=folder:cars \
    --config.data.minival=train

Writes the diagonal of the Fisher information (arXiv 2111.09832) as
WORKDIR/NAME/fisher.safetensors and the Grams of RegMean (arXiv 2212.09849) as
WORKDIR/NAME/grams.safetensors, for each ingredient NAME. Then

  soupjax --config=configs/mix.py:fisher --config.out=soup.safetensors \
    --config.ingredients=cars.safetensors,dtd.safetensors \
    --config.rule.fishers="['runs/cars_statistics/cars.safetensors/fisher.safetensors',
      'runs/dtd_statistics/dtd.safetensors/fisher.safetensors']"

Models and images are described as in configs/cook.py; labels are not used.
"""

from soupjax.tasks import statistics


def get_config(arg=None):
  if arg:
    raise ValueError(f"configs/statistics.py takes no argument, got {arg!r}.")
  return statistics.default_config().lock()
