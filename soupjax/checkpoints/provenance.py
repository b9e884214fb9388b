# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Provenance that travels with a soup, and the plan as a table."""

from collections.abc import Mapping
import os
from typing import Any
import warnings

import jax

from soupjax.checkpoints.formats import leaf_digest, npz, safetensors, torch
from soupjax.checkpoints.formats.recognise import absolute, recognise
from soupjax.soups.core import slices
from soupjax.soups.core.ingredient import Ingredient, storage_of
from soupjax.version import __version__

_UNKNOWN = "0" * 64


def content_hash(
  specs: Mapping[str, jax.ShapeDtypeStruct], checksums: Mapping[str, int]
) -> str:
  """SHA-256 over names, shapes, dtypes and CRC-32 of all leaves.

  Two checkpoints have one hash if they hold the same leaves, whatever their
  format. CRC-32 finds damage and twins; it is no defence against forgery.

  Args:
    specs: leaf -> shape and dtype.
    checksums: leaf -> CRC-32 of its bytes, for every leaf.

  Returns:
    64 hexadecimal digits.
  """
  return leaf_digest.digest(specs, checksums)


def provenance(path: str | os.PathLike) -> dict[str, Any]:
  """Returns the record of how a soup was made.

  Args:
    path: of a soup that `mix` wrote.

  Returns:
    Rule, weights, inputs with sizes and content hashes, version, dtype policy
    and a checksum of every leaf; {} if the file has no such record.

  Raises:
    ValueError: if there is no checkpoint, or it is damaged.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> models = [make("a", {"w": jnp.array([1.0, 4.0])}),
    ...           make("b", {"w": jnp.array([3.0, 8.0])})]
    >>> mixed = sj.mix(sj.rules.linear(), models, out="soup.npz")
    >>> sj.provenance("soup.npz")["rule"]
    'uniform'
  """
  inner, opener = recognise(absolute(path))
  if opener is npz.open_checkpoint:
    return npz.comment(inner)
  if opener is safetensors.open_checkpoint:
    return safetensors.record(inner)
  if opener is torch.open_checkpoint:
    return {}
  # Orbax takes a second to import: only where it is needed.
  from soupjax.checkpoints.formats import orbax

  return orbax.custom_metadata(inner).get("soupjax") or {}


def of(plan, hash_inputs: bool) -> dict[str, Any]:
  """The record of a mix before it has run; hashes are filled in later."""

  def entry(source: Ingredient):
    entry = {
      "name": source.name,
      "path": source.path,
      "bytes": storage_of(source).num_bytes or source.num_bytes,
      "content_hash": None,
    }
    # Not all of them may be read; then there is less to write than expected.
    if hash_inputs or _known(source).keys() >= source.specs.keys():
      entry["content_hash"] = _UNKNOWN
    return entry

  return {
    "soupjax": __version__,
    "rule": plan.rule.name,
    "settings": dict(plan.rule.settings),
    "ingredients": [entry(source) for source in plan.sources[: plan.count]],
    "base": None if plan.base is None else entry(plan.sources[plan.base]),
    **(
      {"statistics": [entry(one) for one in plan.rule.extra]}
      if plan.rule.extra
      else {}
    ),
    "select": {k: _json(v) for k, v in plan.select.items()},
    "dtype_policy": {
      "accumulate": "float32 with compensated sums, rounded once",
      "output": sorted({str(s.dtype) for s in plan.specs.values()}),
    },
    "notes": list(plan.notes),
  }


def _known(source) -> dict[str, int]:
  """Checksums that are known without reading: of no bytes it is 0."""
  empty = {leaf: 0 for leaf, s in source.specs.items() if 0 in s.shape}
  return {**storage_of(source).checksums, **empty}


def _json(value):
  return (
    [float(v) for v in value]
    if hasattr(value, "__len__") and not (isinstance(value, str))
    else value
  )


def complete(provenance: dict[str, Any], plan, report) -> dict[str, Any]:
  """Fills in the content hashes that a mix has found; warns of twins.

  A source has one if the bytes of all its leaves were read and summed, by all
  processes together, else None.
  """
  hashes: list[str | None] = []
  for source, found in zip(plan.sources, report.checksums):
    empty = {leaf: 0 for leaf, s in source.specs.items() if 0 in s.shape}
    # Recorded sums do not count: of leaves that were not read whole, nobody
    # knows whether they are still true.
    sums = {**empty, **found}
    whole = all(leaf in sums for leaf in source.specs)
    hashes.append(content_hash(source.specs, sums) if whole else None)
  done = dict(provenance)
  entries = [*provenance["ingredients"]]
  for k, entry in enumerate(entries):
    entries[k] = {**entry, "content_hash": hashes[k]}
    twin = hashes.index(hashes[k])
    if hashes[k] and twin < k:
      warnings.warn(
        f"{entry['name']!r} and {entries[twin]['name']!r} hold the same "
        "weights.",
        stacklevel=3,
      )
  done["ingredients"] = entries
  if plan.base is not None:
    done["base"] = {**provenance["base"], "content_hash": hashes[plan.base]}
  if plan.rule.extra:
    last = hashes[-len(plan.rule.extra) :]
    done["statistics"] = [
      {**entry, "content_hash": found}
      for entry, found in zip(provenance["statistics"], last)
    ]
  return done


def table(plan, pieces, target, host_bytes: int) -> str:
  """The plan of a mix, for people."""
  rows = [("", "leaves", "parameters", "dtypes", "GB", "path")]
  for k, source in enumerate(plan.sources):
    name = source.name + (" (base)" if k == plan.base else "")
    rows.append(_row(name, source.specs, source.path or "in memory"))
  where = "in memory" if target is None else target.path
  rows.append(_row("soup", plan.specs, where))
  widths = [max(len(row[i]) for row in rows) for i in range(5)]
  lines = [
    "  ".join([*(c.ljust(w) for c, w in zip(row, widths)), row[5]]).rstrip()
    for row in rows
  ]
  lines.append(f"rule    {plan.rule.name} {dict(plan.rule.settings) or ''}")
  if plan.select:
    lines.append(f"select  {plan.select}")
  lines.append(
    f"reads   {plan.read_bytes / 1e9:.3f} GB in all, in {len(pieces)} pieces "
    "here"
  )
  lines.append(f"writes  {plan.write_bytes / 1e9:.3f} GB")
  if target is not None:
    lines.append(
      f"disk    {target.free_bytes() / 1e9:.3f} GB free, as {target.format}"
    )
  lines.append(
    f"memory  {host_bytes / 1e6:.1f} MB of buffers a process, beyond imports"
  )
  lines += [f"note    {note}" for note in plan.notes]
  return "\n".join(lines)


def _row(name, specs, path):
  sizes = {k: slices.size(slices.whole(s.shape)) for k, s in specs.items()}
  num_bytes = sum(sizes[k] * s.dtype.itemsize for k, s in specs.items())
  return (
    name,
    str(len(specs)),
    f"{sum(sizes.values()):,}",
    ",".join(sorted({str(s.dtype) for s in specs.values()})),
    f"{num_bytes / 1e9:.3f}",
    str(path),
  )
