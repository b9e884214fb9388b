# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np

from soupjax.train import recipes


def test_prompts_are_those_of_the_label_and_of_any_template():
  prompts = np.arange(3 * 4).reshape(3, 4, 1)
  labels = np.tile([2, 0, 1], 40)

  def draw(seed):
    return np.asarray(
      recipes.draw_prompts(jax.random.key(seed), labels, prompts)
    )

  tokens = draw(0)
  assert tokens.shape == (120, 1)
  np.testing.assert_array_equal(tokens[:, 0] // 4, labels)
  assert len(set(tokens[:, 0])) == 12
  np.testing.assert_array_equal(draw(0), tokens)
  assert not np.array_equal(draw(1), tokens)


def test_pairs_of_one_class():
  same = recipes.same_class(np.array([1, 0, 1]))
  assert np.asarray(same).tolist() == [
    [False, False, True],
    [False, False, False],
    [True, False, False],
  ]
