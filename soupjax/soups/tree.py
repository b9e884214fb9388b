# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Named leaves of any pytree, and a little arithmetic on whole trees."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


def flatten(params: PyTree) -> tuple[dict[str, Any], Any]:
  """Names every leaf of a tree.

  Args:
    params: any pytree of arrays: nested dicts, Linen or NNX states, registered
      dataclasses.

  Returns:
    The leaves by name, as in `"encoder/head/kernel"`, in the tree's own order,
    and the treedef that puts them back together.

  Raises:
    ValueError: if the tree has no leaves, or two leaves get one name.
  """
  paths, treedef = jax.tree_util.tree_flatten_with_path(params)
  if not paths:
    raise ValueError("The tree has no leaves: there is nothing to average.")
  leaves: dict[str, Any] = {}
  for path, leaf in paths:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if name in leaves:
      raise ValueError(
        f"Two leaves are called {name!r}. Keys with a '/' in them can clash: "
        "rename one of them."
      )
    leaves[name] = leaf
  return leaves, treedef


def spec(leaf: Any) -> jax.ShapeDtypeStruct:
  """Returns shape and dtype of one leaf; Python scalars count as arrays."""
  if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
    return jax.ShapeDtypeStruct(tuple(leaf.shape), np.dtype(leaf.dtype))
  array = np.asarray(leaf)
  if array.dtype.kind not in "biufc":
    raise ValueError(f"A leaf is not an array but a {type(leaf).__name__}.")
  return jax.ShapeDtypeStruct(array.shape, array.dtype)


def is_float(leaf: Any) -> bool:
  """Whether a leaf (or its spec) has a floating dtype, bfloat16 and fp8 too."""
  return jnp.issubdtype(leaf.dtype, jnp.floating)


def check_alike(
  trees: Mapping[str, Mapping[str, Any]],
  treedefs: Mapping[str, Any] | None = None,
) -> None:
  """Checks that all trees have the leaves, shapes and kinds of the first.

  Args:
    trees: ingredient name -> leaf name -> array or `jax.ShapeDtypeStruct`.
    treedefs: ingredient name -> treedef, to compare containers as well.

  Raises:
    ValueError: listing, for every tree that differs, every leaf that does.
  """
  names = list(trees)
  first, problems = names[0], []
  expected = {name: spec(leaf) for name, leaf in trees[first].items()}
  for name in names[1:]:
    found = {leaf: spec(value) for leaf, value in trees[name].items()}
    problems += _differences(first, expected, name, found)
    if not problems and treedefs and treedefs[name] != treedefs[first]:
      problems.append(
        f"{name!r} holds the same leaves as {first!r} in other containers: "
        f"{treedefs[name]} against {treedefs[first]}"
      )
  if problems:
    shown = problems[:20]
    if len(problems) > 20:
      shown.append(f"and {len(problems) - 20} more")
    raise ValueError(
      "Only checkpoints of one architecture can be averaged, but:\n  "
      + "\n  ".join(shown)
    )


def _differences(first, expected, name, found) -> list[str]:
  problems = []
  for leaf, want in expected.items():
    if leaf not in found:
      problems.append(f"{name!r} lacks leaf {leaf!r}, which {first!r} has")
      continue
    have = found[leaf]
    if have.shape != want.shape:
      problems.append(
        f"{name!r} has shape {have.shape} at leaf {leaf!r}, where {first!r} "
        f"has {want.shape}"
      )
    elif is_float(have) != is_float(want) or (
      not is_float(have) and have.dtype != want.dtype
    ):
      problems.append(
        f"{name!r} has dtype {have.dtype} at leaf {leaf!r}, where {first!r} "
        f"has {want.dtype}"
      )
  problems += [
    f"{name!r} has leaf {leaf!r}, which {first!r} lacks"
    for leaf in found
    if leaf not in expected
  ]
  return problems


def check_equal_integers(trees: Mapping[str, Mapping[str, Any]]) -> None:
  """Checks that leaves which cannot be averaged are the same in all trees.

  Args:
    trees: ingredient name -> leaf name -> array.

  Raises:
    ValueError: naming the first integer or boolean leaf that differs.
  """
  (first, expected), *others = trees.items()
  for leaf, value in expected.items():
    if is_float(spec(value)):
      continue
    for name, tree in others:
      if not np.array_equal(np.asarray(value), np.asarray(tree[leaf])):
        raise ValueError(
          f"Leaf {leaf!r} has dtype {spec(value).dtype}, which has no average, "
          f"and {name!r} and {first!r} disagree on it. Drop it from the trees "
          "(step counters, for instance), or make it equal."
        )


def nest(leaves: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
  """Puts named leaves into nested dicts, taking names apart at each '/'.

  Args:
    leaves: leaf name -> anything.

  Returns:
    The leaves in the order of the tree, and its treedef. Names stay whole, in
    one flat dict, where nesting them is impossible (`"a"` beside `"a/b"`).

  Raises:
    ValueError: if there are none.
  """
  if not leaves:
    raise ValueError("The tree has no leaves: there is nothing to average.")
  nested: dict[str, Any] = {}
  for name in leaves:
    *parents, last = name.split("/")
    where = nested
    for part in parents:
      where = where.setdefault(part, {})
      if not isinstance(where, dict):
        break
    if not isinstance(where, dict) or last in where:
      nested = {name: name for name in leaves}
      break
    where[last] = name
  names, treedef = jax.tree.flatten(nested)
  return {name: leaves[name] for name in names}, treedef
