# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from soupjax import data
from soupjax.data import batch_ops

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (6, 12, 10, 2)).astype("f")
NONE = {"degrees": 0.0, "pixels": 0.0, "scale": 0.0, "shear": 0.0}


def test_affine_of_strength_zero_is_the_identity():
  np.testing.assert_allclose(
    batch_ops.affine(KEY, IMAGES, **NONE), IMAGES, atol=1e-5
  )


@pytest.mark.parametrize("name", list(NONE))
def test_each_strength_changes_each_image_differently(name):
  strength = {**NONE, name: 0.5 if name in ("scale", "shear") else 8.0}
  same = jnp.broadcast_to(IMAGES[:1], IMAGES.shape)
  out = np.asarray(batch_ops.affine(KEY, same, **strength))
  assert len({image.tobytes() for image in out}) == len(out)
  assert np.abs(out).max() <= 1.0 + 1e-6


def test_bilinear_sampling_agrees_with_scipy():
  y, x = np.random.default_rng(1).uniform(-2, 13, (2, 5, 7)).astype("f")
  out = batch_ops._bilinear(IMAGES[0], y, x)
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
  out = batch_ops.affine(KEY, image, **{**NONE, "degrees": 90.0})[0, ..., 0]
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
  np.testing.assert_allclose(
    batch_ops.jitter(KEY, IMAGES, **none), IMAGES, atol=1e-6
  )
  for name, strength in (("contrast", 0.9), ("noise", 2.0), ("blur", 1.0)):
    out = np.asarray(batch_ops.jitter(KEY, IMAGES, **{**none, name: strength}))
    assert np.abs(out - IMAGES).max() > 0.1
    assert np.abs(out).max() <= 1.0


def test_blur_keeps_constants_and_smooths():
  ones = np.ones((1, 5, 5, 1), np.float32)
  np.testing.assert_allclose(batch_ops._binomial(ones), ones)
  point = np.zeros((1, 5, 5, 1), np.float32)
  point[0, 2, 2] = 16
  kernel = batch_ops._binomial(point)[0, 1:4, 1:4, 0]
  np.testing.assert_allclose(kernel, [[1, 2, 1], [2, 4, 2], [1, 2, 1]])


def test_strength_multiplies_every_amount():
  amounts = {"degrees": 8.0, "pixels": 2.0, "scale": 0.2, "shear": 0.1}
  half = {name: value / 2 for name, value in amounts.items()}
  np.testing.assert_array_equal(
    batch_ops.affine(KEY, IMAGES, **amounts, strength=0.5),
    batch_ops.affine(KEY, IMAGES, **half),
  )
  np.testing.assert_array_equal(
    batch_ops.jitter(KEY, IMAGES, 0.5, 0.25, 1.0, strength=0.5),
    batch_ops.jitter(KEY, IMAGES, 0.25, 0.125, 0.5),
  )


def test_flip_mirrors_a_share_of_the_images():
  images = np.random.default_rng(2).random((400, 2, 3, 1)).astype("f")
  out = np.asarray(batch_ops.flip_lr(KEY, images, 0.25))
  mirrored = (out == images[:, :, ::-1]).all(axis=(1, 2, 3))
  assert (mirrored | (out == images).all(axis=(1, 2, 3))).all()
  assert 70 < mirrored.sum() < 130
  np.testing.assert_array_equal(batch_ops.flip_lr(KEY, images, 0), images)


def test_mixup_mixes_images_and_targets_alike():
  targets = jnp.eye(6)
  x, t = batch_ops.mixup(KEY, IMAGES, targets, 0.0)
  np.testing.assert_array_equal(x, IMAGES)
  np.testing.assert_array_equal(t, targets)
  x, t = batch_ops.mixup(KEY, IMAGES, targets, 0.5)
  share = float(t[0, 0])
  assert 0.5 <= share < 1
  np.testing.assert_allclose(t.sum(axis=1), 1, rtol=1e-6)
  np.testing.assert_allclose(
    x[1], share * IMAGES[1] + (1 - share) * IMAGES[0], atol=1e-6
  )


