# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Affine combinations: a model plus multiples of task vectors."""

from collections.abc import Sequence
import dataclasses
import os
from typing import Any

import jax
import numpy as np

from soupjax.soups.core import compensated, nonfinite, tree
from soupjax.soups.core.ingredient import (
  Ingredient,
  as_ingredient,
  as_ingredients,
  check_ingredients,
  listed,
  sharding_of,
)

PyTree = Any


@jax.jit
def _combine(stacks, coefficients):
  """base + sum_k w_k (t_k - base) for some leaves, in their dtypes."""
  return [
    compensated.linear(stack, **coefficients).astype(stack[0].dtype)
    for stack in stacks
  ]


class Blend:
  """`base + sum_j c_j d_j` for any coefficients c; call it with those.

  All candidates go through one compiled function, whatever the coefficients.
  With all coefficients 0 it returns the base, and with a single direction from
  the base to a model and coefficient 1 that model, bit for bit.
  """

  def __init__(
    self,
    base: Ingredient | PyTree,
    directions: Sequence[Any],
    *,
    in_memory: bool = True,
    sharding: Any = None,
  ):
    """Opens and checks the models; every weight is read once.

    Args:
      base: where to start: an ingredient, or a tree.
      directions: what to add, each a model (then it is the way from the base to
        it) or an `sj.TaskVector`, of checkpoints on disk too.
      in_memory: keeps all models. False reads a leaf of each for every
        candidate: slower, but then only one leaf of each is held besides the
        candidate.
      sharding: where they go, as in `Ingredient.load`.

    Raises:
      ValueError: if there is no direction, models do not fit together, or one
        has NaN or infinity.
    """
    directions = directions_of(directions)
    if not directions:
      raise ValueError("Give at least one model, or task vector, to add.")
    models = {key_of(base): as_ingredient(base, "the base")}
    rows = []
    for j, direction in enumerate(directions):
      row = {}
      for key, model, weight in _terms(direction, f"direction {j}"):
        models.setdefault(key, model)
        row[key] = weight
      rows.append(row)
    # The base differs from itself by zero: it needs no coefficient. (Those of a
    # task vector sum to zero, so differences can be taken from any model.)
    keys = list(models)[1:]
    self._matrix = np.array(
      [[row.get(key, 0.0) for key in keys] for row in rows]
    )
    opened = [
      dataclasses.replace(model, name=f"{k}: {model.name}")
      for k, model in enumerate(models.values())
    ]
    opened = check_ingredients(opened)
    nonfinite.check_finite(opened)
    self._sharding, self._in_memory = sharding, in_memory
    self._models = (
      [m.in_memory(sharding=sharding) for m in opened] if in_memory else opened
    )
    self._specs, self._treedef = opened[0].specs, opened[0].treedef
    self.size = len(directions)

  def __call__(self, coefficients: Sequence[float]) -> PyTree:
    """Returns the candidate, in the dtypes of the base.

    Args:
      coefficients: one number a direction.

    Raises:
      ValueError: if it overflows its dtype.
    """
    weights = np.asarray(coefficients, np.float64) @ self._matrix
    coefficients = compensated.delta_coefficients(weights)
    floats = [n for n, s in self._specs.items() if tree.is_float(s)]
    groups = [floats] if self._in_memory else [[leaf] for leaf in floats]
    found: dict[str, jax.Array] = {}
    for group in filter(None, groups):
      stacks = [[self._read(m, leaf) for m in self._models] for leaf in group]
      combined = _combine(stacks, coefficients)
      found.update(zip(group, combined))
    leaves = [
      found[leaf] if leaf in found else self._read(self._models[0], leaf)
      for leaf in self._specs
    ]
    nonfinite.check_overflow(self._specs, leaves)
    return jax.tree.unflatten(self._treedef, leaves)

  def _read(self, model, leaf):
    if self._in_memory:
      return model.read(leaf)
    where = sharding_of(self._sharding, leaf, self._specs[leaf])
    return model.read(leaf, sharding=where)


def directions_of(directions: Any) -> list[Any]:
  """Lists models and task vectors; a pattern becomes the models it matches."""
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
  """What is the same for two mentions of one model, on disk or in memory."""
  path = model.path if isinstance(model, Ingredient) else model
  if path and isinstance(path, str | os.PathLike):
    return os.path.realpath(path)
  return id(model)


def _terms(direction: Any, label: str):
  """The models of a direction, each with its key and coefficient."""
  if hasattr(direction, "opened"):  # A TaskVector, which lives above this.
    return direction.opened()
  return [(key_of(direction), as_ingredient(direction, label), 1.0)]
