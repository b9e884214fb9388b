# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a mix will do, worked out before a byte of weights is read."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from soupjax.soups import boxes, exact, leafwise, rules, tree
from soupjax.soups import select as selection
from soupjax.soups.ingredient import Ingredient, storage_of

# What one thread holds of all ingredients together, see `make`.
BLOCK_BYTES = 8 << 20


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
  def bytes_an_element(self) -> int:
    """Host bytes for one element: its stack, base and result."""
    base = self.base_dtype.itemsize if self.base is not None else 0
    base += 4 * len(self.extra) + 8 * self.indexed
    # The result exists in float32 and in its own dtype at worst.
    result = 4 + self.out_dtype.itemsize
    return self.stack_dtype.itemsize * len(self.sources) + base + result


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
  """A mix that has been checked.

  Attributes:
    rule: the merge rule.
    sources: the ingredients, then the base if there is one, then what else the
      rule reads.
    count: the number of ingredients.
    base: position of the base in `sources`, None if there is none.
    specs: leaf -> shape and dtype of the output, in the order of `treedef`.
    treedef: of the output.
    order: leaves of the output, in the order in which they are streamed.
    groups: leaf -> how it is made.
    chunks: leaf -> shape that pieces are aligned with, where sources need it.
    select: the selection, as given.
    notes: what a user should know, one sentence each.
    threads: how many read and average.
  """

  rule: rules.Rule
  sources: tuple[Ingredient, ...]
  count: int
  base: int | None
  specs: Mapping[str, jax.ShapeDtypeStruct]
  treedef: Any
  order: tuple[str, ...]
  groups: Mapping[str, Group]
  chunks: Mapping[str, tuple[int, ...]]
  select: Mapping[str, Any]
  notes: tuple[str, ...]
  threads: int

  @property
  def read_bytes(self) -> int:
    """Bytes of weights to be read, over all processes."""
    total = 0
    for leaf, group in self.groups.items():
      used = [*group.sources, *([] if group.base is None else [group.base])]
      total += sum(_num_bytes(self.sources[k].specs[leaf]) for k in used)
    return total

  @property
  def write_bytes(self) -> int:
    """Bytes of weights to be written, over all processes."""
    return sum(_num_bytes(spec) for spec in self.specs.values())


def _num_bytes(spec) -> int:
  return math.prod(spec.shape) * spec.dtype.itemsize


def make(
  rule: rules.Rule,
  ingredients: Sequence[Ingredient],
  *,
  base: Ingredient | None = None,
  dtype: Any = None,
  select: Mapping[str, Any] | None = None,
  block_bytes: int = BLOCK_BYTES,
  threads: int = 4,
) -> Plan:
  """Checks everything that metadata can tell, and plans a mix.

  Args:
    rule: from `soupjax.soups.rules`.
    ingredients: at least one.
    base: the model that the rule, or `select`, refers to.
    dtype: of the floating leaves of the output. None keeps that of the
      ingredients; where they differ, the one that holds both.
    select: regular expression -> what to do with the leaves in whose name it
      is found; the first that is found counts. "keep" takes them from the base,
      "skip" leaves them out, K numbers average them with these weights, and one
      number goes that share of the way from the base to what the rule gives.
    block_bytes: how much of all ingredients together a thread holds.
    threads: how many read and average.

  Returns:
    The plan.

  Raises:
    ValueError: listing what is wrong, by ingredient and leaf.
  """
  ingredients = list(ingredients)
  _check_names(ingredients, base)
  if rule.needs_base and base is None:
    raise ValueError(f"The rule {rule.name!r} needs a base model: pass base=.")
  if block_bytes < 1 or threads < 1:
    raise ValueError(
      f"block_bytes and threads must be positive, got {block_bytes} and "
      f"{threads}."
    )
  select = dict(select or {})
  actions = selection.actions(ingredients, base, select)
  selection.check(ingredients, base, rule.needs_base, actions)
  rule_values = rule.values(len(ingredients))
  leaf_values = leafwise.values(rule, ingredients, actions)
  extra = leafwise.check_extra(rule, ingredients, actions)
  dtype = None if dtype is None else _float_dtype(dtype)
  maker = _GroupMaker(
    rule,
    rule_values,
    leaf_values,
    extra,
    ingredients,
    base,
    dtype,
    block_bytes,
    {},
    set(),
  )
  groups = {
    leaf: maker.group(leaf, action)
    for leaf, action in actions.items()
    if action != "skip"
  }
  if not groups:
    raise ValueError(f"select={select} skips every leaf: nothing is left.")
  sources = (*ingredients, *([] if base is None else [base]))
  specs, treedef = _output(sources, groups)
  return Plan(
    rule=rule,
    sources=(*sources, *rule.extra),
    count=len(ingredients),
    base=None if base is None else len(ingredients),
    specs=specs,
    treedef=treedef,
    order=_order(sources, groups),
    groups=groups,
    chunks=_chunks(sources, groups),
    select=select,
    notes=tuple(sorted(maker.notes)) + _twins(sources),
    threads=threads,
  )


