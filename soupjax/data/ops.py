# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Augmentation of whole batches on the device, under `jit`.

Strengths may be traced values: a sweep over them compiles once.
"""

import jax
import jax.numpy as jnp


def affine(
  key: jax.Array,
  images: jax.Array,
  *,
  degrees: jax.typing.ArrayLike,
  pixels: jax.typing.ArrayLike,
  scale: jax.typing.ArrayLike,
  shear: jax.typing.ArrayLike,
) -> jax.Array:
  """Rotates, shifts, scales and shears every image by its own random amount.

  Args:
    key: a JAX random key.
    images: (batch, height, width, channels).
    degrees: rotation up to this, either way.
    pixels: shift up to this, either way, in rows and columns.
    scale: size changes by a factor in [1 - scale, 1 + scale].
    shear: shear factor up to this, either way.

  Returns:
    Images of the same shape, bilinearly resampled, borders repeated.
  """
  batch, height, width, _ = images.shape
  draw = jax.random.uniform(key, (6, batch), minval=-1.0)
  angle = draw[0] * jnp.deg2rad(degrees)
  rows, columns = draw[1] * pixels, draw[2] * pixels
  size_y, size_x = 1 + draw[3] * scale, 1 + draw[4] * scale
  slant = draw[5] * shear
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  # Where each output pixel comes from, about the centre.
  y = jnp.arange(height)[:, None] - (height - 1) / 2
  x = jnp.arange(width)[None, :] - (width - 1) / 2

  def coordinates(cos, sin, size_y, size_x, slant, row, column):
    from_y = (cos * y + sin * x) / size_y + row
    from_x = (cos * x - sin * y) / size_x + slant * y + column
    return from_y + (height - 1) / 2, from_x + (width - 1) / 2

  from_y, from_x = jax.vmap(coordinates)(
    cos, sin, size_y, size_x, slant, rows, columns
  )
  return jax.vmap(_bilinear)(images, from_y, from_x)


def _bilinear(image, y, x):
  """Samples (height, width, channels) at real coordinates."""
  height, width, _ = image.shape
  y, x = jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1)
  top = jnp.minimum(jnp.floor(y), height - 2).astype(jnp.int32)
  left = jnp.minimum(jnp.floor(x), width - 2).astype(jnp.int32)
  down, right = (y - top)[..., None], (x - left)[..., None]
  flat = image.reshape(height * width, -1)
  corner = top * width + left
  upper = flat[corner] * (1 - right) + flat[corner + 1] * right
  lower = flat[corner + width] * (1 - right) + flat[corner + width + 1] * right
  return upper * (1 - down) + lower * down


def jitter(
  key: jax.Array,
  images: jax.Array,
  *,
  contrast: jax.typing.ArrayLike,
  noise: jax.typing.ArrayLike,
  blur: jax.typing.ArrayLike,
) -> jax.Array:
  """Changes contrast, blurs and adds noise, each image by its own amount.

  Args:
    key: a JAX random key.
    images: (batch, height, width, channels) in [-1, 1].
    contrast: range shrinks by a factor down to 1 - contrast, towards a random
      grey.
    noise: Gaussian noise of a standard deviation up to this.
    blur: share of a 3 x 3 binomial blur, up to this; at most 1.

  Returns:
    Images of the same shape, clipped to [-1, 1].
  """
  keys = jax.random.split(key, 5)
  shape = (images.shape[0], 1, 1, 1)
  factor = 1 - contrast * jax.random.uniform(keys[0], shape)
  grey = jax.random.uniform(keys[1], shape, minval=-1.0)
  images = factor * images + (1 - factor) * grey
  share = blur * jax.random.uniform(keys[2], shape)
  images = (1 - share) * images + share * _binomial(images)
  amount = noise * jax.random.uniform(keys[3], shape)
  images = images + amount * jax.random.normal(keys[4], images.shape)
  return jnp.clip(images, -1, 1)


def _binomial(images):
  def smooth(x, axis):
    pad = [(0, 0)] * 4
    pad[axis] = (1, 1)
    x = jnp.pad(x, pad, mode="edge")
    n = x.shape[axis]
    take = [jax.lax.slice_in_dim(x, i, n - 2 + i, axis=axis) for i in range(3)]
    return (take[0] + 2 * take[1] + take[2]) / 4

  return smooth(smooth(images, 1), 2)


def mixup(
  key: jax.Array,
  images: jax.Array,
  targets: jax.Array,
  alpha: jax.typing.ArrayLike,
) -> tuple[jax.Array, jax.Array]:
  """Mixes every image with its neighbour in the batch (arXiv 1710.09412).

  Args:
    key: a JAX random key.
    images: (batch, height, width, channels).
    targets: (batch, classes) probabilities.
    alpha: one share is drawn from Beta(alpha, alpha) for the batch; 0 mixes
      nothing.

  Returns:
    Mixed images and targets.
  """
  safe = jnp.maximum(alpha, 1e-3)
  share = jax.random.beta(key, safe, safe)
  share = jnp.where(alpha > 0, jnp.maximum(share, 1 - share), 1.0)

  def mix(x):
    return share * x + (1 - share) * jnp.roll(x, 1, axis=0)

  return mix(images), mix(targets)
