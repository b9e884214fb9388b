# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Groups of leaves that are merged in the same way."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups import rules
from soupjax.soups.core import arguments, compensated, tree
from soupjax.soups.core.ingredient import Ingredient


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Group:
  """Leaves that go through one compiled function.

  Attributes:
    combine: as in `rules.Rule`; None copies the first source, after checking
      that the sources are equal.
    values: the numbers for `combine`.
    sources: positions in `Plan.sources` that form the stack.
    base: position of the base; None if `combine` needs no base.
    stack_dtype: of the stack; float32 if the sources differ.
    base_dtype: of the base.
    out_dtype: of the result.
    limit: elements per block; blocks of larger chunks have more.
    by_rule: whether the rule merges the leaves and may measure `values`.
    extra: positions of the sources of `values["extra"]`.
    indexed: whether `values["index"]` has the positions of the elements.
    whole: whether blocks are whole leaves, in their own shape.
    affine: whether `combine` is an affine combination, see `rules.Rule`.
  """

  combine: Callable[..., jax.Array] | None
  values: Any
  sources: tuple[int, ...]
  base: int | None
  stack_dtype: np.dtype
  base_dtype: np.dtype | None
  out_dtype: np.dtype
  limit: int
  by_rule: bool = False
  extra: tuple[int, ...] = ()
  indexed: bool = False
  whole: bool = False
  affine: bool = False

  @property
  def layered(self) -> bool:
    """Whether blocks keep the first axis of a leaf, which is its layers."""
    return "by_layer" in (self.values or {}) and not self.whole

  @functools.cached_property
  def models(self) -> tuple[int, ...]:
    """Positions of the sources and of the base, if there is one."""
    return self.sources + (() if self.base is None else (self.base,))

  @property
  def bytes_an_element(self) -> int:
    """Host bytes for one element: its stack, base and result."""
    base = self.base_dtype.itemsize if self.base is not None else 0
    base += 4 * len(self.extra) + 8 * self.indexed
    # Other dtypes are cast from float32, and both arrays may exist at once.
    result = self.out_dtype.itemsize
    result += 0 if self.out_dtype == np.float32 else 4
    return self.stack_dtype.itemsize * len(self.sources) + base + result


