# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Promises of all rules: their bits do not depend on how work is divided."""

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import ml_dtypes
import numpy as np
import pytest

import soupjax as sj
from soupjax import sharding
from soupjax.soups import rules
from soupjax.soups.core import tree as trees
from soupjax.soups.engine import combine, first_pass
from soupjax.soups.engine import plan as planning

BF16 = ml_dtypes.bfloat16
SHAPES = {
  "block_0/kernel": (16, 24),
  "block_0/bias": (24,),
  "block_1/kernel": (3, 8, 5),
  "block_1/scale": (),
  "empty": (0, 3),
  "head/kernel": (40, 7),
}


def tree(seed, *, dtype=np.float32, size=1.0):
  rng = np.random.default_rng(seed)
  made = {k: size * rng.normal(size=s) for k, s in SHAPES.items()}
  made = {k: np.asarray(v).astype(dtype) for k, v in made.items()}
  return {**made, "step": np.int32(7)}


BASE = tree(0)
MODELS = [
  {k: (v + d[k] if k != "step" else v).astype(v.dtype) for k, v in BASE.items()}
  for d in (tree(k, size=0.1) for k in (1, 2, 3))
]
FISHERS = [{k: v**2 for k, v in tree(k).items()} for k in (4, 5, 6)]
GRAMS = [
  {"head/kernel": np.cov(np.random.default_rng(k).normal(size=(40, 99)))}
  for k in (7, 8, 9)
]
GRAMS = [{k: v.astype("f") for k, v in g.items()} for g in GRAMS]

WEIGHTS = {"kernel": [1.0, 2.0, 0.5], "": [3.0, 1.0, 2.0]}

ELEMENTWISE = {
  "linear": rules.linear([1.0, 2.0, 0.5]),
  "sum": rules.linear([1.0, 2.0, 0.5], normalize=False),
  "lerp": rules.lerp([0.1, 0.7]),
  "task_arithmetic": rules.task_arithmetic({"head": 0.2, "": 0.4}),
  "ties": rules.ties(0.3, 0.7),
  "ties_leaf": rules.ties(0.3, [0.2, 0.9], scope="leaf", weights=[1, 2, 3]),
  "ties_peft": rules.ties(0.3, compat="peft", weights=[1, 2, 3]),
  "dare": rules.dare(0.3, 0.5),
  "dare_ties": rules.dare(0.3, elect=True),
  "breadcrumbs": rules.breadcrumbs(0.3, 0.1),
  "model_stock": rules.model_stock(),
  "model_stock_model": rules.model_stock(scope="model"),
  "geometric_median": rules.geometric_median(),
  "karcher": rules.karcher(),
  "linear_by_leaf": rules.linear(WEIGHTS),
  "geometric_median_by_leaf": rules.geometric_median(WEIGHTS),
}
# These read more, or whole leaves.
OTHERS = {
  "fisher": rules.fisher(FISHERS),
  "fisher_by_leaf": rules.fisher(FISHERS, weights=WEIGHTS),
  "regmean": rules.regmean(GRAMS),
  "dare_mergekit": rules.dare(0.3, compat="mergekit"),
  "della": rules.della(0.5),
  "della_mergekit": rules.della(0.5, compat="mergekit"),
  "sce": rules.sce(0.3),
  "tsv": rules.tsv(rows={"block_1/kernel": 2}),
  "iso_c": rules.iso_c(0.5),
}
RULES = {**ELEMENTWISE, **OTHERS, "slerp": rules.slerp(0.3)}


def models(name):
  chosen = MODELS[:2] if name == "slerp" else MODELS
  # As files are called: random rules go by these names.
  return [
    sj.Ingredient.from_params(f"m{k}.safetensors", tree)
    for k, tree in enumerate(chosen)
  ]


def mix(name, **more):
  base = sj.Ingredient.from_params("base", BASE)
  return sj.mix(RULES[name], models(name), base=base, **more)


def same(result, expected):
  assert set(result) == set(expected)
  for leaf, value in expected.items():
    a, b = np.asarray(result[leaf]), np.asarray(value)
    assert (a.dtype, a.shape) == (b.dtype, b.shape), leaf
    assert a.tobytes() == b.tobytes(), leaf


@pytest.fixture(scope="module")
def merged():
  return {name: mix(name).params for name in RULES}