def _check_names(ingredients, base):
  if not ingredients:
    raise ValueError("A soup needs at least one ingredient, got none.")
  seen = set()
  for one in [*ingredients, *([] if base is None else [base])]:
    if not isinstance(one, Ingredient):
      raise TypeError(
        f"Expected an Ingredient, got a {type(one).__name__}. Wrap trees in "
        "memory with Ingredient.from_params(name, params), and open paths "
        "with open_ingredient(path)."
      )
    if one.name in seen and one is not base:
      raise ValueError(
        f"Two ingredients are called {one.name!r}. Names must differ, so that "
        "reports can say which one they mean."
      )
    seen.add(one.name)
    if not one.specs:
      raise ValueError(f"{one.name!r} has no leaves: nothing to average.")


def _float_dtype(dtype) -> np.dtype:
  try:
    found = jnp.dtype(dtype)
  except TypeError as e:
    raise ValueError(f"{dtype!r} is not a dtype.") from e
  if not jnp.issubdtype(found, jnp.floating) or found == np.float64:
    raise ValueError(
      f"A soup can be float32, bfloat16, float16 or float8, not {found}."
    )
  return found


def _blend(combine, stack, base, values):
  """A share of the way from the base to what a rule gives."""
  merged, ends = combine(stack, base, values), values["blend"]
  return exact.linear([base, merged], ends["weights"], ends["scale"])


@dataclasses.dataclass
class _GroupMaker:
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
    count = len(self.ingredients)
    if action == "keep":
      spec = self.base.specs[leaf]
      out = self._out([spec.dtype])
      if out == spec.dtype:
        return self._make(None, None, (count,), None, spec.dtype, None, out)
      combine, values = self.copy_one.combine, self.copy_one.values(1)
      return self._make(combine, values, (count,), None, spec.dtype, None, out)
    dtypes = [one.specs[leaf].dtype for one in self.ingredients]
    every = tuple(range(count))
    if not tree.is_float(self.ingredients[0].specs[leaf]):
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
      combine, values = weighted.combine, weighted.values(count)
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


def _output(sources, groups):
  """Specs and treedef of the output, in the containers of a source."""
  shapes = {}
  for leaf, group in groups.items():
    shape = sources[group.sources[0]].specs[leaf].shape
    shapes[leaf] = jax.ShapeDtypeStruct(shape, group.out_dtype)
  for one in sources:
    if set(one.specs) == set(shapes):
      return {leaf: shapes[leaf] for leaf in one.specs}, one.treedef
  return tree.nest(shapes)


def _order(sources, groups) -> tuple[str, ...]:
  order = dict.fromkeys(storage_of(sources[0]).order)
  order |= dict.fromkeys(groups)
  # Integers first: if they differ, that shows before the long work begins.
  return tuple(
    sorted(
      (leaf for leaf in order if leaf in groups),
      key=lambda leaf: groups[leaf].combine is not None,
    )
  )


def _chunks(sources, groups) -> dict[str, tuple[int, ...]]:
  """The coarsest chunks of the sources; whole leaves if they do not nest."""
  stored = [storage_of(one).chunks for one in sources]
  chunks = {}
  for leaf, group in groups.items():
    used = [*group.sources, *([] if group.base is None else [group.base])]
    found = [stored[k][leaf] for k in used if leaf in stored[k]]
    if found:
      chunks[leaf] = align(found)
  return chunks


def align(found: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
  """A chunk shape whose edges are edges of all the given ones."""
  return tuple(math.lcm(*(max(1, n) for n in axis)) for axis in zip(*found))


def _twins(sources) -> tuple[str, ...]:
  """Notes on ingredients that are one and the same, as far as files tell."""
  seen, notes = {}, []
  for one in sources:
    sums = storage_of(one).checksums
    keys = [("path", one.path)] if one.path else []
    if sums and set(sums) == set(one.specs):
      keys.append(("content", tuple(sorted(sums.items()))))
    for key in keys:
      if key in seen and seen[key] != one.name:
        notes.append(f"{one.name!r} and {seen[key]!r} have the same {key[0]}.")
        break
      seen[key] = one.name
  for note in notes:
    warnings.warn(note, stacklevel=4)
  return tuple(notes)


def pieces(
  plan: Plan,
  parts: Mapping[str, Sequence[boxes.Box]],
  chunks: Mapping[str, tuple[int, ...]],
) -> list[tuple[str, boxes.Box]]:
  """Cuts the parts of all leaves to pieces of bounded size.

  Args:
    plan: of the mix.
    parts: leaf -> what of it is wanted here.
    chunks: leaf -> shape that pieces are aligned with.

  Returns:
    (leaf, box), in the order of the plan.
  """
  return [
    (leaf, piece)
    for leaf in plan.order
    for box in parts.get(leaf, ())
    if boxes.size(box)
    for piece in boxes.split(box, plan.groups[leaf].limit, chunks.get(leaf))
  ]


def share(
  found: Sequence[tuple[str, boxes.Box]], index: int, count: int
) -> list[tuple[str, boxes.Box]]:
  """The pieces of one of `count` processes: a stretch of about equal size."""
  ends = np.cumsum([boxes.size(box) for _, box in found])
  total = int(ends[-1]) if len(ends) else 0
  middle = ends - np.array([boxes.size(box) for _, box in found]) / 2
  low, high = total * index / count, total * (index + 1) / count
  return [one for one, at in zip(found, middle) if low <= at < high]
