# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Grouped options of learned soups."""

from collections.abc import Callable
import dataclasses

from soupjax.soups.core import layers


@dataclasses.dataclass(frozen=True)
class Granularity:
  """Sets of leaves that share their coefficients.

  Attributes:
    name: "model" learns K coefficients, "layer" K for every layer, "tensor" K
      for every leaf (like the released code of model soups and AdaMerging).
    layer_of: leaf name -> layer name, for "layer".
    stacked: regex of leaves whose leading axis counts layers (a scanned
      encoder, `"encoderblock/"`), for "layer" and "tensor". For "layer", the
      part of the leaf's name up to the end of the match names the layers:
      "Transformer/encoderblock[3]", for all modules of a block.
  """

  name: str = "layer"
  layer_of: Callable[[str], str] = layers.layer_of
  stacked: str | None = None


@dataclasses.dataclass(frozen=True)
class CoefficientOptimizer:
  """Optimizer of coefficients.

  Attributes:
    name: "adamw" or "lbfgs". L-BFGS needs a loss on all held-out data (no
      batches), stops when it converges, and returns the best soup it evaluated.
    learning_rate: constant learning rate of AdamW; None is 0.1, or 0.001 with a
      base (the values of these papers).
    weight_decay: decoupled weight decay of AdamW, towards the uniform soup, or
      towards the base.
    learn_beta: whether the logit scale is learned; otherwise it stays 1.
  """

  name: str = "adamw"
  learning_rate: float | None = None
  weight_decay: float = 0.0
  learn_beta: bool = True
