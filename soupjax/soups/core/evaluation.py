# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Calls of functions that users write, on trees that they may change."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

PyTree = Any


def owned(params: PyTree) -> PyTree:
  """Returns a tree whose containers and NumPy arrays belong to the caller.

  Arrays of JAX are shared, since nobody can change them.
  """
  return jax.tree.map(
    lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, params
  )


def call(function: Callable[..., Any], params: PyTree, *args: Any) -> Any:
  """Calls an evaluator with parameters that it may change as it likes.

  Args:
    function: of a tree, and perhaps of further arguments.
    params: the tree; gets no change.
    *args: the further arguments.

  Returns:
    What the function returns.

  Raises:
    ValueError: if it donated the arrays to a compiled function.
  """
  result = function(owned(params), *args)
  for leaf in jax.tree.leaves(params):
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
      raise ValueError(
        f"{getattr(function, '__name__', 'evaluate')} donated the parameters "
        "to a compiled function, which deletes them, but they are used again: "
        "leave out donate_argnums, or give it copies."
      )
  return result
