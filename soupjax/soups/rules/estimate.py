# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Statistics of data for `rules.fisher` and `rules.regmean`."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


def diagonal_fisher(
  log_probs: Callable[[PyTree, Any], jax.Array],
  params: PyTree,
  batches: Iterable[Any],
  *,
  seed: int = 0,
) -> PyTree:
  """Estimates the diagonal of the Fisher information (arXiv 2111.09832).

  The mean over examples x of the squared gradients of log p(y | x), with one y
  drawn from the model's own p(. | x): not the label of the data, which would
  give the "empirical Fisher", another thing.

  Args:
    log_probs: `log_probs(params, batch)` returns (n, classes) log-probabilities
      of the n examples, or their logits; row i must depend on example i alone
      (no batch statistics).
    params: where to take it; all leaves must be floating.
    batches: pytrees of arrays that have the n examples along their first axis;
      shapes that differ cost a compilation each.
    seed: of the drawn labels.

  Returns:
    A tree like `params`, in float32, to be handed to `rules.fisher`.

  Raises:
    ValueError: if there are no examples.
  """

  def one(params, example, key):
    example = jax.tree.map(lambda x: x[None], example)

    def chosen(params):
      # Changes nothing of log-probabilities, and makes them of logits.
      row = jax.nn.log_softmax(log_probs(params, example)[0].astype(np.float32))
      # The label is drawn, and then fixed.
      label = jax.random.categorical(key, jax.lax.stop_gradient(row))
      return row[label]

    return jax.grad(chosen)(params)

  @jax.jit
  def squares(params, batch, key):
    # Example by example: one gradient is held, not as many as examples.
    count = jax.tree.leaves(batch)[0].shape[0]

    def step(total, found):
      gradient = one(params, *found)
      return jax.tree.map(
        lambda t, g: t + g.astype(np.float32) ** 2, total, gradient
      ), None

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, np.float32), params)
    return jax.lax.scan(step, zeros, (batch, jax.random.split(key, count)))[0]

  total, seen, key = None, 0, jax.random.key(seed)
  for i, batch in enumerate(batches):
    found = squares(params, batch, jax.random.fold_in(key, i))
    total = found if total is None else jax.tree.map(jnp.add, total, found)
    seen += jax.tree.leaves(batch)[0].shape[0]
  if not seen:
    raise ValueError("The Fisher information needs at least one example.")
  return jax.tree.map(lambda x: x / seen, total)


def activation_grams(
  activations: Callable[[PyTree, Any], Mapping[str, jax.Array]],
  params: PyTree,
  batches: Iterable[Any],
) -> dict[str, jax.Array]:
  """Mean X^T X of the inputs of linear layers, for `rules.regmean`.

  Args:
    activations: `activations(params, batch)` returns, for the name of every
      kernel of interest ("block_0/mlp/kernel"), what it is multiplied with,
      (..., inputs).
    params: of the model.
    batches: what `activations` understands.

  Returns:
    Kernel name -> (inputs, inputs) float32.

  Raises:
    ValueError: if there are no batches.
  """

  @jax.jit
  def sums(params, batch):
    found = {}
    for leaf, x in activations(params, batch).items():
      x = x.reshape(-1, x.shape[-1]).astype(np.float32)
      found[leaf] = (x.T @ x, np.float32(len(x)))
    return found

  total = None
  for batch in batches:
    found = sums(params, batch)
    total = found if total is None else jax.tree.map(jnp.add, total, found)
  if total is None:
    raise ValueError("Activation grams need at least one batch.")
  return {leaf: gram / count for leaf, (gram, count) in total.items()}
