# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""A digest of all leaves that soupjax stores in its checkpoints.

The checksums of single leaves do not show that a name, shape or dtype has
changed or that a leaf is missing.
"""

from collections.abc import Collection, Mapping
import hashlib
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
  for leaf, spec in sorted(specs.items()):
    crc = "" if checksums is None else f"\t{checksums[leaf]:08x}"
    lines.append(f"{leaf}\t{list(spec.shape)}\t{spec.dtype}{crc}\n")
  return hashlib.sha256("".join(lines).encode()).hexdigest()


def check(
  path: Any,
  specs: Mapping[str, jax.ShapeDtypeStruct],
  recorded: Any,
  names: Collection[str] = (),
) -> None:
  """Compares the leaves of a file with its recorded digest.

  Args:
    path: of the file.
    specs: leaf -> shape and dtype, from the file.
    recorded: the digest in the file; None if it has none.
    names: the leaves that have a recorded checksum: all leaves or none.

  Raises:
    ValueError: naming the leaves that differ.
  """
  missing = sorted(set(names) - set(specs))
  extra = sorted(set(specs) - set(names)) if names else []
  differences = []
  if missing:
    differences.append(f"{missing[:10]} are missing")
  if extra:
    differences.append(f"{extra[:10]} were not recorded")
  if not differences and recorded is not None and recorded != digest(specs):
    differences.append("a name, shape or dtype has changed")
  if differences:
    raise ValueError(
      f"{path} is damaged: its leaves are not those that were written "
      f"({' and '.join(differences)}). Copy it again from its source."
    )
