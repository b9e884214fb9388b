# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import jax.numpy as jnp
import numpy as np
import pytest

from soupjax.soups import checks


@pytest.mark.parametrize(
  "value",
  [2, 2.0, np.float32(2), np.array(2), np.array([2.0]), jnp.bfloat16(2)],
)
def test_numbers_and_arrays_of_one_are_numbers(value):
  assert checks.as_number(value) == checks.number("x", value) == 2.0


@pytest.mark.parametrize(
  "value", ["2", None, {}, [1, 2], [[1], [1, 2]], 1j, np.ones(0), object()]
)
def test_what_is_no_number(value):
  assert checks.as_number(value) is None
  with pytest.raises(ValueError, match="^x must be a number, got"):
    checks.number("x", value)


def test_what_a_number_must_do():
  assert checks.number("x", 1, "be positive", lambda x: x > 0) == 1
  for value in (0, np.nan, np.inf):
    with pytest.raises(ValueError, match=f"x must be positive, got {value}"):
      checks.number("x", value, "be positive", lambda x: x > 0)


@pytest.mark.parametrize("value", [2.5, "3", None, 3.0])
def test_count_wants_whole_numbers(value):
  assert checks.count("n", np.int32(3)) == 3
  with pytest.raises(ValueError, match="n must be a whole number, got"):
    checks.count("n", value)
  with pytest.raises(ValueError, match="n must be positive, got 0"):
    checks.count("n", 0)
