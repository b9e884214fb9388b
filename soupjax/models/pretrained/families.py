# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Recognises the library of a checkpoint by the names of its leaves."""

from collections.abc import Collection, Iterator, Mapping, Sequence
import dataclasses
import re

from soupjax.models import layers
from soupjax.models.pretrained import foreign, mappings, tables
from soupjax.soups.core import tree
from soupjax.soups.core.ingredient import Ingredient

# Rules for leaves that no family uses.
_IGNORED = {
  "loss": r"^(criterion|loss|loss_fn|loss_function)\.",
  "counter of averaged models": r"^n_averaged$",
}
# A linear layer on the features, in modules that users wrap around a model.
_HEAD = re.compile(
  r"((cls_|class_|linear_|lin_)?head|heads|classifier|classification_head|fc"
  r"|clf|linear|probe)([./](head|fc|linear|classifier|0))?[./](\w+)"
)
# OpenCLIP's projection on top of a model of timm.
_PROJECTION = re.compile(r"head\.proj\.(\w+)")
_WEIGHTS = {"weight": "kernel", "kernel": "kernel", "bias": "bias"}
# Kernels of the first layers of our models.
_STEMS = {"embedding/kernel", "stem/kernel", "root_block/conv_root/kernel"}


def recognise(
  source: Ingredient, family: str | None, skip: Sequence[str] = ()
) -> foreign.SourceTable:
  """Determines the family of a checkpoint from the names in its first block.

  Args:
    source: a checkpoint; its weights are not read.
    family: its family if it is known.
    skip: regular expressions of names to leave out.

  Returns:
    Its leaves with the table of the family.

  Raises:
    ValueError: if the family does not exist, or if none or several fit.
  """
  if family is not None:
    layers.check_choice("family", family, mappings.FAMILIES)
  entries = foreign.entries(source)
  where = source.path or repr(source.name)
  dropped = frozenset(
    name for name in entries if any(_search(p, name) for p in skip)
  )
  rest = {k: entry for k, entry in entries.items() if k not in dropped}
  name, prefix = _family_and_prefix(rest, family, where) or (
    # skip may leave out all of the first block.
    _family_and_prefix(entries, family, where) or (family, "")
  )
  if name is None:
    raise _unknown(list(entries), where)
  ignored = _ignored(entries, name, prefix)
  names = {leaf for group in ignored.values() for leaf in group}
  kept = {leaf: e for leaf, e in entries.items() if leaf not in names}
  return foreign.SourceTable(
    name,
    kept,
    prefix,
    where,
    outer=_outer_layers([n for n in kept if n not in dropped], name, prefix),
    ignored=ignored,
    dropped=dropped,
    unread={leaf: e for leaf, e in entries.items() if leaf in names},
  )


def with_prefix(
  source: Ingredient, skip: Sequence[str], prefix: str
) -> Sequence[str]:
  """Adds an expression that leaves out all names without a prefix.

  Args:
    source: the checkpoint.
    skip: regular expressions of other names to leave out.
    prefix: start of the names of a model in it; "" adds nothing.

  Returns:
    The expressions.

  Raises:
    ValueError: if no model has the prefix, listing the prefixes of the models
      in the checkpoint.
  """
  if not prefix:
    return skip
  models = _models_in(foreign.entries(source))
  if not any(leaf.startswith(prefix) for leaf in models):
    starts = sorted({repr(start) for start in models.values()})
    there = f"the models in it have {', '.join(starts)}" if starts else (
      f"its leaves are called, for instance, {list(source.specs)[:3]}"
    )  # fmt: skip
    raise ValueError(
      f"{source.path or source.name} has no model with prefix={prefix!r}: "
      f"{there}."
    )
  return (*skip, f"^(?!{re.escape(prefix)})")


def under(source: Ingredient, prefix: str) -> Ingredient:
  """Keeps one of several models in a checkpoint; reads no weights.

  Args:
    source: the checkpoint.
    prefix: start of the model's names, such as "module.base_encoder."; "" keeps
      all.

  Returns:
    `source` with only the leaves of this model, under the same names.

  Raises:
    ValueError: as for `with_prefix`.
  """
  patterns = with_prefix(source, [], prefix)
  if all(leaf.startswith(prefix) for leaf in source.specs):
    return source
  return without(source, patterns[-1])


