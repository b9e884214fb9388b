# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""A digest of the leaves in a file, kept in what soupjax writes.

The checksums of leaves cannot tell that a name, a shape or a dtype has changed,
or that a leaf is gone.
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
  """SHA-256 over names, shapes and dtypes of all leaves, in hexadecimal.

  Args:
    specs: leaf -> shape and dtype.
    checksums: leaf -> CRC-32 of its bytes, to be part of the digest.
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
  """Compares the leaves of a file with those that were written.

  Args:
    path: of the file.
    specs: leaf -> shape and dtype, as found.
    recorded: the digest in the file; None if it has none.
    names: leaves of which the file has a checksum; of all, or none.

  Raises:
    ValueError: saying how they differ.
  """
  lost = sorted(set(names) - set(specs))
  new = sorted(set(specs) - set(names)) if names else []
  if lost or new:
    what = f"recorded are also {lost[:10]}" if lost else ""
    what += " and " if lost and new else ""
    what += f"not recorded are {new[:10]}" if new else ""
  elif recorded is not None and recorded != digest(specs):
    what = "a name, shape or dtype has changed"
  else:
    return
  raise ValueError(
    f"{path} is damaged: its leaves are not those that were written ({what}). "
    "Copy it again from its source."
  )
