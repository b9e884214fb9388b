# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import fractions
import math
import zlib

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import ml_dtypes
import numpy as np
import pytest

import soupjax as sj
from soupjax.soups import rules
from soupjax.soups.core import slices
from soupjax.soups.core.ingredient import Ingredient
from soupjax.soups.engine import combine
from soupjax.soups.engine import plan as planning
from soupjax.soups.engine import run as engine

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(d) for d in (np.float32, np.float16, BF16, np.int32, bool)]


def named(*trees):
  return [Ingredient.from_params(f"m{k}", t) for k, t in enumerate(trees)]


def run(rule, ingredients, *, base=None, hash_inputs=False, **more):
  check_finite = more.pop("check_finite", True)
  plan = planning.make(rule, ingredients, base=base, **more)
  parts = {k: [slices.whole(s.shape)] for k, s in plan.specs.items()}
  pieces = planning.pieces(plan, parts, plan.chunks)
  writer = engine.Arrays(plan)
  report = engine.run(
    plan, pieces, writer, hash_inputs=hash_inputs, check_finite=check_finite
  )
  return writer.leaves, report


@st.composite
def models(draw):
  """Models of the same random structure and mixed dtypes."""
  count = draw(st.integers(1, 4))
  seed = draw(st.integers(0, 1000))
  shapes = draw(
    st.lists(
      st.tuples(
        st.lists(st.integers(0, 6), max_size=3).map(tuple),
        st.sampled_from(DTYPES),
      ),
      min_size=1,
      max_size=5,
    )
  )
  rng = np.random.default_rng(seed)
  trees = [{} for _ in range(count)]
  for i, (shape, dtype) in enumerate(shapes):
    same = (10 * rng.normal(size=shape)).astype(dtype)
    for tree in trees:
      new = rng.normal(size=shape) * 10.0 ** rng.integers(-3, 4)
      is_float = dtype.kind == "f" or dtype == BF16
      tree[f"leaf{i}"] = np.asarray(new if is_float else same).astype(dtype)
  return trees


@settings(deadline=None, max_examples=40)
@given(models(), st.integers(1, 3000), st.integers(1, 4))
def test_any_blocks_and_threads_give_the_bits_of_the_soup_in_memory(
  trees, block_bytes, threads
):
  merged, _ = run(
    rules.linear(), named(*trees), block_bytes=block_bytes, threads=threads
  )
  expected = sj.uniform_soup(named(*trees))
  for leaf, value in merged.items():
    assert value.dtype == trees[0][leaf].dtype
    assert value.tobytes() == np.asarray(expected[leaf]).tobytes(), leaf


@settings(deadline=None, max_examples=30)
@given(models(), st.integers(100, 3000), st.data())
def test_within_one_ulp_of_the_exact_weighted_mean(trees, block_bytes, data):
  weights = [data.draw(st.integers(1, 64)) / 8 for _ in trees]
  merged, _ = run(rules.linear(weights), named(*trees), block_bytes=block_bytes)
  for leaf, value in merged.items():
    if value.dtype.kind != "f" and value.dtype != BF16:
      assert np.array_equal(value, trees[0][leaf])
      continue
    eps = float(ml_dtypes.finfo(value.dtype).eps)
    tiny = float(ml_dtypes.finfo(value.dtype).tiny)
    for at in np.ndindex(value.shape):
      exact = sum(
        fractions.Fraction(w) * fractions.Fraction(float(t[leaf][at]))
        for w, t in zip(weights, trees)
      ) / fractions.Fraction(sum(weights))
      # One ulp, but of the summands where they nearly cancel.
      size = max(abs(float(t[leaf][at])) for t in trees)
      ulp = max(
        2.0 ** math.floor(math.log2(max(abs(exact), tiny))) * eps,
        size * 2.0**-34,
        tiny * eps,
      )
      assert abs(float(value[at]) - exact) <= ulp


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
def test_equal_models_come_back_bit_for_bit(dtype):
  tree = {"w": np.random.default_rng(0).normal(size=999).astype(dtype)}
  tree["w"][:3] = [-0.0, 1e-5, 3.0]
  for rule in (rules.linear(), rules.linear([1.0, 2.0, 0.3])):
    merged, _ = run(rule, named(tree, tree, tree), block_bytes=500)
    assert merged["w"].tobytes() == tree["w"].tobytes()


def test_never_accumulates_in_bfloat16():
  # 256 + 1 is 256 in bfloat16, and the mean of these is 257.
  trees = [{"w": np.full(4, v, BF16)} for v in (256, 258, 256, 258)]
  merged, _ = run(rules.linear(), named(*trees), dtype="float32")
  assert (merged["w"] == 257).all()
  tree = {"w": np.full(4, 60000, np.float16)}
  merged, _ = run(rules.linear(), named(tree, tree))
  assert (merged["w"] == 60000).all()


def test_mixed_dtypes_are_averaged_as_they_are():
  a = {"w": np.array([1.0, 2.0], np.float32)}
  b = {"w": np.array([2.0, 4.0], BF16)}
  for trees in ([a, b], [b, a]):
    merged, _ = run(rules.linear(), named(*trees))
    assert merged["w"].dtype == np.float32
    assert merged["w"].tolist() == [1.5, 3.0]


