# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a model is worth, on data it was not trained on."""

from soupjax.evaluators.classification import Classification as Classification
from soupjax.evaluators.classification import (
  classification_metrics as classification_metrics,
)
from soupjax.evaluators.classification import predictor as predictor
from soupjax.evaluators.streaming import Streaming as Streaming
