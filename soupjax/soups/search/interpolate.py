# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Affine combinations: a model plus multiples of directions."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import os
from typing import Any

import jax
import numpy as np

from soupjax.soups.core import compensated, nonfinite, precision, tree
from soupjax.soups.core import select as selection_lib
from soupjax.soups.core.ingredient import (
  Ingredient,
  as_ingredient,
  as_ingredients,
  check_ingredients,
  listed,
  sharding_of,
)

PyTree = Any


@functools.partial(jax.jit, static_argnames=("dtypes", "large"))
def _combine(stacks, deltas, ends, *, dtypes, large=False):
  """Computes base + sum_k w_k (t_k - base) of leaves, in these dtypes."""
  linear = functools.partial(compensated.linear, **deltas)
  means = [
    compensated.of_large(linear, stack) if large else linear(stack)
    for stack in stacks
  ]
  return [
    selection_lib.finish(mean, end, dtype, large)
    for mean, end, dtype in zip(means, ends, dtypes)
  ]


class Blend:
  """A function from coefficients c to the model `base + sum_j c_j d_j`.

  One compiled function serves all coefficients. Coefficients of 0 return the
  base bit for bit. A coefficient of 1 for the direction of a model, and 0 for
  all others, returns this model bit for bit.
  """

  def __init__(
    self,
    base: Ingredient | PyTree,
    directions: Sequence[Any],
    *,
    in_memory: bool = True,
    select: Mapping[str, Any] | None = None,
    dtype: Any = None,
    sharding: Any = None,
  ):
    """Opens and checks the models, which reads every weight once.

    Args:
      base: the model at coefficients of 0, in any form.
      directions: models or `sj.TaskVector`s, in memory or on disk. The
        direction of a model is its difference from the base.
      in_memory: whether to keep all models in memory. False reads every leaf
        again for every candidate, which is slower but holds only one leaf of
        each model besides the candidate.
      select: leaves that are not combined like the others, as in `mix`, in
        every candidate. A list has one number for each model besides the base,
        in the order of the directions.
      dtype: of the floating leaves of candidates; None keeps those of the base.
      sharding: placement of the models, as in `Ingredient.load`.

    Raises:
      ValueError: if there is no direction, models do not fit together, one has
        NaN or infinity, or `select` or `dtype` are not valid.
    """
    directions = directions_of(directions)
    if not directions:
      raise ValueError("Give at least one model or task vector as a direction.")
    models = {key_of(base): as_ingredient(base, "the base")}
    rows = []
    for j, direction in enumerate(directions):
      row = {}
      for key, model, weight in _terms(direction, f"direction {j}"):
        models.setdefault(key, model)
        row[key] = weight
      rows.append(row)
    # The base needs no coefficient, as its difference from itself is zero. (The
    # coefficients of a task vector sum to zero: any model can be the origin.)
    keys = list(models)[1:]
    self._matrix = np.array(
      [[row.get(key, 0.0) for key in keys] for row in rows]
    )
    opened = [
      dataclasses.replace(model, name=f"{k}: {model.name}")
      for k, model in enumerate(models.values())
    ]
    selection = selection_lib.Selection(
      opened[1:] or opened,  # The only direction may be the base itself.
      base=opened[0],
      select=select,
      dtype=dtype,
      mixes_base=True,
    )
    assert selection.base is not None  # It is mixed.
    mixed = [selection.base, *selection.ingredients][: len(opened)]
    opened = check_ingredients(mixed, has_base=True)
    nonfinite.check_finite(opened)
    self._sharding, self._in_memory = sharding, in_memory
    self._models = (
      [m.in_memory(sharding=sharding) for m in opened] if in_memory else opened
    )
    self._selection, self._fixed = selection, selection.fixed(sharding)
    self.size = len(directions)

  def __call__(self, coefficients: Sequence[float]) -> PyTree:
    """Returns the candidate at these coefficients.

    Args:
      coefficients: one number per direction.

    Raises:
      ValueError: if the candidate overflows its dtype.
    """
    weights = np.asarray(coefficients, np.float64) @ self._matrix
    deltas = compensated.delta_coefficients(weights)
    leaves, specs = self._leaves(deltas), self._selection.specs
    if nonfinite.overflows(specs, [leaves[leaf] for leaf in specs]):
      leaves = self._leaves(deltas, large=True)
      nonfinite.check_overflow(specs, [leaves[leaf] for leaf in specs])
    return self._selection.assembled(leaves)

  def _leaves(self, deltas, large=False) -> dict[str, Any]:
    """Returns the leaves of a candidate; see `compensated.of_large`."""
    models, specs = self._models, self._selection.specs
    floats = [n for n, s in models[0].specs.items() if tree.is_float(s)]
    groups = [floats] if self._in_memory else [[leaf] for leaf in floats]
    leaves = {
      leaf: self._read(models[0], leaf)
      for leaf in models[0].specs
      if leaf not in floats
    }
    for group in filter(None, groups):
      stacks = [[self._read(m, leaf) for m in models] for leaf in group]
      ends = self._selection.ends(group, self._sharding)
      dtypes = tuple(specs[leaf].dtype for leaf in group)
      with precision.kept(leaf for stack in stacks for leaf in stack):
        combined = _combine(stacks, deltas, ends, dtypes=dtypes, large=large)
      leaves.update(zip(group, combined))
    return leaves | self._fixed

  def _read(self, model, leaf):
    if self._in_memory:
      return model.read(leaf)
    placement = sharding_of(self._sharding, leaf, model.specs[leaf])
    return model.read(leaf, sharding=placement)


def directions_of(directions: Any) -> list[Any]:
  """Lists models and task vectors, with patterns resolved to models."""
  return [
    model
    for direction in listed(directions)
    for model in (
      as_ingredients(direction)
      if isinstance(direction, str | os.PathLike)
      else [direction]
    )
  ]


def key_of(model: Any) -> Any:
  """Returns the identity of a model: its real path, or its id in memory."""
  path = model.path if isinstance(model, Ingredient) else model
  if path and isinstance(path, str | os.PathLike):
    return os.path.realpath(path)
  return id(model)


def _terms(direction: Any, label: str):
  """Returns the models of a direction with their keys and coefficients."""
  if hasattr(direction, "opened"):  # A TaskVector, which imports this module.
    return direction.opened()
  return [(key_of(direction), as_ingredient(direction, label), 1.0)]
