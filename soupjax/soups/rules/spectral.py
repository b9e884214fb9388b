# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Rules that use the singular vectors of task matrices.

They apply to leaves that are matrices; of all others they add `scale *` the
mean of the task vectors to the base. Whole leaves are held, one a thread.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from soupjax.soups.core import arguments, tree
from soupjax.soups.rules import coefficients
from soupjax.soups.rules.base import RULES, Rule


def _deltas(stack, base):
  base = base.astype(np.float32)
  return jnp.stack([leaf.astype(np.float32) - base for leaf in stack])


def _merge(stack, base, values, matrix_rule):
  """`base + scale *` what a rule makes of the task matrices, or their mean."""
  deltas = _deltas(stack, base)
  rows = values["rows"].ndim
  if rows == 0:
    merged = deltas.mean(0)
  else:
    shape = base.shape
    flat = (len(stack), int(np.prod(shape[:rows])), -1)
    merged = matrix_rule(deltas.reshape(flat)).reshape(shape)
  return base.astype(np.float32) + values["scale"] * merged


def _tsv_matrix(deltas):
  """(K, m, n) -> (m, n)."""
  left, size, right = jnp.linalg.svd(deltas, full_matrices=False)
  rank = max(1, size.shape[1] // len(deltas))
  # (m, K * rank) and (K * rank, n); no longer orthogonal, once they are joined.
  left = jnp.concatenate(list(left[:, :, :rank]), axis=1)
  right = jnp.concatenate(list(right[:, :rank]), axis=0)
  size = size[:, :rank].reshape(-1)
  return (_orthogonal(left) * size[None]) @ _orthogonal(right)


def _orthogonal(matrix):
  """The nearest matrix with orthonormal rows or columns (Procrustes)."""
  left, _, right = jnp.linalg.svd(matrix, full_matrices=False)
  return left @ right


def _iso_matrix(deltas):
  """(K, m, n) -> (m, n)."""
  left, size, right = jnp.linalg.svd(deltas.sum(0), full_matrices=False)
  return size.mean() * (left @ right)


def _tsv(stack, base, values):
  return _merge(stack, base, values, _tsv_matrix)


def _iso_c(stack, base, values):
  return _merge(stack, base, values, _iso_matrix)


def _spectral(name, combine, scale, rows):
  rows = {
    str(k): arguments.whole(f"rows[{k!r}]", v) for k, v in (rows or {}).items()
  }
  values, by_scale = coefficients.split(
    "scale", scale, lambda one, count: {"scale": np.float32(one)}
  )

  def leaf_values(specs, count, every):
    others = by_scale(specs, count, every) if by_scale else {}
    # How many axes are rows must be known when the rule is compiled; numbers
    # are not, and shapes are.
    return {
      leaf: {**others.get(leaf, {}), "rows": np.zeros((0,) * n, bool)}
      for leaf, n in _row_axes(rows, specs).items()
    }

  return Rule(
    name=name,
    combine=combine,
    values=values,
    leaf_values=leaf_values,
    whole=True,
    settings={
      "scale": coefficients.check("scale", scale),
      **({"rows": rows} if rows else {}),
    },
    needs_base=True,
  )


def _row_axes(rows, specs):
  """Leaf -> how many leading axes are rows; 0 if it is no matrix."""
  found = {leaf: int(len(spec.shape) == 2) for leaf, spec in specs.items()}
  for pattern, matched in tree.matches("rows", rows, list(specs)):
    number = rows[pattern]
    for leaf in matched:
      if not 0 <= number < max(1, len(specs[leaf].shape)):
        raise ValueError(
          f"rows says that {number} axes of {leaf!r} are rows, and its shape "
          f"is {specs[leaf].shape}: some must be columns."
        )
      found[leaf] = number
  # A matrix without elements has no singular vectors.
  return {leaf: n if specs[leaf].size else 0 for leaf, n in found.items()}


@RULES.register
def tsv(
  scale: coefficients.Coefficient = 1.0,
  *,
  rows: Mapping[str, int] | None = None,
) -> Rule:
  """Task singular vectors, TSV-M (arXiv 2412.00081).

  Of every task matrix t_k - base = U_k S_k V_k^T it keeps the largest 1 / K of
  the singular triples, joins those of all tasks, and replaces the joined U and
  V by the nearest orthonormal ones: `base + scale * U S V^T`.

  Args:
    scale: as for `task_arithmetic`.
    rows: regular expression -> how many leading axes of a leaf with more than
      two are its rows, as {"(query|key|value)/kernel": 1, "out/kernel": 2} for
      Linen's attention; 0 for leaves that are no matrices; the first
      expression that is found in a leaf's name counts. Without it, leaves with
      two axes are matrices, and no others.

  Returns:
    The rule; it needs a base. Leaves that are no matrices get `base + scale *
    mean_k (t_k - base)`.

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
  """Isotropic merging in the common subspace, Iso-C (arXiv 2502.04959).

  With sum_k (t_k - base) = U S V^T: `base + scale * mean(S) U V^T`.

  Args:
    scale: as for `task_arithmetic`.
    rows: as for `tsv`.

  Returns:
    The rule; it needs a base. Leaves that are no matrices get `base + scale *
    mean_k (t_k - base)`.

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