@pytest.mark.parametrize("name", RULES)
def test_blocks_and_threads(name, merged):
  for block_bytes, threads in ((1, 1), (3000, 3), (9000, 2)):
    result = mix(name, block_bytes=block_bytes, threads=threads).params
    same(result, merged[name])


@settings(deadline=None, max_examples=30)
@given(
  st.sampled_from(
    ["ties", "ties_leaf", "dare", "breadcrumbs", "model_stock", "della", "sce"]
  ),
  st.lists(
    st.tuples(
      st.lists(st.integers(0, 7), max_size=3).map(tuple),
      st.sampled_from([np.float32, np.float16, BF16]),
    ),
    min_size=2,
    max_size=4,
  ),
  st.integers(1, 5000),
  st.integers(0, 99),
)
def test_any_shapes_and_dtypes(name, leaves, block_bytes, seed):
  rng = np.random.default_rng(seed)
  base, *models = [
    {
      f"block_{i}": np.asarray(rng.normal(size=shape)).astype(dtype)
      for i, (shape, dtype) in enumerate(leaves)
    }
    for _ in range(4)
  ]
  runs = [
    sj.mix(
      RULES[name],
      [sj.Ingredient.from_params(f"m{k}", t) for k, t in enumerate(models)],
      base=sj.Ingredient.from_params("base", base),
      block_bytes=size,
    ).params
    for size in (block_bytes, 1 << 20)
  ]
  for leaf, value in base.items():
    assert runs[0][leaf].dtype == value.dtype
    assert runs[0][leaf].shape == value.shape
  same(*runs)


@pytest.mark.parametrize("name", RULES)
def test_eight_devices(name, merged):
  mesh = sharding.make_mesh({"x": 4, "y": 2})

  def where(leaf, spec):
    axes = [
      "x" if i == 0 and n % 4 == 0 else "y" if n % 2 == 0 and i == 1 else None
      for i, n in enumerate(spec.shape)
    ]
    return jax.sharding.NamedSharding(mesh, jax.P(*axes))

  result = mix(name, sharding=where, block_bytes=3000).params
  assert len(result["block_0/kernel"].sharding.device_set) == 8
  same(result, merged[name])


@pytest.mark.parametrize("name", RULES)
def test_file_to_file(name, merged, tmp_path):
  sj.save_params(tmp_path / "base.safetensors", BASE)
  for one in models(name):
    sj.save_params(tmp_path / one.name, one.load())
  out = str(tmp_path / "out.npz")
  sj.mix(
    RULES[name],
    [str(tmp_path / one.name) for one in models(name)],
    base=tmp_path / "base.safetensors",
    out=out,
  )
  result = jax.tree.leaves(sj.load_params(out))
  expected = jax.tree.leaves(merged[name])
  assert {a.tobytes() for a in map(np.asarray, result)} == {
    a.tobytes() for a in map(np.asarray, expected)
  }
  assert sj.provenance(out)["rule"] == RULES[name].name


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_compiled_for_whole_leaves_on_a_mesh(name, merged):
  # As part of somebody else's program: other shapes, other fusions.
  rule = RULES[name]
  base = sj.Ingredient.from_params("base", BASE)
  plan, _ = first_pass.measured(planning.make(rule, models(name), base=base))
  mesh = sharding.make_mesh({"x": 8})
  for leaf in ("block_0/kernel", "head/kernel"):
    shard = jax.sharding.NamedSharding(mesh, jax.P("x"))
    stack = tuple(jax.device_put(t[leaf], shard) for t in MODELS)
    start = jax.device_put(BASE[leaf], shard) if rule.needs_base else None
    values = dict(plan.groups[leaf].values)
    if rule.indexed:
      place = np.arange(BASE[leaf].size, dtype=np.uint32).reshape(
        BASE[leaf].shape
      )
      values["index"] = np.stack([place, 0 * place])
    with jax.numpy_dtype_promotion("strict"):
      result = jax.jit(rule.combine)(stack, start, values)
    assert (
      np.asarray(result).tobytes() == np.asarray(merged[name][leaf]).tobytes()
    )


