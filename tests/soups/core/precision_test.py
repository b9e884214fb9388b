# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Leaves of 64 bits keep all of them, whatever the x64 mode of JAX is."""

import contextlib
import fractions
import threading

import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax.soups.core import precision

RNG = np.random.default_rng(0)
BIG = 2**40 + 1
TREES = [
  {
    "w": RNG.normal(size=300) * np.exp(5 * RNG.normal(size=300)),
    "huge": np.full(3, 1e300) * (k + 1),
    "f": RNG.normal(size=5).astype(np.float32),
    "n": np.int64(BIG),
    "u": np.uint64(2**63 + 5),
    "c": np.complex128(1 / 3 + 1j),
  }
  for k in range(3)
]


def one(params):
  return 1.0


def loss(params, beta):
  assert params["w"].dtype == np.float32
  return (params["w"] ** 2).sum() * beta


def mixed_to(path, models):
  sj.mix(sj.rules.linear(), models, out=path)
  return sj.load_params(path)


SHARDING = jax.sharding.SingleDeviceSharding(jax.devices()[0])
STILL = sj.CoefficientOptimizer(learning_rate=1e-30)
THIRD, HALF = fractions.Fraction(1, 3), fractions.Fraction(1, 2)
SHARE = fractions.Fraction(0.3)
# Name -> function of three models, and the coefficients that it should have.
DOORS = {
  "uniform_soup": (sj.uniform_soup, [THIRD] * 3),
  "on a mesh": (lambda m: sj.uniform_soup(m, sharding=SHARDING), [THIRD] * 3),
  "weighted": (
    lambda m: sj.uniform_soup(m, [0.1, 0.2, 0.7]),
    [fractions.Fraction(w) for w in (0.1, 0.2, 0.7)],
  ),
  "wise_ft": (lambda m: sj.wise_ft(m[0], m[1], 0.3), [1 - SHARE, SHARE, 0]),
  "select of wise_ft": (
    lambda m: sj.wise_ft(m[0], m[1], 1, select={"": 0.3}),
    [1 - SHARE, SHARE, 0],
  ),
  "greedy_soup": (lambda m: sj.greedy_soup(m, one).params, [THIRD] * 3),
  "greedy_soup on a mesh": (
    lambda m: sj.greedy_soup(m, one, sharding=SHARDING).params,
    [THIRD] * 3,
  ),
  "learned_soup": (
    lambda m: (
      sj.learned_soup(
        m[1:], loss, base=m[0], init=0.5, steps=1, optimizer=STILL
      ).params
    ),
    [0, HALF, HALF],
  ),
  "wise_ft_curve": (
    lambda m: sj.search.wise_ft_curve(m[0], m[1], one, [0.3]).params,
    [1 - SHARE, SHARE, 0],
  ),
  "curve from disk": (
    lambda m: (
      sj.search.wise_ft_curve(m[0], m[1], one, [0.3], in_memory=False).params
    ),
    [1 - SHARE, SHARE, 0],
  ),
  "mix": (lambda m: sj.mix(sj.rules.linear(), m).params, [THIRD] * 3),
  "mix on a mesh": (
    lambda m: sj.mix(sj.rules.linear(), m, sharding=SHARDING).params,
    [THIRD] * 3,
  ),
  "mix with weights of select": (
    lambda m: (
      sj.mix(sj.rules.linear(), m, select={"w|huge|f": [0, 1, 1]}).params
    ),
    [0, HALF, HALF],
  ),
  "mix to a file": (lambda m: mixed_to("soup.npz", m), [THIRD] * 3),
  "mix to Orbax": (lambda m: mixed_to("soup", m), [THIRD] * 3),
  "lerp": (
    lambda m: sj.mix(sj.rules.lerp(0.3), m[1:], base=m[0]).params,
    [1 - SHARE, SHARE / 2, SHARE / 2],
  ),
  "task_arithmetic": (
    lambda m: sj.mix(sj.rules.task_arithmetic(0.5), m[1:], base=m[0]).params,
    [0, HALF, HALF],
  ),
  "TaskVector": (
    lambda m: (0.5 * sj.TaskVector(m[0], m[1])).apply_to(m[2]),
    [-HALF, HALF, 1],
  ),
}


