# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Named leaves of any pytree, and a little arithmetic on whole trees."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any

# Differences in one message: all of a large model, but not of a thousand.
_MOST_SHOWN = 500


def name_of(path: Sequence[Any]) -> str:
  """Returns the name of the leaf at a path, as in `"encoder/head/kernel"`."""
  return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


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
    raise ValueError("The tree has no leaves: it needs one array at least.")
  leaves: dict[str, Any] = {}
  for path, leaf in paths:
    name = name_of(path)
    if name in leaves:
      raise ValueError(
        f"Two leaves are called {name!r}. Keys with a '/' in them can clash: "
        "rename one of them."
      )
    leaves[name] = leaf
  return leaves, treedef


@functools.lru_cache(maxsize=4096)
def shared_spec(
  shape: tuple[int, ...], dtype: np.dtype
) -> jax.ShapeDtypeStruct:
  """Returns one object for all leaves of one shape and dtype."""
  return jax.ShapeDtypeStruct(shape, dtype)


def spec(leaf: Any, where: str = "A leaf") -> jax.ShapeDtypeStruct:
  """Returns shape and dtype of one leaf; Python scalars count as arrays.

  Args:
    leaf: an array, or its spec.
    where: what errors call it, as "Leaf 'w' of 'm0'".

  Raises:
    ValueError: if it is no array of numbers that JAX can hold.
  """
  if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
    array = np.asarray(leaf)
    if array.dtype.kind not in "biufc":
      raise ValueError(
        f"{where} is not an array but a {type(leaf).__name__}. {_hint(leaf)}"
      )
    leaf = array
  dtype = leaf.dtype
  if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
    raise ValueError(
      f"{where} has dtype {dtype}: random keys have no average. Drop it, or "
      "keep jax.random.key_data of it."
    )
  try:
    dtype = np.dtype(dtype)
  except TypeError as e:  # Of another library.
    raise ValueError(
      f"{where} is a {type(leaf).__name__} of dtype {dtype}, no array of JAX "
      "or numpy. Convert it with numpy.asarray."
    ) from e
  # Not by dtype.kind, which is "V" for bfloat16.
  if not (jnp.issubdtype(dtype, np.number) or dtype == np.bool_):
    raise ValueError(
      f"{where} has dtype {dtype}: only arrays of numbers have an average. "
      "Drop it from the tree."
    )
  if not dtype.isnative:
    native = dtype.newbyteorder("=")
    raise ValueError(
      f"{where} has dtype {dtype.str}, whose byte order JAX does not know: "
      f"convert it with .astype({native.name!r})."
    )
  return jax.ShapeDtypeStruct(tuple(leaf.shape), dtype)


def _hint(leaf: Any) -> str:
  """What to do about a leaf that is no array."""
  if hasattr(leaf, "load"):
    return "Give its parameters, from .load()."
  if dataclasses.is_dataclass(leaf):
    return (
      "Register its class as a pytree (jax.tree_util.register_dataclass), or "
      "give its parameters alone."
    )
  return "Drop it from the tree: only arrays can be averaged."


def value_specs(leaves: Mapping[str, Any], owner: str) -> dict[str, Any]:
  """Returns the specs of leaves that must be there with their values.

  Args:
    leaves: leaf name -> array.
    owner: what errors call the tree, as "'m0'".

  Raises:
    ValueError: naming the first leaf that is no array, or an abstract one.
  """
  specs = {}
  for name, leaf in leaves.items():
    # A tree that is one leaf has no name for it.
    where = f"Leaf {name!r} of {owner}" if name else f"The tree of {owner}"
    if isinstance(leaf, jax.ShapeDtypeStruct):
      raise ValueError(
        f"{where} is abstract, a ShapeDtypeStruct without values: give the "
        "arrays, not what jax.eval_shape returns."
      )
    specs[name] = spec(leaf, where)
  return specs


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
    ValueError: listing, for every tree that differs, every leaf that does (at
      most 500, then how many more there are).
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
    raise ValueError(
      "Only checkpoints of one architecture can be averaged, but:\n  "
      + listed(problems)
    )


def listed(problems: Sequence[str]) -> str:
  """Lists differences one a line; at most 500, then how many more there are."""
  shown = list(problems[:_MOST_SHOWN])
  if len(problems) > _MOST_SHOWN:
    shown.append(f"and {len(problems) - _MOST_SHOWN} more")
  return "\n  ".join(shown)


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
    raise ValueError("The tree has no leaves: it needs one array at least.")
  names, treedef = _nested(tuple(leaves))
  return {name: leaves[name] for name in names}, treedef


@functools.lru_cache(maxsize=16)
def _nested(names: tuple[str, ...]) -> tuple[tuple[str, ...], Any]:
  """Names in the order of their tree, and its treedef.

  Many checkpoints of one model share one answer, in time and in memory.
  """
  nested: dict[str, Any] = {}
  for name in names:
    *parents, last = name.split("/")
    where = nested
    for part in parents:
      where = where.setdefault(part, {})
      if not isinstance(where, dict):
        break
    if not isinstance(where, dict) or last in where:
      nested = {name: name for name in names}
      break
    where[last] = name
  found, treedef = jax.tree.flatten(nested)
  return tuple(found), treedef


def matches(
  what: str, patterns: Iterable[str], leaves: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
  """Shares leaves out among regular expressions; the first found counts.

  Args:
    what: the argument they were given in, for errors.
    patterns: regular expressions.
    leaves: names of leaves.

  Yields:
    Each pattern with the leaves that no earlier one took.

  Raises:
    ValueError: for one that is no regular expression, or takes no leaf.
  """
  taken: set[str] = set()
  for pattern in patterns:
    try:
      found = [leaf for leaf in leaves if re.search(pattern, leaf)]
    except re.error as e:
      raise ValueError(
        f"{pattern!r} in {what} is no regular expression: {e}."
      ) from e
    if not found:
      raise ValueError(
        f"{pattern!r} in {what} matches no leaf. Leaves are called, for "
        f"instance, {', '.join(map(repr, leaves[:3]))}."
      )
    new = [leaf for leaf in found if leaf not in taken]
    if not new:
      raise ValueError(
        f"{pattern!r} in {what} is never used: an earlier expression takes all "
        f"of its {len(found)} leaves. Put it first."
      )
    taken.update(new)
    yield pattern, new