@pytest.mark.parametrize("name", RULES)
def test_bfloat16_is_widened_first(name):
  rule = RULES[name]

  def run(dtype):
    chosen = MODELS[:2] if name == "slerp" else MODELS
    cast = [
      {k: v.astype(BF16).astype(dtype) for k, v in t.items()} for t in chosen
    ]
    base = {k: v.astype(BF16).astype(dtype) for k, v in BASE.items()}
    return sj.mix(
      rule,
      [sj.Ingredient.from_params(f"m{k}", t) for k, t in enumerate(cast)],
      base=sj.Ingredient.from_params("base", base),
      dtype="float32",
      select={"step|empty": "keep"},
    ).params

  same(run(BF16), run(np.float32))


@pytest.mark.parametrize("name", RULES)
def test_select_goes_with_every_rule(name, merged):
  select = {"scale": "keep", "block_0/bias": 0.25, "empty": "skip"}
  result, _ = trees.flatten(mix(name, select=select).params)
  assert set(result) == set(BASE) - {"empty"}
  assert result["block_1/scale"] == BASE["block_1/scale"]
  if name in ("ties", "geometric_median", "model_stock_model"):
    return  # These look at the whole model, of which a leaf has gone.
  assert np.array_equal(result["head/kernel"], merged[name]["head/kernel"])
  start = BASE["block_0/bias"].astype("d")
  expected = start + 0.25 * (merged[name]["block_0/bias"] - start)
  assert np.abs(result["block_0/bias"] - expected).max() < 1e-6


@pytest.mark.parametrize("name", [n for n in RULES if RULES[n].needs_base])
def test_equal_models_are_the_base(name):
  if name == "sce":
    pytest.skip("needs two models that differ: all variances are equal.")
  base = sj.Ingredient.from_params("base", BASE)
  same_models = [sj.Ingredient.from_params(f"m{k}", BASE) for k in range(3)]
  result = sj.mix(RULES[name], same_models, base=base).params
  same(result, BASE)


@pytest.mark.parametrize("name", [n for n in RULES if n != "slerp"])
def test_order_of_the_ingredients(name):
  # Weights and statistics go with their ingredients.
  def turned(at):
    return {leaf: np.array(one)[at] for leaf, one in WEIGHTS.items()}

  make = {
    "linear": lambda at: rules.linear(np.array([1.0, 2.0, 0.5])[at]),
    "sum": lambda at: rules.linear(
      np.array([1.0, 2.0, 0.5])[at], normalize=False
    ),
    "ties_leaf": lambda at: rules.ties(
      0.3, [0.2, 0.9], scope="leaf", weights=np.array([1, 2, 3])[at]
    ),
    "ties_peft": lambda at: rules.ties(
      0.3, compat="peft", weights=np.array([1, 2, 3])[at]
    ),
    "fisher": lambda at: rules.fisher([FISHERS[k] for k in at]),
    "fisher_by_leaf": lambda at: rules.fisher(
      [FISHERS[k] for k in at], weights=turned(at)
    ),
    "linear_by_leaf": lambda at: rules.linear(turned(at)),
    "geometric_median_by_leaf": lambda at: rules.geometric_median(turned(at)),
    "regmean": lambda at: rules.regmean([GRAMS[k] for k in at]),
  }.get(name, lambda at: RULES[name])
  base, pool = sj.Ingredient.from_params("base", BASE), models(name)
  first, second = (
    sj.mix(make(at), [pool[k] for k in at], base=base).params
    for at in ([0, 1, 2], [2, 0, 1])
  )
  for leaf in BASE:
    np.testing.assert_allclose(first[leaf], second[leaf], rtol=0, atol=1e-5)


def many(k):
  """Every registered rule but slerp, for k ingredients."""
  w = np.linspace(0.5, 2.0, k)
  by_leaf = {"block_0": w}
  fishers = [{n: np.ones(s, "f") for n, s in FEW.items()}] * k
  grams = [{"block_0/kernel": np.eye(5, dtype="f")}] * k
  return {
    "linear": [rules.linear(), rules.linear(w), rules.linear(by_leaf)],
    "uniform": [rules.RULES.get("uniform")()],
    "weighted": [rules.linear(w, normalize=False)],
    "schedule": [rules.RULES.get("schedule")("linear", k)],
    "lerp": [rules.lerp(0.4)],
    "interpolate": [rules.lerp({"block_0": [0.1, 0.4]})],
    "task_arithmetic": [rules.task_arithmetic(weights=by_leaf)],
    "ties": [rules.ties(0.3, weights=w)],
    "dare": [rules.dare(0.3), rules.dare(0.3, compat="mergekit")],
    "della": [rules.della(0.5)],
    "breadcrumbs": [rules.breadcrumbs(0.3, elect=True)],
    "sce": [rules.sce(0.3)],
    "model_stock": [rules.model_stock()],
    "geometric_median": [rules.geometric_median(w)],
    "karcher": [rules.karcher(w)],
    "fisher": [rules.fisher(fishers)],
    "regmean": [rules.regmean(grams)],
    "tsv": [rules.tsv()],
    "iso_c": [rules.iso_c()],
  }


