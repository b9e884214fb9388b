# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soupjax.soups import rules
from soupjax.soups.core.ingredient import Ingredient
from soupjax.soups.engine import combine
from soupjax.soups.engine import plan as planning


@pytest.fixture
def group():
  model = Ingredient.from_params("m", {"w": np.ones(16, np.float32)})
  return planning.make(rules.linear(), [model]).groups["w"]


def merge(program, group):
  stack = np.full((1, 16), 3, np.float32)
  return np.asarray(program(group, stack, None, group.values, {}))


def test_unknown_options_of_the_compiler_are_dropped_once(group, monkeypatch):
  program = combine.Program({"xla_cpu_option_of_another_version": 1})
  assert (merge(program, group) == 3).all()
  monkeypatch.setattr(program, "_tuned", lambda *_, **__: pytest.fail("again"))
  assert (merge(program, group) == 3).all()


def test_other_errors_of_the_compiler_are_raised(group):
  program = combine.Program({"xla_cpu_prefer_vector_width": "many"})
  with pytest.raises(jax.errors.JaxRuntimeError, match="many"):
    merge(program, group)


def test_the_memory_of_earlier_results_is_reused(group):
  results = {}
  stack = np.full((1, 16), 3, np.float32)
  for k in range(2):
    combine.run(group, stack + k, None, group.values, results)
    (result,) = results.values()
    assert (np.asarray(result) == 3 + k).all()


def test_conversions_of_bfloat16_have_the_bits_of_xla():
  every = np.arange(1 << 16, dtype=np.uint16).view(jnp.bfloat16)
  wide = jax.jit(lambda x: x.astype(jnp.float32))(every)
  bits = np.asarray(jax.jit(combine._widened)(every)).view(np.uint32)
  np.testing.assert_array_equal(bits, np.asarray(wide).view(np.uint32))
  # Below, at and above the middle of two neighbours, and NaN with any payload.
  ends = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
  numbers = (bits[:, None] | ends).reshape(-1).view(np.float32)
  expected = jax.jit(lambda x: x.astype(jnp.bfloat16))(numbers)
  actual = jax.jit(combine._as_bfloat16)(numbers)
  np.testing.assert_array_equal(
    np.asarray(actual).view(np.uint16), np.asarray(expected).view(np.uint16)
  )
