# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Augmentation of whole batches on the device, under `jit`.

Probabilities, strengths and alphas may be traced values, so a sweep over them
compiles once. A text such as "affine(15, 1, 0.1, 0.1)|mixup({mixup})" names the
operations of a config; names in braces are hyperparameters.
"""

from collections.abc import Callable, Collection, Mapping
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp

from soupjax import registry
from soupjax.data import op_strings

OPS = registry.Registry("batch op")

Augment = Callable[..., tuple[jax.Array, jax.Array]]

_GIVEN_LATER = ("images", "targets", "key")


def batch_augment(
  text: str, *, names: Collection[str] = (), off: Collection[str] = ()
) -> Augment:
  """Builds one function from a text such as "flip_lr|mixup({mixup})".

  Operation i draws its random numbers from `fold_in(key, i)`. If both mixup and
  cutmix have an alpha above 0, each batch gets only one of the two, chosen at
  random with equal probability.

  Args:
    text: operations joined by "|": registered ones (`OPS`) or import paths. An
      operation is a function with a parameter `images` and, if it needs them,
      `targets` and `key`; it returns images, or images and targets.
    names: the hyperparameters that are allowed in braces.
    off: hyperparameters that are 0 for all members of a sweep. An operation
      whose hyperparameters are all off is left out and costs nothing.

  Returns:
    `augment(key, images, targets, values) -> (images, targets)`, to be used
    under `jit`; `values` maps hyperparameters to scalars, which may be traced.

  Raises:
    ValueError: for an unknown operation or hyperparameter, with suggestions, or
      arguments that the operation does not take.
  """
  parsed = op_strings.parse(text, OPS, _GIVEN_LATER, names)
  num_ops = len(parsed)
  ops = [(i, op) for i, (_, op) in enumerate(parsed) if not _is_off(op, off)]

  def augment(key, images, targets, values):
    arguments = {i: _arguments(op, values) for i, op in ops}
    _choose_one(jax.random.fold_in(key, num_ops), ops, arguments)
    for i, op in ops:
      available = {
        "key": jax.random.fold_in(key, i),
        "images": images,
        "targets": targets,
      }
      parameters = inspect.signature(op.func).parameters
      given = {k: v for k, v in available.items() if k in parameters}
      result = op.func(**given, **arguments[i])
      if not isinstance(result, tuple):
        result = result, targets
      images, targets = result
    return images, targets

  return augment


def active(
  text: str, off: Collection[str], names: Collection[str] = ()
) -> dict[str, bool]:
  """Lists the operations that are on, and whether each may mix targets.

  Args:
    text: as for `batch_augment`.
    off: as for `batch_augment`.
    names: as for `batch_augment`.

  Returns:
    Maps the name of each operation to whether it takes targets.
  """
  return {
    name: "targets" in inspect.signature(op.func).parameters
    for name, op in op_strings.parse(text, OPS, _GIVEN_LATER, names)
    if not _is_off(op, off)
  }


def _is_off(op: functools.partial, off: Collection[str]) -> bool:
  values = op.keywords.values()
  names = {v.name for v in values if isinstance(v, op_strings.Hyperparameter)}
  return bool(names) and names <= set(off)


def _arguments(op: functools.partial, values: Mapping[str, Any]):
  return {
    k: values[v.name] if isinstance(v, op_strings.Hyperparameter) else v
    for k, v in op.keywords.items()
  }


def _choose_one(key, ops, arguments) -> None:
  """Turns off mixup or cutmix, at random, if both are on."""
  alphas = {
    function: [arguments[i] for i, op in ops if op.func is function]
    for function in (mixup, cutmix)
  }
  if not all(alphas.values()):
    return
  both = True
  for listed in alphas.values():
    both &= functools.reduce(jnp.logical_or, [a["alpha"] > 0 for a in listed])
  coin = jax.random.bernoulli(key)
  for function, lost in ((mixup, coin), (cutmix, ~coin)):
    for argument in alphas[function]:
      argument["alpha"] = jnp.where(both & lost, 0.0, argument["alpha"])


@OPS.register
def affine(
  key: jax.Array,
  images: jax.Array,
  degrees: jax.typing.ArrayLike,
  pixels: jax.typing.ArrayLike,
  scale: jax.typing.ArrayLike,
  shear: jax.typing.ArrayLike,
  strength: jax.typing.ArrayLike = 1.0,
) -> jax.Array:
  """Rotates, shifts, scales and shears every image by its own random amount.

  Args:
    key: a JAX random key.
    images: (batch, height, width, channels).
    degrees: largest rotation in either direction.
    pixels: largest shift of rows and of columns in either direction.
    scale: height and width change by factors in [1 - scale, 1 + scale].
    shear: largest shear factor in either direction.
    strength: multiplies the four numbers above.

  Returns:
    Images of the same shape, bilinearly resampled, with border pixels repeated.
  """
  batch, height, width, _ = images.shape
  draw = jax.random.uniform(key, (6, batch), minval=-1.0)
  degrees, pixels = degrees * strength, pixels * strength
  scale, shear = scale * strength, shear * strength
  angle = draw[0] * jnp.deg2rad(degrees)
  rows, columns = draw[1] * pixels, draw[2] * pixels
  size_y, size_x = 1 + draw[3] * scale, 1 + draw[4] * scale
  slant = draw[5] * shear
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  # Coordinates of the output pixels, relative to the centre.
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
  """Samples (height, width, channels) at fractional coordinates."""
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


@OPS.register
def jitter(
  key: jax.Array,
  images: jax.Array,
  contrast: jax.typing.ArrayLike,
  noise: jax.typing.ArrayLike,
  blur: jax.typing.ArrayLike,
  strength: jax.typing.ArrayLike = 1.0,
  per_channel: bool = True,
) -> jax.Array:
  """Changes contrast, blurs and adds noise, each image by its own amount.

  Args:
    key: a JAX random key.
    images: (batch, height, width, channels) in [-1, 1].
    contrast: contrast shrinks by a factor in [1 - contrast, 1], towards a
      random grey.
    noise: largest standard deviation of the Gaussian noise.
    blur: largest weight of a 3 x 3 binomial blur; at most 1.
    strength: multiplies the three numbers above.
    per_channel: whether channels get different noise. Grey images need the same
      noise in all channels, or a model can average it away.

  Returns:
    Images of the same shape, clipped to [-1, 1].
  """
  contrast, noise = contrast * strength, noise * strength
  blur = blur * strength
  keys = jax.random.split(key, 5)
  shape = (images.shape[0], 1, 1, 1)
  factor = 1 - contrast * jax.random.uniform(keys[0], shape)
  grey = jax.random.uniform(keys[1], shape, minval=-1.0)
  images = factor * images + (1 - factor) * grey
  share = blur * jax.random.uniform(keys[2], shape)
  images = (1 - share) * images + share * _binomial(images)
  amount = noise * jax.random.uniform(keys[3], shape)
  shape = images.shape if per_channel else (*images.shape[:3], 1)
  images = images + amount * jax.random.normal(keys[4], shape)
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


@OPS.register
def flip_lr(
  key: jax.Array,
  images: jax.Array,
  probability: jax.typing.ArrayLike = 0.5,
) -> jax.Array:
  """Mirrors some images left to right.

  Args:
    key: a JAX random key.
    images: (batch, height, width, channels).
    probability: probability that an image is mirrored.

  Returns:
    Images of the same shape.
  """
  flipped = jax.random.uniform(key, (images.shape[0], 1, 1, 1)) < probability
  return jnp.where(flipped, images[:, :, ::-1], images)


@OPS.register
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
    alpha: one weight w is drawn from Beta(alpha, alpha) for the batch, and
      every image keeps the weight max(w, 1 - w); 0 mixes nothing.

  Returns:
    Mixed images and targets.
  """
  safe = jnp.maximum(alpha, 1e-3)
  share = jax.random.beta(key, safe, safe)
  share = jnp.where(alpha > 0, jnp.maximum(share, 1 - share), 1.0)

  def mix(x):
    return share * x + (1 - share) * jnp.roll(x, 1, axis=0)

  return mix(images), mix(targets)