FEW = {"block_0/kernel": (5, 3)}


@pytest.mark.parametrize("name", sorted(set(rules.RULES) - {"slerp"}))
def test_programs_do_not_grow_with_the_models(name, monkeypatch):
  def traced(group, stack, base, values, results):
    program = jax.make_jaxpr(group.combine)(stack, base, values)
    sizes.add(str(program).count(" = "))
    return np.zeros(stack.shape[1:], group.out_dtype)

  def mixed(k):
    models = [
      {n: rng.normal(size=s).astype("f") for n, s in FEW.items()}
      for _ in range(k + 1)
    ]
    for rule in many(k)[name]:
      sj.mix(rule, models[1:], base=models[0], threads=1)

  monkeypatch.setattr(combine, "run", traced)
  rng, sizes = np.random.default_rng(0), set()
  mixed(25)
  few, sizes = sizes, set()
  mixed(33)  # The same rest after rounds of 8.
  assert few == sizes and max(few) < 5000


@pytest.mark.parametrize("name", [n for n in RULES if RULES[n].needs_base])
def test_a_base_is_asked_for(name):
  with pytest.raises(ValueError, match="base="):
    sj.mix(RULES[name], models(name))


WEIGHTED = {
  "linear": rules.linear,
  "sum": lambda weights: rules.linear(weights, normalize=False),
  "task_arithmetic": lambda weights: rules.task_arithmetic(
    0.3, weights=weights
  ),
  "ties": lambda weights: rules.ties(0.3, weights=weights),
  "dare": lambda weights: rules.dare(0.3, [0.2, 0.9], weights=weights),
  "dare_mergekit": lambda weights: rules.dare(
    0.3, weights=weights, elect=True, compat="mergekit"
  ),
  "della": lambda weights: rules.della(0.5, weights=weights),
  "breadcrumbs": lambda weights: rules.breadcrumbs(0.3, 0.1, weights=weights),
  "fisher": lambda weights: rules.fisher(FISHERS, weights=weights),
  "geometric_median": rules.geometric_median,
  "geometric_median_leaf": lambda weights: rules.geometric_median(
    weights, scope="leaf"
  ),
  "karcher": rules.karcher,
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_may_differ_from_leaf_to_leaf(name):
  base = sj.Ingredient.from_params("base", BASE)

  def mixed(weights):
    return sj.mix(WEIGHTED[name](weights), models(name), base=base).params

  result, differ = mixed(WEIGHTS), 0
  kernels, others = (mixed(weights) for weights in WEIGHTS.values())
  same(result, {k: (kernels if "kernel" in k else others)[k] for k in result})
  for leaf in result:
    differ += not np.array_equal(kernels[leaf], others[leaf])
  assert differ > 3
  with pytest.raises(ValueError, match="'nothing'"):
    mixed({"nothing": [1, 1, 1], "": [1, 2, 3]})
  with pytest.raises(ValueError, match="weights .* leaves"):
    mixed({"kernel": [1, 1, 1]})
  with pytest.raises(ValueError, match="3 ingredients"):
    mixed({"kernel": [1, 1], "": [1, 2, 3]})


@pytest.mark.parametrize(
  "weights,message",
  [
    ({}, "weights.*empty"),
    ({"a": 1.0}, r"weights\['a'\]"),
    ({"a": [1, np.nan]}, r"weights\['a'\]"),
    ({"a": [1, True]}, r"weights\['a'\]"),
  ],
)
@pytest.mark.parametrize("name", ["linear", "ties", "karcher", "fisher"])
def test_bad_weights_of_leaves(name, weights, message):
  with pytest.raises(ValueError, match=message):
    WEIGHTED[name](weights)
