# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Recognises the library of a checkpoint by the names of its leaves."""

from collections.abc import Collection
import re

from soupjax.models import layers
from soupjax.models.pretrained import foreign, mappings
from soupjax.soups.core.ingredient import Ingredient


def recognise(source: Ingredient, family: str | None) -> foreign.SourceTable:
  """Tells the family of a checkpoint from the names in its first block.

  Args:
    source: a checkpoint; its weights are not read.
    family: its family if that is known.

  Returns:
    Its leaves with the table of the family, less those that are not weights of
    the model.

  Raises:
    ValueError: if the family does not exist, or none fits or several do.
  """
  if family is not None:
    layers.check_choice("family", family, mappings.FAMILIES)
  entries = foreign.entries(source)
  where = source.path or repr(source.name)
  name, prefix = _family_and_prefix(entries, family, where)
  ignored = re.compile(mappings.FAMILIES[name].ignored)
  entries = {
    leaf[len(prefix) :]: entry
    for leaf, entry in entries.items()
    if leaf.startswith(prefix) and not ignored.search(leaf[len(prefix) :])
  }
  return foreign.SourceTable(name, entries, prefix, where)


def _family_and_prefix(leaves, family, where):
  candidates = {
    name: kind
    for name, kind in mappings.FAMILIES.items()
    if family in (None, name)
  }
  fits = {
    (name, prefix)
    for name, kind in candidates.items()
    for prefix in kind.prefixes
    if any(prefix + leaf in leaves for leaf in _first_block(kind, "{i}"))
  } or {
    (name, prefix)
    for name, kind in candidates.items()
    for prefix in _outer_prefixes(kind, leaves)
  }
  if len(fits) == 1:
    return fits.pop()
  if fits:
    raise ValueError(
      f"{where} fits several (family, prefix) pairs, {sorted(fits)}: give "
      "family=, or a checkpoint with the weights of one model only."
    )
  if family is not None:
    return family, ""  # The comparison with the model lists what is missing.
  known = "; ".join(f"{k!r}: {v.about}" for k, v in mappings.FAMILIES.items())
  raise ValueError(
    f"{where} does not belong to a known family ({known}): its leaves have "
    f"names such as {', '.join(map(repr, list(leaves)[:3]))}. Rename them, or "
    "give family= to list what is missing."
  )


def _first_block(family: mappings.Family, key: str) -> list[str]:
  """Returns names in block 0 of rows whose leaf contains `key`."""
  return [
    name.replace("{i}", "0")
    for row in family.rows
    if key in row.leaf and "{i}" in row.leaf
    for name in row.names
  ]


def _outer_prefixes(
  family: mappings.Family, leaves: Collection[str]
) -> set[str]:
  """Returns the prefixes of a model inside other modules of any name."""
  prefixes = {
    leaf.removesuffix(name)
    for leaf in leaves
    for name in _first_block(family, f"{mappings.BLOCK}LayerNorm_0/scale")
    if leaf.endswith((f".{name}", f"/{name}"))
  }
  # If one prefix continues another, only the longer one is the model's.
  return {
    prefix
    for prefix in prefixes
    if not any(p != prefix and prefix.startswith(p) for p in prefixes)
  }
