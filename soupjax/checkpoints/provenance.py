# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The provenance record stored with a soup, and the table of a plan."""

from collections.abc import Collection, Mapping, Sequence
import math
import os
from typing import Any
import warnings

import jax

from soupjax import files
from soupjax.checkpoints.formats import byte_ranges, leaf_digest
from soupjax.checkpoints.formats.recognise import absolute, recognise
from soupjax.soups.core import tree
from soupjax.soups.core.ingredient import Ingredient, storage_of
from soupjax.version import __version__

_UNKNOWN = "0" * 64
# Whether checksums of all, some or no leaves were compared. The record written
# before the mix uses the longest of these, so that the final one fits.
_VERIFIED = ("verified", "partly verified", "not verified")


def content_hash(
  specs: Mapping[str, jax.ShapeDtypeStruct], checksums: Mapping[str, int]
) -> str:
  """Returns the SHA-256 of the names, shapes, dtypes and CRC-32s of all leaves.

  Checkpoints with the same leaves have the same hash in any format. CRC-32
  detects damage and copies, but does not protect against forgery.

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
    path: path of a soup that `mix` wrote.

  Returns:
    Rule, weights, inputs with sizes and content hashes, version, dtype policy
    and usually a checksum of every leaf (npz files have their own); {} if the
    file has no such record.

  Raises:
    ValueError: if the checkpoint is missing or damaged.

  Examples:
    >>> make = sj.Ingredient.from_params
    >>> models = [make("a", {"w": jnp.array([1.0, 4.0])}),
    ...           make("b", {"w": jnp.array([3.0, 8.0])})]
    >>> mixed = sj.mix(sj.rules.linear(), models, out="soup.npz")
    >>> sj.provenance("soup.npz")["rule"]
    'uniform'
  """
  inner, file_format = recognise(absolute(path))
  with byte_ranges.naming(inner):
    return file_format.record(inner)


def of(plan, hash_inputs: bool) -> dict[str, Any]:
  """Returns the record of a mix before it runs, with placeholder hashes."""

  def entry(source: Ingredient):
    # If a source is not hashed after all, the record only gets shorter.
    known = storage_of(source).checksums.keys() | _empty(source)
    hashed = hash_inputs or known >= source.specs.keys()
    return {
      "name": source.name,
      "path": source.path,
      **({} if source.base is None else {"base": source.base.path}),
      "bytes": storage_of(source).num_bytes or source.num_bytes,
      "content_hash": _UNKNOWN if hashed else None,
      "checksums": None if source.path is None else _VERIFIED[1],
    }

  return {
    "soupjax": __version__,
    "rule": plan.rule.name,
    "settings": dict(plan.rule.settings),
    "ingredients": [entry(source) for source in plan.sources[: plan.count]],
    "base": None if plan.base is None else entry(plan.sources[plan.base]),
    **(
      {"statistics": [entry(source) for source in plan.rule.extra]}
      if plan.rule.extra
      else {}
    ),
    "select": {k: _json(v) for k, v in plan.select.items()},
    "dtype_policy": {
      "accumulate": "float32 with compensated sums, rounded once",
      "output": _dtypes(plan.specs),
    },
    "notes": list(plan.notes),
  }


def _empty(source) -> dict[str, int]:
  """Returns the checksums of empty leaves, which are 0."""
  return {leaf: 0 for leaf, spec in source.specs.items() if 0 in spec.shape}


def _dtypes(specs) -> list[str]:
  return sorted(map(str, {spec.dtype for spec in specs.values()}))


def _json(value):
  is_list = hasattr(value, "__len__") and not isinstance(value, str)
  return [float(v) for v in value] if is_list else value


def complete(provenance: dict[str, Any], plan, report) -> dict[str, Any]:
  """Fills in the hashes from a mix and warns about identical ingredients.

  The hash of a source is None unless the processes together read all of its
  leaves completely.
  """
  hashes: list[str | None] = []
  for source, checksums in zip(plan.sources, report.checksums):
    # Recorded checksums do not count: only verified ones can be trusted.
    checksums = {**_empty(source), **checksums}
    whole = checksums.keys() >= source.specs.keys()
    hashes.append(content_hash(source.specs, checksums) if whole else None)

  verified = _verified(plan, report.verified)

  def filled(entries, first):
    return [
      {**e, "content_hash": hashes[k], "checksums": verified[k]}
      for k, e in enumerate(entries, first)
    ]

  entries = filled(provenance["ingredients"], 0)
  for k, entry in enumerate(entries):
    twin = hashes.index(hashes[k])
    if hashes[k] and twin < k:
      warnings.warn(
        f"{entry['name']!r} and {entries[twin]['name']!r} hold the same "
        "weights.",
        stacklevel=3,
      )
  completed = {**provenance, "ingredients": entries}
  if plan.base is not None:
    (completed["base"],) = filled([provenance["base"]], plan.base)
  if plan.rule.extra:
    first = len(hashes) - len(plan.rule.extra)
    completed["statistics"] = filled(provenance["statistics"], first)
  return completed