def test_dtypes_that_vary_by_model_and_leaf():
  rng = np.random.default_rng(0)
  trees = [
    {
      name: rng.normal(size=5).astype(dtype)
      for name, dtype in zip("abc", dtypes)
    }
    for dtypes in ((np.float32, BF16, BF16), (BF16, np.float32, BF16))
  ]
  soup, _ = run(rules.linear(), named(*trees))
  for name, leaf in soup.items():
    alone, _ = run(rules.linear(), named(*({name: t[name]} for t in trees)))
    assert leaf.dtype == alone[name].dtype
    np.testing.assert_array_equal(leaf, alone[name])


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_eight_bits(dtype):
  trees = [{"w": np.array([v, -v]).astype(dtype)} for v in (1.0, 3.0)]
  merged, _ = run(rules.linear(), named(*trees))
  assert merged["w"].dtype == dtype
  assert merged["w"].astype(float).tolist() == [2, -2]
  trees[1]["w"] = trees[1]["w"].astype(BF16)
  merged, _ = run(rules.linear(), named(*trees))
  assert merged["w"].dtype == np.float32 and merged["w"].tolist() == [2, -2]


def test_select_keep_weights_and_share():
  base = Ingredient.from_params("base", {k: np.zeros(3, "f") for k in "abcd"})
  trees = [{k: np.full(3, v, "f") for k in "abcd"} for v in (1.0, 3.0)]
  select = {"a": "keep", "b": (0.0, 1.0), "c": 0.25}
  merged, _ = run(
    rules.linear(), named(*trees), base=base, select=select, dtype="bfloat16"
  )
  values = {k: float(v[0]) for k, v in merged.items()}
  assert values == {"a": 0.0, "b": 3.0, "c": 0.5, "d": 2.0}
  assert {v.dtype for v in merged.values()} == {BF16}


def test_integers_that_differ_are_named():
  trees = [{"n": np.arange(9), "w": np.ones(2, "f")} for _ in range(3)]
  trees[2]["n"][7] += 1
  with pytest.raises(ValueError, match="'n'.*int64.*'m2'.*'m0'"):
    run(rules.linear(), named(*trees), block_bytes=16)
  merged, _ = run(rules.linear(), named(*trees), select={"n": "skip"})
  assert list(merged) == ["w"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(value):
  trees = [{"a": np.ones(50, "f"), "b": np.ones(50, "f")} for _ in range(3)]
  trees[1]["b"][33] = value
  with pytest.raises(ValueError, match=f"'m1'.*{value}.*'b'"):
    run(rules.linear(), named(*trees), block_bytes=640)
  merged, _ = run(rules.linear(), named(*trees), check_finite=False)
  assert not np.isfinite(merged["b"][33]) and np.isfinite(merged["a"]).all()


def test_overflow_of_the_output_is_named():
  tree = {"w": np.full(3, 1e5, np.float32)}
  with pytest.raises(ValueError, match="float16.*65504.*'w'"):
    run(rules.linear(), named(tree, tree), dtype="float16")


def test_old_content_of_a_buffer_does_not_leak():
  # These integers are NaN if taken as floats, and they are first in the buffer.
  tree = {"n": np.full(64, 0x7FC00000, np.int32), "w": np.ones(3, "f")}
  merged, _ = run(rules.linear(), named(tree, tree), threads=1)
  assert merged["w"].tolist() == [1, 1, 1]


def test_checksums_and_bytes():
  trees = [{"w": np.arange(100, dtype="f") + k} for k in range(2)]
  _, report = run(
    rules.linear(), named(*trees), block_bytes=160, hash_inputs=True
  )
  assert report.bytes_read == 800 and report.bytes_written == 400
  for tree, sums in zip(trees, report.checksums):
    assert sums == {"w": zlib.crc32(tree["w"].tobytes())}


def test_one_compilation_for_all_blocks():
  trees = [{f"l{i}": np.ones(i + 7, "f") for i in range(20)} for _ in range(2)]
  compiled = combine.run._tuned
  compiled.clear_cache()
  run(rules.linear(), named(*trees), block_bytes=999)
  assert compiled._cache_size() == 1


def test_errors_of_a_reader_end_the_mix():
  def reader(leaf, index):
    raise OSError("gone")

  model = named({"w": np.ones(3, "f")})[0]
  broken = Ingredient(
    name="x", specs=model.specs, treedef=model.treedef, reader=reader
  )
  with pytest.raises(OSError, match="gone"):
    run(rules.linear(), [model, broken])


def test_progress_ends_with_all():
  calls = []
  plan = planning.make(
    rules.linear(), named({"w": np.ones(100, "f")}), block_bytes=100
  )
  parts = {"w": [slices.whole((100,))]}
  engine.run(
    plan,
    planning.pieces(plan, parts, {}),
    engine.Arrays(plan),
    progress=lambda *a: calls.append(a),
  )
  assert calls[-1] == (400, 400) and len(calls) > 5


def test_a_mesh_of_any_axis_type_is_read():
  mesh = jax.make_mesh((8,), ("x",))
  array = jax.device_put(
    np.arange(16, dtype="f"), jax.sharding.NamedSharding(mesh, jax.P("x"))
  )
  merged, _ = run(rules.linear(), named({"w": array}, {"w": array * 3}))
  assert np.array_equal(merged["w"], np.arange(16) * 2)


def test_too_little_memory_is_explained(monkeypatch):
  models = [sj.Ingredient.from_params(n, {"w": np.ones(9, "f")}) for n in "ab"]

  def array(*_):
    raise MemoryError

  monkeypatch.setattr("soupjax.soups.engine.blocks.Buffer.array", array)
  with pytest.raises(ValueError, match="not enough memory.* MB.*block_bytes"):
    sj.mix(sj.rules.linear(), models)
