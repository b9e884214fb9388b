# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import jax.numpy as jnp
import numpy as np
import pytest

from soupjax.soups.core import arguments


@pytest.mark.parametrize(
  "value",
  [2, 2.0, np.float32(2), np.array(2), np.array([2.0]), jnp.bfloat16(2)],
)
def test_numbers_and_arrays_of_one_are_numbers(value):
  assert arguments.as_number(value) == arguments.number("x", value) == 2.0


@pytest.mark.parametrize(
  "value", ["2", None, {}, [1, 2], [[1], [1, 2]], 1j, np.ones(0), object()]
)
def test_other_values_are_not_numbers(value):
  assert arguments.as_number(value) is None
  with pytest.raises(ValueError, match="^x .*number"):
    arguments.number("x", value)


def test_numbers_must_meet_the_requirement():
  assert arguments.number("x", 1, "be positive", lambda x: x > 0) == 1
  for value in (0, np.nan, np.inf):
    with pytest.raises(ValueError, match=f"^x .*{value}"):
      arguments.number("x", value, "be positive", lambda x: x > 0)


@pytest.mark.parametrize("value", [2.5, "3", None, 3.0, True])
def test_counts_must_be_positive_whole_numbers(value):
  assert arguments.count("n", np.int32(3)) == 3
  with pytest.raises(ValueError, match=f"n .*{value!r}"):
    arguments.count("n", value)
  with pytest.raises(ValueError, match="n .*0"):
    arguments.count("n", 0)