@functools.cache
def of_large(combine: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Wraps an affine `combine` so that differences may overflow."""

  def run(stack, base, values):
    return compensated.of_large(
      lambda leaves: combine(*leaves, values), (stack, base)
    )

  return run


def _blend(combine, stack, base, values):
  """Interpolates between the base and the result of a rule."""
  merged = combine(stack, base, values)
  return compensated.linear([base, merged], **values["blend"])


@dataclasses.dataclass
class GroupMaker:
  """Makes one `Group` for all leaves that can share it.

  Attributes:
    rule: the merge rule.
    values: of the rule, for all leaves.
    leaf_values: leaf -> values that differ by leaf.
    with_extra: leaves that need the extra sources of the rule.
    ingredients: at least one.
    base: the base model, if any.
    dtype: of the floating leaves of the output; None keeps their dtypes.
    block_bytes: of all ingredients together, per thread.
    made: the groups so far.
    notes: notes for the user so far.
  """

  rule: rules.Rule
  values: Any
  leaf_values: Mapping[str, Any]
  with_extra: set[str]
  ingredients: list[Ingredient]
  base: Ingredient | None
  dtype: np.dtype | None
  block_bytes: int
  made: dict[Any, Group] = dataclasses.field(default_factory=dict)
  notes: set[str] = dataclasses.field(default_factory=set)

  def __post_init__(self):
    self.blend = functools.partial(_blend, self.rule.combine)
    base = [] if self.base is None else [self.base]
    self.models = [model.specs for model in (*self.ingredients, *base)]

  def group(self, leaf: str, action: Any) -> Group:
    """Returns the group of a leaf; see `soupjax.soups.core.select.actions`."""
    specs = [specs.get(leaf) for specs in self.models]
    if leaf in self.with_extra:
      specs += [source.specs[leaf] for source in self.rule.extra]
    # A block is read from each source in one dtype, which its leaves share.
    dtypes = [None if spec is None else spec.dtype for spec in specs]
    by_rule = not isinstance(action, str | tuple) and tree.is_float(specs[0])
    alone = leaf if by_rule and self.rule.by_leaf else None
    key = (action, alone, *dtypes)
    if key not in self.made:
      self.made[key] = self._new(leaf, action)
    return self.made[key]

  def _new(self, leaf: str, action: Any) -> Group:
    count = len(self.ingredients)
    if action == "keep":
      dtype = self.base.specs[leaf].dtype
      out = self._out_dtype([dtype])
      # The mean of one model is a cast.
      rule = None if out == dtype else rules.linear()
      return self._weighted(rule, (count,), dtype, out)
    sources = tuple(range(count))
    if isinstance(action, tuple):
      sources = tuple(k for k in sources if action[k])
      action = tuple(action[k] for k in sources)
    specs = [self.ingredients[k].specs[leaf] for k in sources]
    dtypes = [spec.dtype for spec in specs]
    if not tree.is_float(specs[0]):
      return self._weighted(None, sources, dtypes[0], dtypes[0])
    out, stacked = self._out_dtype(dtypes), dtypes[0]
    if len(set(dtypes)) > 1:
      stacked = np.dtype(np.float64 if np.float64 in dtypes else np.float32)
      names = " and ".join(sorted({str(dtype) for dtype in dtypes}))
      self.notes.add(
        f"The ingredients have mixed dtypes, {names}: sums are in {stacked}, "
        f"the soup is {out}."
      )
    if isinstance(action, tuple):
      return self._weighted(rules.linear(action), sources, stacked, out)
    combine, base, base_dtype = self.rule.combine, None, None
    values = {**self.values, **self.leaf_values.get(leaf, {})}
    if isinstance(action, float):
      weights = arguments.soup_weights([1 - action, action], 2)
      ends = compensated.share_coefficients(weights)
      combine, values = self.blend, {**values, "blend": ends}
    if isinstance(action, float) or self.rule.needs_base:
      base, base_dtype = count, self.base.specs[leaf].dtype
    if not self.rule.affine and np.float64 in (stacked, base_dtype):
      stacked, base_dtype = self._in_float32(leaf, out, stacked, base_dtype)
    return self._limited(
      values,
      limit=max(1, specs[0].size) if self.rule.whole else None,
      combine=combine,
      sources=sources,
      base=base,
      stack_dtype=stacked,
      base_dtype=base_dtype,
      out_dtype=out,
      by_rule=True,
      extra=self._extra(leaf),
      indexed=self.rule.indexed,
      whole=self.rule.whole,
      affine=self.rule.affine,
    )

  def _in_float32(self, leaf, out, *dtypes):
    """Replaces float64 by float32 in dtypes; rejects float64 results."""
    if out == np.float64:
      raise ValueError(
        f"Leaf {leaf!r} is float64, but the rule {self.rule.name!r} computes "
        "in float32: pass dtype='float32' for a result in float32, or skip or "
        "keep the leaf with select=."
      )
    float32 = np.dtype(np.float32)
    return [float32 if dtype == np.float64 else dtype for dtype in dtypes]

  def _extra(self, leaf) -> tuple[int, ...]:
    if leaf not in self.with_extra:
      return ()
    start = len(self.ingredients) + (self.base is not None)
    return tuple(range(start, start + len(self.rule.extra)))

  def _weighted(self, rule, sources, stacked, out) -> Group:
    """Returns a group with the weights of a rule; None copies the leaves."""
    return self._limited(
      None if rule is None else rule.values(len(sources)),
      combine=None if rule is None else rule.combine,
      sources=sources,
      base=None,
      stack_dtype=stacked,
      base_dtype=None,
      out_dtype=out,
      affine=rule is not None,
    )

  def _limited(self, values, limit=None, **fields) -> Group:
    """Returns a group; its blocks have `block_bytes` if `limit` is None."""
    group = Group(values=values, limit=1, **fields)
    limit = limit or max(1, self.block_bytes // group.bytes_an_element)
    return dataclasses.replace(group, limit=limit)

  def _out_dtype(self, dtypes) -> np.dtype:
    if self.dtype is not None and jnp.issubdtype(dtypes[0], jnp.floating):
      return self.dtype
    if len(set(dtypes)) == 1:
      return dtypes[0]
    if np.float64 in dtypes:
      return np.dtype(np.float64)
    # JAX does not promote 8-bit floats.
    if any(dtype.itemsize == 1 for dtype in dtypes):
      return np.dtype(np.float32)
    return np.dtype(functools.reduce(jnp.promote_types, dtypes))
