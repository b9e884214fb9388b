# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Rules that use the singular vectors of task matrices.

They apply to leaves that are matrices; on other leaves they add `scale *` the
mean of the task vectors to the base. Each thread reads one whole leaf into
memory.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from soupjax.soups.core import arguments, compensated, tree
from soupjax.soups.rules import base as rule_base
from soupjax.soups.rules import coefficients
from soupjax.soups.rules.base import RULES, Rule


def _merge(stack, base, values, of_deltas=None, of_sum=None):
  """Adds the scaled result of a rule for matrices, or the mean, to the base.

  The rule is `of_deltas` of all task matrices, (K, m, n), or `of_sum` of their
  sum, (m, n).
  """
  base = base.astype(np.float32)
  rows, count = values["rows"].ndim, len(stack)
  shape = (int(np.prod(base.shape[:rows])), -1)

  def delta(k):
    return compensated.of_model(stack, k).astype(np.float32) - base

  stack = compensated.stacked(stack)
  # Summed one by one: XLA may reorder the terms of `jnp.sum`.
  total = compensated.over_models(
    count, lambda k, total: total + delta(k), jnp.zeros_like(base)
  )
  if rows == 0:
    merged = total / count
  elif of_sum:
    merged = of_sum(total.reshape(shape))
  else:
    deltas = compensated.as_array(stack).astype(np.float32) - base[None]
    merged = of_deltas(deltas.reshape(count, *shape))
  return base + values["scale"] * merged.reshape(base.shape)


def _tsv_matrix(deltas):
  """Merges (K, m, n) into (m, n)."""
  left, size, right = jnp.linalg.svd(deltas, full_matrices=False)
  rank = max(1, size.shape[1] // len(deltas))
  # (m, K * rank) and (K * rank, n), which are not orthogonal once joined.
  left = jnp.moveaxis(left[:, :, :rank], 0, 1).reshape(len(left[0]), -1)
  right = right[:, :rank].reshape(-1, right.shape[-1])
  size = size[:, :rank].reshape(-1)
  return (_orthogonal(left) * size[None]) @ _orthogonal(right)


def _orthogonal(matrix):
  """Returns the nearest matrix with orthonormal rows or columns."""
  left, _, right = jnp.linalg.svd(matrix, full_matrices=False)
  return left @ right


def _isotropic(total):
  """Replaces all singular values of a matrix by their mean."""
  left, size, right = jnp.linalg.svd(total, full_matrices=False)
  return size.mean() * (left @ right)


def _tsv(stack, base, values):
  return _merge(stack, base, values, of_deltas=_tsv_matrix)


def _iso_c(stack, base, values):
  return _merge(stack, base, values, of_sum=_isotropic)


def _spectral(name, combine, scale, rows):
  rows = {
    str(k): arguments.whole(f"rows[{k!r}]", v) for k, v in (rows or {}).items()
  }

  def row_values(specs):
    # Compilation depends on the number of row axes, so it is passed as a shape:
    # values are traced, and shapes are not.
    return {
      leaf: {"rows": np.zeros((0,) * n, bool)}
      for leaf, n in _row_axes(rows, specs).items()
    }

  return rule_base.scaled_rule(
    name,
    combine,
    lambda scale, weights, count: {"scale": np.float32(scale)},
    scale,
    more_values=row_values,
    whole=True,
    settings={"rows": rows} if rows else {},
    needs_base=True,
  )


def _row_axes(rows, specs):
  """Returns leaf -> number of leading row axes, 0 unless it is a matrix."""
  axes = {leaf: int(len(spec.shape) == 2) for leaf, spec in specs.items()}
  for pattern, leaves in tree.matches("rows", rows, list(specs)):
    number = rows[pattern]
    for leaf in leaves:
      if not 0 <= number < max(1, len(specs[leaf].shape)):
        raise ValueError(
          f"rows says that {number} axes of {leaf!r} are rows, but at least "
          f"one axis of its shape {specs[leaf].shape} must be columns."
        )
      axes[leaf] = number
  # A matrix without elements has no singular vectors.
  return {leaf: n if specs[leaf].size else 0 for leaf, n in axes.items()}


@RULES.register
def tsv(
  scale: coefficients.Coefficient = 1.0,
  *,
  rows: Mapping[str, int] | None = None,
) -> Rule:
  """Merges by task singular vectors, TSV-M (arXiv 2412.00081).

  It keeps the largest 1 / K of the singular triples of every task matrix t_k -
  base = U_k S_k V_k^T, joins those of all tasks, and replaces the joined U and
  V by the nearest orthonormal matrices: `base + scale * U S V^T`.

  Args:
    scale: as for `task_arithmetic`.
    rows: regular expression -> number of leading axes that are rows of a leaf
      with more than two axes, such as {"(query|key|value)/kernel": 1,
      "out/kernel": 2} for Linen's attention; 0 for leaves that are not
      matrices; the first expression that matches part of a leaf's name counts.
      Without it, only leaves with two axes are matrices.

  Returns:
    The rule; it needs a base. Leaves that are not matrices become `base + scale
    * mean_k (t_k - base)`.

  Raises:
    ValueError: if an argument is invalid; on merging, if `rows` does not fit.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> base = make("base", {"w": jnp.zeros((2, 2))})
    >>> models = [make("a", {"w": jnp.array([[4.0, 0.0], [0.0, 0.0]])}),
    ...           make("b", {"w": jnp.array([[0.0, 0.0], [0.0, 2.0]])})]
    >>> rule = sj.rules.tsv()
    >>> sj.mix(rule, models, base=base).params["w"]
    Array([[4., 0.],
           [0., 2.]], dtype=float32)
  """
  return _spectral("tsv", _tsv, scale, rows)


@RULES.register
def iso_c(
  scale: coefficients.Coefficient = 1.0,
  *,
  rows: Mapping[str, int] | None = None,
) -> Rule:
  """Merges isotropically in the common subspace, Iso-C (arXiv 2502.04959).

  With sum_k (t_k - base) = U S V^T: `base + scale * mean(S) U V^T`.

  Args:
    scale: as for `task_arithmetic`.
    rows: as for `tsv`.

  Returns:
    The rule; it needs a base. Leaves that are not matrices become `base + scale
    * mean_k (t_k - base)`.

  Raises:
    ValueError: as in `tsv`.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> base = make("base", {"w": jnp.zeros((2, 2))})
    >>> models = [make("a", {"w": jnp.array([[4.0, 0.0], [0.0, 0.0]])}),
    ...           make("b", {"w": jnp.array([[0.0, 0.0], [0.0, 2.0]])})]
    >>> rule = sj.rules.iso_c()
    >>> sj.mix(rule, models, base=base).params["w"]
    Array([[3., 0.],
           [0., 3.]], dtype=float32)
  """
  return _spectral("iso_c", _iso_c, scale, rows)
