# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Passes over ingredients: their mixture, and its gradient's products."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups import finite, tree


@functools.partial(jax.jit, static_argnames="layout")
def _accumulate(total, first, params, slots, *, layout):
  """Adds coefficient * (params - first), leaf by leaf; total None is zero."""
  out = []
  for k, (a, b) in enumerate(zip(first, params)):
    if layout.leaves[k] is None:
      out.append(None)
      continue
    delta = b.astype(jnp.float32) - a.astype(jnp.float32)
    step = layout.spread(k, slots, delta.ndim) * delta
    out.append(step if total is None else total[k] + step)
  return out


@jax.jit
def _finish(total, first):
  return [
    # Where all agree: keeps the sign of a zero and denormal numbers.
    a if s is None else jnp.where(s == 0, wide, wide + s)
    for s, a, wide in zip(total, first, [a.astype(jnp.float32) for a in first])
  ]


@functools.partial(jax.jit, static_argnames="layout")
def _dots(grads, params, soup, *, layout):
  """<G, theta_i - theta> for every slot."""
  return jnp.concatenate(
    [
      layout.sums(k, g * (b.astype(jnp.float32) - s))
      for k, (g, b, s) in enumerate(zip(grads, params, soup))
      if layout.leaves[k] is not None
    ]
  )


class Pool:
  """The ingredients, as leaves that are read when asked for."""

  def __init__(self, ingredients, layout, sharding):
    self.ingredients, self.layout, self.sharding = ingredients, layout, sharding
    self.slot_groups = np.asarray(layout.slot_groups)
    self.first = self._leaves_of(ingredients[0])

  def _leaves_of(self, ingredient):
    return jax.tree.leaves(ingredient.load(sharding=self.sharding))

  def mix(self, alphas):
    """The leaves of the soup in float32; those not floating are the first's."""
    # The first ingredient's difference from itself is zero: skip it.
    total = None
    for k, ingredient in enumerate(self.ingredients[1:], start=1):
      slots = np.float32(alphas[self.slot_groups, k])
      total = _accumulate(
        total,
        self.first,
        self._leaves_of(ingredient),
        slots,
        layout=self.layout,
      )
    return _finish(total, self.first)

  def finished(self, alphas):
    """The leaves of the soup, with the dtypes of the first ingredient."""
    specs = self.ingredients[0].specs
    leaves = [
      # Not through a compiled function, which would cut int64 to int32.
      leaf.astype(spec.dtype) if tree.is_float(spec) else unchanged
      for leaf, spec, unchanged in zip(
        self.mix(alphas), specs.values(), self.first
      )
    ]
    finite.check_overflow(specs, leaves)
    return leaves

  def floats(self, leaves):
    """Those leaves that are floating, by position."""
    held = self.layout.leaves
    return {k: x for k, x in enumerate(leaves) if held[k] is not None}

  def gradient(self, grads, soup):
    """<G, theta_i - theta> for every group and ingredient, in float64."""
    grads = [grads.get(k) for k in range(len(self.first))]
    dots = [
      _dots(grads, self._leaves_of(i), soup, layout=self.layout)
      for i in self.ingredients
    ]
    dots = np.stack(dots).astype(np.float64)
    grad = np.zeros((len(self.layout.groups), len(self.ingredients)))
    np.add.at(grad, self.slot_groups, dots.T)
    return grad
