# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import warnings

import numpy as np
import pytest

import soupjax as sj
from soupjax.soups.core import records


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
  records.check_same_init(models("a", "a", None))
  with pytest.raises(ValueError, match="'m0' and 'm2'"):
    records.check_same_init(models("a", "a", "b"))


def ingredient(name, *, ignored=(), text=()):
  made = sj.Ingredient.from_params(name, {"w": np.ones(2)})
  return dataclasses.replace(made, ignored=dict(ignored), text=dict(text))


def test_equal_sets_of_ignored_entries_share_a_sentence():
  a = [ingredient(f"a{k}", ignored={"ema": "beside 'net'"}) for k in range(3)]
  many = {f"t{k:02d}": "not a tensor" for k in range(12)}
  first, second = records.ignored([*a, ingredient("b", ignored=many)])
  assert "a0 and 2 more: " in first
  assert "'ema' (beside 'net')" in first
  assert "#ema" in first
  assert "'t09' (not a tensor) and 2 more" in second
  assert "t10" not in second
  assert not records.ignored([ingredient("c")])


def test_only_equal_texts_are_shared():
  a = ingredient("a", text={"rank": "8", "seed": "0", "only": "a"})
  b = ingredient("b", text={"rank": "8", "seed": "1"})
  assert records.shared_text([a, b]) == {"rank": "8"}
  (note,) = records.notes([a, b])
  assert "'seed'" in note
  assert "'only'" in note
  assert "'rank'" not in note
  assert not records.notes([a, a])
