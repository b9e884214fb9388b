# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Checks the config of the main job before anything is done."""

import math

import jax
import ml_collections
import numpy as np

from soupjax import config as config_lib
from soupjax import data
from soupjax.models import ViT

_POSITIVE = (
  "pretrain.batch_size",
  "pretrain.checkpoint_steps",
  "pretrain.log_steps",
  "probe.total_steps",
  "sweep.size",
  "sweep.batch_size",
  "sweep.log_steps",
  "evaluate.batch_size",
  "cook.learned_steps",
)
_RANGES = ("learning_rate_log10", "weight_decay_log10", "total_steps")
_CHOICES = ("label_smoothing", "mixup", "augment")


def check_config(config: ml_collections.ConfigDict) -> None:
  """Checks values that would otherwise fail after minutes of work.

  Args:
    config: as in configs/digits.py.

  Raises:
    ValueError: listing every key with a value that cannot work.
  """
  problems = config_lib.Problems(config)
  expect = problems.expect

  expect("data.name", "'digits'", lambda v: v == "digits")
  for key in _POSITIVE:
    expect(key, "a positive whole number", lambda v: v >= 1 and v == int(v))
  expect("pretrain.total_steps", "a whole number from 0", lambda v: v >= 0)
  for stage in ("pretrain", "sweep"):
    for name in ("clip_norm", "b2"):
      expect(f"{stage}.{name}", "positive and finite", _positive)
    expect(f"{stage}.warmup_steps", "a whole number from 0", lambda v: v >= 0)
  expect("pretrain.learning_rate", "positive and finite", _positive)
  expect("probe.l2", "a finite number from 0", lambda v: 0 <= v < math.inf)
  for name in _RANGES:
    expect(f"sweep.{name}", "a pair (low, high)", _pair)
  expect("sweep.total_steps", "at least 1", lambda v: v[0] >= 1)
  for name in _CHOICES:
    expect(f"sweep.{name}", "one or more finite numbers from 0", _choices)
  expect("sweep.label_smoothing", "below 1", lambda v: max(v) < 1)
  expect("cook.accept", "'ge' or 'gt'", lambda v: v in ("ge", "gt"))
  expect("cook.min_delta", "a finite number", math.isfinite)
  expect("cook.learned_learning_rate", "positive and finite", _positive)
  expect(
    "cook.learned_granularities",
    "some of 'model', 'layer', 'tensor'",
    lambda v: set(v) <= {"model", "layer", "tensor"},
  )
  expect(
    "cook.wise_ft_points", "a number from 0 to 1001", lambda v: 0 <= v <= 1001
  )
  problems.errors += _model_problems(config.model)
  problems.raise_if_any()


def _positive(value) -> bool:
  return 0 < value < math.inf


def _pair(value) -> bool:
  low, high = value
  return -math.inf < low <= high < math.inf


def _choices(values) -> bool:
  return len(values) > 0 and all(0 <= v < math.inf for v in values)


def _model_problems(options) -> list[str]:
  """Builds the model on paper."""
  image = jax.ShapeDtypeStruct((1, *data.Digits.image_shape), np.float32)
  try:
    model = ViT(num_classes=data.Digits.num_classes, **options)
    jax.eval_shape(model.init, jax.random.key(0), image)
  except (TypeError, ValueError, AttributeError, ZeroDivisionError) as e:
    return [f"model: {e}"]
  return []