def _models_in(leaves: Collection[str]) -> dict[str, str]:
  """Returns the first norm of each model in a file -> the prefix before it."""
  norms = {
    name
    for kind in mappings.FAMILIES.values()
    for name in _first_block(kind, norm=True)
  }
  longest_first = sorted(norms, key=len, reverse=True)
  result = {}
  for leaf in leaves:
    for name in longest_first:
      if leaf == name or leaf.endswith((f".{name}", f"/{name}")):
        result[leaf] = leaf.removesuffix(name)
        break
  return result


def without(source: Ingredient, skip: str) -> Ingredient:
  """Removes leaves from a checkpoint; reads no weights.

  Args:
    source: the checkpoint.
    skip: regular expression of the names to remove.

  Returns:
    `source` with only the other leaves.

  Raises:
    ValueError: if the expression is invalid, or matches all leaves or none.
  """
  kept = {k: v for k, v in source.specs.items() if not _search(skip, k)}
  if len(kept) in (0, len(source.specs)):
    raise ValueError(
      f"skip={skip!r} matches {'all' if not kept else 'no'} leaves of "
      f"{source.path or source.name}, which are called, for instance, "
      f"{', '.join(map(repr, list(source.specs)[:3]))}."
    )
  specs, treedef = tree.nest(kept)
  return dataclasses.replace(source, specs=specs, treedef=treedef, storage=None)


def _search(pattern: str, name: str) -> bool:
  try:
    return bool(re.search(pattern, name))
  except re.error as e:
    raise ValueError(
      f"{pattern!r} in skip is not a regular expression: {e}."
    ) from e


def _unknown(leaves: list[str], where: str) -> ValueError:
  known = "; ".join(f"{k!r}: {v.about}" for k, v in mappings.FAMILIES.items())
  return ValueError(
    f"{where} does not belong to a known family ({known}): its leaves have "
    f"names such as {', '.join(map(repr, leaves[:3]))}. Rename them, or "
    "give family= to list the missing leaves."
  )


def _family_and_prefix(
  leaves: Mapping[str, foreign.Entry], family: str | None, where: str
) -> tuple[str, str] | None:
  """Returns the family and the prefix of its names, None if none fits."""
  candidates = {
    name: kind
    for name, kind in mappings.FAMILIES.items()
    if family in (None, name)
  }
  known = set(leaves)
  fits = [
    (name, prefix)
    for name, kind in candidates.items()
    for prefix in kind.prefixes
    if any(prefix + leaf in known for leaf in _first_block(kind))
  ] or [
    (name, prefix)
    for name, kind in candidates.items()
    for prefix in sorted(_outer_prefixes(kind, leaves), key=len)
  ]
  fits = _best(fits, leaves)
  if len(fits) > 1:
    first, *others = sorted({prefix for _, prefix in fits})
    pattern = "|".join(f"^{re.escape(prefix)}" for prefix in others)
    raise ValueError(
      f"{where} fits several (family, prefix) pairs, {sorted(fits)}: "
      + (
        "it has several models. Leave out all but one by their names, such as "
        f"with skip=['{pattern}'] (keys skip and init.skip of configs), which "
        f"keeps {first!r}; or choose one with prefix= (keys prefix and "
        "init.prefix)."
        if others
        else "give family=."
      )
    )
  return fits[0] if fits else None


def _best(
  fits: Sequence[tuple[str, str]], leaves: Mapping[str, foreign.Entry]
) -> list[tuple[str, str]]:
  """Drops pairs whose leaves are a subset of another pair's, or equal.

  Names of a family can contain others, as "vit.layers" contains "layers".
  """
  named = {pair: _named(*pair, leaves) for pair in fits}
  # Text towers can have the blocks of a family, but embed no patches.
  with_patches = {
    pair: found
    for pair, found in named.items()
    if _STEMS & set(found) and _embeds(pair[0], found, leaves)
  }
  sets = {k: set(v.values()) for k, v in (with_patches or named).items()}
  best: list[tuple[str, str]] = []
  for pair, found in sets.items():
    larger = any(found < other for other in sets.values())
    if not larger and not any(found == sets[other] for other in best):
      best.append(pair)
  return best


