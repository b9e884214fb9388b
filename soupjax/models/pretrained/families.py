# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Recognises the library of a checkpoint by the names of its leaves."""

from collections.abc import Mapping
import re

from soupjax.models import layers
from soupjax.models.pretrained import foreign, mappings


def recognise(
  found: Mapping[str, foreign.Entry], family: str | None, where: str
) -> tuple[str, str]:
  """Tells the family of a checkpoint from the names in its first block.

  Args:
    found: its leaves.
    family: a name if it is known.
    where: what errors call the checkpoint.

  Returns:
    The family, and what stands before all names.

  Raises:
    ValueError: if there is no such family, none fits or several do.
  """
  if family is not None:
    layers.check_choice("family", family, mappings.FAMILIES)
  fits = {
    (name, prefix): hits
    for name, one in mappings.FAMILIES.items()
    if family in (None, name)
    for prefix in one.prefixes
    if (hits := _hits(one, prefix, found))
  } or _wrapped(found, family)
  if len(fits) == 1:
    return next(iter(fits))
  if family is not None and not fits:
    return family, ""  # What is missing is said later.
  known = "; ".join(f"{k!r}: {v.about}" for k, v in mappings.FAMILIES.items())
  shown = ", ".join(map(repr, list(found)[:3]))
  if not fits:
    raise ValueError(
      f"{where} is of no family that is known ({known}): its leaves are "
      f"called, for instance, {shown}. Rename them, or give family= to see "
      "what is missing."
    )
  raise ValueError(
    f"{where} could be several things, (family, prefix) {sorted(fits)}: give "
    "family=, or a checkpoint with the weights of one model only."
  )


def _hits(family, prefix, found) -> int:
  """How many leaves of block 0 are there."""
  return sum(
    any(prefix + theirs.replace("{i}", "0") in found for theirs in row.theirs)
    for row in family.rows
    if "{i}" in row.ours
  )


def _wrapped(found, family) -> dict[tuple[str, str], int]:
  """The same for a model inside another module, whatever that calls it."""
  fits = {}
  for name, one in mappings.FAMILIES.items():
    if family not in (None, name):
      continue
    firsts = [
      theirs.replace("{i}", "0")
      for row in one.rows
      if row.ours == f"{mappings.BLOCK}LayerNorm_0/scale"
      for theirs in row.theirs
    ]
    prefixes = {
      leaf.removesuffix(first)
      for leaf in found
      for first in firsts
      if leaf.endswith(f".{first}") or leaf.endswith(f"/{first}")
    }
    for prefix in prefixes:
      # Where names are in one another, the longer one is the model's.
      if not any(p != prefix and prefix.startswith(p) for p in prefixes):
        fits[name, prefix] = _hits(one, prefix, found)
  return fits


def without_prefix(
  found: Mapping[str, foreign.Entry], prefix: str, family: mappings.Family
) -> dict[str, foreign.Entry]:
  """The leaves of the model alone, without what stands before their names."""
  return {
    name[len(prefix) :]: entry
    for name, entry in found.items()
    if name.startswith(prefix)
    and not re.search(family.ignored, name[len(prefix) :])
  }
