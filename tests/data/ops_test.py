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


def test_cutmix_pastes_a_box_of_the_neighbour():
  targets = jnp.eye(6)
  x, t = ops.cutmix(KEY, IMAGES, targets, 0.0)
  np.testing.assert_array_equal(x, IMAGES)
  np.testing.assert_array_equal(t, targets)
  shares = []
  for seed in range(50):
    x, t = ops.cutmix(jax.random.key(seed), IMAGES, targets, 1.0)
    x = np.asarray(x)
    pasted = (x == np.roll(IMAGES, 1, axis=0)).all(axis=-1)
    kept = (x == IMAGES).all(axis=-1)
    assert (pasted ^ kept).all()
    # One box, the same in all images; targets go by its area.
    assert (pasted == pasted[0]).all()
    rows, columns = pasted[0].any(axis=1), pasted[0].any(axis=0)
    np.testing.assert_array_equal(pasted[0], rows[:, None] & columns[None])
    for side in (rows, columns):
      assert (np.diff(np.flatnonzero(side)) == 1).all()
    share = pasted[0].mean()
    np.testing.assert_allclose(
      t,
      (1 - share) * np.eye(6) + share * np.roll(np.eye(6), 1, axis=0),
      atol=1e-6,
    )
    shares.append(share)
  # Beta(1, 1) is uniform; the border cuts some of the box off.
  assert min(shares) < 0.1 and max(shares) > 0.5


def test_random_erasing_erases_one_box_in_some_images():
  images = jnp.full((400, 20, 24, 3), 5.0)
  out = np.asarray(ops.random_erasing(KEY, images, 0.25))
  erased = (out != 5.0).all(axis=-1)
  assert ((out != 5.0).any(axis=-1) == erased).all()
  hit = erased.any(axis=(1, 2))
  assert 70 < hit.sum() < 130
  assert np.abs(out[erased]).max() <= 1 and out[erased].std() > 0.5
  for box in erased[hit]:
    rows, columns = box.any(axis=1), box.any(axis=0)
    np.testing.assert_array_equal(box, rows[:, None] & columns[None])
  areas = erased[hit].mean(axis=(1, 2))
  assert areas.min() < 0.06 and 0.3 < areas.max() < 0.45
  np.testing.assert_array_equal(ops.random_erasing(KEY, images, 0.0), images)
  everything = ops.random_erasing(KEY, images, 1.0)
  assert (np.asarray(everything) != 5.0).any(axis=(1, 2, 3)).all()


def test_value_range_on_the_device_agrees_with_the_host():
  images = np.arange(256, dtype=np.uint8).reshape(1, 8, 32, 1)
  out = ops.value_range(images, -1.0, 1.0)
  np.testing.assert_allclose(out, images / 127.5 - 1, atol=1e-6)
  with pytest.raises(ValueError, match="uint8 images, not float32"):
    ops.value_range(out)


def test_batch_augment_applies_what_the_text_says():
  images = jnp.asarray((IMAGES + 1) * 127.5, jnp.uint8)
  augment = jax.jit(
    ops.batch_augment("value_range(0, 1)|mixup(0.5)|random_erasing(1.0)")
  )
  x, t = augment(KEY, images, jnp.eye(6))
  assert x.dtype == jnp.float32 and x.shape == images.shape
  share = float(t[0, 0])
  assert 0.5 <= share < 1
  plain = np.asarray(images / 255)
  mixed = share * plain + (1 - share) * np.roll(plain, 1, axis=0)
  same = np.isclose(x, mixed, atol=1e-5).all(axis=-1)
  assert 0.4 < same.mean() < 1  # The rest is erased.
  x, t = ops.batch_augment("")(KEY, images, jnp.eye(6))
  np.testing.assert_array_equal(x, images)
  again = ops.batch_augment("mixup(0.5)|mixup(0.5)")(KEY, IMAGES, jnp.eye(6))[1]
  assert (np.asarray(again) > 0).sum(axis=1).tolist() == [3] * 6


def test_batch_augment_refuses_what_it_does_not_know():
  with pytest.raises(ValueError, match="'cutmux' .*did you mean 'cutmix'"):
    ops.batch_augment("cutmux(1)")
  with pytest.raises(ValueError, match="'mixup'.*missing"):
    ops.batch_augment("mixup")
