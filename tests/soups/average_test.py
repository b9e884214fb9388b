# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soupjax as sj

P = jax.sharding.PartitionSpec


def make(seed, dtype=np.float32):
  rng = np.random.default_rng(seed)
  return {
    "encoder": {"kernel": rng.normal(size=(5, 8)).astype(dtype)},
    "head": [rng.normal(size=8).astype(dtype), np.asarray(1.5, dtype)],
  }


def ingredients_of(trees):
  return [sj.Ingredient.from_params(f"m{k}", t) for k, t in enumerate(trees)]


def assert_same_bits(got, want):
  got, want = jax.device_get((got, want))
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    assert a.dtype == b.dtype and a.shape == b.shape
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def assert_is_mean(got, trees):
  for values in zip(*(jax.tree.leaves(t) for t in [got, *trees])):
    np.testing.assert_allclose(
      np.float64(values[0]), np.mean(np.float64(values[1:]), 0), rtol=1e-6
    )


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("weights", [None, [0.1, 0.7, 3.0]])
def test_identical_ingredients_come_back_bit_for_bit(dtype, weights):
  tree = make(0, dtype)
  limits = jnp.finfo(dtype)
  tree["encoder"]["kernel"][0, :5] = [
    -0.0,
    limits.smallest_subnormal,
    limits.max,
    limits.min,
    -limits.tiny,
  ]
  soup = sj.uniform_soup(ingredients_of([tree] * 3), weights)
  assert_same_bits(soup, tree)


def test_weights_are_divided_by_their_sum():
  trees = [make(0), make(1)]
  soup = sj.uniform_soup(ingredients_of(trees), [1, 3])
  for a, b, s in zip(*map(jax.tree.leaves, [*trees, soup])):
    np.testing.assert_allclose(s, 0.25 * a + 0.75 * b, rtol=1e-5)
  scaled = sj.uniform_soup(ingredients_of(trees), [8, 24])
  assert_same_bits(scaled, soup)


def test_tiny_and_huge_weights_are_fine():
  trees = [make(0), make(1)]
  want = sj.uniform_soup(ingredients_of(trees), [1, 3])
  for size in (2.0**-130, 2.0**120):
    got = sj.uniform_soup(ingredients_of(trees), [size, 3 * size])
    assert_same_bits(got, want)


def test_mixed_dtypes_take_those_of_the_first():
  soup = sj.uniform_soup(ingredients_of([make(0, jnp.bfloat16), make(1)]))
  assert {leaf.dtype.name for leaf in jax.tree.leaves(soup)} == {"bfloat16"}


@pytest.mark.parametrize("weights", [None, [0.5, 0.3, 0.2]])
def test_sharded_soup_has_the_same_bits(weights):
  trees = [make(k) for k in range(3)]
  want = sj.uniform_soup(ingredients_of(trees), weights)
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

  def sharding(leaf, spec):
    divisible = spec.shape and spec.shape[-1] == 8
    axes = P(*[None] * (len(spec.shape) - 1), "x") if divisible else P()
    return jax.sharding.NamedSharding(mesh, axes)

  soup = sj.uniform_soup(ingredients_of(trees), weights, sharding=sharding)
  assert soup["encoder"]["kernel"].sharding.spec == P(None, "x")
  assert_same_bits(soup, want)


def test_linear_head_on_frozen_features_makes_soup_equal_ensemble():
  rng = np.random.default_rng(0)
  features = rng.normal(size=(50, 8)).astype(np.float32)
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  heads = [
    {"w": rng.normal(size=(8, 3)).astype(np.float32), "b": np.float32(k)}
    for k in range(4)
  ]
  for weights in (None, [0.1, 0.2, 0.3, 1.4]):
    soup = sj.uniform_soup(ingredients_of(heads), weights)
    logits = (features @ h["w"] + h["b"] for h in heads)
    ensemble = sj.ensemble_logits(logits, weights)
    np.testing.assert_allclose(
      features @ soup["w"] + soup["b"], ensemble, atol=2e-6
    )


# Containers.


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["kernel", "bias"],
  meta_fields=["name"],
)
@dataclasses.dataclass
class Dense:
  kernel: jax.Array
  bias: jax.Array
  name: str = "dense"


@jax.tree_util.register_pytree_with_keys_class
class State(dict):
  """A mapping with keys of its own, flattened as `nnx.State` is."""

  def tree_flatten_with_keys(self):
    keys = sorted(self)
    pairs = [(jax.tree_util.DictKey(k), self[k]) for k in keys]
    return pairs, tuple(keys)

  @classmethod
  def tree_unflatten(cls, keys, values):
    return cls(zip(keys, values))


@jax.tree_util.register_pytree_node_class
class Opaque:
  """A node that gives its children no names."""

  def __init__(self, *values):
    self.values = values

  def tree_flatten(self):
    return self.values, None

  @classmethod
  def tree_unflatten(cls, _, values):
    return cls(*values)


def linen_params(k):
  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(nn.relu(nn.Dense(4)(x)))

  return Model().init(jax.random.key(k), jnp.ones((1, 2)))