def _verified(plan, leaves: Sequence[Collection[str]]) -> list[str | None]:
  """Returns, by source, whether all, some or no checksums are compared.

  Args:
    plan: the plan of the mix; only leaves that it reads count.
    leaves: leaves whose checksums are compared, for each source.
  """
  read, compared = ([0] * len(plan.sources) for _ in range(2))
  for leaf, group in plan.groups.items():
    for k in (*group.models, *group.extra):
      if 0 not in plan.sources[k].specs[leaf].shape:
        read[k] += 1
        compared[k] += leaf in leaves[k]

  def kind(k, source):
    if source.path is None:
      return None
    if compared[k] == read[k]:
      return _VERIFIED[0]
    return _VERIFIED[1 if compared[k] else 2]

  return [kind(k, source) for k, source in enumerate(plan.sources)]


def _checks(plan) -> str:
  """Describes which sources have checksums for all leaves that are read."""
  storages = map(storage_of, plan.sources)
  verified = _verified(plan, [s.summed.union(s.self_checked) for s in storages])
  sources = [s for s in zip(plan.sources, verified) if s[0].path is not None]
  names = [source.name for source, kind in sources if kind != _VERIFIED[0]]
  line = f"{len(sources) - len(names)} of {len(sources)} inputs"
  if not names:
    return line
  more = f" and {len(names) - 5} more" if names[5:] else ""
  return f"{line}; not verified: {', '.join(names[:5])}{more}"


def table(plan, pieces, target, host_bytes: int) -> str:
  """Returns the plan of a mix as a table."""
  rows = [("", "leaves", "parameters", "dtypes", "GB", "path")]
  for k, source in enumerate(plan.sources):
    name = source.name + (" (base)" if k == plan.base else "")
    rows.append(_row(name, source.specs, source.path or "in memory"))
  path = "in memory" if target is None else target.path
  rows.append(_row("soup", plan.specs, path))
  widths = [max(len(row[i]) for row in rows) for i in range(5)]
  lines = [
    "  ".join([*(c.ljust(w) for c, w in zip(row, widths)), row[5]]).rstrip()
    for row in rows
  ]
  lines.append(f"rule    {plan.rule.name} {dict(plan.rule.settings) or ''}")
  if plan.select:
    lines.append(f"select  {plan.select}")
  lines.append(
    f"reads   {plan.read_bytes / 1e9:.3f} GB in total, in {len(pieces)} pieces "
    "on this process"
  )
  if any(source.path for source in plan.sources):
    lines.append(f"checks  checksums of {_checks(plan)}")
  lines.append(f"writes  {plan.write_bytes / 1e9:.3f} GB")
  if target is not None:
    if target.on_mesh:
      lines.append("disk    none: each process writes its part of the soup")
    else:
      free = files.free_bytes(target.disk)
      lines.append(f"disk    {free / 1e9:.3f} GB free, as {target.format}")
    if target.beside:
      names = ", ".join(file.name for file in target.beside)
      lines.append(f"copies  {names}, from {plan.sources[0].name}")
    if target.left_beside:
      names = ", ".join(target.left_beside)
      lines.append(
        f"note    {names} of {plan.sources[0].name}: not copied, since other "
        "files are already beside out"
      )
  lines.append(
    f"memory  {host_bytes / 1e6:.1f} MB of buffers per process, excl. imports"
  )
  lines += [f"note    {note}" for note in plan.notes]
  return "\n".join(lines)


def _row(name, specs, path):
  return (
    name,
    str(len(specs)),
    f"{sum(math.prod(s.shape) for s in specs.values()):,}",
    ",".join(_dtypes(specs)),
    f"{tree.num_bytes(specs.values()) / 1e9:.3f}",
    path,
  )
