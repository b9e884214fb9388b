# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import warnings

import numpy as np
import pytest

import soupjax as sj
from soupjax.soups.core.same_init import check_same_init


def models(*hashes):
  return [
    sj.Ingredient.from_params(
      f"m{k}",
      {"w": np.full(2, k, np.float32)},
      hyperparameters={"init_hash": init_hash},
    )
    for k, init_hash in enumerate(hashes)
  ]


@pytest.mark.parametrize(
  "recipe",
  [
    sj.uniform_soup,
    lambda models: sj.greedy_soup(models, lambda params: 1.0),
    lambda models: sj.learned_soup(
      models, lambda params, beta: beta * params["w"].sum(), steps=1
    ),
    lambda models: sj.mix(sj.rules.linear(), models),
  ],
)
def test_soups_warn_of_other_inits(recipe):
  with pytest.warns(UserWarning, match="'m0'.*'m1'"):
    recipe(models("a", "b"))
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    recipe(models("a", "a"))
  assert not [w for w in caught if "fine-tuned from" in str(w.message)]


def test_ingredients_that_record_another_start_are_named():
  check_same_init(models("a", "a", None))
  with pytest.raises(ValueError, match="'m0' and 'm2'"):
    check_same_init(models("a", "a", "b"))
