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
      hyperparameters={"init_hash": one},
    )
    for k, one in enumerate(hashes)
  ]


@pytest.mark.parametrize(
  "recipe",
  [
    sj.uniform_soup,
    lambda some: sj.greedy_soup(some, lambda params: 1.0),
    lambda some: sj.learned_soup(
      some, lambda params, beta: beta * params["w"].sum(), steps=1
    ),
    lambda some: sj.mix(sj.rules.linear(), some),
  ],
)
def test_soups_warn_of_other_inits(recipe):
  with pytest.warns(UserWarning, match="'m0'.*'m1'"):
    recipe(models("a", "b"))
  with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    recipe(models("a", "a"))
  assert not [w for w in found if "fine-tuned from" in str(w.message)]


def test_ingredients_that_record_another_start_are_named():
  check_same_init(models("a", "a", None))
  with pytest.raises(ValueError, match="'m0'.*'m2'"):
    check_same_init(models("a", "a", "b"))
