# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np

import soupjax as sj
from soupjax.soups.core import leftovers


def ingredient(name, *, ignored=(), text=()):
  made = sj.Ingredient.from_params(name, {"w": np.ones(2)})
  return dataclasses.replace(made, ignored=dict(ignored), text=dict(text))


def test_equal_sets_of_ignored_entries_share_a_sentence():
  a = [ingredient(f"a{k}", ignored={"ema": "beside 'net'"}) for k in range(3)]
  many = {f"t{k:02d}": "not a tensor" for k in range(12)}
  first, second = leftovers.ignored([*a, ingredient("b", ignored=many)])
  assert "a0 and 2 more: " in first
  assert "'ema' (beside 'net')" in first
  assert "#ema" in first
  assert "'t09' (not a tensor) and 2 more" in second
  assert "t10" not in second
  assert not leftovers.ignored([ingredient("c")])


def test_only_equal_texts_are_shared():
  a = ingredient("a", text={"rank": "8", "seed": "0", "only": "a"})
  b = ingredient("b", text={"rank": "8", "seed": "1"})
  assert leftovers.shared_text([a, b]) == {"rank": "8"}
  (note,) = leftovers.notes([a, b])
  assert "'seed'" in note
  assert "'only'" in note
  assert "'rank'" not in note
  assert not leftovers.notes([a, a])
