# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Named leaves of any pytree, their specs, and checks of both."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import gc
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups.core import factors

PyTree = Any

# Differences listed in one message: enough for all leaves of a large model.
_MOST_SHOWN = 500


def name_of(path: Sequence[Any]) -> str:
  """Returns the name of the leaf at a path, such as `"encoder/head/kernel"`."""
  return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def flatten(params: PyTree) -> tuple[dict[str, Any], Any]:
  """Names every leaf of a tree.

  Args:
    params: any pytree of arrays: nested dicts, Linen or NNX states, registered
      dataclasses.

  Returns:
    The leaves by name, such as `"encoder/head/kernel"`, in the order of the
    tree, and the treedef that puts them back together.

  Raises:
    ValueError: if the tree has no leaves, or two leaves have the same name.
  """
  try:
    paths, treedef = jax.tree_util.tree_flatten_with_path(params)
  except (TypeError, ValueError) as e:
    raise ValueError(
      f"The tree cannot be flattened: {e} The keys of a dict must all be of "
      "one type, such as str, so that they can be sorted."
    ) from e
  if not paths:
    raise ValueError("The tree has no leaves: it needs at least one array.")
  leaves: dict[str, Any] = {}
  for path, leaf in paths:
    name = name_of(path)
    if name in leaves:
      raise ValueError(
        f"Two leaves are called {name!r}, which can happen if keys contain a "
        "'/'. Rename one of them."
      )
    leaves[name] = leaf
  return leaves, treedef


@functools.lru_cache(maxsize=4096)
def shared_spec(
  shape: tuple[int, ...], dtype: np.dtype
) -> jax.ShapeDtypeStruct:
  """Returns the same object for all leaves of one shape and dtype."""
  return jax.ShapeDtypeStruct(shape, dtype)


def spec(leaf: Any, where: str = "A leaf") -> jax.ShapeDtypeStruct:
  """Returns shape and dtype of one leaf; Python scalars count as arrays.

  Args:
    leaf: an array, or its spec.
    where: its name in errors, such as "Leaf 'w' of 'm0'".

  Raises:
    ValueError: if it is not an array of numbers that JAX can hold.
  """
  if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
    array = np.asarray(leaf)
    if array.dtype.kind not in "biufc":
      raise ValueError(
        f"{where} is not an array but a {type(leaf).__name__}. {_fix(leaf)}"
      )
    leaf = array
  dtype = leaf.dtype
  try:
    is_key = jax.dtypes.issubdtype(dtype, jax.dtypes.extended)
  except TypeError:  # A dtype of another library.
    is_key = False
  if is_key:
    raise ValueError(
      f"{where} has dtype {dtype}: random keys cannot be averaged. Drop it, or "
      "replace it with its jax.random.key_data."
    )
  try:
    dtype = np.dtype(dtype)
  except TypeError as e:
    raise ValueError(
      f"{where} is a {type(leaf).__name__} of dtype {dtype}, not an array of "
      "JAX or numpy. Convert it with numpy.asarray, or with "
      "jax.numpy.from_dlpack if its dtype is bfloat16."
    ) from e
  if not is_number(dtype):
    raise ValueError(
      f"{where} has dtype {dtype}: only arrays of numbers can be averaged. "
      "Drop it from the tree."
    )
  if dtype in (np.longdouble, np.clongdouble) and dtype.itemsize > 8:
    narrow = "float64" if dtype.kind == "f" else "complex128"
    raise ValueError(
      f"{where} has dtype {dtype}, which JAX does not support: convert it with "
      f".astype({narrow!r})."
    )
  if not dtype.isnative:
    native = dtype.newbyteorder("=")
    raise ValueError(
      f"{where} has dtype {dtype.str}, whose byte order JAX does not support: "
      f"convert it with .astype({native.name!r})."
    )
  return jax.ShapeDtypeStruct(tuple(leaf.shape), dtype)


def _fix(leaf: Any) -> str:
  """Returns advice on a leaf that is not an array."""
  if hasattr(leaf, "load"):
    return "Give its parameters, from .load()."
  if dataclasses.is_dataclass(leaf):
    return (
      "Register its class as a pytree (jax.tree_util.register_dataclass), or "
      "give its parameters alone."
    )
  return "Drop it from the tree: only arrays can be averaged."


def value_specs(leaves: Mapping[str, Any], owner: str) -> dict[str, Any]:
  """Returns the specs of leaves; rejects leaves without values.

  Args:
    leaves: leaf name -> array.
    owner: name of the tree in errors, such as "'m0'".

  Raises:
    ValueError: naming the first leaf that is abstract or not an array.
  """
  specs = {}
  for name, leaf in leaves.items():
    # The only leaf of a tree without containers has an empty name.
    where = f"Leaf {name!r} of {owner}" if name else f"The tree of {owner}"
    if isinstance(leaf, jax.ShapeDtypeStruct):
      raise ValueError(
        f"{where} is abstract, a ShapeDtypeStruct without values: give arrays, "
        "not the result of jax.eval_shape."
      )
    specs[name] = spec(leaf, where)
  return specs


