# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import chex
import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

import soupjax as sj
from soupjax import sharding


def spec(*shape):
  return jax.ShapeDtypeStruct(shape, np.float32)


def test_meshes_have_auto_axes_and_all_devices():
  mesh = sharding.make_mesh({"data": 2, "model": -1})
  assert dict(mesh.shape) == {"data": 2, "model": jax.device_count() // 2}
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
  "axes", [{"data": 3}, {"data": 0}, {"a": -1, "b": -1}, {"a": 16}]
)
def test_meshes_that_do_not_fit(axes):
  with pytest.raises(ValueError, match="8 devices"):
    sharding.make_mesh(axes)


def test_fsdp_picks_the_largest_dimension_that_divides():
  mesh = sharding.make_mesh({"data": 8})
  place = sharding.fsdp(mesh, min_size=64)
  assert place("a", spec(16, 24)).spec == P(None, "data")
  assert place("a", spec(16, 25)).spec == P("data", None)
  assert place("a", spec(15, 25)).spec == P()
  assert place("a", spec(16)).spec == P()
  assert place("a", spec()).spec == P()


def test_rules():
  mesh = sharding.make_mesh({"data": 4, "model": 2})
  place = sharding.by_rules(
    mesh, [("mlp/kernel", P(None, "model")), ("kernel", P("data"))]
  )
  assert place("mlp/kernel", spec(3, 4)).spec == P(None, "model")
  assert place("x/kernel", spec(8, 4)).spec == P("data")
  assert place("x/bias", spec(7)).spec == P()
  with pytest.raises(ValueError, match="'x/kernel'.*6.*4"):
    place("x/kernel", spec(6, 4))


def test_recipes_run_on_a_mesh_and_give_the_same_bits():
  rng = np.random.default_rng(0)
  models = [
    sj.Ingredient.from_params(
      f"m{k}", {"w": rng.normal(size=(16, 8)).astype("f"), "b": np.ones(3, "f")}
    )
    for k in range(4)
  ]
  place = sharding.fsdp(sharding.make_mesh({"data": 8}), min_size=1)

  def score(params):
    return -abs(float(params["w"][0, 0]))

  here = sj.greedy_soup(models, score)
  there = sj.greedy_soup(models, score, sharding=place)
  assert there.params["w"].addressable_shards[0].data.shape == (2, 8)
  chex.assert_trees_all_equal(
    jax.device_get(there.params), jax.device_get(here.params)
  )
  assert there.history == here.history
  uniform = sj.uniform_soup(models, sharding=place)
  assert len(uniform["w"].addressable_shards) == 8
  chex.assert_trees_all_equal(
    jax.device_get(uniform), jax.device_get(sj.uniform_soup(models))
  )


def state_specs():
  params = {
    "block/kernel": spec(3, 8, 16),
    "head/kernel": spec(16, 10),
    "head/bias": spec(10),
  }
  moments = {
    "mu": params,
    "v_row": {"block/kernel": spec(3, 8), "head/kernel": spec(1)},
  }
  return params, {"step": spec(), "params": params, "opt": (moments,)}


def test_moments_go_where_their_parameters_go():
  mesh = sharding.make_mesh({"data": 4, "model": 2})
  params, state = state_specs()
  rules = [("block/kernel", (None, "model")), ("head", "replicated")]
  result = sharding.of_state(mesh, state, params, rules)
  expected = P(None, None, "model")
  assert result["params"]["block/kernel"].spec == expected
  assert result["opt"][0]["mu"]["block/kernel"].spec == expected
  assert result["opt"][0]["v_row"]["block/kernel"].spec == P()
  assert result["params"]["head/kernel"].spec == P() == result["step"].spec


def test_a_state_under_fsdp():
  mesh = sharding.make_mesh({"data": 4, "model": 2})
  params, state = state_specs()
  result = sharding.of_state(
    mesh, state, params, [(".", "fsdp")], fsdp_min_size=20
  )
  assert result["params"]["head/kernel"].spec == P("data", None)
  assert result["opt"][0]["mu"]["head/kernel"].spec == P("data", None)
  assert result["opt"][0]["v_row"]["block/kernel"].spec == P(None, "data")
  assert result["params"]["head/bias"].spec == P()


@pytest.mark.parametrize(
  "rules,problem",
  [
    ([("kernl", "fsdp")], "'kernl'"),
    ([("kernel", "fdsp")], "'fdsp' for 'kernel'"),
    ([("kernel", ("modle",))], "'modle'"),
    ([("head/bias", ("data",))], "'head/bias'"),
    ([("head", (None, "model"))], "'head/bias'"),
  ],
)
def test_bad_rules_for_a_state_are_named(rules, problem):
  mesh = sharding.make_mesh({"data": 4, "model": 2})
  params, state = state_specs()
  with pytest.raises(ValueError, match=problem):
    sharding.of_state(mesh, state, params, rules)


def test_batch_sizes_that_devices_do_not_divide():
  mesh = sharding.make_mesh({"data": 4, "model": 2})
  sharding.share(mesh, "data", 12, "batch_size")
  with pytest.raises(ValueError, match="batch_size.*10.*8.*12"):
    sharding.share(mesh, "data", 10, "batch_size")
