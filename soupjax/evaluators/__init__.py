# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores of models on held-out labelled images."""

from soupjax.evaluators.by_command import CommandEvaluator as CommandEvaluator
from soupjax.evaluators.evaluator import Evaluator as Evaluator
from soupjax.evaluators.metrics import METRICS as METRICS
from soupjax.evaluators.metrics import (
  classification_metrics as classification_metrics,
)
from soupjax.evaluators.metrics import get_metric as get_metric
from soupjax.evaluators.metrics import metric as metric
from soupjax.lazy import submodules

__getattr__, __dir__ = submodules(__name__, __path__)