def test_strengths_are_traced():
  with jax.log_compiles(False):
    mix = jax.jit(batch_ops.mixup)
    for alpha in (0.0, 0.2, 0.5):
      mix(KEY, IMAGES, jnp.eye(6), jnp.float32(alpha))
  assert mix._cache_size() == 1


def test_cutmix_pastes_a_box_of_the_neighbour():
  targets = jnp.eye(6)
  x, t = batch_ops.cutmix(KEY, IMAGES, targets, 0.0)
  np.testing.assert_array_equal(x, IMAGES)
  np.testing.assert_array_equal(t, targets)
  shares = []
  for seed in range(50):
    x, t = batch_ops.cutmix(jax.random.key(seed), IMAGES, targets, 1.0)
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


def test_erasing_erases_one_box_in_some_images():
  images = jnp.full((400, 20, 24, 3), 5.0)
  out = np.asarray(batch_ops.erasing(KEY, images, 0.25))
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
  np.testing.assert_array_equal(batch_ops.erasing(KEY, images, 0.0), images)
  everything = batch_ops.erasing(KEY, images, 1.0)
  assert (np.asarray(everything) != 5.0).any(axis=(1, 2, 3)).all()


def test_value_range_on_the_device_agrees_with_the_host():
  images = np.arange(256, dtype=np.uint8).reshape(1, 8, 32, 1)
  out = batch_ops.value_range(images, -1.0, 1.0)
  np.testing.assert_allclose(out, images / 127.5 - 1, atol=1e-6)
  with pytest.raises(ValueError, match="uint8.*float32"):
    batch_ops.value_range(out)


# Texts

TARGETS = jnp.eye(6)
NAMES = ("mixup", "cutmix", "erasing", "augment")


def values(**changed):
  zeros = dict.fromkeys(NAMES, 0.0) | changed
  return {name: jnp.float32(value) for name, value in zeros.items()}


def test_operations_run_in_order_each_with_its_own_key():
  images = jnp.asarray((IMAGES + 1) * 127.5, jnp.uint8)
  text = "value_range(0, 1)|mixup(0.5)|erasing({erasing})"
  augment = jax.jit(batch_ops.batch_augment(text, names=NAMES))
  x, t = augment(KEY, images, TARGETS, values(erasing=1.0))
  keys = [jax.random.fold_in(KEY, i) for i in range(3)]
  expected = batch_ops.value_range(images, 0, 1)
  expected, targets = batch_ops.mixup(keys[1], expected, TARGETS, 0.5)
  expected = batch_ops.erasing(keys[2], expected, 1.0)
  np.testing.assert_allclose(x, expected, atol=1e-6)
  np.testing.assert_allclose(t, targets, atol=1e-6)
  x, t = batch_ops.batch_augment("")(KEY, images, TARGETS, {})
  np.testing.assert_array_equal(x, images)
  twice = batch_ops.batch_augment("mixup(0.5)|mixup(0.5)")
  t = np.asarray(twice(KEY, IMAGES, TARGETS, {})[1])
  assert (t > 0).sum(axis=1).tolist() == [3] * 6


def test_hyperparameters_do_not_recompile():
  text = (
    "affine(15, 1, 0.1, 0.1, strength={augment})|jitter(0.5, 0.3, 0.5)|flip_lr"
    "|erasing({erasing})|mixup({mixup})|cutmix({cutmix})"
  )
  augment = jax.jit(batch_ops.batch_augment(text, names=NAMES))
  for alpha in (0.0, 0.2):
    augment(KEY, IMAGES, TARGETS, values(mixup=alpha, augment=alpha))
  assert augment._cache_size() == 1


