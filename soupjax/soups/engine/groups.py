# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Groups of leaves that are merged alike."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups import rules
from soupjax.soups.core import compensated, tree
from soupjax.soups.core.ingredient import Ingredient


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Group:
  """Leaves that go through one compiled function.

  Attributes:
    combine: as in `rules.Rule`; None copies the first source, and the others
      must be equal to it.
    values: the numbers for `combine`.
    sources: positions in `Plan.sources` that form the stack.
    base: position of the base, None if `combine` does without.
    stack_dtype: of the stack; float32 if the sources differ.
    base_dtype: of the base.
    out_dtype: what the result is rounded to.
    limit: elements of a block, unless a chunk has more.
    by_rule: whether `values` take what the rule measures.
    extra: positions of the sources that come as `values["extra"]`.
    indexed: whether the places of the elements come as `values["index"]`.
    whole: whether blocks are whole leaves, in their own shape.
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

  @property
  def layered(self) -> bool:
    """Whether blocks keep the first axis of a leaf: its layers."""
    return "by_layer" in (self.values or {}) and not self.whole

  @property
  def bytes_an_element(self) -> int:
    """Host bytes for one element: its stack, base and result."""
    base = self.base_dtype.itemsize if self.base is not None else 0
    base += 4 * len(self.extra) + 8 * self.indexed
    # Another dtype is made from float32, and both exist at worst.
    result = self.out_dtype.itemsize
    result += 0 if self.out_dtype == np.float32 else 4
    return self.stack_dtype.itemsize * len(self.sources) + base + result


def _blend(combine, stack, base, values):
  """A share of the way from the base to what a rule gives."""
  merged = combine(stack, base, values)
  return compensated.linear([base, merged], **values["blend"])


@dataclasses.dataclass
class GroupMaker:
  """Makes one `Group` for all leaves that can share it."""

  rule: rules.Rule
  values: Any
  leaf_values: Mapping[str, Any]
  with_extra: set[str]
  ingredients: list[Ingredient]
  base: Ingredient | None
  dtype: np.dtype | None
  block_bytes: int
  made: dict[Any, Group]
  notes: set[str]

  def __post_init__(self):
    self.blend = functools.partial(_blend, self.rule.combine)
    self.copy_one = rules.linear()

  def group(self, leaf: str, action: Any) -> Group:
    """The group of a leaf; see `soupjax.soups.select.actions`."""
    count = len(self.ingredients)
    if action == "keep":
      spec = self.base.specs[leaf]
      out = self._out([spec.dtype])
      if out == spec.dtype:
        return self._make(None, None, (count,), None, spec.dtype, None, out)
      combine, values = self.copy_one.combine, self.copy_one.values(1)
      return self._make(combine, values, (count,), None, spec.dtype, None, out)
    every = tuple(range(count))
    if isinstance(action, tuple):
      every = tuple(k for k in every if action[k])
      action = tuple(action[k] for k in every)
    used = [self.ingredients[k].specs[leaf] for k in every]
    dtypes = [spec.dtype for spec in used]
    if not tree.is_float(used[0]):
      return self._make(None, None, every, None, dtypes[0], None, dtypes[0])
    out, stacked = self._out(dtypes), dtypes[0]
    if len(set(dtypes)) > 1:
      stacked = np.dtype(np.float32)
      self.notes.add(
        f"The ingredients have mixed dtypes, {_names(dtypes)}: sums are in "
        f"float32, the soup is {out}."
      )
    if isinstance(action, tuple):
      weighted = rules.linear(action)
      combine, values = weighted.combine, weighted.values(len(every))
      return self._make(
        combine, values, every, None, stacked, None, out, action
      )
    combine, base = self.rule.combine, None
    values = {**self.values, **self.leaf_values.get(leaf, {})}
    if isinstance(action, float):
      ends = rules.linear([1 - action, action]).values(2)
      combine, values = self.blend, {**values, "blend": ends}
    if isinstance(action, float) or self.rule.needs_base:
      base = count
    base_dtype = None if base is None else self.base.specs[leaf].dtype
    return self._make(
      combine, values, every, base, stacked, base_dtype, out, action, leaf
    )

  def _out(self, dtypes) -> np.dtype:
    if self.dtype is not None and jnp.issubdtype(dtypes[0], jnp.floating):
      return self.dtype
    if len(set(dtypes)) == 1:
      return dtypes[0]
    # 8-bit floats have no common dtype of their own.
    if any(dtype.itemsize == 1 for dtype in dtypes):
      return np.dtype(np.float32)
    return np.dtype(functools.reduce(jnp.promote_types, dtypes))

  def _make(
    self,
    combine,
    values,
    sources,
    base,
    stacked,
    base_dtype,
    out,
    action=None,
    leaf=None,
  ):
    by_rule, rule = leaf is not None, self.rule
    alone = leaf if rule.by_leaf else None
    key = (combine, action, sources, base, stacked, base_dtype, out, alone)
    if key not in self.made:
      extra = ()
      if leaf in self.with_extra:
        start = len(self.ingredients) + (self.base is not None)
        extra = tuple(range(start, start + len(rule.extra)))
      group = Group(
        combine=combine,
        values=values,
        sources=sources,
        base=base,
        stack_dtype=stacked,
        base_dtype=base_dtype,
        out_dtype=out,
        limit=1,
        by_rule=by_rule,
        extra=extra,
        indexed=by_rule and rule.indexed,
        whole=by_rule and rule.whole,
      )
      limit = max(1, self.block_bytes // group.bytes_an_element)
      if group.whole:
        limit = max(1, self.ingredients[0].specs[leaf].size)
      self.made[key] = dataclasses.replace(group, limit=limit)
    return self.made[key]


def _names(dtypes) -> str:
  return " and ".join(sorted({str(d) for d in dtypes}))
