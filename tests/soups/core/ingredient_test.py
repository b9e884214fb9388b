# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax.soups.core import ingredient as ingredient_lib

AxisType = jax.sharding.AxisType
P = jax.sharding.PartitionSpec


def make(seed=0):
  rng = np.random.default_rng(seed)
  return {
    "a": rng.normal(size=(8, 4)).astype(np.float32),
    "b": {"c": np.float32(rng.normal()), "step": np.int32(7)},
  }


def lazy(name, params, calls=None):
  """An ingredient that is read leaf by leaf, as from disk."""
  ingredient = sj.Ingredient.from_params(name, params)

  def read(leaf, index):
    if calls is not None:
      calls.append((name, leaf, index))
    return ingredient.reader(leaf, index)

  return dataclasses.replace(ingredient, reader=read, path=f"/nowhere/{name}")


RECIPES = {
  "uniform": sj.uniform_soup,
  "greedy": lambda i: sj.greedy_soup(i, lambda params: pytest.fail("called")),
  "learned": lambda i: sj.learned_soup(
    i, lambda params, beta: pytest.fail("called"), steps=1
  ),
}
KINDS = {"in_memory": sj.Ingredient.from_params, "lazy": lazy}
recipes = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
kinds = pytest.mark.parametrize("wrap", KINDS.values(), ids=KINDS)


def test_specs_and_bytes_need_no_reading():
  calls = []
  ingredient = lazy("m", make(), calls)
  assert {n: (s.shape, s.dtype.name) for n, s in ingredient.specs.items()} == {
    "a": ((8, 4), "float32"),
    "b/c": ((), "float32"),
    "b/step": ((), "int32"),
  }
  assert ingredient.num_bytes == 4 * 34
  assert not calls


def test_nothing_is_copied_in_memory():
  params = make()
  assert sj.Ingredient.from_params("m", params).load()["a"] is params["a"]


@kinds
def test_read_by_index(wrap):
  ingredient = wrap("m", make())
  index = (slice(2, 5), slice(None))
  np.testing.assert_array_equal(
    ingredient.read("a", index=index), make()["a"][2:5]
  )
  with pytest.raises(ValueError, match="'m'.*'z'"):
    ingredient.read("z")
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  with pytest.raises(ValueError, match="an index or a sharding, not both"):
    ingredient.read("a", index=index, sharding=device)


@kinds
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_every_device_gets_its_slice(axis_type, wrap):
  mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
  sharding = jax.sharding.NamedSharding(mesh, P("x"))
  array = wrap("m", make()).read("a", sharding=sharding)
  assert array.sharding == sharding
  np.testing.assert_array_equal(array, make()["a"])
  for shard in array.addressable_shards:
    np.testing.assert_array_equal(shard.data, make()["a"][shard.index])


def test_replicas_share_one_read():
  mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
  for spec, expected in ((P("x"), 4), (P(None, "y"), 2), (P(), 1)):
    calls = []
    sharding = jax.sharding.NamedSharding(mesh, spec)
    array = lazy("m", make(), calls).read("a", sharding=sharding)
    assert len(array.addressable_shards) == 8
    assert len(calls) == expected


def test_load_with_a_sharding_for_every_leaf():
  mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))

  def sharding(leaf, spec):
    return jax.sharding.NamedSharding(mesh, P("x") if leaf == "a" else P())

  loaded = lazy("m", make()).load(sharding=sharding)
  assert loaded["a"].sharding.spec == P("x")
  assert loaded["b"]["c"].sharding.spec == P()
  jax.tree.map(np.testing.assert_array_equal, loaded, make())


def test_in_memory_reads_once_and_keeps_the_metadata():
  calls = []
  ingredient = dataclasses.replace(
    lazy("m", make(), calls), metrics={"acc": 0.5}, hyperparameters={"lr": 1}
  )
  loaded = ingredient.in_memory()
  for _ in range(3):
    jax.tree.map(np.testing.assert_array_equal, loaded.load(), make())
  assert len(calls) == 3
  assert (loaded.name, loaded.metrics) == ("m", {"acc": 0.5})
  assert loaded.hyperparameters == {"lr": 1}


# Bad input, for every recipe, before any evaluation.


@recipes
def test_wrong_type_is_a_type_error(recipe):
  model = sj.Ingredient.from_params("m", make())
  with pytest.raises(TypeError, match="int: 3"):
    recipe([model, 3])


def test_no_ingredients():
  with pytest.raises(ValueError, match="ingredient"):
    sj.uniform_soup([])
  with pytest.raises(ValueError, match="ingredient"):
    RECIPES["greedy"]([])
  with pytest.raises(ValueError, match="two.*1"):
    RECIPES["learned"]([sj.Ingredient.from_params("m", make())])


@recipes
def test_duplicate_names(recipe):
  twice = [sj.Ingredient.from_params("m", make(k)) for k in range(2)]
  with pytest.raises(ValueError, match="'m'"):
    recipe(twice)


@recipes
@kinds
def test_trees_that_differ(recipe, wrap):
  other = make(1)
  other["a"] = other["a"][:, :3]
  with pytest.raises(ValueError) as e:
    recipe([wrap("first", make()), wrap("fine", make()), wrap("odd", other)])
  assert "'odd' has shape (8, 3) at leaf 'a', where 'first' has (8, 4)" in str(
    e.value
  )


