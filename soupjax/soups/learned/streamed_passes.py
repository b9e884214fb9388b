# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Passes over ingredients for the mixture and for the dot products."""

from collections.abc import Iterable, Iterator, Sequence
import concurrent.futures
import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups.core import (
  arguments,
  compensated,
  nonfinite,
  precision,
  tree,
)
from soupjax.soups.core.ingredient import Ingredient
from soupjax.soups.learned import offload
from soupjax.soups.learned.granularity import CoefficientLayout

Leaves = list[Any]


@functools.partial(jax.jit, static_argnames="layout")
def _means(total, first, scale, *, layout):
  """Divides the running sums; stacks of layers have a scale per layer."""
  return [
    compensated.mean(s, a, layout.spread(scale, k))
    for k, (s, a) in enumerate(zip(zip(*total), first))
  ]


@functools.partial(jax.jit, static_argnames="layout")
def _dots(grads, params, origin, *, layout):
  """Computes <G, theta_i - origin> for every slot."""
  return jnp.concatenate(
    [
      layout.sums(k, g * (b.astype(jnp.float32) - a.astype(jnp.float32)))
      for k, (g, b, a) in enumerate(zip(grads, params, origin))
      if layout.leaves[k] is not None
    ]
  )


class Pool:
  """The ingredients of a learned soup, read in repeated passes.

  Besides the first ingredient (or the base), memory holds two ingredients: the
  current one, and the next one, which is being read. Passes alternate in
  direction. The last ingredient of a pass is then the first of the next and is
  not read again, and the files that follow are likely to be in the page cache.
  """

  def __init__(
    self,
    ingredients: Sequence[Ingredient],
    base: Ingredient | None,
    layout: CoefficientLayout,
    sharding: Any,
    residency: str,
  ):
    """Reads the base, or else the first ingredient.

    Args:
      ingredients: all ingredients.
      base: the origin of task vectors, None for a weighted mean.
      layout: the coefficients of every leaf.
      sharding: placement of the ingredients, as in `Ingredient.load`.
      residency: "device", "host" or "disk"; see `offload.choose`.
    """
    self.base, self.layout, self.sharding = base, layout, sharding
    self.slot_groups = np.asarray(layout.slot_groups)
    self.ingredients = list(ingredients)
    self.anchor = base or self.ingredients[0]
    self.first = self._placed(self._load(self.anchor))
    # Sums are of differences from the first model, which itself has no term.
    self._positions = range(0 if base else 1, len(self.ingredients))
    self._on_devices: dict[int, Leaves] | None = None
    self._recent: tuple[int, Leaves] | None = None
    if residency == "device":
      self._on_devices = dict(self._pass(self._positions))
    elif residency == "host":
      for k in self._positions:
        self.ingredients[k] = offload.cached_on_host(self.ingredients[k])

  def _load(self, ingredient) -> Leaves:
    return jax.tree.leaves(ingredient.load(sharding=self.sharding))

  def _placed(self, leaves: Leaves) -> Leaves:
    """Puts floating leaves on devices, one by one in the same list.

    The reading thread cannot do this, because `jax.default_device` does not
    apply there. Leaves that JAX would cut stay on the host.
    """
    for k in self.layout.floats:
      leaves[k] = precision.placed(leaves[k])
    return leaves

  def kept(self) -> contextlib.AbstractContextManager[None]:
    """Returns the context in which JAX keeps all bits of the leaves."""
    return precision.kept(
      spec
      for model in (self.anchor, *self.ingredients)
      for spec in model.specs.values()
      if tree.is_float(spec)
    )

  def _pass(self, positions: Iterable[int]) -> Iterator[tuple[int, Leaves]]:
    """Yields the leaves of ingredients in turn while the next are read.

    Callers must drop the leaves (`del`) before they ask for the next.
    """
    if self._on_devices is not None:
      for position in positions:
        yield position, self._on_devices[position]
      return
    positions, recent = list(positions), self._recent
    load = precision.inherited(self._load)
    self._recent = None
    with concurrent.futures.ThreadPoolExecutor(1) as thread:

      def read(turn):
        if turn == len(positions):
          return None
        return thread.submit(load, self.ingredients[positions[turn]])

      if recent and positions and recent[0] == positions[0]:
        pending = concurrent.futures.Future()
        pending.set_result(recent[1])
      else:
        pending = read(0)
      recent = None
      for turn, position in enumerate(positions):
        leaves = self._placed(pending.result())
        pending = read(turn + 1)
        if pending is None:
          self._recent = (position, leaves)
        yield position, leaves

  def check_finite(self) -> None:
    """Reads every model once and checks it for NaN and infinity.

    Raises:
      ValueError: naming the model and the first leaf that is not finite.
    """
    names = list(self.anchor.specs)

    def check(name, leaves):
      floats = self.floats(leaves)
      flags = nonfinite.all_finite(list(floats.values()))
      nonfinite.raise_if_not_finite(name, [names[k] for k in floats], flags)

    check(self.anchor.name, self.first)
    for position, leaves in self._pass(self._positions):
      check(self.ingredients[position].name, leaves)
      del leaves

  def mix(self, alphas: np.ndarray) -> Leaves:
    """Returns the soup in float32, with the first model's integer leaves.

    Leaves of float64 keep their dtype, in the context `kept`. The bits are
    those of `uniform_soup` with the coefficients as weights or, with a base,
    those of `rules.task_arithmetic`, on any mesh.

    Args:
      alphas: (groups, K) coefficients.
    """
    weights, scales = self._coefficients(alphas)
    first = list(self.floats(self.first).values())
    total = compensated.running_zero(first)
    for position, leaves in self._pass(self._positions):
      total = compensated.running_add(
        total,
        first,
        list(self.floats(leaves).values()),
        weights[:, self.slot_groups, position],
        self.layout.spread,
      )
      del leaves
      if self._on_devices is None:
        # Without waiting, devices would hold all ingredients still to add.
        jax.block_until_ready(total)
    scale = scales[:, self.slot_groups]
    means = iter(_means(total, first, scale, layout=self.layout))
    return [
      leaf if slots is None else next(means)
      for leaf, slots in zip(self.first, self.layout.leaves)
    ]

  def _coefficients(self, alphas):
    """Returns the weights, (3, groups, K), and the scales, (6, groups)."""
    if self.base:
      ones = np.stack([compensated.parts(1.0)] * len(alphas), axis=1)
      return compensated.pair(alphas), ones
    weights = [arguments.soup_weights(row, len(row)) for row in alphas]
    scales = [compensated.reciprocal(row.sum()) for row in weights]
    return compensated.pair(weights), np.stack(scales, axis=1)

  def floats(self, leaves: Leaves) -> dict[int, Any]:
    """Returns the floating leaves by position."""
    return {k: leaves[k] for k in self.layout.floats}

  def products(self, grads: dict[int, Any], soup: Leaves) -> np.ndarray:
    """Returns <G, theta_i - origin> for every group and ingredient.

    Args:
      grads: the gradient G of every floating leaf, by position.
      soup: from `mix`; the origin, unless there is a base.

    Returns:
      (groups, K) products in float64.
    """
    origin = self.first if self.base else soup
    grads = [grads.get(k) for k in range(len(self.first))]

    def dots(leaves):
      values = _dots(grads, leaves, origin, layout=self.layout)
      # Reading the values waits for the device, as in `mix`.
      return np.array(values) if self._on_devices is None else values

    rows = {} if self.base else {0: dots(self.first)}
    for position, leaves in self._pass(reversed(self._positions)):
      rows[position] = dots(leaves)
      del leaves
    slots = np.stack([rows[k] for k in sorted(rows)]).astype(np.float64)
    out = np.zeros((len(self.layout.groups), len(self.ingredients)))
    np.add.at(out, self.slot_groups, slots.T)
    return out
