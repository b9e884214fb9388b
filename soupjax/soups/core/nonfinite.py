# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Checks for NaN and infinity, in ingredients and in soups."""

from collections.abc import Mapping, Sequence
import concurrent.futures
from typing import Any

import jax
import numpy as np

from soupjax.soups.core import crc32, precision, slices, tree
from soupjax.soups.core.ingredient import Ingredient, explaining_changes

# Elements that a thread reads at once. Reusing memory takes a quarter of the
# time of allocating it.
_ELEMENTS = 1 << 20


def is_finite(array: np.ndarray) -> bool:
  """Whether an array on the host has neither NaN nor infinity."""
  if array.dtype.kind in "iub" or array.dtype.itemsize != 2:
    return bool(np.isfinite(array).all())
  # Ten times as fast as isfinite: looks for exponents with all bits set.
  infinity = np.array(np.inf, array.dtype).view(np.uint16)
  exponents = array.view(np.uint16) & infinity
  return not array.size or bool(exponents.max() != infinity)


@jax.jit
def _all_finite(leaves):
  return jax.numpy.stack([jax.numpy.isfinite(x).all() for x in leaves])


def all_finite(leaves: Sequence[Any]) -> jax.Array:
  """Whether each of several arrays is finite, as one boolean array."""
  with precision.kept(leaves):
    return _all_finite(leaves)


def raise_if_not_finite(ingredient: str, names: Sequence[str], flags) -> None:
  """Raises a ValueError for the first of `names` whose flag is False."""
  for name, ok in zip(names, np.asarray(flags)):
    if not ok:
      raise ValueError(
        f"Ingredient {ingredient!r} has NaN or infinity in leaf {name!r}; it "
        "would spoil the whole soup. Leave it out: its fine-tuning diverged."
      )


def check_finite(ingredients: Sequence[Ingredient]) -> None:
  """Reads every float leaf once and checks it for NaN and infinity.

  Files are read in blocks, two files at a time, and compared with their
  checksums if they record any.

  Args:
    ingredients: the models to average.

  Raises:
    ValueError: naming the first ingredient that is not finite, and the leaf; or
      a file that is damaged or has changed since it was opened.
  """
  with (
    explaining_changes(ingredients),
    concurrent.futures.ThreadPoolExecutor(2) as pool,
  ):
    checks = [
      pool.submit(_check_file, i) if i.path and i.storage else None
      for i in ingredients
    ]
    try:
      for ingredient, check in zip(ingredients, checks):
        if check is not None:
          check.result()
        else:
          # Not in a thread: processes that share an array must run compiled
          # functions in the same order.
          _check_leaves(ingredient)
    finally:
      for check in filter(None, checks):
        check.cancel()


def _floats(ingredient: Ingredient) -> list[str]:
  return [n for n, s in ingredient.specs.items() if tree.is_float(s)]


def _check_leaves(ingredient: Ingredient) -> None:
  floats = _floats(ingredient)
  if floats:
    flags = all_finite([ingredient.read(name) for name in floats])
    raise_if_not_finite(ingredient.name, floats, flags)


def _check_file(ingredient: Ingredient) -> None:
  buffer = [np.empty(0, np.uint8)]
  position = {name: k for k, name in enumerate(ingredient.storage.order)}
  for name in sorted(_floats(ingredient), key=position.__getitem__):
    flag = _is_finite(ingredient, name, buffer)
    raise_if_not_finite(ingredient.name, [name], [flag])


def _is_finite(
  ingredient: Ingredient, leaf: str, buffer: list[np.ndarray]
) -> bool:
  """Whether a leaf on disk is finite; `buffer` holds memory for its blocks."""
  spec, storage, checksum = ingredient.specs[leaf], ingredient.storage, 0
  chunk = storage.chunks.get(leaf)
  for box in slices.split(slices.whole(spec.shape), _ELEMENTS, chunk):
    size = slices.size(box) * spec.dtype.itemsize
    if buffer[0].size < size:
      buffer[0] = np.empty(size, np.uint8)
    part = buffer[0][:size].view(spec.dtype)
    storage.read_box(leaf, box, part)
    if leaf in storage.checksums:
      checksum = crc32.extend(checksum, part)
    if not is_finite(part):
      return False
  if spec.size and leaf in storage.checksums:
    crc32.check(ingredient.path, leaf, checksum, storage.checksums[leaf])
  return True


def overflows(specs: Mapping[str, Any], leaves: Sequence[Any]) -> bool:
  """Whether any float leaf is not finite; see `check_overflow`."""
  floats = [x for x, s in zip(leaves, specs.values()) if tree.is_float(s)]
  return bool(floats) and not np.asarray(all_finite(floats)).all()


def check_overflow(
  specs: Mapping[str, jax.ShapeDtypeStruct],
  leaves: Sequence[Any],
  advice: str = "",
) -> None:
  """Checks that the float leaves of a soup of finite ingredients are finite.

  Args:
    specs: leaf name -> shape and dtype.
    leaves: of the soup, in the order of `specs`.
    advice: the end of the error, if the usual advice does not fit.

  Raises:
    ValueError: naming the first leaf that is not finite.
  """
  floats = {
    name: leaf
    for (name, spec), leaf in zip(specs.items(), leaves)
    if tree.is_float(spec)
  }
  if floats:
    flags = all_finite(list(floats.values()))
    raise_if_overflows(specs, list(floats), flags, advice)


def raise_if_overflows(
  specs, names: Sequence[str], flags, advice: str = ""
) -> None:
  """Raises a ValueError for the first of `names` whose flag is False."""
  for name, ok in zip(names, np.asarray(flags)):
    if not ok:
      raise ValueError(
        f"The soup overflows {specs[name].dtype} (at most "
        f"{float(jax.numpy.finfo(specs[name].dtype).max):g}) in leaf {name!r}, "
        "though every ingredient is finite: "
        + (
          advice
          or "give a wider dtype=, or do not extrapolate (weights of one sign, "
          "shares from 0 to 1)."
        )
      )