@recipes
@kinds
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(recipe, wrap, value):
  bad = make(1)
  bad["a"][7, 3] = value
  message = "Ingredient 'bad' has NaN or infinity in leaf 'a'"
  with pytest.raises(ValueError, match=message):
    recipe([wrap("good", make()), wrap("bad", bad), wrap("ok", make(2))])


@recipes
@kinds
def test_integer_leaves_that_differ(recipe, wrap):
  other = make(1)
  other["b"]["step"] = np.int32(8)
  message = "Leaf 'b/step' has dtype int32.*'other' and 'first' disagree"
  with pytest.raises(ValueError, match=message):
    recipe([wrap("first", make()), wrap("other", other)])


@pytest.mark.parametrize("name", ["uniform", "greedy", "learned"])
def test_equal_integer_leaves_are_kept(name):
  big = np.array([2**40, -1], np.int64)
  trees = [{"w": np.float32([k, 2]), "n": big} for k in range(2)]
  pair = [sj.Ingredient.from_params(f"m{k}", t) for k, t in enumerate(trees)]
  soup = {
    "uniform": sj.uniform_soup,
    "greedy": lambda i: sj.greedy_soup(i, lambda p: 0.0).params,
    "learned": lambda i: (
      sj.learned_soup(i, lambda p, beta: (beta * p["w"]).sum(), steps=1).params
    ),
  }[name](pair)
  assert soup["n"].dtype == np.int64
  np.testing.assert_array_equal(soup["n"], big)


# rank_by.


def scored(*scores):
  return [
    sj.Ingredient.from_params(f"m{k}", make(), metrics={"val": score})
    for k, score in enumerate(scores)
  ]


def test_rank_by_puts_the_best_first_and_keeps_ties_in_order():
  def names(mode):
    ranked = sj.rank_by(scored(0.1, 0.9, 0.5, 0.9, 0.1), "val", mode=mode)
    return [i.name for i in ranked]

  assert names("max") == ["m1", "m3", "m2", "m0", "m4"]
  assert names("min") == ["m0", "m4", "m2", "m1", "m3"]


def test_rank_by_refuses():
  with pytest.raises(ValueError, match=r"'m0'.*'x'.*\['val'\]"):
    sj.rank_by(scored(0.1), "x")
  with pytest.raises(ValueError, match="'m1'.*NaN"):
    sj.rank_by(scored(0.1, np.nan), "val")
  with pytest.raises(ValueError, match="mode.*'up'"):
    sj.rank_by(scored(0.1), "val", mode="up")


def test_rank_by_takes_a_generator_and_refuses_text():
  ranked = sj.rank_by((i for i in scored(0.1, 0.9)), "val")
  assert [i.name for i in ranked] == ["m1", "m0"]
  with pytest.raises(ValueError, match="val.*'m0'.*'0.1'"):
    sj.rank_by(scored("0.1", 0.5), "val")


# Not models.


@pytest.mark.parametrize(
  "given,error,message",
  [
    ({"a": make(), "b": make()}, ValueError, r"\['a', 'b'\]"),
    (
      {"a": sj.Ingredient.from_params("m", make())},
      ValueError,
      r"\['a'\]",
    ),
    ("runs/*", ValueError, r"runs/\*"),
    (None, TypeError, "NoneType"),
    (b"runs", TypeError, "bytes"),
    ({make, 1}, TypeError, "set"),
  ],
  ids=["dict", "dict of ingredients", "text", "none", "bytes", "set"],
)
@recipes
def test_not_models(recipe, given, error, message):
  with pytest.raises(error, match=message):
    recipe(given)


def test_one_model_where_several_are_given():
  models = [sj.Ingredient.from_params(n, make()) for n in "ab"]
  with pytest.raises(ValueError, match="base.*2.*'b'"):
    ingredient_lib.as_ingredient(models, "base")
  assert ingredient_lib.as_ingredient(models[:1], "base") is models[0]


# Numbers of 64 bits, which JAX would cut.


BIG = np.array([2**40, -1], np.int64)


def test_in_memory_keeps_every_bit_of_integers():
  model = sj.Ingredient.from_params("m", {"w": np.ones(2, "f4"), "n": BIG})
  model = model.in_memory()
  assert isinstance(model.load()["w"], jax.Array)
  assert model.specs["n"].dtype == np.int64
  np.testing.assert_array_equal(model.load()["n"], BIG)


def test_in_memory_keeps_float64_on_the_host():
  model = sj.Ingredient.from_params("m", {"w": np.full(2, 1 / 3)}).in_memory()
  assert model.read("w").dtype == np.float64
  assert model.read("w")[0] == 1 / 3


@kinds
def test_a_sharding_does_not_cut_integers(wrap):
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  model = wrap("m", {"w": np.ones(2, "f4"), "n": BIG})
  np.testing.assert_array_equal(model.load(sharding=device)["n"], BIG)


@kinds
@pytest.mark.parametrize(
  "index,message",
  [
    (slice(0, 3), r"slice\(0, 3.*'a' of 'm'.*at most 2 slices"),
    ((0,), r"\(0,\) of leaf 'a' of 'm' .* 0, "),
    ((slice(5, 0, -1),), r"'a' of 'm' .*slice\(5, 0, -1\)"),
    ((slice(0, 1),) * 3, "'a' of 'm'"),
    (3, "Index 3 .*'a' of 'm'"),
  ],
)
def test_an_index_means_the_same_everywhere(wrap, index, message):
  with pytest.raises(ValueError, match=message):
    wrap("m", make()).read("a", index=index)
