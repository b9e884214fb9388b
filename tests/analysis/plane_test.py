# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The plane through three models, against closed forms."""

import jax
import numpy as np
import pytest

import soupjax as sj
from soupjax import sharding
from soupjax.analysis import plane as plane_lib

RNG = np.random.default_rng(0)
FLAT = RNG.normal(size=(3, 24)).astype(np.float32)


def tree_of(flat):
  return {"a": {"kernel": flat[:16].reshape(4, 4)}, "b": flat[16:]}


def models():
  return [
    sj.Ingredient.from_params(f"m{k}", tree_of(flat))
    for k, flat in enumerate(FLAT)
  ]


def flat_of(params):
  return np.concatenate([np.ravel(params["a"]["kernel"]), params["b"]])


def test_every_point_is_where_the_orthonormal_axes_say():
  points = []
  result = plane_lib.plane(
    models(), lambda p: points.append(flat_of(p)) or 0.0, points=4, margin=0.5
  )
  # Gram-Schmidt, from the definition.
  first, second = (FLAT[1:] - FLAT[0]).astype(np.float64)
  u1 = first / np.linalg.norm(first)
  u2 = second - (second @ u1) * u1
  u2 /= np.linalg.norm(u2)
  corners = [[(x - FLAT[0]) @ u for u in (u1, u2)] for x in FLAT]
  np.testing.assert_allclose(result.corners, corners, atol=1e-5)
  want = [*FLAT]
  want += [FLAT[0] + x * u1 + y * u2 for y in result.ys for x in result.xs]
  np.testing.assert_allclose(points, want, atol=1e-5)
  low, high = np.min(corners, axis=0), np.max(corners, axis=0)
  ends = [result.xs[[0, -1]], result.ys[[0, -1]]]
  room = (high - low) / 2
  np.testing.assert_allclose(ends, np.stack([low - room, high + room], 1), 1e-5)


def test_a_quadratic_loss_is_a_paraboloid_on_the_plane():
  target = RNG.normal(size=24).astype(np.float32)

  def evaluate(params):
    gap = flat_of(params) - target
    return {"loss": float(gap @ gap), "error": 0.25}

  result = plane_lib.plane(models(), evaluate, points=5)
  want = [((x - target) ** 2).sum() for x in FLAT]
  np.testing.assert_allclose(result.at_corners["loss"], want, rtol=1e-5)
  # Second differences of |x|^2 along an orthonormal axis are 2 h^2.
  for axis, places in ((1, result.xs), (0, result.ys)):
    bend = np.diff(result.values["loss"], 2, axis)
    step = places[1] - places[0]
    np.testing.assert_allclose(bend, 2 * step**2, rtol=2e-3)
  assert (result.values["error"] == 0.25).all()


def test_weights_sum_to_one_and_are_one_at_the_corners():
  result = plane_lib.plane(models(), lambda p: 0.0, points=2)
  for corner, want in zip(result.corners, np.eye(3)):
    np.testing.assert_allclose(result.weights(*corner), want, atol=1e-6)
  np.testing.assert_allclose(result.weights(0.3, -2).sum(), 1)


def test_models_stay_on_their_mesh():
  mesh = sharding.make_mesh({"data": -1})
  place = sharding.along(mesh, "data")
  trees = [{"w": np.arange(8.0, dtype=np.float32) ** k} for k in range(3)]
  seen = []

  def evaluate(params):
    seen.append(params["w"].sharding)
    return float(params["w"].sum())

  plane_lib.plane(trees, evaluate, points=2, sharding=place)
  assert len(jax.devices()) > 1
  assert all(s.is_equivalent_to(place, 1) for s in seen)


@pytest.mark.parametrize(
  "rows,message",
  [
    ([0, 1, 1], "'m1' and 'm2' are the same model"),
    ([0, 1, 0], "'m0' and 'm2' are the same model"),
    ([0, 0, 1], "'m0' and 'm1' are the same model"),
    ([0, 1], "three models, got 2"),
  ],
)
def test_one_model_twice_is_an_error(rows, message):
  pool = [
    sj.Ingredient.from_params(f"m{k}", tree_of(FLAT[row]))
    for k, row in enumerate(rows)
  ]
  with pytest.raises(ValueError, match=message):
    plane_lib.plane(pool, lambda p: pytest.fail("evaluated"))


@pytest.mark.parametrize(
  "change,message",
  [
    ({"points": 1}, "points=1"),
    ({"margin": -0.5}, "margin=-0.5"),
    ({"evaluate": lambda p: {"loss": np.nan}}, "loss at .0, 0. must be a fin"),
    ({"line": True}, "'model_0', 'model_1', 'model_2' lie on one line"),
  ],
)
def test_refuses(change, message):
  change = {"evaluate": lambda p: 0.0, "points": 2, **change}
  trees = [tree_of(flat) for flat in FLAT]
  if change.pop("line", False):
    trees[2] = tree_of(FLAT[0] / 4 + 3 * FLAT[1] / 4)
  evaluate = change.pop("evaluate")
  with pytest.raises(ValueError, match=message):
    plane_lib.plane(trees, evaluate, **change)