def _embeds(family, found, leaves) -> bool:
  """Whether the patch embedding has as many axes as in the family."""
  if "embedding/kernel" not in found:
    return True
  row = foreign.rows_of(mappings.FAMILIES[family], "embedding/kernel")[0]
  axes = len(leaves[found["embedding/kernel"]].shape)
  return tables.LAYOUTS[row.layout].ndim in (None, axes)


def _named(family, prefix, leaves) -> dict[str, str]:
  """Returns our leaf -> its name, for names that follow the prefix."""
  kind, result = mappings.FAMILIES[family], {}
  for name in leaves:
    if name.startswith(prefix):
      leaf = foreign.leaf_of(kind, name[len(prefix) :])
      if leaf is not None:
        result.setdefault(leaf, name)
  return result


def _first_block(family: tables.Family, norm: bool = False) -> list[str]:
  """Returns the names in the first block, or only those of its first norm."""
  leaf = family.first_norm
  start = leaf if norm else leaf.removesuffix("/".join(leaf.split("/")[-2:]))
  return [
    name.replace("{i}", "0")
    for row in family.rows
    if row.leaf.startswith(start)
    for name in row.names
  ]


def _outer_prefixes(family: tables.Family, leaves: Collection[str]) -> set[str]:
  """Returns the prefixes of models inside other modules of any name."""
  return {
    leaf.removesuffix(name)
    for leaf in leaves
    for name in _first_block(family, norm=True)
    if leaf.endswith((f".{name}", f"/{name}"))
  }


# --- Leaves outside the model -------------------------------------------------


def _relative(name: str, prefix: str) -> Iterator[str]:
  """Yields a name without the prefix, then without ever shorter parts of it."""
  for end in range(len(prefix), -1, -1):
    if name.startswith(prefix[:end]) and (not end or prefix[end - 1] in "./"):
      yield name[end:]


def _ignored(
  leaves: Collection[str], family: str, prefix: str
) -> dict[str, list[str]]:
  """Returns rule -> leaves that are not weights of the tower."""
  rules: Mapping[str, str] = {**_IGNORED, **mappings.FAMILIES[family].ignored}
  kind, result = mappings.FAMILIES[family], {}
  for name in leaves:
    if name.startswith(prefix) and foreign.leaf_of(kind, name[len(prefix) :]):
      continue
    for rule, pattern in rules.items():
      if any(re.search(pattern, rest) for rest in _relative(name, prefix)):
        result.setdefault(rule, []).append(name)
        break
  return result


def _outer_layers(
  leaves: Collection[str], family: str, prefix: str
) -> dict[str, str]:
  """Returns our leaf -> name of a head or projection outside the model.

  Each must be the only candidate: of several, only the code around the model
  shows which one computes the outputs.
  """
  kind = mappings.FAMILIES[family]
  inner = set(_named(family, prefix, leaves))
  modules: dict[tuple[str, str], dict[str, str]] = {}
  for name in leaves:
    if name.startswith(prefix) and foreign.leaf_of(kind, name[len(prefix) :]):
      continue
    for rest in _relative(name, prefix):
      for layer, pattern in (("proj", _PROJECTION), ("head", _HEAD)):
        match = pattern.fullmatch(rest)
        if match and not re.search(kind.not_heads, rest):
          part = match[match.lastindex]
          module, part = name.removesuffix(part), _WEIGHTS.get(part, part)
          modules.setdefault((layer, module), {})[f"{layer}/{part}"] = name
  result: dict[str, str] = {}
  for layer in ("proj", "head"):
    found = [v for (key, _), v in modules.items() if key == layer]
    if len(found) == 1 and f"{layer}/kernel" not in inner:
      [names] = found
      module = re.sub(r"\b0[./]\w+$", "", next(iter(names.values())))
      # The first of several layers is not the head.
      if not any(
        k.startswith(module) and k not in names.values()
        for k in leaves
        if module.endswith((".", "/"))
      ):
        result |= names
  return result
