# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Digests of all leaves and of the record that soupjax stores with them.

The checksums of single leaves do not show that a name, shape or dtype has
changed, or that a leaf or the checksums themselves are missing.
"""

from collections.abc import Mapping
import functools
import hashlib
import json
from typing import Any

import jax

KEY = "soupjax_leaves"


def digest(
  specs: Mapping[str, jax.ShapeDtypeStruct],
  checksums: Mapping[str, int] | None = None,
) -> str:
  """Returns the hexadecimal SHA-256 of all names, shapes and dtypes.

  Args:
    specs: leaf -> shape and dtype.
    checksums: leaf -> CRC-32 of its bytes, if they should be included.
  """
  lines = []
  for leaf in sorted(specs):
    crc = "" if checksums is None else f"\t{checksums[leaf]:08x}"
    spec = specs[leaf]
    lines.append(f"{leaf}\t{_described(spec.shape, spec.dtype)}{crc}\n")
  return hashlib.sha256("".join(lines).encode()).hexdigest()


@functools.lru_cache(maxsize=4096)
def _described(shape: tuple[int, ...], dtype: Any) -> str:
  return f"{list(shape)}\t{dtype}"


def seal(
  specs: Mapping[str, jax.ShapeDtypeStruct], record: Mapping[str, Any]
) -> str:
  """Returns the seal of a file: digests of all leaves and of its record.

  With it, `check` detects a change of either, and the loss of the record.
  """
  return digest(specs) + _digest_of(json.loads(json.dumps(record)))


def _digest_of(record: Any) -> str:
  """Returns the hexadecimal SHA-256 of a record that was read from JSON."""
  text = json.dumps(record, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def check(
  path: Any,
  specs: Mapping[str, jax.ShapeDtypeStruct],
  sealed: Any,
  record: Any,
  *,
  has_checksums: bool = True,
) -> dict[str, int]:
  """Compares the leaves and the record of a file with its seal.

  Args:
    path: path of the file.
    specs: leaf -> shape and dtype, from the file.
    sealed: the seal in the file; None if it has none.
    record: the record that soupjax left in the file; None if it has none.
    has_checksums: whether the record has the checksum of every leaf.

  Returns:
    Leaf -> CRC-32; empty if the file has no record with checksums.

  Raises:
    ValueError: if the seal, the record or its checksums are missing while the
      others are present, or if leaves or record have changed.
  """
  if sealed is None and record is None:
    return {}
  if sealed is None or type(record) is not dict:
    lost = "its digest of the leaves" if sealed is None else "its record"
    raise damaged(path, f"{lost} is missing")
  checksums = record.get("crc32") if has_checksums else {}
  # Only their presence matters here: the seal below covers their values.
  if type(checksums) is not dict:
    raise damaged(path, "its checksums are missing")
  missing = sorted(checksums.keys() - specs.keys())
  extra = sorted(specs.keys() - checksums.keys()) if has_checksums else []
  differences = []
  if missing:
    differences.append(f"{missing[:10]} are missing")
  if extra:
    differences.append(f"{extra[:10]} were not recorded")
  leaves = digest(specs)
  if not differences and (type(sealed) is not str or sealed[:64] != leaves):
    differences.append("a name, shape or dtype has changed")
  if differences:
    raise damaged(
      path,
      "its leaves are not those that were written "
      f"({' and '.join(differences)})",
    )
  # Earlier seals cover only the leaves.
  if len(sealed) > len(leaves) and sealed != leaves + _digest_of(record):
    raise damaged(path, "its record has changed")
  try:
    return {leaf: int(value, 16) for leaf, value in checksums.items()}
  except (TypeError, ValueError) as e:
    raise damaged(path, f"a checksum in its record is not valid ({e})") from e


def damaged(path: Any, reason: str) -> ValueError:
  """Returns the error for a checkpoint that differs from its record."""
  return ValueError(
    f"{path} is damaged: {reason}. Copy it again from its source."
  )