@OPS.register
def cutmix(
  key: jax.Array,
  images: jax.Array,
  targets: jax.Array,
  alpha: jax.typing.ArrayLike,
) -> tuple[jax.Array, jax.Array]:
  """Pastes a box of its neighbour into every image (arXiv 1905.04899).

  Args:
    key: a JAX random key.
    images: (batch, height, width, channels).
    targets: (batch, classes) probabilities.
    alpha: one weight w is drawn from Beta(alpha, alpha) for the batch, and all
      images get the same box, of about 1 - w of their area; 0 pastes nothing.

  Returns:
    Images, and targets mixed by the area that was pasted.
  """
  key_share, key_box = jax.random.split(key)
  _, height, width, _ = images.shape
  safe = jnp.maximum(alpha, 1e-3)
  kept = jax.random.beta(key_share, safe, safe)
  side = jnp.where(alpha > 0, jnp.sqrt(1 - kept), 0.0)
  # The centre is uniform, so part of the box may be cut off by the border.
  y, x = jax.random.uniform(key_box, (2,))
  inside = _box(height, width, y, x, side, side)[None, :, :, None]
  pasted = inside.mean()
  images = jnp.where(inside, jnp.roll(images, 1, axis=0), images)
  targets = (1 - pasted) * targets + pasted * jnp.roll(targets, 1, axis=0)
  return images, targets


