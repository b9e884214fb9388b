# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Equal coefficients give equal bits, whoever asks and on any mesh."""

import helpers
import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax.soups import average

RNG = np.random.default_rng(0)
MESH = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
SHARDED = jax.sharding.NamedSharding(MESH, jax.sharding.PartitionSpec("x"))
WEIGHTS = [0.2, 0.5, 0.3]


def trees(dtype):
  return [
    {"b": RNG.normal(size=8).astype(dtype), "w": RNG.normal(size=(8, 33))}
    for _ in range(3)
  ]


def loss(params, beta):
  return ((params["w"].astype(np.float32) - 0.1) ** 2).mean() * beta


def learned(models, sharding, **settings):
  soup = sj.learned_soup(
    models, loss, granularity="model", steps=1, sharding=sharding, **settings
  )
  return soup.params, soup.alphas["model"]


def same(params, want):
  for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(want), strict=True):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture(params=["float32", "bfloat16"])
def models(request):
  dtype = jax.numpy.dtype(request.param)
  return [jax.tree.map(lambda x: x.astype(dtype), t) for t in trees(dtype)]


@pytest.mark.parametrize("sharding", [None, SHARDED], ids=["1", "8"])
def test_weighted_means(models, sharding):
  want = sj.mix(sj.rules.linear(WEIGHTS), models).params
  same(sj.uniform_soup(models, WEIGHTS, sharding=sharding), want)
  same(sj.mix(sj.rules.linear(WEIGHTS), models, sharding=sharding).params, want)
  same(
    sj.search.Blend(models[0], models[1:], sharding=sharding)(WEIGHTS[1:]),
    want,
  )
  rule = sj.rules.task_arithmetic(1.0, weights=WEIGHTS[1:])
  same(sj.mix(rule, models[1:], base=models[0], sharding=sharding).params, want)
  params, alphas = learned(models, sharding, init=WEIGHTS)
  same(params, sj.uniform_soup(models, alphas))
  params, alphas = learned(
    models[1:], sharding, init=WEIGHTS[1:], base=models[0]
  )
  same(params, sj.search.Blend(models[0], models[1:])(alphas))


@pytest.mark.parametrize("sharding", [None, SHARDED], ids=["1", "8"])
def test_plain_means(models, sharding):
  want = sj.mix(sj.rules.linear(), models).params
  same(sj.uniform_soup(models, sharding=sharding), want)
  same(sj.greedy_soup(models, lambda _: 1.0, sharding=sharding).params, want)


@pytest.mark.parametrize("dtype,weights", [("float64", None), ("float32", 2)])
def test_many_models(dtype, weights, monkeypatch):
  rng = np.random.default_rng(1)
  models = [{"w": rng.normal(size=(3, 5)).astype(dtype)} for _ in range(35)]
  widths = []

  def counted(total, first, leaves, *rest, **options):
    widths.append(len(leaves))
    return sum_and_check(total, first, leaves, *rest, **options)

  sum_and_check = average._sum_and_check
  monkeypatch.setattr(average, "_sum_and_check", counted)
  weights = None if weights is None else np.linspace(0.1, weights, 35)
  want = sj.mix(sj.rules.linear(weights), models).params
  same(sj.uniform_soup(models, weights), want)
  assert widths == [16, 16, 3]


def test_many_models_whose_differences_overflow():
  models = [{"w": np.full(2, (-1) ** k * 3e38, "f")} for k in range(18)]
  soup = sj.uniform_soup(models)
  same(soup, sj.mix(sj.rules.linear(), models).params)
  assert np.abs(soup["w"]).max() < 3e38 * 2.0**-34


@pytest.mark.parametrize("sharding", [None, SHARDED], ids=["1", "8"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 1.7])
def test_interpolation(models, alpha, sharding):
  a, b, _ = models
  want = sj.mix(sj.rules.lerp(alpha), [b], base=a).params
  same(sj.wise_ft(a, b, alpha, sharding=sharding), want)
  same(sj.search.Blend(a, [b], sharding=sharding)([alpha]), want)


@pytest.mark.parametrize("base", [False, True], ids=["mean", "base"])
def test_learned_coefficients_do_not_depend_on_the_mesh(base):
  pool = helpers.POOL
  settings = {"base": pool[0]} if base else {}
  soups = [
    sj.learned_soup(
      pool[base:],
      helpers.loss_of,
      steps=10,
      sharding=sharding,
      **settings,
    )
    for sharding in (None, over_eight)
  ]
  for group, alphas in soups[0].alphas.items():
    np.testing.assert_allclose(soups[1].alphas[group], alphas, atol=1e-5)


def over_eight(leaf, spec):
  axes = ["x" if n % 8 == 0 and n else None for n in spec.shape]
  if "x" in axes:
    first = axes.index("x")
    axes = [axis if k == first else None for k, axis in enumerate(axes)]
  return jax.sharding.NamedSharding(MESH, jax.sharding.PartitionSpec(*axes))
