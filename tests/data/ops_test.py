# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from soupjax.data import ops

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (6, 12, 10, 2)).astype("f")
NONE = {"degrees": 0.0, "pixels": 0.0, "scale": 0.0, "shear": 0.0}


def test_affine_of_strength_zero_is_the_identity():
  np.testing.assert_allclose(ops.affine(KEY, IMAGES, **NONE), IMAGES, atol=1e-5)


@pytest.mark.parametrize("name", list(NONE))
def test_each_strength_changes_each_image_differently(name):
  strength = {**NONE, name: 0.5 if name in ("scale", "shear") else 8.0}
  same = jnp.broadcast_to(IMAGES[:1], IMAGES.shape)
  out = np.asarray(ops.affine(KEY, same, **strength))
  assert len({image.tobytes() for image in out}) == len(out)
  assert np.abs(out).max() <= 1.0 + 1e-6


def test_bilinear_sampling_agrees_with_scipy():
  y, x = np.random.default_rng(1).uniform(-2, 13, (2, 5, 7)).astype("f")
  out = ops._bilinear(IMAGES[0], y, x)
  for channel in range(2):
    expected = scipy.ndimage.map_coordinates(
      IMAGES[0, ..., channel], [y, x], order=1, mode="nearest"
    )
    np.testing.assert_allclose(out[..., channel], expected, atol=1e-5)


def test_rotation_by_a_known_angle():
  # With one image and a key, the drawn angle is known: undo it with scipy.
  image = np.zeros((1, 15, 15, 1), np.float32)
  image[0, 7, 2:13] = 1.0
  draw = jax.random.uniform(KEY, (6, 1), minval=-1.0)
  out = ops.affine(KEY, image, **{**NONE, "degrees": 90.0})[0, ..., 0]
  expected = scipy.ndimage.rotate(
    image[0, ..., 0], float(draw[0, 0]) * 90.0, reshape=False, order=1
  )
  mirrored = scipy.ndimage.rotate(
    image[0, ..., 0], -float(draw[0, 0]) * 90.0, reshape=False, order=1
  )
  error = min(np.abs(out - e).mean() for e in (expected, mirrored))
  assert error < 1e-3


def test_jitter_of_strength_zero_is_the_identity_and_stays_in_range():
  none = {"contrast": 0.0, "noise": 0.0, "blur": 0.0}
  np.testing.assert_allclose(ops.jitter(KEY, IMAGES, **none), IMAGES, atol=1e-6)
  for name, strength in (("contrast", 0.9), ("noise", 2.0), ("blur", 1.0)):
    out = np.asarray(ops.jitter(KEY, IMAGES, **{**none, name: strength}))
    assert np.abs(out - IMAGES).max() > 0.1
    assert np.abs(out).max() <= 1.0


def test_blur_keeps_constants_and_smooths():
  ones = np.ones((1, 5, 5, 1), np.float32)
  np.testing.assert_allclose(ops._binomial(ones), ones)
  point = np.zeros((1, 5, 5, 1), np.float32)
  point[0, 2, 2] = 16
  kernel = ops._binomial(point)[0, 1:4, 1:4, 0]
  np.testing.assert_allclose(kernel, [[1, 2, 1], [2, 4, 2], [1, 2, 1]])


def test_mixup_mixes_images_and_targets_alike():
  targets = jnp.eye(6)
  x, t = ops.mixup(KEY, IMAGES, targets, 0.0)
  np.testing.assert_array_equal(x, IMAGES)
  np.testing.assert_array_equal(t, targets)
  x, t = ops.mixup(KEY, IMAGES, targets, 0.5)
  share = float(t[0, 0])
  assert 0.5 <= share < 1
  np.testing.assert_allclose(t.sum(axis=1), 1, rtol=1e-6)
  np.testing.assert_allclose(
    x[1], share * IMAGES[1] + (1 - share) * IMAGES[0], atol=1e-6
  )


def test_strengths_are_traced():
  with jax.log_compiles(False):
    mix = jax.jit(ops.mixup)
    for alpha in (0.0, 0.2, 0.5):
      mix(KEY, IMAGES, jnp.eye(6), jnp.float32(alpha))
  assert mix._cache_size() == 1
