# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The sweeps of arXiv 2203.05482, appendix J, as overrides of config keys.

`soupjax.config` re-exports them for `get_sweep()` in config files.
"""

from collections.abc import Iterator
import itertools
from typing import Any

import numpy as np

# Strengths of augmentation. Crops are medium in the default config.
MINIMAL = {"data.augment.crop_min": 90.0, "data.augment.randaug_layers": 0}
MEDIUM = {"data.augment.crop_min": 8.0, "data.augment.randaug_layers": 0}
STRONG = {
  "data.augment.crop_min": 8.0,
  "data.augment.randaug_layers": 2,
  "data.augment.randaug_magnitude": 15.0,
}


def seeds(size: int) -> Iterator[dict[str, Any]]:
  """Yields members that differ only in the seed of data order and augmentation.

  Examples:
    >>> list(seeds(2))
    [{'seed': 0}, {'seed': 1}]
  """
  for seed in range(size):
    yield {"seed": seed}


def random_search(size: int, *, seed: int = 0) -> Iterator[dict[str, Any]]:
  """Yields the members of the paper's random search (appendix J).

  Learning rate 10^-U(4, 6), weight decay 10^-U(0.2, 4), 4 to 16 epochs, label
  smoothing 0 or U(0, 0.25), mixup 0 or U(0, 0.9). Augmentation is minimal in a
  third of the runs; in the others, RandAugment has 0 to 2 layers and a
  magnitude of 1 to 20, as in the runs that the authors released. They used timm
  ("rand-mM-nN"), which clips magnitudes to 10, as does the image op `randaug`.

  Args:
    size: number of members. A larger search begins with the members of a
      smaller one.
    seed: seed of the draws.

  Examples:
    >>> member = next(random_search(8, seed=0))
    >>> member["hyper.total"], round(member["hyper.learning_rate"], 7)
    ('12epochs', 9.27e-05)
  """
  for k in range(size):
    rng = np.random.default_rng([seed, k])
    smoothing, mixup = rng.random(2) < 0.5
    minimal = rng.random() < 1 / 3
    values = {
      "hyper.learning_rate": float(10 ** -rng.uniform(4, 6)),
      "hyper.weight_decay": float(10 ** -rng.uniform(0.2, 4)),
      "hyper.total": f"{rng.integers(4, 17)}epochs",
      "hyper.label_smoothing": float(rng.uniform(0, 0.25) * smoothing),
      "hyper.mixup": float(rng.uniform(0, 0.9) * mixup),
      "seed": int(rng.integers(2**31)),
    }
    layers, magnitude = int(rng.integers(0, 3)), float(rng.integers(1, 21))
    drawn = {
      "data.augment.randaug_layers": layers,
      "data.augment.randaug_magnitude": magnitude,
    }
    yield values | (MINIMAL if minimal else MEDIUM | drawn)


def _grid(rates, num_seeds):
  strengths = (MINIMAL, MEDIUM, STRONG)
  members = itertools.product(rates, strengths, (0.0, 0.5), range(num_seeds))
  for k, (rate, strength, mixup, _) in enumerate(members):
    values = {"hyper.learning_rate": rate, "hyper.mixup": mixup}
    yield {**values, **strength, "seed": k}


def standard_grid() -> Iterator[dict[str, Any]]:
  """Yields the 48 members of the paper's standard grid (appendix J).

  Four learning rates, three strengths of augmentation, mixup off or 0.5, and
  two runs of each combination. Every member has a seed of its own.

  Examples:
    >>> members = list(standard_grid())
    >>> len(members), members[0]["hyper.learning_rate"]
    (48, 3e-05)
  """
  return _grid((3e-5, 2e-5, 1e-5, 3e-6), num_seeds=2)


def extreme_grid() -> Iterator[dict[str, Any]]:
  """Yields the 48 members of the paper's extreme grid; some models are poor.

  Eight learning rates from 3e-4 to 1e-7, three strengths of augmentation, mixup
  off or 0.5. Every member has a seed of its own.
  """
  rates = (3e-4, 1e-4, 3e-5, 2e-5, 1e-5, 3e-6, 1e-6, 1e-7)
  return _grid(rates, num_seeds=1)
