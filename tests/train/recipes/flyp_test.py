# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np
import pytest

from soupjax.train import losses, recipes


class Fixed:
  """A model of both towers whose logits are given."""

  def __init__(self, logits):
    self.logits = logits

  def apply(self, variables, images, tokens, *, method="", **kwargs):
    del variables, images, tokens, kwargs
    return (None, self.logits) if method else (None, None, self.logits)


@pytest.mark.parametrize("recipe", ["flyp", "lit"])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_pairs_of_one_class_are_left_out_on_request(recipe, loss):
  logits = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
  labels = np.array([3, 1, 3, 0])
  batch = {"images": None, "tokens": None, "labels": labels}
  loss = losses.PAIR_LOSSES.get(loss)

  def value(text):
    return float(
      recipes.of(text).objective(
        {},
        batch,
        jax.random.key(0),
        model=Fixed(logits),
        loss=loss,
        hyper=None,
        shared=None,
      )
    )

  far = logits.copy()
  far[0, 2] = far[2, 0] = -1e4
  assert value(recipe) == pytest.approx(float(loss(logits)))
  masked = value(f"{recipe}(mask_same_class=True)")
  assert masked == pytest.approx(float(loss(far)))
  assert masked < value(recipe) - 1e-2