def is_number(dtype: np.dtype) -> bool:
  """Whether a dtype is that of numbers or booleans, not of text or objects."""
  # dtype.kind does not tell: it is "V" for bfloat16.
  return jnp.issubdtype(dtype, np.number) or dtype == np.bool_


@functools.cache
def _is_floating(dtype: Any) -> bool:
  return jnp.issubdtype(dtype, jnp.floating)


def is_float(leaf: Any) -> bool:
  """Whether a leaf or spec has a floating dtype, including bfloat16 and fp8."""
  return _is_floating(leaf.dtype)


def num_bytes(specs: Iterable[Any]) -> int:
  """Returns the bytes of several leaves (or their specs) together."""
  # `ShapeDtypeStruct.size` takes as long as everything else here.
  return sum(math.prod(s.shape) * s.dtype.itemsize for s in specs)


def check_alike(
  trees: Mapping[str, Mapping[str, Any]],
  treedefs: Mapping[str, Any] | None = None,
  *,
  has_base: bool = False,
) -> None:
  """Checks that all trees have the leaves and shapes of the first.

  Dtypes may differ if both are floating.

  Args:
    trees: ingredient name -> leaf name -> spec or array.
    treedefs: ingredient name -> treedef, to compare containers as well.
    has_base: whether `select` can keep leaves of a base.

  Raises:
    ValueError: listing every leaf that differs, for every tree (at most 500,
      then the number of the others); or naming factors of a product, which
      cannot be averaged one by one.
  """
  names = list(trees)
  first, problems = names[0], []
  expected = trees[first]
  leaves: dict[str, None] = {}
  for name in names[1:]:
    differences = _differences(first, expected, name, trees[name])
    leaves |= dict.fromkeys(leaf for leaf, _ in differences)
    problems += [problem for _, problem in differences]
    if not problems and treedefs and treedefs[name] != treedefs[first]:
      problems.append(
        f"{name!r} has the same leaves as {first!r} in other containers: "
        f"{treedefs[name]}, not {treedefs[first]}"
      )
  if problems:
    all_specs = {
      k: x for name in reversed(names) for k, x in trees[name].items()
    }
    fix = factors.advice_on_tied(trees)
    fix = f"\n{fix}" if fix else ""
    # Buffers and counters, which only some versions of a library store.
    if leaves and not any(is_float(all_specs[leaf]) for leaf in leaves):
      fix = "\n" + advice(
        list(leaves),
        all_specs,
        len(names),
        has_base,
        lacking=any(leaf not in expected for leaf in leaves),
      )
    raise ValueError(
      "Only checkpoints of one architecture can be averaged, but:\n  "
      + listed(problems)
      + fix
    )
  if len(trees) > 1:
    factors.check(expected, first)


def listed(problems: Sequence[str]) -> str:
  """Lists differences, one per line: at most 500, then the number of others."""
  shown = list(problems[:_MOST_SHOWN])
  if len(problems) > _MOST_SHOWN:
    shown.append(f"and {len(problems) - _MOST_SHOWN} more")
  return "\n  ".join(shown)


def _differences(first, expected, name, specs) -> list[tuple[str, str]]:
  """Returns leaves that differ between two trees, each with a description."""
  problems = []
  for leaf, a in expected.items():
    b = specs.get(leaf)
    if a is b:  # As for most leaves from files: `shared_spec`.
      continue
    if b is None:
      problem = f"{name!r} lacks leaf {leaf!r}, which {first!r} has"
    elif a.shape != b.shape:
      problem = (
        f"{name!r} has shape {b.shape} at leaf {leaf!r}, where {first!r} has "
        f"{a.shape}"
      )
    elif a.dtype != b.dtype and not (is_float(a) and is_float(b)):
      problem = (
        f"{name!r} has dtype {b.dtype} at leaf {leaf!r}, where {first!r} has "
        f"{a.dtype}"
      )
    else:
      continue
    problems.append((leaf, problem))
  problems += [
    (leaf, f"{name!r} has leaf {leaf!r}, which {first!r} lacks")
    for leaf in specs
    if leaf not in expected
  ]
  return problems


def check_equal_integers(
  trees: Mapping[str, Mapping[str, Any]],
  specs: Mapping[str, jax.ShapeDtypeStruct] | None = None,
  *,
  has_base: bool = False,
) -> None:
  """Checks that integer and boolean leaves are the same in all trees.

  Args:
    trees: ingredient name -> leaf name -> array.
    specs: of all leaves of a model, for the advice in the error; None if the
      trees have all of them.
    has_base: whether the first tree is a base.

  Raises:
    ValueError: naming the first integer or boolean leaf that differs.
  """
  (first, expected), *rest = trees.items()
  specs = specs or {leaf: spec(value) for leaf, value in expected.items()}
  for leaf, value in expected.items():
    if is_float(specs[leaf]):
      continue
    for name, tree in rest:
      if not np.array_equal(np.asarray(value), np.asarray(tree[leaf])):
        raise differing(leaf, specs, (name, first), len(trees), has_base)


