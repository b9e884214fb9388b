# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Optimizers of a few numbers on the host, in float64."""

import numpy as np


class AdamW:
  """AdamW (arXiv 1711.05101) on a few numbers on the host, in float64."""

  def __init__(self, learning_rate, weight_decay, b1=0.9, b2=0.999, eps=1e-8):
    self.lr, self.wd, self.b1, self.b2 = learning_rate, weight_decay, b1, b2
    self.eps, self.step, self.mu, self.nu = eps, 0, 0.0, 0.0

  def update(self, x: np.ndarray, grad: np.ndarray) -> np.ndarray:
    """Returns the numbers after one more step."""
    self.step += 1
    self.mu = self.b1 * self.mu + (1 - self.b1) * grad
    self.nu = self.b2 * self.nu + (1 - self.b2) * grad**2
    mu = self.mu / (1 - self.b1**self.step)
    nu = self.nu / (1 - self.b2**self.step)
    return x - self.lr * (mu / (np.sqrt(nu) + self.eps) + self.wd * x)