@pytest.mark.parametrize(
  "build",
  [
    make,
    linen_params,
    lambda k: Dense(jnp.full((2, 3), k + 0.5), jnp.full((3,), k - 0.25)),
    lambda k: State(layer=State(w=jnp.full((4,), k * 1.5)), b=jnp.ones(2) * k),
    lambda k: Opaque(jnp.ones((2,)) * k, jnp.ones((3,)) / (k + 1)),
    lambda k: (jnp.ones((2,)) * k, [jnp.zeros(1)], {"a": jnp.ones(1) * k}),
    lambda k: jnp.arange(4.0) * k,
  ],
  ids=["dict", "linen", "dataclass", "state", "opaque", "tuple", "array"],
)
def test_any_pytree_of_arrays_is_averaged(build):
  trees = [build(k) for k in range(3)]
  soup = sj.uniform_soup(ingredients_of(trees))
  assert jax.tree.structure(soup) == jax.tree.structure(trees[0])
  assert type(soup) is type(trees[0]) or isinstance(soup, jax.Array)
  assert_is_mean(soup, trees)


# WiSE-FT.


def test_wise_ft_ends_are_exact():
  pretrained, finetuned = make(0), make(1)
  # Nothing of the small ones is left in differences from the large ones.
  pretrained["head"][0][:] = [1e8, 1e-8, -1e8, 1, 1e30, 1e-30, 3, -0.0]
  finetuned["head"][0][:] = [1e-3 / 3, 1e8, 1 / 3, -0.0, 0.1, 1e30, 1e-40, 1]
  assert_same_bits(sj.wise_ft(pretrained, finetuned, 0), pretrained)
  assert_same_bits(sj.wise_ft(pretrained, finetuned, 1.0), finetuned)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_wise_ft_has_the_dtypes_of_the_pretrained(alpha):
  soup = sj.wise_ft(make(0), make(1, jnp.bfloat16), alpha)
  assert {leaf.dtype for leaf in jax.tree.leaves(soup)} == {np.dtype("f4")}


@pytest.mark.parametrize("alpha", [-0.3, 0.1, 0.5, 0.9, 1.2])
def test_wise_ft_of_a_linear_head_interpolates_outputs(alpha, recwarn):
  rng = np.random.default_rng(0)
  features = rng.normal(size=(20, 6)).astype(np.float32)
  a, b = ({"w": rng.normal(size=(6, 3)).astype(np.float32)} for _ in range(2))
  outputs = [features @ t["w"] for t in (a, b)]
  soup = sj.wise_ft(a, b, alpha)
  want = (1 - alpha) * outputs[0] + alpha * outputs[1]
  np.testing.assert_allclose(features @ soup["w"], want, atol=5e-6)
  assert not recwarn.list  # Extrapolation is intended.


def test_wise_ft_of_a_model_with_itself_is_that_model():
  for alpha in (-0.5, 0.3, 0.5, 1.7):
    assert_same_bits(sj.wise_ft(make(0), make(0), alpha), make(0))


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_wise_ft_refuses_alpha(alpha):
  with pytest.raises(ValueError, match="alpha"):
    sj.wise_ft(make(0), make(1), alpha)


def test_wise_ft_names_the_leaf_that_differs():
  other = make(1)
  other["encoder"]["kernel"] = other["encoder"]["kernel"][:4]
  message = r"'finetuned'.*\(4, 8\).*'encoder/kernel'.*'pretrained'.*\(5, 8\)"
  with pytest.raises(ValueError, match=message):
    sj.wise_ft(make(0), other, 0.5)


# Ensembles.


def test_ensemble_of_a_generator_holds_one_array_at_a_time():
  alive = []

  class Logits(np.ndarray):
    def __del__(self):
      alive.remove(id(self))

  def generate():
    for k in range(5):
      array = np.full((3, 2), float(k), np.float32).view(Logits)
      alive.append(id(array))
      assert len(alive) <= 2  # The last one is let go when this one comes.
      yield array
      del array

  got = sj.ensemble_logits(generate())
  assert got.dtype == np.float32 and got.shape == (3, 2)
  np.testing.assert_array_equal(got, np.full((3, 2), 2.0))


def test_ensemble_weights():
  logits = [np.float32([0, 1]), np.float32([2, 5])]
  got = sj.ensemble_logits(logits, [1, 3])
  np.testing.assert_allclose(got, [1.5, 4.0])
  one = np.float32([0.1, 1 / 3, -7.7])
  np.testing.assert_array_equal(sj.ensemble_logits([one] * 3, [0.1] * 3), one)


@pytest.mark.parametrize(
  "logits,weights,message",
  [
    ([], None, "one model"),
    ([np.ones(2), np.ones(3)], None, r"Logits 2.*\(3,\).*\(2,\)"),
    ([np.ones(2)], [1, 2], "2 weights.*1 models"),
    ([np.ones(2)] * 3, [1, 2], "2 weights.*3 models"),
    ([np.ones(2)] * 2, [1, -1], "sum to zero"),
    ([np.ones(2)] * 2, [1, np.nan], "must be finite"),
  ],
)
def test_ensemble_refuses(logits, weights, message):
  with pytest.raises(ValueError, match=message):
    sj.ensemble_logits(iter(logits), weights)


