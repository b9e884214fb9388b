# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from soupjax.train import recipes


@pytest.mark.parametrize(
  "text, message",
  [
    ("flip", "recipe 'flip'.*'flyp'"),
    ("flyp(mask=True)", "flyp.mask=True.*'mask'"),
    ("math.hypot(1, 2)", "math.hypot.*Recipe, got 2.236"),
  ],
)
def test_bad_recipes_are_named(text, message):
  with pytest.raises(ValueError, match=message):
    recipes.of(text)


def test_a_recipe_with_arguments():
  assert recipes.of("flyp(mask_same_class=True)").pairs
  assert recipes.of("plain") is recipes.PLAIN
