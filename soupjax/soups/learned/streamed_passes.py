# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Passes over ingredients: the mixture, and the gradient's dot products."""

from collections.abc import Iterable, Iterator, Sequence
import concurrent.futures
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups.core import arguments, compensated, nonfinite
from soupjax.soups.core.ingredient import Ingredient
from soupjax.soups.learned import offload
from soupjax.soups.learned.granularity import CoefficientLayout

Leaves = list[Any]


@functools.partial(jax.jit, static_argnames="layout")
def _means(total, first, scale, *, layout):
  """Ends running sums; scales of stacks of layers differ by layer."""
  return [
    compensated.mean(s, a, layout.spread(scale, k))
    for k, (s, a) in enumerate(zip(zip(*total), first))
  ]


@functools.partial(jax.jit, static_argnames="layout")
def _dots(grads, params, origin, *, layout):
  """<G, theta_i - origin> for every slot."""
  return jnp.concatenate(
    [
      layout.sums(k, g * (b.astype(jnp.float32) - a.astype(jnp.float32)))
      for k, (g, b, a) in enumerate(zip(grads, params, origin))
      if layout.leaves[k] is not None
    ]
  )


class Pool:
  """The ingredients, for one pass after another.

  A pass has two of them at most besides the first (or the base): the one that
  is worked on and the next, which is read meanwhile. Passes go there and back,
  so that the last of one pass is the first of the next and is not read again;
  what the system still holds of files is met first, too.
  """

  def __init__(
    self,
    ingredients: Sequence[Ingredient],
    base: Ingredient | None,
    layout: CoefficientLayout,
    sharding: Any,
    kept: str,
  ):
    """Reads the model that differences are taken from: the base or the first.

    Args:
      ingredients: all of them.
      base: what task vectors are taken from, None for a weighted mean.
      layout: which coefficients belong to which leaf.
      sharding: where ingredients go, as in `Ingredient.load`.
      kept: "device", "host" or "disk"; see `offload.choose`.
    """
    self.base, self.layout, self.sharding = base, layout, sharding
    self.slot_groups = np.asarray(layout.slot_groups)
    self.ingredients = list(ingredients)
    self.anchor = base or self.ingredients[0]
    self.first = self._placed(self._load(self.anchor))
    # The first ingredient's difference from itself is zero: it has no term.
    self._positions = range(0 if base else 1, len(self.ingredients))
    self._on_devices: dict[int, Leaves] | None = None
    self._recent: tuple[int, Leaves] | None = None
    if kept == "device":
      self._on_devices = dict(self._pass(self._positions))
    elif kept == "host":
      for k in self._positions:
        self.ingredients[k] = offload.cached_on_host(self.ingredients[k])

  def _load(self, ingredient) -> Leaves:
    return jax.tree.leaves(ingredient.load(sharding=self.sharding))

  def _placed(self, leaves: Leaves) -> Leaves:
    """Puts floats on devices, one by one in the same list.

    Not in the thread that reads, which knows no `jax.default_device`. Integers
    stay: JAX would cut those of 64 bits.
    """
    for k, held in enumerate(self.layout.leaves):
      if held is not None:
        leaves[k] = jnp.asarray(leaves[k])
    return leaves

  def _pass(self, positions: Iterable[int]) -> Iterator[tuple[int, Leaves]]:
    """Yields the leaves of ingredients in turn, reading the next meanwhile.

    Whoever uses them must drop them (`del`) before asking for the next.
    """
    if self._on_devices is not None:
      for position in positions:
        yield position, self._on_devices[position]
      return
    positions, recent = list(positions), self._recent
    self._recent = None
    with concurrent.futures.ThreadPoolExecutor(1) as thread:

      def read(turn):
        if turn == len(positions):
          return None
        return thread.submit(self._load, self.ingredients[positions[turn]])

      if recent and positions and recent[0] == positions[0]:
        coming = concurrent.futures.Future()
        coming.set_result(recent[1])
      else:
        coming = read(0)
      recent = None
      for turn, position in enumerate(positions):
        leaves = self._placed(coming.result())
        coming = read(turn + 1)
        if coming is None:
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
    """Returns the soup in float32; leaves not floating are the first's.

    The bits are those of `uniform_soup` with the coefficients as weights, or
    with a base of `rules.task_arithmetic`, on any mesh.

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
        # Devices that lag behind would hold all that they still have to add.
        jax.block_until_ready(total)
    scale = scales[:, self.slot_groups]
    means = iter(_means(total, first, scale, layout=self.layout))
    return [
      leaf if slots is None else next(means)
      for leaf, slots in zip(self.first, self.layout.leaves)
    ]

  def _coefficients(self, alphas):
    """Weights (2, groups, K) and scales (3, groups) of the combination."""
    if self.base:
      ones = np.stack([compensated.parts(1.0)] * len(alphas), axis=1)
      return compensated.pair(alphas), ones
    weights = [arguments.soup_weights(row, len(row)) for row in alphas]
    scales = [compensated.reciprocal(row.sum()) for row in weights]
    return compensated.pair(weights), np.stack(scales, axis=1)

  def floats(self, leaves: Leaves) -> dict[int, Any]:
    """Those leaves that are floating, by position."""
    held = self.layout.leaves
    return {k: x for k, x in enumerate(leaves) if held[k] is not None}

  def products(self, grads: dict[int, Any], soup: Leaves) -> np.ndarray:
    """Returns <G, theta_i - origin> for every group and ingredient.

    Args:
      grads: G, the gradient at the soup, of every floating leaf by position.
      soup: from `mix`. It is the origin, unless there is a base.

    Returns:
      (groups, K) products in float64.
    """
    origin = self.first if self.base else soup
    grads = [grads.get(k) for k in range(len(self.first))]

    def dots(leaves):
      found = _dots(grads, leaves, origin, layout=self.layout)
      # To read them waits for the device, as in `mix`.
      return np.array(found) if self._on_devices is None else found

    found = {} if self.base else {0: dots(self.first)}
    for position, leaves in self._pass(reversed(self._positions)):
      found[position] = dots(leaves)
      del leaves
    slots = np.stack([found[k] for k in sorted(found)]).astype(np.float64)
    out = np.zeros((len(self.layout.groups), len(self.ingredients)))
    np.add.at(out, self.slot_groups, slots.T)
    return out