def test_each_batch_gets_mixup_or_cutmix():
  text = "mixup({mixup})|cutmix({cutmix})"
  augment = jax.jit(batch_ops.batch_augment(text, names=NAMES))
  heads = 0
  for seed in range(40):
    key = jax.random.key(seed)
    x, _ = augment(key, IMAGES, TARGETS, values(mixup=1.0, cutmix=1.0))
    keys = [jax.random.fold_in(key, i) for i in range(3)]
    coin = bool(jax.random.bernoulli(keys[2]))
    expected, _ = (
      batch_ops.cutmix(keys[1], IMAGES, TARGETS, 1.0)
      if coin
      else batch_ops.mixup(keys[0], IMAGES, TARGETS, 1.0)
    )
    np.testing.assert_allclose(x, expected, atol=1e-6)
    heads += coin
    # One of the two alone applies to every batch.
    x, _ = augment(key, IMAGES, TARGETS, values(mixup=1.0))
    expected, _ = batch_ops.mixup(keys[0], IMAGES, TARGETS, 1.0)
    np.testing.assert_allclose(x, expected, atol=1e-6)
  assert 8 < heads < 32


def test_what_is_off_for_all_is_left_out_and_changes_no_bits():
  text = "erasing({erasing})|mixup({mixup})|cutmix({cutmix})|flip_lr"
  whole = batch_ops.batch_augment(text, names=NAMES)
  off = ("erasing", "cutmix")
  part = batch_ops.batch_augment(text, names=NAMES, off=off)
  arguments = KEY, IMAGES, TARGETS, values(mixup=0.5)
  for a, b in zip(whole(*arguments), part(*arguments), strict=True):
    np.testing.assert_array_equal(a, b)
  lines = [
    str(jax.make_jaxpr(f)(*arguments)).count("\n") for f in (whole, part)
  ]
  assert lines[1] < lines[0] / 2
  # One that is on keeps the operation.
  text = "affine({erasing}, 2, 0, 0, {augment})"
  part = batch_ops.batch_augment(text, names=NAMES, off=("erasing",))
  x, _ = part(KEY, IMAGES, TARGETS, values(augment=1.0))
  assert (np.asarray(x) != IMAGES).any()


@pytest.mark.parametrize(
  "text,culprit",
  [
    ("cutmux(1)", "'cutmux'.*'cutmix'"),
    ("mixup", "'mixup'.*alpha"),
    ("mixup({mixap})", "mixap.*'mixup'"),
    ("random_erasing(0.2)", "'random_erasing'.*'erasing'"),
    ("mixup({a + b})", r"'mixup\({a \+ b}\)'"),
    ("mixup({mixup, erasing})", "'mixup"),
    ("no_such_module.sharpen(2)", "'no_such_module.sharpen'"),
    ("math.hypot(2)", "'math.hypot'.*'images'"),
    ("mixup(1, key=3)", "'key'"),
  ],
)
def test_wrong_texts_are_refused(text, culprit):
  with pytest.raises(ValueError, match=culprit):
    batch_ops.batch_augment(text, names=NAMES)


def test_braces_need_hyperparameters():
  with pytest.raises(ValueError, match="{mixup}"):
    batch_ops.batch_augment("mixup({mixup})")


def test_operations_of_ones_own(tmp_path, monkeypatch):
  (tmp_path / "batch_ops_for_test.py").write_text(
    "def darken(amount, images):\n  return images - amount\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  members = dict(batch_ops.OPS._members)
  monkeypatch.setattr(batch_ops.OPS, "_members", members)

  @data.batch_op
  def relabel(key, images, targets):
    return images, targets[::-1]

  text = "batch_ops_for_test.darken({augment})|relabel"
  augment = jax.jit(batch_ops.batch_augment(text, names=NAMES))
  x, t = augment(KEY, IMAGES, TARGETS, values(augment=0.5))
  np.testing.assert_array_equal(x, IMAGES - 0.5)
  np.testing.assert_array_equal(t, TARGETS[::-1])


def test_grey_images_stay_grey_under_noise_for_all_channels():
  images = jnp.zeros((2, 8, 8, 3))
  grey = batch_ops.jitter(KEY, images, 0.0, 0.5, 0.0, per_channel=False)
  assert float(jnp.abs(grey).max()) > 0
  np.testing.assert_array_equal(grey, grey[..., :1].repeat(3, axis=-1))
  coloured = batch_ops.jitter(KEY, images, 0.0, 0.5, 0.0)
  assert float(jnp.abs(coloured - coloured[..., :1]).max()) > 0.01