def differing(
  leaf: str,
  specs: Mapping[str, jax.ShapeDtypeStruct],
  names: Sequence[str],
  count: int,
  has_base: bool,
) -> ValueError:
  """Returns the error for a leaf that can only be copied, but differs.

  Args:
    leaf: its name.
    specs: of all leaves.
    names: the names of two models that disagree on it.
    count: the number of weights that `select` expects for a leaf.
    has_base: whether `select` can keep the leaf of a base.
  """
  return ValueError(
    f"Leaf {leaf!r} has dtype {specs[leaf].dtype}, which cannot be averaged, "
    f"and {names[0]!r} and {names[1]!r} disagree on it. "
    + advice([leaf], specs, count, has_base)
  )


def advice(
  leaves: Sequence[str],
  specs: Mapping[str, jax.ShapeDtypeStruct],
  count: int,
  has_base: bool,
  lacking: bool = False,
) -> str:
  """Returns advice to take leaves of the base or of the first ingredient.

  Args:
    leaves: names of leaves that differ.
    specs: of all leaves.
    count: as in `differing`.
    has_base: as in `differing`.
    lacking: whether the base or the first ingredient lacks one of the leaves.
  """
  source = "the base" if has_base else "the first ingredient"
  action: Any = "keep" if has_base else [1] + [0] * (count - 1)
  start, end = f"Take that of {source}", ", or leave it out with 'skip'"
  if lacking:
    action, start, end = "skip", "Leave it out", ""
  patterns = list(dict.fromkeys(_pattern(leaf, specs) for leaf in leaves))
  text = ",".join(f"{pattern}={action}" for pattern in patterns)
  return (
    f"{start} with select={dict.fromkeys(patterns, action)} (from the shell: "
    f"--config.select='{text}'){end}."
  )


def _pattern(leaf: str, specs: Mapping[str, jax.ShapeDtypeStruct]) -> str:
  """Returns a pattern for a leaf, or for its namesakes if none is float.

  Counters have the same last name in every layer.
  """
  last = re.escape(re.split("[/.]", leaf)[-1]) + "$"
  namesakes = [name for name in specs if re.search(last, name)]
  if any(is_float(specs[name]) for name in namesakes) or last == "$":
    return f"^{re.escape(leaf)}$"
  return last


def owned(params: PyTree) -> PyTree:
  """Returns a tree whose containers and NumPy arrays belong to the caller.

  JAX arrays are shared, since they are immutable.
  """
  return jax.tree.map(
    lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, params
  )


def nest(leaves: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
  """Puts named leaves into nested dicts, splitting names at each '/'.

  Args:
    leaves: leaf name -> anything.

  Returns:
    The leaves in the order of the tree, and its treedef. If nesting is
    impossible (`"a"` beside `"a/b"`), the tree is a flat dict of whole names.

  Raises:
    ValueError: if `leaves` is empty.
  """
  if not leaves:
    raise ValueError("The tree has no leaves: it needs at least one array.")
  names, treedef = _nested(tuple(leaves))
  return {name: leaves[name] for name in names}, treedef


@functools.lru_cache(maxsize=16)
def _nested(names: tuple[str, ...]) -> tuple[tuple[str, ...], Any]:
  """Returns the names in the order of their tree, and its treedef.

  The cache saves time and memory for further checkpoints of the same model.
  """
  nested: dict[str, Any] = {}
  for name in names:
    *parents, last = name.split("/")
    node = nested
    for part in parents:
      node = node.setdefault(part, {})
      if not isinstance(node, dict):
        break
    if not isinstance(node, dict) or last in node:
      nested = {name: name for name in names}
      break
    node[last] = name
  ordered, treedef = jax.tree.flatten(nested)
  return tuple(ordered), treedef


def matches(
  what: str, patterns: Iterable[str], leaves: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
  """Assigns each leaf to the first regular expression that matches it.

  Args:
    what: name of the argument with the expressions, for errors.
    patterns: regular expressions.
    leaves: names of leaves.

  Yields:
    Each pattern with the leaves that it matches and no earlier one does.

  Raises:
    ValueError: if one is not a regular expression, or gets no leaves.
  """
  taken: set[str] = set()
  for pattern in patterns:
    try:
      matched = [leaf for leaf in leaves if re.search(pattern, leaf)]
    except re.error as e:
      raise ValueError(
        f"{pattern!r} in {what} is not a regular expression: {e}."
      ) from e
    if not matched:
      raise ValueError(
        f"{pattern!r} in {what} matches no leaf. Leaves are called, for "
        f"instance, {', '.join(map(repr, leaves[:3]))}."
      )
    new = [leaf for leaf in matched if leaf not in taken]
    if not new:
      raise ValueError(
        f"{pattern!r} in {what} is never used: earlier expressions match all "
        f"of its {len(matched)} leaves. Put it first."
      )
    taken.update(new)
    yield pattern, new


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
  """Pauses Python's garbage collector while specs of many leaves are made.

  It would traverse all of them again and again, which takes a third of the time
  of opening a file with 300,000 leaves.
  """
  was_enabled = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if was_enabled:
      gc.enable()