def exact(leaf, coefficients):
  total = sum(coefficients)
  return np.array(
    [
      float(
        sum(c * fractions.Fraction(float(x)) for c, x in zip(coefficients, row))
        / total
      )
      for row in zip(*(tree[leaf].ravel() for tree in TREES), strict=True)
    ]
  )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp("float64")
  for k, tree in enumerate(TREES):
    sj.save_params(folder / f"m{k}.npz", tree)
  return [str(folder / f"m{k}.npz") for k in range(3)]


@pytest.mark.parametrize(
  "door,mode",
  [
    *((door, None) for door in DOORS),
    *((door, True) for door in (  # With threads.
      "uniform_soup", "greedy_soup on a mesh", "mix on a mesh", "mix to Orbax"
    )),
  ],
)  # fmt: skip
def test_means_of_float64_are_within_one_ulp(
  door, mode, files, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  merge, coefficients = DOORS[door]
  models = files if "mix" in door or "disk" in door else TREES
  if door == "learned_soup":  # Its gradients are of float32.
    models = [{k: x for k, x in m.items() if k != "huge"} for m in models]
  with jax.enable_x64(mode) if mode else contextlib.nullcontext():
    soup = jax.tree.map(np.asarray, merge(models))
  for leaf, value in soup.items():
    assert value.dtype == TREES[0][leaf].dtype, leaf
  size = np.abs([tree["w"] for tree in TREES]).max(0)
  truth = exact("w", coefficients)
  # Where the models cancel, in units of the models.
  unit = np.spacing(np.maximum(np.abs(truth), 1e-3 * size))
  assert (np.abs(soup["w"] - truth) / unit).max() <= 1
  if "huge" not in soup:
    return
  truth = exact("huge", coefficients)
  np.testing.assert_allclose(soup["huge"], truth, rtol=3e-16)
  assert soup["n"] == BIG and soup["u"] == 2**63 + 5
  assert soup["c"] == TREES[0]["c"]


def test_float64_may_be_cast():
  dtype = "float32"
  models = [{"w": tree["w"]} for tree in TREES]
  truth = exact("w", [THIRD] * 3).astype(np.float32)
  for soup in (
    sj.uniform_soup(models, dtype=dtype),
    sj.mix(sj.rules.linear(), models, dtype=dtype).params,
    sj.greedy_soup(models, one, dtype=dtype).params,
    sj.search.Blend(models[0], models[1:], dtype=dtype)([THIRD, THIRD]),
  ):
    assert soup["w"].dtype == dtype
    assert isinstance(soup["w"], jax.Array)
    assert (np.abs(soup["w"] - truth) <= np.spacing(np.abs(truth))).all()
  ties = sj.rules.ties(density=0.5)
  merged = sj.mix(ties, models[1:], base=models[0], dtype=dtype).params
  assert merged["w"].dtype == dtype


def test_float64_beside_float32():
  wide, narrow = {"w": np.full(2, 1 / 3)}, {"w": np.ones(2, np.float32)}
  for models in ([wide, narrow], [narrow, wide]):
    mixed = sj.mix(sj.rules.linear(), models).params["w"]
    assert mixed.dtype == np.float64
    assert mixed[0] == (1 + 1 / 3) / 2
    soup = sj.uniform_soup(models)["w"]
    assert soup.dtype == models[0]["w"].dtype
    assert soup[0] == soup.dtype.type((1 + 1 / 3) / 2)


def test_float64_leaves_that_are_only_copied():
  models = [{"w": np.ones(2, "f"), "betas": np.full(2, k + 1 / 3)}
            for k in range(2)]  # fmt: skip
  for action in ([0, 1], "keep"):
    mixed = sj.mix(
      sj.rules.ties(density=0.5), models, base=models[1],
      select={"betas": action},
    ).params  # fmt: skip
    assert mixed["betas"].dtype == np.float64
    assert mixed["betas"].tobytes() == models[1]["betas"].tobytes()


def test_threads_inherit_the_mode():
  modes = []

  def look():
    modes.append(jax.config.jax_enable_x64)

  for enabled in (True, False):
    with jax.enable_x64(enabled):
      thread = threading.Thread(target=precision.inherited(look))
      thread.start()
      thread.join()
  assert modes == [True, False]
