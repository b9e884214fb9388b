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

  It is the mean over examples x of the squared gradients of log p(y | x), with
  one y per example, drawn from the model's p(. | x). (With labels from the
  data, it would be the "empirical Fisher".)

  Args:
    log_probs: `log_probs(params, batch)` returns (n, classes) log-probabilities
      of the n examples, or their logits; row i must depend on example i alone
      (no batch statistics).
    params: of the model; all leaves must be floating.
    batches: pytrees of arrays with the n examples along their first axis; each
      new shape costs a compilation.
    seed: for drawing labels.

  Returns:
    A tree like `params`, in float32, for `rules.fisher`.

  Raises:
    ValueError: if the batches contain no example.
  """

  def gradient(params, example, key):
    example = jax.tree.map(lambda x: x[None], example)

    def log_prob(params):
      # Turns logits into log-probabilities, and leaves the latter unchanged.
      row = jax.nn.log_softmax(log_probs(params, example)[0].astype(np.float32))
      # The drawn label is a constant for the gradient.
      label = jax.random.categorical(key, jax.lax.stop_gradient(row))
      return row[label]

    return jax.grad(log_prob)(params)

  @jax.jit
  def squares(params, batch, key):
    # Scanned over examples, so that only one gradient is in memory.
    count = _num_examples(batch)

    def step(total, example_and_key):
      return jax.tree.map(
        lambda t, g: t + g.astype(np.float32) ** 2,
        total,
        gradient(params, *example_and_key),
      ), None

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, np.float32), params)
    return jax.lax.scan(step, zeros, (batch, jax.random.split(key, count)))[0]

  total, count, key = None, 0, jax.random.key(seed)
  for i, batch in enumerate(batches):
    total = _add(total, squares(params, batch, jax.random.fold_in(key, i)))
    count += _num_examples(batch)
  if not count:
    raise ValueError("The Fisher information needs at least one example.")
  return jax.tree.map(lambda x: x / count, total)


def _num_examples(batch: Any) -> int:
  return jax.tree.leaves(batch)[0].shape[0]


def _add(total: PyTree | None, part: PyTree) -> PyTree:
  return part if total is None else jax.tree.map(jnp.add, total, part)


def activation_grams(
  activations: Callable[[PyTree, Any], Mapping[str, jax.Array]],
  params: PyTree,
  batches: Iterable[Any],
) -> dict[str, jax.Array]:
  """Computes the mean X^T X of inputs of linear layers, for `rules.regmean`.

  Args:
    activations: `activations(params, batch)` returns the input (..., inputs) of
      every kernel of interest, by its name ("block_0/mlp/kernel").
    params: of the model.
    batches: each is passed to `activations`.

  Returns:
    Kernel name -> (inputs, inputs) float32.

  Raises:
    ValueError: without batches.
  """

  @jax.jit
  def sums(params, batch):
    result = {}
    for leaf, x in activations(params, batch).items():
      x = x.reshape(-1, x.shape[-1]).astype(np.float32)
      result[leaf] = (x.T @ x, np.float32(len(x)))
    return result

  total = None
  for batch in batches:
    total = _add(total, sums(params, batch))
  if total is None:
    raise ValueError("Activation grams need at least one batch.")
  return {leaf: gram / count for leaf, (gram, count) in total.items()}
