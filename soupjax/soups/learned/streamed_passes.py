# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Passes over ingredients that compute mixtures and dot products."""

from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
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
Stack = list[Leaves]  # Of several models.
Key = tuple[int, int]  # Positions of a chunk, and of one of its blocks.

# Maximum number of models in a block; programs and memory grow with it.
_MOST_MODELS = 8


@functools.partial(jax.jit, static_argnames="layout")
def _means(total, first, stack, weights, scale, *, layout):
  """Adds the last models to running sums, None if empty, and divides."""
  means = []
  for k, leaf in enumerate(first):
    pair = (
      compensated.zero(leaf) if total is None else (total[0][k], total[1][k])
    )
    for turn, leaves in enumerate(stack):
      weight = layout.spread(weights[:, :, turn], k)
      pair = compensated.add(pair, leaf, leaves[k], *weight)
    means.append(compensated.mean(pair, leaf, layout.spread(scale, k)))
  return means


@functools.partial(jax.jit, static_argnames="layout")
def _dots(grads, stack, origin, *, layout):
  """Computes <G, theta_i - origin> for every model and slot."""
  columns = []
  for k, (grad, leaf) in enumerate(zip(grads, origin)):
    leaf = leaf.astype(jnp.float32)
    products = [grad * (b[k].astype(jnp.float32) - leaf) for b in stack]
    columns.append(layout.sums(k, products))
  return jnp.concatenate(columns, axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
  """A layer: leaves that are mixed together.

  Attributes:
    names: of the leaves.
    leaves: their positions.
    slots: those of their coefficients.
    groups: the distinct groups of these slots.
    layout: of these leaves alone.
    blocks: positions of ingredients that are read together.
    num_bytes: of the leaves of one ingredient.
  """

  names: tuple[str, ...]
  leaves: tuple[int, ...]
  slots: np.ndarray
  groups: np.ndarray
  layout: CoefficientLayout
  blocks: tuple[tuple[int, ...], ...]
  num_bytes: int

  def of(self, leaves: Any) -> Leaves:
    """Returns the leaves of this chunk."""
    return [leaves[k] for k in self.leaves]


def _make_chunks(
  layout: CoefficientLayout, models: Sequence[Ingredient], positions: range
) -> list[Chunk]:
  names = list(models[0].specs)

  def num_bytes(leaves):
    return max(
      sum(offload.padded_bytes(model.specs[names[k]]) for k in leaves)
      for model in models
    )

  all_bytes, layouts = num_bytes(layout.floats), {}
  slot_groups, chunks = np.asarray(layout.slot_groups), []
  for leaves in layout.chunks:
    slots = np.concatenate([layout.slots(leaf) for leaf in leaves])
    part, size = layout.part(leaves), num_bytes(leaves)
    # A block is no larger than a model.
    width = max(1, min(_MOST_MODELS, all_bytes // max(size, 1)))
    blocks = [
      tuple(positions[k : k + width]) for k in range(0, len(positions), width)
    ]
    chunks.append(
      Chunk(
        names=tuple(names[leaf] for leaf in leaves),
        leaves=leaves,
        slots=slots,
        groups=np.unique(slot_groups[slots]),
        # One object for equal layouts, so that functions are compiled once.
        layout=layouts.setdefault(part, part),
        blocks=tuple(blocks),
        num_bytes=size,
      )
    )
  return chunks


class Pool:
  """The ingredients of a learned soup, read in repeated passes.

  A block is one layer of several ingredients, which together are no larger than
  a model. Besides the first ingredient (or the base), memory holds two blocks:
  the current one, and the next one, which is being read. If all ingredients are
  in one block, dot products and the next mixture need one pass. Passes
  alternate in direction, so that the last block of a pass is not read again,
  and the files that follow are likely to be in the page cache.
  """

  def __init__(
    self,
    ingredients: Sequence[Ingredient],
    base: Ingredient | None,
    layout: CoefficientLayout,
    sharding: Any,
    residency: offload.Residency,
  ):
    """Reads the base, or else the first ingredient.

    Args:
      ingredients: all ingredients.
      base: the origin of task vectors, None for a weighted mean.
      layout: the coefficients of every leaf.
      sharding: placement of the ingredients, as in `Ingredient.load`.
      residency: from `offload.choose`.
    """
    self.base, self.layout, self.sharding = base, layout, sharding
    self.count = len(ingredients)
    self.anchor = base or ingredients[0]
    self.first = jax.tree.leaves(self.anchor.load(sharding=sharding))
    for k in layout.floats:
      # Leaves that JAX would cut stay on the host.
      self.first[k] = precision.placed(self.first[k])
    # Sums are of differences from the first model, which itself has no term.
    positions = range(0 if base else 1, self.count)
    models = [self.anchor, *ingredients]
    self.slot_groups = np.asarray(layout.slot_groups)
    # Programs on CPUs use the memory of the host.
    self._on_cpu = all(
      device.platform == "cpu"
      for k in layout.floats
      for device in getattr(self.first[k], "devices", set)()
    )
    self._float_specs = {
      spec.dtype: spec
      for model in models
      for spec in model.specs.values()
      if tree.is_float(spec)
    }.values()
    self.chunks = _make_chunks(layout, models, positions)
    self._memory = offload.Memory(
      max(len(c.blocks[0]) * c.num_bytes for c in self.chunks)
    )
    self.ingredients = offload.cached_on_host(
      ingredients, residency.host_bytes, self._memory
    )
    self._backwards = True
    self._on_devices: dict[Key, Stack] | None = None
    self._recent: tuple[Key, Stack] | None = None
    if residency.place == "device":
      self.ingredients = list(ingredients)
      keys = self._keys()
      stacks = (self._placed(stack) for stack in self._read(keys))
      self._on_devices = dict(zip(keys, stacks))

  def _keys(self) -> list[Key]:
    """Returns the keys of all blocks of all chunks, in order."""
    return [
      (k, n)
      for k, chunk in enumerate(self.chunks)
      for n in range(len(chunk.blocks))
    ]

  def _placed(self, stack: Stack) -> Stack:
    """Puts leaves on devices, unless JAX would cut some of them.

    The reading thread cannot do this, because `jax.default_device` does not
    apply there.
    """
    if any(map(precision.is_cut, self._float_specs)):
      return stack
    # Arrays already on devices may span several processes.
    return jax.tree.map(
      lambda x: x if isinstance(x, jax.Array) else jax.device_put(x), stack
    )

  def kept(self) -> contextlib.AbstractContextManager[None]:
    """Returns the context in which JAX keeps all bits of the leaves."""
    return precision.kept(self._float_specs)

  def _load(self, key: Key) -> Stack:
    """Reads a block: the leaves of a chunk, of several ingredients."""
    chunk, stack = self.chunks[key[0]], []
    with self._memory.filled():
      for position in chunk.blocks[key[1]]:
        ingredient = self.ingredients[position]
        specs = {name: ingredient.specs[name] for name in chunk.names}
        part = dataclasses.replace(
          ingredient, specs=specs, treedef=jax.tree.structure([0] * len(specs))
        )
        stack.append(part.load(sharding=self.sharding))
    return stack

  def _read(self, keys: Sequence[Key]) -> Iterator[Stack]:
    """Yields blocks in turn while the next one is read.

    Before callers ask for the next block, they must drop this one (`del`) and
    wait for the functions that use it, because its memory is reused.
    """
    if self._on_devices is not None:
      yield from (self._on_devices[key] for key in keys)
      return
    load = precision.inherited(self._load)
    recent, self._recent = self._recent, None
    turns = [(key, list(turn)) for key, turn in itertools.groupby(keys)]
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
      if recent and turns and recent[0] == turns[0][0]:
        pending: Any = concurrent.futures.Future()
        pending.set_result(recent[1])
      else:
        pending = thread.submit(load, turns[0][0])
      for k, (key, turn) in enumerate(turns):
        # Drops the previous block, so that its memory can be reused.
        recent = stack = None
        stack = pending.result()
        pending = None
        if not self._on_cpu:
          stack = self._placed(stack)
        if k + 1 < len(turns):
          pending = thread.submit(load, turns[k + 1][0])
        else:
          self._recent = (key, stack)
        for _ in turn:
          yield stack

  def check_finite(self) -> None:
    """Reads every model once and checks it for NaN and infinity.

    Raises:
      ValueError: naming the model and the first leaf that is not finite.
    """
    names = list(self.anchor.specs)

    def check(name, names, leaves):
      flags = nonfinite.all_finite(leaves)
      nonfinite.raise_if_not_finite(name, names, flags)

    floats = self.floats(self.first)
    check(self.anchor.name, [names[k] for k in floats], list(floats.values()))
    keys = self._keys()
    with contextlib.closing(self._read(keys)) as stacks:
      for k, n in keys:
        for position, leaves in zip(self.chunks[k].blocks[n], next(stacks)):
          check(self.ingredients[position].name, self.chunks[k].names, leaves)
          del leaves

  def mix(self, alphas: np.ndarray) -> Leaves:
    """Returns the soup in float32, with the first model's integer leaves.

    Leaves of float64 keep their dtype, in the context `kept`. The bits are
    those of `uniform_soup` with the coefficients as weights or, with a base,
    those of `rules.task_arithmetic`, on any mesh.

    Args:
      alphas: (groups, K) coefficients.
    """
    soup = list(self.first)
    with contextlib.closing(self._read(self._keys())) as stacks:
      for chunk in self.chunks:
        self._mix_into(soup, chunk, alphas[chunk.groups], stacks)
    return soup

  def _mix_into(self, soup, chunk, alphas, stacks):
    """Mixes a chunk into its leaves of the soup."""
    weights, scale = self._coefficients(alphas)
    rows = np.searchsorted(chunk.groups, self.slot_groups[chunk.slots])
    weights, scale = weights[:, rows], scale[:, rows]
    first, total, spread = chunk.of(self.first), None, chunk.layout.spread
    for block in chunk.blocks[:-1]:
      if total is None:
        total = compensated.running_zero(first)
      for position, leaves in zip(block, next(stacks)):
        weight = weights[:, :, position]
        total = compensated.running_add(total, first, leaves, weight, spread)
        del leaves
      jax.block_until_ready(total)
    weights = weights[:, :, chunk.blocks[-1]]
    means = _means(
      total, first, next(stacks), weights, scale, layout=chunk.layout
    )
    for k, mean in zip(chunk.leaves, jax.block_until_ready(means)):
      soup[k] = mean

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
    out = np.zeros((len(self.layout.groups), self.count))
    with contextlib.closing(self._read(self._keys()[::-1])) as stacks:
      for chunk in self.chunks[::-1]:
        out[chunk.groups] += self._products_of(chunk, grads, soup, stacks)
    return out

  def _products_of(self, chunk, grads, soup, stacks):
    """Returns the sums over the leaves of a chunk, (its groups, K)."""
    slots = np.zeros((len(chunk.slots), self.count))
    grads = chunk.of(grads)
    origin = chunk.of(self.first if self.base else soup)

    def take(positions, stack):
      dots = _dots(grads, stack, origin, layout=chunk.layout)
      slots[:, positions] = np.asarray(dots).T

    for block in chunk.blocks[:0:-1]:
      take(block, next(stacks))
    block, first = chunk.blocks[0], []
    if not self.base:
      block, first = (0, *block), [chunk.of(self.first)]
    take(block, first + next(stacks))
    out = np.zeros((len(chunk.groups), self.count))
    np.add.at(
      out, np.searchsorted(chunk.groups, self.slot_groups[chunk.slots]), slots
    )
    return out

  def descend(
    self,
    grads: dict[int, Any],
    soup: Leaves,
    step: Callable[[Chunk, np.ndarray], np.ndarray],
  ) -> None:
    """Replaces the soup by the next one, one chunk at a time.

    Needs a layout that `is_separable`.

    Args:
      grads: as in `products`; emptied.
      soup: from `mix`; changed in place.
      step: maps a chunk and the `products` of its groups to their coefficients
        in the next soup.
    """
    order = list(enumerate(self.chunks))[:: -1 if self._backwards else 1]
    self._backwards = not self._backwards
    keys = []
    for k, chunk in order:
      blocks = range(len(chunk.blocks))
      keys += [(k, n) for n in (*reversed(blocks), *blocks)]
    with contextlib.closing(self._read(keys)) as stacks:
      for _, chunk in order:
        products = self._products_of(chunk, grads, soup, stacks)
        for leaf in chunk.leaves:
          del grads[leaf]
        self._mix_into(soup, chunk, step(chunk, products), stacks)
