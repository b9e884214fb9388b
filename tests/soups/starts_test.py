# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

import soupjax as sj
from soupjax.soups.starts import check_same_start


def test_ingredients_that_record_another_start_are_named():
  def models(*hashes):
    return [
      sj.Ingredient.from_params(
        f"m{k}", {"w": np.ones(2)}, hyperparameters={"init_hash": one}
      )
      for k, one in enumerate(hashes)
    ]

  check_same_start(models("a", "a", None))
  with pytest.raises(ValueError, match="'m0' and 'm2' were fine-tuned from"):
    check_same_start(models("a", "a", "b"))