# Bad input.


@pytest.mark.parametrize(
  "weights,message",
  [
    ([1.0], r"\(1,\).*2"),
    ([1.0, 2.0, 3.0], r"\(3,\).*2"),
    ([[1.0, 2.0]], r"\(1, 2\).*2"),
    ([np.nan, 1.0], r"\[nan, 1.0\]"),
    ([np.inf, 1.0], "must be finite"),
    ([0.0, 0.0], r"\[0.0, 0.0\]"),
    ([1.0, -1.0], "sum to zero"),
    ([0.1, 0.2 - 0.3], "sum to zero"),
  ],
)
def test_bad_weights(weights, message):
  with pytest.raises(ValueError, match=message):
    sj.uniform_soup(ingredients_of([make(0), make(1)]), weights)


def test_negative_weights_warn_where_they_are_given():
  trees = [make(0), make(1)]
  with pytest.warns(UserWarning, match=r"negative: \[-1, 3\]") as caught:
    soup = sj.uniform_soup(ingredients_of(trees), [-1, 3])
  assert caught[0].filename == __file__
  for a, b, s in zip(*map(jax.tree.leaves, [*trees, soup])):
    np.testing.assert_allclose(s, -0.5 * a + 1.5 * b, rtol=1e-5)


def test_a_soup_that_overflows_is_an_error_not_an_infinity():
  ends = [
    sj.Ingredient.from_params("a", {"w": np.full(2, 60_000, np.float16)}),
    sj.Ingredient.from_params("b", {"w": np.full(2, -60_000, np.float16)}),
  ]
  with pytest.warns(UserWarning, match="negative"):
    with pytest.raises(ValueError, match="float16.*'w'"):
      sj.uniform_soup(ends, [2.0, -1.0])
  same = [ends[0], dataclasses.replace(ends[0], name="c")]
  np.testing.assert_array_equal(sj.uniform_soup(same)["w"], [60_000, 60_000])
  huge = [
    sj.Ingredient.from_params(n, {"w": np.full(2, v, np.float32)})
    for n, v in (("a", 3e38), ("b", -3e38))
  ]
  with pytest.warns(UserWarning, match="negative"):
    with pytest.raises(ValueError, match="overflows float32.*extrapolate"):
      sj.uniform_soup(huge, [2.0, -1.0])


@pytest.mark.parametrize("kind", [dict.fromkeys, set, str])
def test_weights_must_be_a_sequence_of_numbers(kind):
  with pytest.raises(ValueError, match="Weights"):
    sj.uniform_soup(ingredients_of([make(0), make(1)]), kind([1.0, 3.0]))


def test_weights_may_be_a_generator():
  pool = ingredients_of([make(0), make(1)])
  got = sj.uniform_soup(pool, (w for w in (1.0, 3.0)))
  assert_same_bits(got, sj.uniform_soup(pool, [1.0, 3.0]))
  logits = [np.float32([0, 1]), np.float32([2, 5])]
  got = sj.ensemble_logits(logits, (w for w in (1, 3)))
  np.testing.assert_allclose(got, [1.5, 4.0])


@pytest.mark.parametrize("alpha", ["0.5", None, np.ones(2)])
def test_alpha_must_be_a_number(alpha):
  with pytest.raises(ValueError, match="alpha"):
    sj.wise_ft(make(0), make(1), alpha)


@pytest.mark.parametrize("alpha", [0, 0.3, 1])
def test_wise_ft_takes_ingredients(alpha):
  ends = ingredients_of([make(0), make(1, jnp.bfloat16)])
  want = sj.wise_ft(make(0), make(1, jnp.bfloat16), alpha)
  assert_same_bits(sj.wise_ft(*ends, alpha), want)


@pytest.mark.parametrize(
  "logits,message",
  [
    ([None], "Logits 1 .*NoneType"),
    ([np.ones(2), np.float32([1, np.nan])], "Logits 2 have NaN"),
    ([np.float32([np.inf]), np.float32([-np.inf])], "ensemble has NaN"),
  ],
)
def test_ensemble_refuses_what_is_no_number(logits, message):
  with pytest.raises(ValueError, match=message):
    sj.ensemble_logits(logits)


def test_an_ensemble_may_mask_classes():
  masked = np.float32([1, -np.inf])
  np.testing.assert_array_equal(sj.ensemble_logits([masked] * 2), masked)


def test_python_numbers_are_leaves():
  soup = sj.uniform_soup([{"w": 1.0, "n": 3}, {"w": 2.0, "n": 3}])
  assert soup["w"].dtype == np.float64 and soup["w"] == 1.5
  assert soup["n"] == 3


def test_alpha_is_no_flag():
  with pytest.raises(
    ValueError, match="alpha must be a finite number, got True"
  ):
    sj.wise_ft(make(0), make(1), True)