@OPS.register
def erasing(
  key: jax.Array,
  images: jax.Array,
  probability: jax.typing.ArrayLike,
  *,
  area: tuple[float, float] = (0.02, 0.4),
  aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> jax.Array:
  """Replaces a box by noise in some images (arXiv 1708.04896).

  Args:
    key: a JAX random key.
    images: (batch, height, width, channels) floats.
    probability: probability that an image loses a box.
    area: range of the box's area, as a fraction of the image (section 4.1 of
      the paper).
    aspect: range of the box's height / width, drawn log-uniformly.

  Returns:
    Images of the same shape; the noise is standard normal, clipped to [-1, 1].
  """
  keys = jax.random.split(key, 3)
  batch, height, width, _ = images.shape
  erased = jax.random.uniform(keys[0], (batch,)) < probability
  y, x, share, shape = jax.random.uniform(keys[1], (4, batch))
  share = area[0] + share * (area[1] - area[0])
  low, high = jnp.log(aspect[0]), jnp.log(aspect[1])
  ratio = jnp.exp(low + shape * (high - low))
  # No side is longer than the image's, and the box lies wholly inside.
  tall = jnp.minimum(jnp.sqrt(share * ratio), 1)
  wide = jnp.minimum(jnp.sqrt(share / ratio), 1)
  y, x = tall / 2 + y * (1 - tall), wide / 2 + x * (1 - wide)
  box = jax.vmap(lambda *b: _box(height, width, *b))(y, x, tall, wide)
  box = (box & erased[:, None, None])[..., None]
  noise = jax.random.normal(keys[2], images.shape, images.dtype)
  return jnp.where(box, jnp.clip(noise, -1, 1), images)


def _box(height, width, y, x, tall, wide):
  """Marks the pixels of a box centred at (y, x); units are image sides."""
  rows = (jnp.arange(height) + 0.5) / height
  columns = (jnp.arange(width) + 0.5) / width
  in_rows = jnp.abs(rows - y) < tall / 2
  return in_rows[:, None] & (jnp.abs(columns - x) < wide / 2)[None]


@OPS.register
def value_range(
  images: jax.Array, low: float = -1.0, high: float = 1.0
) -> jax.Array:
  """Maps uint8 images, 0 to 255, to float32 in [low, high].

  A pipeline whose preprocessing has no `value_range` passes uint8 images, which
  take a quarter of the bytes between processes and to the device.

  Args:
    images: (batch, height, width, channels) uint8.
    low: the value that 0 becomes.
    high: the value that 255 becomes.

  Returns:
    Images of the same shape, float32.

  Raises:
    ValueError: if the images are not uint8.
  """
  if images.dtype != jnp.uint8:
    raise ValueError(
      f"value_range takes uint8 images, not {images.dtype}: it may have been "
      "applied already."
    )
  return images.astype(jnp.float32) * ((high - low) / 255) + low
