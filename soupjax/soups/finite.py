# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""NaN and infinity: in an ingredient, or in a soup of finite ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from soupjax.soups import tree


@jax.jit
def all_finite(leaves):
  """Whether each of some arrays is finite, as one array."""
  return jax.numpy.stack([jax.numpy.isfinite(x).all() for x in leaves])


def raise_if_not_finite(ingredient: str, names: Sequence[str], flags) -> None:
  """Raises a ValueError for the first of `names` whose flag is False."""
  for name, ok in zip(names, np.asarray(flags)):
    if not ok:
      raise ValueError(
        f"Ingredient {ingredient!r} has NaN or infinity in leaf {name!r}; it "
        "would spoil the whole soup. Leave it out: its fine-tuning diverged."
      )


def check_overflow(
  specs: Mapping[str, jax.ShapeDtypeStruct], leaves: Sequence[Any]
) -> None:
  """Checks that the float leaves of a soup of finite ingredients are finite.

  Args:
    specs: leaf name -> shape and dtype.
    leaves: of the soup, in that order.

  Raises:
    ValueError: naming the first leaf that is not.
  """
  floats = [
    (name, leaf)
    for (name, spec), leaf in zip(specs.items(), leaves)
    if tree.is_float(spec)
  ]
  if floats:
    flags = all_finite([leaf for _, leaf in floats])
    raise_if_overflows(specs, [name for name, _ in floats], flags)


def raise_if_overflows(specs, names: Sequence[str], flags) -> None:
  """Raises a ValueError for the first of `names` whose flag is False."""
  for name, ok in zip(names, np.asarray(flags)):
    if not ok:
      raise ValueError(
        f"The soup overflows {specs[name].dtype} in leaf {name!r}, though "
        "every ingredient is finite: cast them to a wider dtype, or use "
        "weights of one sign."
      )
